"""The Ali-CCP reader: the raw pair of files, the one-line form, faults and what becomes of them."""

import gzip
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blslib.workloads.aliccp import DENSE_FIELDS, AliCcp
from blslib.workloads.files import DataError
from blslib.workloads.published import ALICCP_FIELDS, ALICCP_ROWS

SAMPLE = Path(__file__).parents[1] / "../shared/data/aliccp_multihot_small.txt"
real = pytest.mark.skipif(not SAMPLE.exists(), reason=f"no sample file {SAMPLE.name} in ../shared/data")

HUGE = [2**40] * 23
TABLE = {field: table for table, field in enumerate(ALICCP_FIELDS)}

LINES = (
    b"1,1,1,210:1,210:2,205:6,121:10,101:12,110_14:20,110_14:21,110_14:22\n"
    b"2,0,0,205:7,121:10,101:12,110_14:20\n"
    b"3,1,0,210:8,205:9,210:11,101:12,127:15,127_14:16,127:17\n"
)
"""Row 3 has field 210 in two runs, and fields 127 and 127_14 mixed."""


def raw(*entries: str) -> str:
    """A count and a list of features from entries like ``210:8``; each gets a weight."""
    return f"{len(entries)}," + "\x01".join(e.replace(":", "\x02") + "\x030.69315" for e in entries)


COMMON = ["u1," + raw("101:12", "121:10", "110_14:20", "110_14:21"), "u2," + raw("101:13"), "u3," + raw()]
SKELETON = [
    "1,1,1,u1," + raw("210:1", "210:2", "205:6"),
    "2,0,0,u2," + raw("205:7"),
    "3,0,1,u2," + raw("205:7"),
    "4,1,0,u1," + raw("205:9", "210:8", "508:5"),
    "5,0,0,u3," + raw(),
]


def write(folder: Path, content: bytes, name: str = "ali.txt") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def pair(folder: Path, skeleton: list[str] = SKELETON, common: list[str] = COMMON) -> Path:
    write(folder, "".join(row + "\n" for row in common).encode(), "common_features_train.csv")
    return write(folder, "".join(row + "\n" for row in skeleton).encode(), "sample_skeleton_train.csv")


def bags(path: Path, **options) -> list[dict[str, list[int]]]:
    """Every sample as field -> ids, without empty bags."""
    out = []
    for batch in AliCcp(path, 2, **{"rows": HUGE, **options}):
        for b in range(batch.size):
            sample = {f: batch.ids[t][batch.offsets[t][b] : batch.offsets[t][b + 1]].tolist() for f, t in TABLE.items()}
            out.append({field: ids for field, ids in sample.items() if ids})
    return out


def test_one_line_form(tmp_path):
    assert bags(write(tmp_path, LINES)) == [
        {"210": [1, 2], "205": [6], "121": [10], "101": [12], "110_14": [20, 21, 22]},
        {"205": [7], "121": [10], "101": [12], "110_14": [20]},
        {"210": [8, 11], "205": [9], "101": [12], "127": [15, 17], "127_14": [16]},
    ]
    (batch,) = AliCcp(write(tmp_path, LINES), 3, rows=HUGE)
    assert batch.labels.tolist() == [1, 0, 1] and batch.tables == 23
    assert batch.dense.dtype == np.float32 and batch.dense.shape == (3, 8)
    lists = DENSE_FIELDS.index("110_14"), DENSE_FIELDS.index("127_14")
    assert batch.dense[:, lists] == pytest.approx(np.log1p([[3, 0], [1, 0], [0, 1]]))
    assert all(a.dtype == np.int64 for a in (*batch.ids, *batch.offsets))


def test_one_id_per_field_keeps_the_first(tmp_path):
    path = write(tmp_path, LINES)
    assert bags(path, multi_hot=False) == [{f: ids[:1] for f, ids in sample.items()} for sample in bags(path)]
    (one,), (many,) = AliCcp(path, 3, multi_hot=False), AliCcp(path, 3)
    assert np.array_equal(one.dense, many.dense)


@pytest.mark.parametrize("packed", [False, True])
def test_raw_form(tmp_path, packed):
    path = pair(tmp_path)
    if packed:
        path = write(tmp_path, gzip.compress(path.read_bytes()), "sample_skeleton_train.csv.gz")
    user = {"101": [12], "121": [10], "110_14": [20, 21]}
    assert bags(path) == [
        user | {"210": [1, 2], "205": [6]},
        {"101": [13], "205": [7]},
        user | {"205": [9], "210": [8], "508": [5]},
        {},
    ]
    loader = AliCcp(path, 10)
    (batch,) = loader
    assert loader.skipped == {"purchase without click": 1} and batch.labels.tolist() == [1, 0, 1, 0]


def test_common_features_elsewhere_or_not_at_all(tmp_path):
    path = pair(tmp_path)
    moved = (tmp_path / "common_features_train.csv").rename(tmp_path / "users")
    with pytest.raises(
        FileNotFoundError, match=r"common_features_train.csv.*needs its common features: put them there"
    ):
        bags(path)
    assert len(bags(path, common=moved)) == 4
    moved.write_bytes(gzip.compress(moved.read_bytes()))
    with pytest.raises(ValueError, match="users cannot be the common features: give common=FILE, unpacked"):
        bags(path, common=moved)
    with pytest.raises(ValueError, match="cannot be the common features"):
        bags(path.rename(tmp_path / "renamed.csv"))


def test_ids_are_taken_modulo_the_rows_of_their_table(tmp_path):
    rows = list(range(1, 24))
    for full, small in zip(bags(write(tmp_path, LINES)), bags(write(tmp_path, LINES), rows=rows), strict=True):
        assert small == {field: [i % rows[TABLE[field]] for i in ids] for field, ids in full.items()}
    assert AliCcp(write(tmp_path, LINES), 1).rows == ALICCP_ROWS


def test_purchase_without_click_is_counted_whatever_the_policy(tmp_path):
    path = write(tmp_path, LINES + b"4,0,1,205:7\n")
    for policy in ("raise", "skip"):
        loader = AliCcp(path, 2, samples=7, on_error=policy)
        assert sum(b.size for b in loader) == 7
        assert loader.skipped == {"purchase without click": 1} and (loader.passes, loader.file_samples) == (3, 3)


LINE_FAULTS = [
    (b"", 1, "empty file", "expected at least one row"),
    (LINES + b"4,0,0\n", 4, "wrong number of fields", "expected 4, comma separated: row,click,purchase,field:id"),
    (LINES + b"4,0,0,\n", 4, "bad feature", "expected field:id, got ''"),
    (LINES + b"4,0,0,205:7,206\n", 4, "bad feature", "expected field:id, got '206'"),
    (LINES + b"4,0,0,205:7x,206:1\n", 4, "bad feature", "got '205:7x'"),
    (LINES + b"4,0,0,205:" + b"9" * 19 + b"\n", 4, "bad feature", "got '205:9999"),
    (LINES + b"4,0,0,999:7\n", 4, "unknown field", "expected one of 101 109_14 .* 853, got '999'"),
    (LINES + b"4,2,0,205:7\n", 4, "bad label", "expected click and purchase to be 0 or 1, got '2' and '0'"),
    (b"x,0,0,205:7\n" + LINES, 1, "not an integer", "expected a row number, got 'x'"),
    (LINES + b"4,0,0,205:7", 4, "cut short", "expected a whole last row and a line end"),
    (gzip.compress(LINES)[:-9], 1, "cut short", "expected the rest of the gzip stream"),
]


@pytest.mark.parametrize(("content", "line", "reason", "text"), LINE_FAULTS)
def test_faults_of_the_one_line_form(tmp_path, content, line, reason, text):
    path = write(tmp_path, content)
    with pytest.raises(DataError, match=text) as caught:
        bags(path)
    packed = content.startswith(b"\x1f\x8b")
    numbers = r"\d+" if packed else line
    assert re.match(rf"{re.escape(str(path))}, line {numbers}: {reason}: expected ", str(caught.value))
    if not packed:
        loader = AliCcp(path, 2, rows=HUGE, on_error="skip")
        read = sum(b.size for b in loader)
        assert loader.skipped == {reason: 1} and read == (3 if content else 0)


RAW_FAULTS = [
    ({"skeleton": ["1,0,0,u2," + raw("205:7")[2:]]}, "skeleton_train.csv, line 1", "wrong number of fields",
     "sample_id,"),
    ({"skeleton": ["1,0,0,u2,2," + raw("205:7")[2:]]}, "skeleton_train.csv, line 1", "wrong number of features",
     "'2' as n_feat"),
    ({"skeleton": ["1,0,0,u9," + raw("205:7")]}, "skeleton_train.csv, line 1", "no common features", "got 'u9'"),
    ({"skeleton": [SKELETON[0], "2,0,0,u2,1,205:7"]}, "skeleton_train.csv, line 2", "bad feature", "got '205:7'"),
    ({"skeleton": [SKELETON[0], "2,0,x,u2," + raw("205:7")]}, "skeleton_train.csv, line 2", "bad label", "'0' and 'x'"),
    ({"skeleton": [SKELETON[0], "2,0,0,u2," + raw("777:7")]}, "skeleton_train.csv, line 2", "unknown field", "'777'"),
    ({"common": [*COMMON, "u2," + raw("101:9")]}, "features_train.csv, line 4", "repeated index", "got 'u2' again"),
    ({"common": [COMMON[0], "u2"]}, "features_train.csv, line 2", "wrong number of fields", "common_feature_index,"),
    ({"common": []}, "features_train.csv, line 1", "empty file", "at least one row"),
    ({"common": [COMMON[0], "u2,3," + raw("101:9")[2:]]}, "skeleton_train.csv, line 2", "bad common features",
     "features_train.csv, line 2: wrong number of features: expected '3'"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "where", "reason", "text"), RAW_FAULTS)
def test_faults_of_the_raw_form(tmp_path, files, where, reason, text):
    path = pair(tmp_path, **files)
    with pytest.raises(DataError, match=text) as caught:
        bags(path)
    assert f"{where}: {reason}: " in str(caught.value)
    loader = AliCcp(path, 2, rows=HUGE, on_error="skip")
    read = sum(b.size for b in loader)
    assert loader.skipped[reason] >= 1
    lines = len(files.get("skeleton", SKELETON)) + (where.startswith("features"))
    assert read + loader.skipped.total() == lines


def test_cut_common_features(tmp_path):
    path = pair(tmp_path)
    common = tmp_path / "common_features_train.csv"
    common.write_bytes(common.read_bytes()[:-12])
    with pytest.raises(DataError, match=r"common_features_train.csv, line 2: cut short"):
        bags(path)
    loader = AliCcp(path, 9, on_error="skip")
    assert sum(b.size for b in loader) == 2
    assert loader.skipped == {"cut short": 1, "no common features": 3}


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(length=st.integers(0, len(LINES)), packed=st.booleans())
def test_a_cut_never_passes_unnoticed(tmp_path, length, packed):
    cut = LINES[:length]
    if packed:
        cut = gzip.compress(LINES)
        cut = cut[: length * len(cut) // len(LINES)]
    path = write(tmp_path, cut)
    if length and (length == len(LINES) if packed else cut.endswith(b"\n")):
        assert len(bags(path)) == (3 if packed else cut.count(b"\n"))
    else:
        with pytest.raises(DataError):
            bags(path)


FIELD = st.sampled_from(ALICCP_FIELDS)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.lists(st.tuples(FIELD, st.integers(0, 10**12)), min_size=1, max_size=30), min_size=1, max_size=7)
)
def test_both_forms_keep_every_id_in_order(tmp_path, rows):
    want = []
    for row in rows:
        sample = {}
        for field, number in row:
            sample.setdefault(field, []).append(number)
        want.append(sample)
    entries = [[f"{field}:{number}" for field, number in row] for row in rows]
    lines = "".join(f"{n},0,0,{','.join(e)}\n" for n, e in enumerate(entries))
    assert bags(write(tmp_path, lines.encode())) == want
    common = [f"{n}," + raw(*e[: len(e) // 2]) for n, e in enumerate(entries)]
    skeleton = [f"{n},0,0,{n}," + raw(*e[len(e) // 2 :]) for n, e in enumerate(entries)]
    assert bags(pair(tmp_path, skeleton, common)) == want


def test_memory_grows_with_the_number_of_common_features_alone(tmp_path):
    """By less than 300 bytes each, however long they are; with the skeleton not at all."""

    def peak(samples: int, users: int) -> int:
        common = [f"user{n}," + raw(*(f"110_14:{n + k}" for k in range(20))) for n in range(users)]
        path = pair(tmp_path, [f"{n},0,0,user{n % users}," + raw("205:7") for n in range(samples)], common)
        tracemalloc.start()
        for _ in AliCcp(path, 100):
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    few = peak(1500, 1500)
    assert peak(6000, 1500) < 1.2 * few
    assert peak(6000, 6000) < few + 4500 * 300


@real
def test_real_sample():
    loader = AliCcp(SAMPLE, 10, rows=HUGE)
    (batch,) = loader
    assert loader.file_samples == 10 and not loader.skipped
    assert batch.labels.tolist() == [1, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    per_sample = sum(np.diff(offsets) for offsets in batch.offsets)
    assert per_sample.tolist() == [876, 877, 887, 880, 876, 888, 880, 878, 876, 877]
    assert np.array_equal(np.unique(np.concatenate(batch.ids)), np.arange(1, 967))
    lookups = dict(zip(ALICCP_FIELDS, batch.lookups.tolist(), strict=True))
    assert [lookups[f] for f in ("110_14", "127_14", "150_14", "109_14")] == [3420, 2090, 1910, 1170]
    assert lookups["126"] == 0 and batch.ids[TABLE["210"]][:3].tolist() == [1, 2, 3]
    split = batch.offsets[TABLE["210"]][2:4]
    assert batch.ids[TABLE["210"]][slice(*split)].tolist() == [886, 887, *range(896, 905)]  # row 3, two runs
    (one,) = AliCcp(SAMPLE, 10, multi_hot=False)
    assert max(one.lookups) == 10 and one.lookups.sum() < 23 * 10
