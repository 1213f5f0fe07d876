"""Every reader of files, fed thousands of damaged ones: none may hang, eat memory, or raise what it does not document.

The inputs are numbered; each is made anew from its number and the seed. One that fails is shrunk, kept in ``out/fuzz``
and printed with the command that reads it again. To read many:

    .venv/bin/python -m tests.test_fuzz --inputs 100000 --seed 1
"""

import argparse
import gzip
import json
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from blslib.diagnosis import traces
from blslib.diagnosis.tracefile import TraceError
from blslib.lab.ranks.launch import run_guarded
from blslib.workloads.aliccp import AliCcp
from blslib.workloads.criteo import Criteo
from blslib.workloads.files import DataError, Loader
from tests.conftest import ROOT

LIMIT_S = 5.0
"""For one input, on a machine that has other things to do."""

LARGEST_BYTES = 1 << 18
"""Of an input, so that an honest reader of faulty lines has no more than those of a quarter of a megabyte to report."""

SPARE_BYTES = 400 << 20
"""Address space beyond what the imports take. Readers that stream need a fraction of it."""

Files = tuple[bytes, ...]


class Hung(BaseException):
    """An input took longer than ``LIMIT_S``; no reader can mistake it for an error of its own."""


@dataclass(frozen=True)
class Target:
    """A reader, whole inputs to start from, and the errors that it documents."""

    read: Callable[[list[Path]], object]
    seeds: list[Files]
    errors: tuple[type[Exception], ...]


# --- the readers -----------------------------------------------------------------------------------------------------


def batches(loader: Loader) -> None:
    """Read all, and look whether what comes out is what batches are."""
    for batch in loader:
        for ids, offsets, rows in zip(batch.ids, batch.offsets, loader.rows, strict=True):
            assert offsets[0] == 0 and offsets[-1] == len(ids) and (np.diff(offsets) >= 0).all()
            assert not ids.size or (ids.min() >= 0 and ids.max() < rows)
        assert np.isfinite(batch.dense).all() and set(batch.labels) <= {0.0, 1.0}


def criteo(paths: list[Path]) -> None:
    batches(Criteo(paths[0], 3, on_error="skip"))
    batches(Criteo(paths[0], 3))


def aliccp(paths: list[Path]) -> None:
    for on_error in ("skip", "raise"):
        try:
            batches(AliCcp(paths[0], 3, on_error=on_error, common=paths[1]))
        except ValueError as error:
            if "cannot be the common features" not in str(error):
                raise


def trace(paths: list[Path]) -> None:
    found = traces.read(paths)
    assert found.work_s.ndim == 2 and np.isfinite(found.work_s).all() and (found.work_s >= 0).all()
    assert found.total_s is None or np.isfinite(found.total_s)


def seeds() -> dict[str, list[Files]]:
    """Small whole inputs of every form, from the real samples where they are."""
    data = ROOT.parent / "shared" / "data"
    headed = data / "criteo_kaggle_tiny.csv"
    one_line = data / "aliccp_multihot_small.txt"
    row = b"1\t" + b"\t".join([b"1", b"", b"-3"] * 4 + [b"7"]) + b"\t" + b"\t".join([b"68fd1e64", b""] * 13) + b"\n"
    names = ["Id", "Label", *(f"I{n}" for n in range(1, 14)), *(f"C{n}" for n in range(1, 27))]
    made = ",".join(names).encode() + b"\n" + b"1," + row.replace(b"\t", b",")
    kaggle = [row * 4, b"".join(headed.read_bytes().splitlines(True)[:5]) if headed.exists() else made]
    lines = b"1,1,0,210:8,205:9,210:11,101:12,127:15,127_14:16\n2,0,0,205:7,121:10,101:12,110_14:20\n"
    if one_line.exists():
        lines = b"".join(line[:300].rpartition(b",")[0] + b"\n" for line in one_line.read_bytes().splitlines()[:4])
    skeleton = b"1,1,0,u1,2,210\x021\x031.0\x01205\x026\x030.5\n2,0,0,u2,1,205\x027\x031.0\n"
    common = b"u1,2,101\x0212\x031.0\x01121\x0210\x030.69\nu2,1,101\x0213\x031.0\n"
    table = "rank,iteration,compute_s,exchange_s\n"
    table += "".join(f"{r},{i},0.0{r + 1},0.001\n" for r in (0, 1) for i in (0, 1))
    recorded = ",".join(traces.RECORD_COLUMNS) + "\n"
    recorded += "".join(f"{r},{i},1,64,{i + 0.1 * r},{i + 0.5}\n" for r in (0, 1) for i in (0, 1, 2))
    chrome = tuple(json.dumps(timeline(rank), indent=1).encode() for rank in (0, 1))
    packed = [(gzip.compress(text, mtime=0),) for text in kaggle]
    return {
        "criteo": [*((text,) for text in kaggle), *packed],
        "aliccp": [(lines, common), (gzip.compress(lines, mtime=0), common), (skeleton, common)],
        "trace": [(table.encode(),), (recorded.encode(),), chrome, (chrome[0], gzip.compress(chrome[1], mtime=0))],
    }


def timeline(rank: int) -> dict[str, object]:
    """A trace as torch.profiler writes it."""
    names = ("c10d::alltoall_base_", "aten::mm", "gloo:all_to_all")
    events = [
        {"ph": "X", "cat": "cpu_op", "name": name, "pid": 1, "tid": 1, "ts": 100.5 * i + 10 * n, "dur": 5 + rank}
        for i in range(4)
        for n, name in enumerate(names)
    ]
    return {"schemaVersion": 1, "distributedInfo": {"rank": rank, "world_size": 2}, "traceEvents": events}


def targets() -> dict[str, Target]:
    found = seeds()
    return {
        "criteo": Target(criteo, found["criteo"], (DataError,)),
        "aliccp": Target(aliccp, found["aliccp"], (DataError,)),
        "trace": Target(trace, found["trace"], (TraceError,)),
    }


# --- damage ----------------------------------------------------------------------------------------------------------

# fmt: off
TOKENS = [
    b"", b" ", b"\0", b"\xff", b"\n", b"\r\n", b"\r", b",", b"\t", b":", b"\x01", b"\x02", b"\x03", b'"', b"'", b"\\",
    b"-1", b"9" * 19, b"9" * 400, b"1e999", b"NaN", b"-inf", b"1_0", b"0x1", b"\xef\xbb\xbf", b"1000000000000",
    "٣".encode(), b"\\u12",
    b"{", b"}", b"[", b"]", b"[" * 3000, b'{"a":' * 3000, b"null", b"true", b"{}", b"\x1f\x8b", b"\x1f\x8b\x08\0",
    b"rank", b"rank,rank", b"traceEvents", b'"ph": "X"', b'"dur": -1', b'"ts": null',
    b'"rank": 9', b'"rank": -1', b'"pid": {}', b'"world_size": "x"',
    b"a" * 100_000, b"1," * 50_000, b"\n" * 2_000,
]
# fmt: on


def damage(rng: random.Random, text: bytes, others: list[bytes]) -> bytes:
    """One small disaster."""
    at, to = sorted(rng.randrange(len(text) + 1) for _ in range(2))
    short = min(to, at + rng.choice((1, 2, 8, 64)))
    kind = rng.randrange(9)
    if kind == 0:
        return text[:at]
    if kind == 1:
        return text[:at] + text[short:]
    if kind == 2:
        return text[:at] + rng.choice(TOKENS) + text[at:]
    if kind == 3:
        return text[:at] + rng.choice(TOKENS) + text[short:]
    if kind == 4:
        return text[:at] + rng.randbytes(short - at) + text[short:]
    if kind == 5:
        return text[:at] + text[at:to] * rng.choice((2, 2, 3, 50)) + text[to:]
    if kind == 6:
        return text[:at] + rng.choice(others)[at:]
    if kind == 7:
        return text[:at] + bytes([text[at] ^ 1 << rng.randrange(8)]) + text[at + 1 :] if at < len(text) else text
    lines = text.splitlines(keepends=True)
    rng.shuffle(lines)
    return b"".join(lines)


def made(target: Target, seed: int, number: int) -> Files:
    """Input ``number``: a whole one with up to four disasters, before or after packing."""
    rng = random.Random(f"{seed} {number}")
    files = list(rng.choice(target.seeds))
    others = [text for each in target.seeds for text in each]
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        n = rng.randrange(len(files))
        packed = files[n][:2] == b"\x1f\x8b" and rng.random() < 0.5
        try:
            text = gzip.decompress(files[n]) if packed else files[n]
        except (OSError, EOFError, zlib.error):
            packed, text = False, files[n]
        text = damage(rng, text, others)[:LARGEST_BYTES]
        files[n] = gzip.compress(text, 1, mtime=0) if packed else text
    return tuple(files)


# --- the run ---------------------------------------------------------------------------------------------------------


def attempt(target: Target, files: Files, folder: Path) -> str:
    """Read one input: "" if it was read, "refused" if by a documented error, else what happened instead."""
    paths = [folder / f"input-{n}" for n in range(len(files))]
    for path, content in zip(paths, files, strict=True):
        path.write_bytes(content)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        target.read(paths)
        return ""
    except target.errors as error:
        return "refused" if str(error).strip() else f"an empty {type(error).__name__}"
    except Hung:
        return f"no end after {LIMIT_S:g} s"
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def shrunk(target: Target, files: Files, folder: Path, most: int = 300) -> Files:
    """A smaller input that fails in the same kind of way."""
    kind = attempt(target, files, folder).partition(":")[0]
    step = max(map(len, files)) // 2
    while step and most > 0:
        for n, text in enumerate(files):
            for at in range(0, len(text), step):
                trial = (*files[:n], text[:at] + text[at + step :], *files[n + 1 :])
                most -= 1
                if most > 0 and attempt(target, trial, folder).partition(":")[0] == kind:
                    files = trial
                    break
            else:
                continue
            break
        else:
            step //= 2
    return files


def campaign(inputs: int, seed: int, chosen: dict[str, Target], first: int = 0) -> bool:
    """Read that many inputs, in turns; print what came of them; True if nothing failed."""

    def ring(*_: object) -> None:
        raise Hung

    warnings.simplefilter("error")
    signal.signal(signal.SIGALRM, ring)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts: Counter[tuple[str, str]] = Counter()
    slowest_s, failures = 0.0, 0
    with tempfile.TemporaryDirectory() as name:
        for number in range(first, first + inputs):
            which = list(chosen)[number % len(chosen)]
            files = made(chosen[which], seed, number)
            started_s = time.perf_counter()
            verdict = attempt(chosen[which], files, Path(name))
            slowest_s = max(slowest_s, time.perf_counter() - started_s)
            counts[which, verdict if verdict in ("", "refused") else "failed"] += 1
            if verdict not in ("", "refused"):
                failures += 1
                keep(which, seed, number, verdict, shrunk(chosen[which], files, Path(name)))
                if failures == 5:
                    break
    for which in chosen:
        read, refused, failed = (counts[which, kind] for kind in ("", "refused", "failed"))
        print(f"{which}: {read + refused + failed} inputs, {read} read, {refused} refused, {failed} failed")
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) / 1024
    print(f"slowest {slowest_s:.2f} s, memory grew by {grown_mb:.0f} MiB")
    return not failures


def keep(which: str, seed: int, number: int, verdict: str, files: Files) -> None:
    """Save an input that failed, and say how to read it again."""
    folder = ROOT / "out" / "fuzz"
    folder.mkdir(parents=True, exist_ok=True)
    for n, content in enumerate(files):
        (folder / f"{which}-{seed}-{number}-{n}").write_bytes(content)
    print(f"{which}, seed {seed}, input {number}: {verdict}; shrunk in {folder.relative_to(ROOT)}/: {str(files)[:400]}")
    print(f"  python -m tests.test_fuzz --seed {seed} --first {number} --inputs 1 --target {which}", flush=True)


def fuzz(inputs: int, seed: int, timeout_s: float) -> None:
    command = [sys.executable, "-m", "tests.test_fuzz", "--inputs", str(inputs), "--seed", str(seed)]
    done = run_guarded(command, timeout_s=timeout_s, cwd=ROOT)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-6000:]
    assert f"{inputs // 3} inputs" in done.stdout


def test_damaged_files_are_read_or_refused():
    fuzz(2_000, seed=1, timeout_s=600)


@pytest.mark.long
def test_a_hundred_thousand_damaged_files():
    fuzz(100_000, seed=2, timeout_s=3000)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("loader", [Criteo, AliCcp])
def test_a_line_without_end_is_refused_at_its_beginning(tmp_path, loader, packed):
    """A small packed file may hold gigabytes; memory stays that of one line."""
    import tracemalloc

    path = tmp_path / "endless"
    with gzip.open(path, "wb", 1) if packed else path.open("wb") as file:
        for _ in range(64):
            file.write(b"1," * (1 << 19))
        file.write(b"\n1,0,0,205:7\n")
    tracemalloc.start()
    text = r"endless, line 1: line too long: expected no more than 1048576 bytes, got '1,1"
    with pytest.raises(DataError, match=text):
        list(loader(path, 2))
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()
    lenient = loader(path, 2, on_error="skip")
    assert sum(batch.size for batch in lenient) == (loader is AliCcp)
    assert lenient.skipped["line too long"] == 1


class Wrong(Exception):
    """What a reader must not raise."""


@pytest.mark.parametrize("fault", ["hangs", "eats", "raises"])
def test_a_faulty_reader_is_found(fault):
    """The campaign itself can fail."""
    command = [sys.executable, "-m", "tests.test_fuzz", "--inputs", "40", "--plant", fault]
    done = run_guarded(command, timeout_s=240, cwd=ROOT)
    for kept in (ROOT / "out" / "fuzz").glob("planted-*"):
        kept.unlink()
    assert done.returncode == 1, done.stdout
    words = {"hangs": "no end after", "eats": "MemoryError", "raises": "Wrong: a comma"}[fault]
    assert words in done.stdout
    assert "shrunk in out/fuzz/: (b',',)" in done.stdout


def plant(fault: str) -> Callable[[list[Path]], object]:
    """A reader that makes a mistake at every comma."""

    def read(paths: list[Path]) -> None:
        if b"," in paths[0].read_bytes():
            if fault == "hangs":
                time.sleep(LIMIT_S + 1)
            elif fault == "eats":
                np.ones(SPARE_BYTES // 4)
            raise Wrong("a comma")

    return read


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--inputs", type=int, default=2000)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--first", type=int, default=0)
    every = targets()
    arguments.add_argument("--target", choices=list(every), action="append")
    arguments.add_argument("--plant", choices=["hangs", "eats", "raises"])
    given = arguments.parse_args()
    every = {name: target for name, target in every.items() if name in (given.target or every)}
    if given.plant:
        LIMIT_S = 0.1 if given.plant == "hangs" else LIMIT_S
        every = {"planted": Target(plant(given.plant), [(b"a,b\n",)], (DataError,))}
    sys.exit(not campaign(given.inputs, given.seed, every, given.first))
