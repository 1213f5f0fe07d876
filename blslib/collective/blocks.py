"""Blocks as bytes: what may be sent, and how it is looked at without a copy."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from blslib.collective.exchange import Block

_EMPTY = memoryview(b"")


def as_bytes(blocks: Sequence[Block], size: int, dtype: np.dtype) -> tuple[list[memoryview], bool]:
    """The bytes of P blocks, and whether all of them are the callers' own memory (not copies of strided data).

    Raises:
        ValueError: not P blocks, or one of another dtype than the exchange's, or not a whole number of its items.
        TypeError: no sequence; or a block is no array, no CPU tensor and offers no buffer.
    """
    if not hasattr(blocks, "__len__"):
        raise TypeError(f"post takes a sequence of one block per rank, got {type(blocks).__name__}")
    if len(blocks) != size:
        raise ValueError(f"post takes one block per rank: expected {size}, got {len(blocks)}")
    views, own = [], True
    for peer, block in enumerate(blocks):
        if type(block) is not np.ndarray:
            block, mine = _as_array(block, peer, dtype)
            own = own and mine
        if block.dtype is not dtype and block.dtype != dtype:  # builtin types are one object each
            raise ValueError(f"block for rank {peer} has dtype {block.dtype}, the exchange was built for {dtype}")
        if not block.size:
            views.append(_EMPTY)
            continue
        try:
            views.append(memoryview(block).cast("B"))  # a third of the time that views by numpy take
        except (TypeError, ValueError):  # strided, or of a dtype that buffers cannot tell, such as dates
            own = own and block.flags.c_contiguous
            whole: Any = np.ascontiguousarray(block).reshape(-1)
            views.append(memoryview(whole.view(np.uint8)))
    return views, own


def is_fixed(blocks: Sequence[Block]) -> bool:
    """Whether these blocks, posted again, have their bytes where they are now: a tensor may move, an array does not."""
    return type(blocks) is tuple and all(type(block) is np.ndarray for block in blocks)


def _as_array(block: Block, peer: int, dtype: np.dtype) -> tuple[np.ndarray, bool]:
    """A block as an array, and whether that is the caller's own memory."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(block, torch.Tensor):
        if not block.is_cpu:
            raise TypeError(f"block for rank {peer} is on device {block.device}: copy it to the cpu first")
        if block.layout != torch.strided:
            raise TypeError(f"block for rank {peer} has layout {block.layout}: call to_dense() first")
        block, own = block.detach() if block.requires_grad else block, True
        if block.is_conj() or block.is_neg():
            block, own = block.resolve_conj().resolve_neg(), False
        try:
            return block.numpy(), own
        except TypeError:  # a dtype that numpy lacks, such as bfloat16: its bytes under an integer dtype of equal size
            if dtype.kind not in "uiV" or dtype.itemsize != block.element_size():
                raise ValueError(
                    f"block for rank {peer} has dtype {block.dtype}, the exchange was built for {dtype}: "
                    f"build it for an integer dtype of {block.element_size()} bytes"
                ) from None
            return block.view(getattr(torch, f"int{8 * dtype.itemsize}")).numpy().view(dtype), own
    if isinstance(block, np.ndarray):
        return np.asarray(block), True
    try:
        view = memoryview(block)
    except TypeError:
        raise TypeError(
            f"block for rank {peer} is a {type(block).__name__}: expected an array, a cpu tensor or a buffer"
        ) from None
    if view.format not in (None, "B", "b", "c"):
        return np.asarray(view), True
    if view.nbytes % dtype.itemsize:
        raise ValueError(f"block for rank {peer} has {view.nbytes} bytes, not a whole number of {dtype} items")
    if not view.c_contiguous:
        return np.frombuffer(view.tobytes(), dtype), False
    # An empty bytearray may grow, so its emptiness is no more than a copy.
    return (np.frombuffer(view, dtype), True) if view.nbytes else (np.empty(0, dtype), False)
