"""The Criteo reader: both forms, gzip, faults and what becomes of them."""

import gzip
import re
import tracemalloc
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blslib.workloads.criteo import Criteo
from blslib.workloads.files import DataError
from blslib.workloads.published import CRITEO_ROWS

SAMPLE = Path(__file__).parents[1] / "../shared/data/criteo_kaggle_tiny.csv"
real = pytest.mark.skipif(not SAMPLE.exists(), reason=f"no sample file {SAMPLE.name} in ../shared/data")

HEADER = ",".join(["Id", "Label", *(f"I{n}" for n in range(1, 14)), *(f"C{n}" for n in range(1, 27))])
HUGE = [2**33] * 26


def fields(n: int) -> list[str]:
    """A row with what is awkward in it: negative and missing integers, missing and large categories."""
    integers = [str(n), "-2", "", *(str(n * k) for k in range(10))]
    return [str(n % 2), *integers, "", "ffffffff", *(f"{n * 1000 + c:08x}" for c in range(24))]


def tabs(rows: int) -> bytes:
    return "".join("\t".join(fields(n)) + "\n" for n in range(rows)).encode()


def headed(rows: int) -> bytes:
    return "".join([HEADER + "\r\n", *(f"{n}," + ",".join(fields(n)) + "\r\n" for n in range(rows))]).encode()


def write(folder: Path, content: bytes) -> Path:
    path = folder / "clicks"
    path.write_bytes(content)
    return path


def samples(path: Path, **options) -> int:
    return sum(batch.size for batch in Criteo(path, 3, rows=HUGE, **options))


@pytest.mark.parametrize("form", [tabs, headed, lambda n: gzip.compress(tabs(n)), lambda n: gzip.compress(headed(n))])
def test_all_forms_read_the_same(tmp_path, form):
    loader = Criteo(write(tmp_path, form(7)), 3, rows=HUGE)
    batches = list(loader)
    assert [batch.size for batch in batches] == [3, 3, 1] and not loader.skipped
    assert (loader.file_samples, loader.passes) == (7, 1)
    assert np.concatenate([b.labels for b in batches]).tolist() == [0, 1, 0, 1, 0, 1, 0]
    dense = np.concatenate([b.dense for b in batches])
    assert dense.dtype == np.float32 and dense.shape == (7, 13)
    assert dense[:, 0] == pytest.approx(np.log(np.arange(7) + 1.0)) and not dense[:, 1:4].any()
    assert dense[6, 12] == pytest.approx(np.log(6 * 9 + 1))
    ids = [np.concatenate([b.ids[t] for b in batches]) for t in range(26)]
    assert all(column.dtype == np.int64 for column in ids)
    assert ids[0].tolist() == [0] * 7 and ids[1].tolist() == [0xFFFFFFFF] * 7
    assert ids[25].tolist() == [n * 1000 + 23 for n in range(7)]
    assert all(o.tolist() == [0, 1, 2, 3] for o in batches[0].offsets) and len(batches[0].offsets) == 26


def test_ids_are_taken_modulo_the_rows_of_their_table(tmp_path):
    rows = list(range(1, 27))
    (batch,) = Criteo(write(tmp_path, tabs(5)), 5, rows=rows)
    (full,) = Criteo(write(tmp_path, tabs(5)), 5, rows=HUGE)
    for t in range(26):
        assert np.array_equal(batch.ids[t], full.ids[t] % rows[t])
    assert Criteo(write(tmp_path, tabs(1)), 1).rows == CRITEO_ROWS


def test_samples_and_repetition(tmp_path):
    path = write(tmp_path, headed(7))
    assert samples(path, samples=5) == 5
    loader = Criteo(path, 3, rows=HUGE, samples=17)
    first = list(loader)
    assert sum(b.size for b in first) == 17 and (loader.passes, loader.file_samples) == (3, 7)
    assert np.concatenate([b.ids[25] for b in first]).tolist() == [(n % 7) * 1000 + 23 for n in range(17)]
    assert all(np.array_equal(a.dense, b.dense) for a, b in zip(first, loader, strict=True))


def test_repetition_of_a_file_too_long_to_be_kept(tmp_path):
    loader = Criteo(write(tmp_path, tabs(2500)), 500, rows=HUGE, samples=6000)
    ids = np.concatenate([b.ids[25] for b in loader])
    assert ids.tolist() == [(n % 2500) * 1000 + 23 for n in range(6000)] and loader.passes == 3


def broken(row: int, position: int, value: str, form: str = "\t") -> bytes:
    rows = [fields(n) for n in range(4)]
    rows[row][position] = value
    return "".join(form.join(r) + "\n" for r in rows).encode()


FAULTS = [
    (b"", 1, "empty file", "expected at least one row of data"),
    ((HEADER + "\r\n").encode(), 2, "empty file", "expected at least one row of data"),
    (broken(1, 14, "zz"), 2, "not hexadecimal", "expected up to 8 hex digits or nothing in C1, got 'zz'"),
    (broken(2, 39, "0x12"), 3, "not hexadecimal", "in C26, got '0x12'"),
    (broken(2, 20, "123456789"), 3, "not hexadecimal", "in C7, got '123456789'"),
    (broken(0, 3, "1.5"), 1, "not an integer", "expected an integer of up to 18 digits or nothing in I3, got '1.5'"),
    (broken(3, 13, "9" * 19), 4, "not an integer", "in I13"),
    (broken(1, 0, "2"), 2, "bad label", "expected 0 or 1 in Label, got '2'"),
    (broken(1, 5, "1\t2"), 2, "wrong number of fields", "expected 40 tab separated fields .*, got 41"),
    (broken(0, 5, "", ","), 1, "wrong number of fields", "the header Id,Label,I1,... in line 1.*, got 1"),
    (tabs(2) + b"\n" + tabs(1), 3, "wrong number of fields", "got 1"),
    (headed(3).replace(b"\r\n1,", b"\r\nx,"), 3, "not an integer", "expected a number in Id, got 'x'"),
    (
        headed(3).replace(b"ffffffff,", b"", 1),
        2,
        "wrong number of fields",
        "expected 41 comma separated fields, got 40",
    ),
    (tabs(3)[:-4], 3, "cut short", "expected a whole last row and a line end"),
    (tabs(3)[:-100], 3, "cut short", "expected a whole last row and a line end"),
    (gzip.compress(tabs(3))[:-3], 4, "cut short", "expected the rest of the gzip stream"),
    (gzip.compress(tabs(300))[:900], None, "cut short", "expected the rest of the gzip stream"),
    (gzip.compress(tabs(3))[:-8] + bytes(8), 4, "cut short", "expected the rest of the gzip stream"),
]


@pytest.mark.parametrize(("content", "line", "reason", "text"), FAULTS)
def test_faults_name_file_line_and_expectation(tmp_path, content, line, reason, text):
    path = write(tmp_path, content)
    with pytest.raises(DataError, match=text) as caught:
        samples(path)
    numbers = r"\d+" if line is None else line
    assert re.match(rf"{re.escape(str(path))}, line {numbers}: {reason}: expected ", str(caught.value))


@pytest.mark.parametrize(("content", "line", "reason", "text"), FAULTS)
def test_skipped_faults_are_counted_and_the_rest_is_read(tmp_path, content, line, reason, text):
    loader = Criteo(write(tmp_path, content), 3, rows=HUGE, on_error="skip")
    read = sum(batch.size for batch in loader)
    if content.startswith(b"\x1f\x8b"):
        assert loader.skipped == {"cut short": 1}
    elif reason == "empty file":
        assert (loader.skipped, read) == ({"empty file": 1}, 0)
    else:
        lines = content.count(b"\n") + (not content.endswith(b"\n")) - content.startswith(b"Id,")
        assert loader.skipped[reason] >= 1 and read + loader.skipped.total() == lines


def test_skipped_grows_while_iterating_and_starts_again(tmp_path):
    rows = tabs(6).splitlines(keepends=True)
    loader = Criteo(
        write(tmp_path, b"".join([rows[0], b"x\n", *rows[1:3], b"y\n", *rows[3:]])), 2, rows=HUGE, on_error="skip"
    )
    for _ in range(2):
        assert [loader.skipped.total() for _ in loader] == [1, 2, 2]
    assert loader.skipped == {"wrong number of fields": 2}


def test_a_file_without_a_usable_row_is_not_repeated_for_ever(tmp_path):
    loader = Criteo(write(tmp_path, b"x\n"), 2, samples=10, on_error="skip")
    with pytest.raises(
        ValueError, match=r"no usable row \(left out: {'wrong number of fields': 1}\): give a Criteo file"
    ):
        list(loader)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(form=st.sampled_from([tabs, headed]), share=st.floats(0, 1), packed=st.booleans())
def test_a_cut_never_passes_unnoticed(tmp_path, form, share, packed):
    content = gzip.compress(form(5)) if packed else form(5)
    # What may be taken for a whole file: whole rows, the last of them with or without its line end.
    whole = {content: 5}
    for rows in range(1, 6) if not packed else ():
        ended = form(rows)
        whole |= dict.fromkeys([ended, ended.removesuffix(b"\n"), ended.rstrip(b"\r\n")], rows)
    cut = content[: int(share * len(content))]
    path = write(tmp_path, cut)
    if cut in whole:
        assert samples(path) == whole[cut]
    else:
        with pytest.raises(DataError):
            samples(path)


def test_a_last_row_without_line_end_counts_if_it_must_be_whole(tmp_path):
    assert samples(write(tmp_path, tabs(5)[:-1])) == samples(write(tmp_path, headed(5)[:-2])) == 5
    with pytest.raises(DataError, match="cut short"):
        samples(write(tmp_path, broken(3, 39, "")[:-1]))


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(st.binary(max_size=60).map(lambda b: b.replace(b"\n", b"")), min_size=1, max_size=20))
def test_whatever_stands_in_a_file_each_line_is_read_or_counted(tmp_path, lines):
    content = tabs(1) + b"".join(line + b"\n" for line in lines)
    loader = Criteo(write(tmp_path, content), 4, rows=HUGE, on_error="skip")
    assert sum(batch.size for batch in loader) + loader.skipped.total() == len(lines) + 1


def test_missing_file_and_bad_arguments(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"none.txt \(no such file.*give a Criteo file, to notebooks as BLS_CRITEO="
    ):
        Criteo(tmp_path / "none.txt", 3)
    with pytest.raises(FileNotFoundError, match="it is a folder"):
        Criteo(tmp_path, 3)
    path = write(tmp_path, tabs(1))
    for options, text in [
        ({"batch_size": 0}, "batch_size and samples must be 1 or more, got 0 and None"),
        ({"samples": 0}, "got 3 and 0"),
        ({"rows": [5]}, r"rows must be 26 counts >= 1, one per table, got \(5,\)"),
        ({"rows": [0] * 26}, "rows must be 26 counts >= 1"),
        ({"on_error": "ignore"}, "on_error must be 'raise' or 'skip', got 'ignore'"),
    ]:
        with pytest.raises(ValueError, match=text):
            Criteo(path, **{"batch_size": 3, **options})


def test_memory_does_not_grow_with_the_file(tmp_path):
    def peak(rows: int) -> int:
        path = write(tmp_path, tabs(rows))
        tracemalloc.start()
        for _ in Criteo(path, 200, rows=HUGE):
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert peak(12_000) < 1.2 * peak(1000)


@real
def test_real_sample():
    loader = Criteo(SAMPLE, 256, rows=HUGE)
    batches = list(loader)
    assert loader.file_samples == 1999 and not loader.skipped
    assert sum(b.labels.sum() for b in batches) == 418
    ids = [np.concatenate([b.ids[t] for b in batches]) for t in range(26)]
    distinct = "79 252 1293 1043 30 7 1164 39 2 908 926 1239 824 20 819 1159 9 534 201 4 1204 7 12 729 33 554"
    assert [len(np.unique(column)) for column in ids] == [int(n) for n in distinct.split()]
    assert (ids[21] == 0).sum() == 1631 and (ids[25] == 0).sum() == 965
    first = next(iter(Criteo(SAMPLE, 1, rows=HUGE)))
    assert first.dense[0] == pytest.approx(np.log1p([1, 1, 5, 0, 1382, 4, 15, 2, 181, 1, 2, 0, 2]))
    assert [int(column[0]) for column in first.ids][:2] == [0x68FD1E64, 0x80E26C9B]


@real
def test_real_sample_packed_and_cut(tmp_path):
    whole = SAMPLE.read_bytes()
    packed = write(tmp_path, gzip.compress(whole, 1))
    for a, b in islice(zip(Criteo(packed, 500), Criteo(SAMPLE, 500), strict=True), 2):
        assert np.array_equal(a.dense, b.dense) and all(map(np.array_equal, a.ids, b.ids))
    with pytest.raises(DataError, match=r"clicks, line 999: cut short"):
        samples(write(tmp_path, b"\n".join(whole.split(b"\n")[:998]) + b"\n10000997,0,1,1"))
