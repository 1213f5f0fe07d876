"""What goes wrong, and what every other rank is told: the table of docs/promises.md, and what the tests hold it to."""

from typing import Any, NamedTuple

from tests.conftest import within


class Fault(NamedTuple):
    """One row: what happens, and what the other ranks raise, how soon, and in which words."""

    what: str
    kind: str
    within_s: float
    after: str
    words: str
    test: str

    def row(self) -> str:
        within = f"{self.within_s:g} s after {self.after}"
        return f"| {self.what} | `{self.kind}` | {within} | `{self.words}` | `{self.test}` |"

    def check(self, ranks: list[dict[str, Any]], since_s: dict[int, float]) -> None:
        """These ranks saw this fault as the table says, each of them so many seconds after ``after``."""
        for rank in since_s:
            assert ranks[rank]["kind"] == self.kind, ranks[rank]
            assert self.words in ranks[rank]["text"], ranks[rank]
        for rank, seconds in since_s.items():
            within(self.within_s, seconds, ranks[rank])


_HERE, _THERE, _MPI = "tests/test_failures.py::", "tests/test_faults.py::", "tests/mpi/test_alltoallv.py::"

FAULTS = {
    "raises": Fault(
        "an exception in a user's code, on rank 2",
        "PeerError",
        0.5,
        "it was raised",
        "rank 2 failed after posting 20 iterations: Marked: boom",
        _HERE + "test_an_exception_reaches_all_others",
    ),
    "fails_in_close": Fault(
        "the same while the others are in `close` already, on rank 1",
        "PeerError",
        0.5,
        "it was raised",
        "rank 1 failed after posting 4 iterations: Marked: at the end",
        _HERE + "test_a_failure_while_others_close",
    ),
    "is_interrupted": Fault(
        "Ctrl-C on rank 1",
        "PeerError",
        0.5,
        "it",
        "rank 1 failed after posting 4 iterations: KeyboardInterrupt: ",
        _HERE + "test_an_interrupt_ends_all",
    ),
    "runs_out_of_memory": Fault(
        "rank 1 runs out of memory in its user's code",
        "PeerError",
        0.5,
        "it was raised",
        "rank 1 failed after posting 5 iterations: Marked: Unable to allocate",
        _HERE + "test_out_of_memory",
    ),
    "killed": Fault(
        "SIGKILL of rank 2, where the launcher lets the others live (1)",
        "PeerError",
        0.5,
        "its death",
        "rank 2 is gone: its process ended without a word after posting 20 iterations",
        _THERE + "test_survivors_of_a_kill_speak_for_themselves",
    ),
    "killed far away": Fault(
        "the same, but no rank of its host is left to notice",
        "LateError",
        0.5,
        "the deadline",
        "for rank 2 (posted 20, 2 behind)",
        _THERE + "test_survivors_of_a_kill_speak_for_themselves",
    ),
    "is_late": Fault(
        "ranks 1 and 3 away for longer than the deadline of 0.4 s",
        "LateError",
        0.5,
        "the deadline",
        "waited 0.4 s for rank 1 (posted 5, 1 behind), rank 3 (posted 4, 2 behind)",
        _HERE + "test_late_ranks_are_named_on_all",
    ),
    "is_stopped": Fault(
        "SIGSTOP of rank 2 for longer than that",
        "LateError",
        0.5,
        "the deadline",
        "waited 0.4 s for rank 2 (posted 4, 2 behind)",
        _HERE + "test_a_rank_stopped_for_too_long",
    ),
    "never_closes": Fault(
        "rank 2 does not come to `close`",
        "LateError",
        0.5,
        "the deadline",
        "waited 0.4 s in close for ranks [2]",
        _HERE + "test_a_rank_that_does_not_close",
    ),
    "closes_early": Fault(
        "rank 0 posts 3 times, the others need more of it",
        "PeerError",
        0.5,
        "they ask for more",
        "rank 0 closed after 3 iterations, rank ",
        _HERE + "test_a_rank_that_posts_fewer_is_named_at_once",
    ),
    "posts_fewer": Fault(
        "rank 0 posts 3 times, the others 4 times, and nobody had to wait",
        "PeerError",
        0.5,
        "the last one closes",
        "rank 0 closed after 3 iterations, rank 1 after 4: every rank must post equally often",
        _HERE + "test_unequal_numbers_of_posts_are_an_error",
    ),
    "sends_another_size": Fault(
        "a block of another size than `recv_counts` says",
        "PeerError",
        0.5,
        "it arrived",
        "rank 3 -> rank 1 sent 28 bytes in iteration 4, rank 1 expected 32",
        _HERE + "test_another_size_than_promised",
    ),
    "no_room": Fault(
        "`/dev/shm` has no room for rank 1's large block",
        "PeerError",
        0.5,
        "it was posted",
        "rank 1 failed after posting 6 iterations: MemoryError: no room in /dev/shm for a block of ",
        _THERE + "test_a_small_shared_memory",
    ),
    "cannot_map": Fault(
        "rank 1 has too little memory to build the exchange",
        "MemoryError",
        0.5,
        "the last one came",
        "rank 1 cannot map 16785408 bytes of rank 1 in /dev/shm: Cannot allocate memory",
        _HERE + "test_one_rank_cannot_build",
    ),
}

# Faults of another shape: what, what is seen, within, words, test.
OTHERS = [
    (
        "`/dev/shm` too small for the slots",
        "`MemoryError` on all",
        "at once, before anything is allocated",
        "`4 ranks on one host need ... bytes of shared memory, ... are free in /dev/shm: lower slot_bytes (4096) ...`",
        f"`{_MPI}test_too_little_shared_memory`",
    ),
    (
        "ranks differ in bound, slot size, dtype or channel",
        "`ValueError` on all",
        "at once, in building",
        "`ranks differ in bound: rank 0 has 1, rank 3 has 2`",
        f"`{_MPI}test_ranks_that_differ_are_named`",
    ),
    (
        "SIGSTOP and SIGCONT within the deadline",
        "the results, complete and right",
        "-",
        "-",
        f"`{_HERE}test_a_stopped_rank_loses_nothing`",
    ),
    (
        "`close` with arrivals that nobody took",
        "the end, and nothing of it in the next exchange",
        "-",
        "-",
        f"`{_MPI}test_what_was_never_taken_does_not_reach_the_next_exchange`",
    ),
    (
        "SIGKILL of a rank under MPICH's launcher as it is (1)",
        "the launcher ends all",
        "at once",
        "`BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES`",
        f"`{_THERE}test_a_kill_under_the_launcher_ends_all`",
    ),
    (
        "Ctrl-C in the terminal",
        "the launcher ends all",
        "at once",
        "-",
        f"`{_HERE}test_ctrl_c_ends_everything`",
    ),
    (
        "SIGKILL of a notebook's engine in mid-cell",
        "`RankError` in the cell; the next call starts a new cluster",
        "15 s",
        "`rank 1 died: the next call starts a new cluster`",
        "`tests/test_cluster.py::test_an_engine_killed_in_mid_cell`",
    ),
]


def table() -> str:
    """The table as docs/promises.md has it."""
    head = "| fault | what every other rank sees | within | in which words | test |\n|---|---|---|---|---|"
    others = [f"| {' | '.join(cells)} |" for cells in OTHERS]
    return "\n".join([head, *(fault.row() for fault in FAULTS.values()), *others])


if __name__ == "__main__":
    print(table())
