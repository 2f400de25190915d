"""The directory of the journal and the locks: this user's own, or refused."""

import os
import stat
from contextlib import suppress
from pathlib import Path

from prefetch_kit.weixin.token_stores.owned_files import make_directory


def make_file(path: Path) -> None:
    """Make an empty file and its directory, for this user only, where they are missing.

    Raises OSError where they cannot be made, where another user owns one or may write to it, as
    what lies there may be planted, and for anything but a plain file.
    """
    make_directory(path.parent)
    _check_owner(path.parent, path.parent.stat())
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
    _check_file(path)


def is_there(path: Path) -> bool:
    """Whether a file is there. Raises OSError as `make_file` does; makes nothing."""
    try:
        _check_owner(path.parent, path.parent.stat())
        _check_file(path)
    except FileNotFoundError:
        return False
    return True


def _check_file(path: Path) -> None:
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
