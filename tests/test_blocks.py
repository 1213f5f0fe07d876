"""Blocks as bytes: what is taken, what is refused, and whether it is still the caller's own memory."""

import array

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from blslib.collective.blocks import as_bytes

F4, I2 = np.dtype(np.float32), np.dtype(np.int16)


def one(block, dtype=F4) -> tuple[bytes, bool]:
    (view,), own = as_bytes([block], 1, np.dtype(dtype))
    assert (view.format, view.itemsize, view.ndim, view.c_contiguous) == ("B", 1, 1, True)
    return bytes(view), own


@given(
    hnp.arrays(hnp.array_dtypes() | hnp.scalar_dtypes(), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0)),
    st.booleans(),
)
def test_any_array(a, flipped):
    if flipped:
        a = a.T
    if a.dtype.itemsize:
        assert one(a, a.dtype) == (a.tobytes(), a.flags.c_contiguous or not a.size)


def told(value: object) -> str:
    """The same in every process: without the address of its memory."""
    return repr(value).split(" at 0x")[0]


@pytest.mark.parametrize(
    ("block", "own"),
    [
        (np.arange(6, dtype=F4), True),
        (np.arange(6, dtype=F4).reshape(2, 3), True),
        (np.arange(12, dtype=F4)[::2], False),
        (np.arange(6, dtype=F4).reshape(2, 3).T, False),
        (np.float32(7).reshape(()), True),
        (np.ma.masked_array(np.arange(3, dtype=F4)), True),
        (torch.arange(6.0), True),
        (torch.arange(6.0, requires_grad=True), True),
        (torch.arange(6.0).reshape(2, 3).t(), False),
        (torch.tensor(7.0), True),
        (array.array("f", [1, 2, 3]), True),
        (bytearray(8), True),
        (b"12345678", True),
        (np.frombuffer(b"12345678", F4), True),  # nobody may write to it, and nobody needs to
        (memoryview(bytes(range(16)))[::2], False),
        (memoryview(bytearray(12)).cast("f"), True),
    ],
    ids=told,
)
def test_is_it_the_callers_memory(block, own):
    expected = block.detach().numpy().tobytes() if isinstance(block, torch.Tensor) else memoryview(block).tobytes()
    assert one(block) == (expected, own)


@pytest.mark.parametrize(
    "empty",
    [
        np.empty(0, F4),
        np.empty((0, 3), F4),
        np.empty((4, 0), F4)[::2],
        torch.empty(0),
        b"",
        bytearray(),
        array.array("f"),
    ],
    ids=told,
)
def test_empty(empty):
    assert one(empty)[0] == b""


def test_an_empty_bytearray_may_grow():
    assert one(bytearray())[1] is False


def test_own_memory_is_seen_to_change():
    a, t, b = np.zeros(2, F4), torch.zeros(2), bytearray(8)
    views, own = as_bytes((a, t, b), 3, F4)
    assert own
    a[:], t[:], b[:] = 1, 2, np.full(2, 3, F4).tobytes()
    assert [np.frombuffer(view, F4).tolist() for view in views] == [[1, 1], [2, 2], [3, 3]]


def test_one_copy_among_them_is_enough():
    assert as_bytes([np.zeros(2, F4), np.zeros(4, F4)[::2]], 2, F4)[1] is False
    assert as_bytes([memoryview(bytes(8))[::2], np.zeros(2, F4)], 2, F4)[1] is False


@pytest.mark.parametrize("shape", [(), (1,), (0,), (5,), (2, 3)])
def test_bfloat16(shape):
    t = torch.full(shape, 1.5, dtype=torch.bfloat16)
    assert one(t, I2) == (np.full(shape, 0x3FC0, I2).tobytes(), True)
    assert one(t.t() if t.dim() > 1 else t, I2)[1] is (t.dim() < 2)
    assert one(torch.from_numpy(np.empty(0, I2)).view(torch.bfloat16), I2) == (b"", True)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32", "int8"])
def test_bfloat16_is_no_other_type(dtype):
    text = f"block for rank 0 has dtype torch.bfloat16, the exchange was built for {dtype}: build it for an integer"
    with pytest.raises(ValueError, match=text):
        one(torch.zeros(4, dtype=torch.bfloat16), dtype)


def test_lazy_tensors_are_made_real():
    z = torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64)
    assert one(z.conj(), np.complex64) == (np.array([1 - 2j, 3 + 4j], np.complex64).tobytes(), False)
    assert one(z.conj().imag, F4) == (np.array([-2, 4], F4).tobytes(), False)


def test_inference_tensors():
    with torch.inference_mode():
        assert one(torch.ones(2)) == (np.ones(2, F4).tobytes(), True)


@pytest.mark.parametrize(
    ("blocks", "kind", "text"),
    [
        ([], ValueError, "post takes one block per rank: expected 2, got 0"),
        ([np.zeros(1, F4)] * 3, ValueError, "expected 2, got 3"),
        (
            [np.zeros(1, F4), np.zeros(1)],
            ValueError,
            "block for rank 1 has dtype float64, the exchange was built for float32",
        ),
        ([torch.zeros(1), torch.zeros(1).int()], ValueError, "block for rank 1 has dtype int32, the exchange was"),
        ([b"", b"12345"], ValueError, "block for rank 1 has 5 bytes, not a whole number of float32 items"),
        ([array.array("d", [1.0])] * 2, ValueError, "block for rank 0 has dtype float64"),
        ([b"", "text"], TypeError, "block for rank 1 is a str: expected an array, a cpu tensor or a buffer"),
        ([[1.0], [2.0]], TypeError, "block for rank 0 is a list"),
        (
            [torch.zeros(2, 2).to_sparse()] * 2,
            TypeError,
            r"block for rank 0 has layout torch.sparse_coo: call to_dense\(\)",
        ),
        (
            [torch.zeros(2, device="meta")] * 2,
            TypeError,
            "block for rank 0 is on device meta: copy it to the cpu first",
        ),
    ],
    ids=lambda v: v[:30] if isinstance(v, str) else "",
)
def test_refused(blocks, kind, text):
    with pytest.raises(kind, match=text):
        as_bytes(blocks, 2, F4)
