"""Files that only this user can use, in a directory that only this user writes to."""

import os
import stat
from pathlib import Path

from prefetch_kit.errors import TokenSourceError

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def check_owner(path: Path, found: os.stat_result) -> None:
    """Raise TokenSourceError for anything but a plain file of this user that others cannot use.

    What it holds may be planted, or known to others.
    """
    if not stat.S_ISREG(found.st_mode):
        raise refused(path, "it is not a plain file")
    if found.st_uid != os.geteuid():
        raise refused(path, "it belongs to another user")
    if found.st_mode & 0o077:
        problem = "other users may read or write it"
        raise refused(path, problem, remedy="Take it away from them (chmod go-rwx)")


def check_directory(path: Path) -> None:
    """Raise TokenSourceError where another user can exchange what is in a directory."""
    found = path.stat()
    if found.st_uid not in (os.geteuid(), 0):
        raise refused(path, "it belongs to another user")
    if found.st_mode & _OTHERS_WRITE:
        problem = "other users may write to it"
        raise refused(path, problem, remedy="Take it away from them (chmod go-w)")


def make_directory(path: Path) -> None:
    """Make a directory that outlives a loss of power, and keep other users from writing to it."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        sync_directory(path.parent)


def close_to_others(path: Path) -> None:
    """Take the right to write to this user's directory away from others."""
    found = path.stat()
    if found.st_uid == os.geteuid() and found.st_mode & _OTHERS_WRITE:
        path.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS_WRITE)


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a loss of power."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def refused(path: Path, problem: str, *, remedy: str = "Move it away") -> TokenSourceError:
    return TokenSourceError(
        str(path), problem, remedy=f"{remedy}, or point PREFETCH_STATE_DIR at another directory"
    )


def unusable(path: Path, problem: str) -> TokenSourceError:
    return TokenSourceError(
        str(path),
        f"it cannot be used ({problem})",
        remedy="Point PREFETCH_STATE_DIR at a directory that this user can write to",
    )


def unreadable(path: Path, problem: str) -> TokenSourceError:
    # Neither "delete it" nor "use another directory": it may hold the only refresh tokens.
    return TokenSourceError(
        str(path),
        f"it cannot be read ({problem})",
        remedy="Remove the cause, then try again; nothing in it was changed",
    )
