"""The directory of the journal and the locks: this user's own, or refused."""

import os
import stat
from contextlib import suppress
from pathlib import Path


def make_directory(path: Path) -> None:
    """Make a directory that only this user may enter, and its parents, where they are missing.

    Raises OSError where it cannot be made, and where another user owns it or may write to it:
    what lies there may be planted.
    """
    if not path.is_dir():
        _make_directory(path)
    _check_owner(path, path.stat())


def _make_directory(path: Path) -> None:
    """Make a directory whose name outlives a power failure."""
    if not path.parent.is_dir():
        _make_directory(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
    parent = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def make_file(path: Path) -> None:
    """Make an empty file that only this user may read, where it is missing.

    Raises OSError as `make_directory` does for its directory, and for anything but a plain
    file of this user that nobody else may write to.
    """
    make_directory(path.parent)
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
    check_file(path)


def is_there(path: Path) -> bool:
    """Whether a file is there. Raises OSError as `make_file` does; makes nothing."""
    try:
        _check_owner(path.parent, path.parent.stat())
        check_file(path)
    except FileNotFoundError:
        return False
    return True


def check_file(path: Path) -> None:
    """Raises OSError for anything but a plain file of this user that nobody else may write to."""
    # A file that is there is not opened: closing it would end the locks that SQLite holds on it
    # in other threads, https://www.sqlite.org/howtocorrupt.html. Nobody else can exchange it.
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise PermissionError(f"{path} is not a plain file")
    _check_owner(path, found)


def _check_owner(path: Path, found: os.stat_result) -> None:
    if found.st_uid != os.geteuid():
        raise PermissionError(f"{path} belongs to another user")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"other users may write to {path}")
