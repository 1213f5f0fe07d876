"""What an exchange can say of its life so far: how much it has moved, and whom it has waited for."""

from typing import Any, NamedTuple


class Statistics(NamedTuple):
    """Of one rank.

    Attributes:
        calls: of ``post``.
        sent_bytes: in all blocks to all P ranks, its own among them.
        large_blocks: how many were larger than their slot.
        waited_s: seconds spent waiting in ``post``, ``collect`` and ``drain``, up to the last look at the clock.
        waited_for_s: P numbers: of these seconds, those in which that rank was the furthest behind; at this rank's own
            number, those for its own sends. Waits of a few microseconds count in ``waited_s`` alone.
        lags: bound + 1 numbers: of how many calls it returned when the slowest rank was so many iterations behind.
    """

    calls: int
    sent_bytes: int
    large_blocks: int
    waited_s: float
    waited_for_s: tuple[float, ...]
    lags: tuple[int, ...]

    def __str__(self) -> str:
        longest_s = max(self.waited_for_s)
        whom = f", {longest_s:.3g} s of it for rank {self.waited_for_s.index(longest_s)}" if longest_s else ""
        return f"{self.calls} calls sent {self.sent_bytes} bytes and waited {self.waited_s:.3g} s{whom}"

    def rows(self, rank: int, run: str = "run") -> list[dict[str, Any]]:
        """For ``charts.runs.waits``, once those of all ranks are together: one for each rank that this one waited for.

        Args:
            rank: whose statistics these are.
            run: a name, for the chart.
        """
        about = {"law": run, "bound": len(self.lags) - 1, "rank": rank, "phase": "waiting"}
        return [{**about, "waits_for": peer, "waits_s": seconds} for peer, seconds in enumerate(self.waited_for_s)]
