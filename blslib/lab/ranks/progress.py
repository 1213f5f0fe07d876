"""How far long work is: told by the ranks that do it, shown to whoever waits for it."""

import os
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

SHOW_AFTER_S = 2.0
"""Work that is done sooner than this shows no bar."""

TERMINAL_VARIABLE = "BLS_TERMINAL"
"""Environment variable by which the driver names its terminal to the notebooks, whose own output goes into a file."""


def report(done: int, of: int) -> None:
    """Tell whoever waits for this engine how far it is; does nothing elsewhere. Costs about 0.1 ms.

    Args:
        done: steps finished.
        of: steps in all.
    """
    # Looked up, not imported: a rank that is no engine need not load IPython for this.
    ipython = sys.modules.get("IPython")
    shell: Any = ipython.get_ipython() if ipython else None
    # Every kernel has a data_pub; only an engine's works.
    if type(getattr(shell, "kernel", None)).__module__.startswith("ipyparallel."):
        shell.data_pub.publish_data({"done": done, "of": of})


class Bar(ExitStack):
    """A progress bar over the reports of all ranks, which appears only when the work turns out to be long.

    It is drawn in the notebook or terminal at hand. Under the driver, where a notebook's output goes into a file, it is
    drawn on the driver's terminal, below the driver's own bar, or nowhere if it has none. It ends full, unless the work
    ends with an exception.
    """

    def __init__(self, label: str) -> None:
        super().__init__()
        self._label = label
        self._terminal = os.environ.get(TERMINAL_VARIABLE)
        self._visible = bool(self._terminal) or not os.environ.get("IPP_NONINTERACTIVE")
        self._started_s = time.time()  # the clock of tqdm
        self._bar: Any = None

    def update(self, reports: Iterable[Mapping[str, int]]) -> None:
        """Show the slowest rank's report, of those that have made one.

        Args:
            reports: one mapping per rank with ``done`` and ``of``; empty where a rank has not reported yet.
        """
        if not self._visible or time.time() - self._started_s < SHOW_AFTER_S:
            return
        if self._bar is None:
            self._bar = self._open()
        slowest = min((each for each in reports if each), key=lambda each: each["done"], default=None)
        self._show(**slowest or {"done": 0, "of": self._bar.total})

    def __exit__(self, kind: Any, *rest: Any) -> bool:
        if self._bar is not None and kind is None:
            self._show(self._bar.total or 1, self._bar.total or 1)  # the last report came before the last step was done
        return bool(super().__exit__(kind, *rest))

    def _show(self, done: int, of: int | None) -> None:
        if of != self._bar.total:
            self._bar.reset(of)  # nothing else tells a notebook's bar how long it is
        self._bar.start_t = self._started_s  # rates count from the start of the work, not of the bar
        self._bar.n = done
        self._bar.refresh()

    def _open(self) -> Any:
        import tqdm
        import tqdm.auto

        if self._terminal is None:
            return self.enter_context(tqdm.auto.tqdm(desc=self._label))
        # A kernel leads a session of its own: it must not make this terminal controlling terminal by opening it.
        file = self.enter_context(os.fdopen(os.open(self._terminal, os.O_WRONLY | os.O_NOCTTY), "w"))
        return self.enter_context(tqdm.tqdm(desc=self._label, leave=False, position=1, file=file))
