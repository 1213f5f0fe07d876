"""``python -m blslib``."""

import io
import os
import signal
import sys
from types import FrameType


def _end(number: int, frame: FrameType | None) -> None:
    """End at once: an exception in the midst of imports would be lost in some, and reported at length by others."""
    os.write(2, b"interrupted\n")
    os._exit(128 + number)


if __name__ == "__main__":
    for each in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(each) != signal.SIG_IGN:
            signal.signal(each, _end)
    nowhere = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")  # for a stream that is closed
    sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # bars, where a terminal knows no more than ASCII
    from blslib.lab.cli import main

    sys.exit(main())
