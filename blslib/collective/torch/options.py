"""What a group of the backend ``"bls"`` may be told."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BLSOptions:
    """What a group may be told, as ``pg_options`` of ``init_process_group`` and ``new_group``; equal on all ranks.

    Attributes:
        bound: whole batches (k) that the slowest rank may lag; None takes BLS_BOUND from the environment, else 0.
        slot_bytes: room for what one rank sends to one other in one call; more is legal and slower. None takes
            BLS_SLOT_BYTES, else a quarter more than the largest block in the group's first all-to-all, and later on of
            all so far, where these have become larger.
        calls_per_batch: all-to-alls that the program makes for each batch, on every rank. So many times ``bound`` may
            be under way at once. ``BLSGroup.calls`` counts them, for a program that has to find out.

    Raises:
        ValueError: there is no call in a batch.
    """

    bound: int | None = None
    slot_bytes: int | None = None
    calls_per_batch: int = 1

    def __post_init__(self) -> None:
        if self.calls_per_batch < 1:
            raise ValueError(f"calls_per_batch must be >= 1, the all-to-alls of a batch, got {self.calls_per_batch}")
