"""Results reach their files whole or not at all, and where that fails, in one line."""

import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from blslib.signals import undisturbed


class WriteError(OSError):
    """A result cannot be written: which, why, and what to do."""


def write(contents: Mapping[Path, str | bytes]) -> None:
    """Write files beside those of their names and, once all are whole, put them there; devices are written to directly.

    Args:
        contents: by path; text is stored as UTF-8, with the line ends it has.

    Raises:
        WriteError: one of them could not be written; what was there before still is.
    """
    staged: list[tuple[Path, Path]] = []
    path = Path()
    data = {path: text.encode(errors="replace") if isinstance(text, str) else text for path, text in contents.items()}
    devices = [path for path in data if is_device(path)]
    try:
        for path in devices:  # open to interrupts: one without a reader may wait for ever
            path.write_bytes(data.pop(path))
        with undisturbed():
            try:
                for path, content in data.items():
                    staged.append(_beside(path))
                    beside, target = staged[-1]
                    beside.write_bytes(content)
                    if target.exists():
                        shutil.copymode(target, beside)
                for beside, path in staged:
                    os.replace(beside, path)
            finally:
                for beside, _ in staged:
                    beside.unlink(missing_ok=True)
    except OSError as error:
        raise _failure(path, error) from None


def check(path: Path) -> None:
    """Raise now what ``write`` would raise later, for want of room apart.

    Raises:
        WriteError: nothing can be written there.
    """
    try:
        if not is_device(path):
            beside, _ = _beside(path)
            beside.touch()
            beside.unlink()
    except OSError as error:
        raise _failure(path, error) from None


def is_device(path: Path) -> bool:
    """Whether something is there that must stay what it is, such as a pipe or ``/dev/null``."""
    return path.exists() and not (path.is_file() or path.is_dir())


def _beside(path: Path) -> tuple[Path, Path]:
    """A name beside a file, and the file, which a link leads to."""
    target = path.resolve()
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return target.with_name(f".{target.name}.{os.getpid()}"), target


def _failure(path: Path, error: OSError) -> WriteError:
    if error.errno == errno.ENOENT:
        return WriteError(f"cannot write {path}: its folder does not exist")
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    cure = "make room, or choose another folder" if full else "name a file in a folder that may be written to"
    return WriteError(f"cannot write {path}: {error.strerror or error}: {cure}")
