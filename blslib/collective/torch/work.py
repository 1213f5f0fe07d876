"""What torch has in hand while an all-to-all of ours is under way, and how tensors are looked at."""

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist

from blslib.collective.errors import BlockError, ExchangeError, LateError
from blslib.collective.torch.autoload import NAME

if TYPE_CHECKING:
    from blslib.collective.torch.process_group import BLSGroup

Tensors = list[torch.Tensor]

Bytes = Sequence[np.ndarray]
"""P arrays of uint8: one for each rank."""


class RefusedError(ValueError, RuntimeError):
    """A call that the group does not take: nothing was sent, and the group can go on.

    Of both kinds, as programs that try what a backend can do expect the one or the other.
    """


def write(target: torch.Tensor, values: torch.Tensor) -> None:
    """Fill a tensor of the caller's, which may have been made in inference mode, outside or inside of it."""
    with torch.inference_mode():
        target.copy_(values.view(target.shape))


def flat_bytes(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's memory, (nbytes,) uint8; a copy if it does not lie in one piece.

    Raises:
        RefusedError: it is not on the CPU, or sparse.
    """
    on_cpu(tensor)
    if tensor.layout != torch.strided:
        raise RefusedError(f"tensor has layout {tensor.layout}, {NAME!r} moves dense tensors: call to_dense() first")
    if tensor.requires_grad or tensor.is_conj() or tensor.is_neg() or not tensor.is_contiguous():
        tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return tensor.view(-1).view(torch.uint8).numpy()


def on_cpu(tensor: torch.Tensor) -> None:
    """Refuse a tensor that this backend does not move."""
    if not tensor.is_cpu:
        raise RefusedError(f"tensor is on device {tensor.device}, {NAME!r} moves cpu tensors: copy it to the cpu first")


def in_words(error: Exception) -> Exception:
    """An error as programs look for it: that of a deadline says so in the words of torch's other backends."""
    if isinstance(error, LateError) and " timeout " not in str(error):
        return LateError(f"the timeout is over: {error}")
    return error


class AllToAllWork(dist._Work):
    """An all-to-all under way, as torch hands it to the caller.

    Args:
        group: whose it is.
        outputs: the tensors that it fills.
        rooms: where they are received, each in its output or in a draft of it.
        pieces: the rooms' bytes, rank by rank.
        timeout_s: of every wait that is given no other.

    Attributes:
        iteration: which of its group's all-to-alls this is, counted from 0, the same on every rank; -1 if the group
            had failed before.
    """

    def __init__(self, group: "BLSGroup", outputs: Tensors, rooms: Tensors, pieces: Bytes, timeout_s: float) -> None:
        super().__init__()
        self._group, self._outputs, self._rooms, self._pieces = group, outputs, rooms, pieces
        self._timeout_s, self.iteration = timeout_s, -1
        self._done = False
        self._error: Exception | None = None

    def _look(self, timeout_s: float | None) -> None:
        """Wait until this is done or has failed; without a time, look once."""
        if not self._done and self._group.failure is None:
            self._group.collect(None if timeout_s is None else self.iteration, timeout_s or self._timeout_s)
        if self._group.failure is not None:
            self.fail(self._group.failure)

    def fail(self, error: Exception) -> None:
        """Keep an error for ``wait``, unless this has its end already."""
        if not self._done:
            self._error = in_words(error)
            self._done = True

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        """Wait until the outputs are filled.

        Args:
            timeout: none given, or zero, is the call's or else the group's. When it passes, the group has failed.

        Raises:
            ExchangeError: or one of its kinds, in the words of the collective.
            RuntimeError: another thread is in a call; the group can go on.
        """
        if not self._done:
            self._look(seconds(timeout, self._timeout_s))
        if self._error is not None:
            raise self._error
        if not self._done:
            raise ExchangeError("what was waited for has not come: the output is not filled")
        return True

    def is_completed(self) -> bool:
        """Whether ``wait`` would return or raise at once. Takes in what has arrived, and never waits."""
        if not self._done:
            self._look(None)
        return self._done

    def is_success(self) -> bool:
        return self.is_completed() and self._error is None

    def exception(self) -> Exception | None:
        return self._error

    def result(self) -> Tensors:
        return self._outputs

    def get_future(self) -> torch.futures.Future:
        """A completed future with the outputs: waits for them, since nobody would complete it later."""
        self.wait()
        future: torch.futures.Future = torch.futures.Future()
        future.set_result(self._outputs)
        return future

    def arrive(self, blocks: Bytes) -> None:
        """Copy the blocks out of the ring, into the caller's tensors."""
        for source, (piece, block) in enumerate(zip(self._pieces, blocks, strict=True)):
            if len(piece) != len(block):
                rank = self._group.rank()
                text = f"rank {source} -> rank {rank} sent {len(block)} bytes in iteration {self.iteration}, "
                self.fail(BlockError(f"{text}rank {rank} expected {len(piece)}"))
                return
            piece[:] = block
        try:
            for output, room in zip(self._outputs, self._rooms, strict=True):
                if room is not output:
                    write(output, room)
        except RuntimeError as error:  # torch cannot write there
            self.fail(error)
        self._done = True


def seconds(timeout: timedelta | None, default_s: float) -> float:
    """Torch marks a timeout that was not given by zero, or by less."""
    given_s = timeout.total_seconds() if timeout else 0.0
    return given_s if given_s > 0 else default_s
