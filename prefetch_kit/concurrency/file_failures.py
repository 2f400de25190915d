"""Why a file of state cannot be used, and what to do about it, for the journal and the tokens.

What such a file holds may be all that leads back: to what WeChat had before, or to a merchant. So
no remedy says to remove it, and none leads to another directory where one can be in this one.
"""

import errno
import os
import resource
import sqlite3
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from prefetch_kit.concurrency.file_ranges import LocksMissingError, LocksRemovedError
from prefetch_kit.concurrency.owned_files import FileRefusedError


class Failure(NamedTuple):
    """A cause, and its remedy."""

    problem: str
    remedy: str


AGAIN: Final = "then run the same command again"
REMOVED: Final = Failure(
    "it was removed or replaced while this process used it",
    "Leave the state directory where it is, restore it if there is a copy, "
    "and run the same command again",
)
_NEW: Final = (
    "If its disk is not mounted, mount it; for a new deployment point PREFETCH_STATE_DIR "
    "(state_dir in prefetch.toml) at a directory that this user can write to"
)
_NO_LOCKS: Final = Failure(
    "its file system has no locks, so two processes could change the same thing at once",
    "Mount it with locks, or stop all that uses it and move the whole state directory to a local "
    "disk",
)
_NO_ROOM: Final = Failure("there is no room for it", f"Make room on its disk, {AGAIN}")
_NO_QUOTA: Final = Failure(
    "this user may store no more there (quota or file size limit)", f"Raise the limit, {AGAIN}"
)
_NO_DESCRIPTORS: Final = Failure(
    "too many files are open", f"Raise the limit (ulimit -n) or use fewer workers, {AGAIN}"
)
_READ_ONLY: Final = Failure("its file system is read-only", f"Let it be written to again, {AGAIN}")
_NOT_ALLOWED: Final = Failure(
    "this user may not use it", "Run this as the user whose state directory it is"
)
_UNOPENED: Final = Failure(
    "it cannot be opened",
    f"See who may use it, and how many files may be open (ulimit -n), {AGAIN}",
)
_BAD_DISK: Final = Failure(
    "the disk failed (input/output error)",
    f"Look after the disk, restore the state directory from a backup if it is lost, {AGAIN}",
)
_BUSY: Final = Failure(
    "another process is writing to it for half a minute already", f"Let that finish, {AGAIN}"
)
_OF_ERRNO: Final[Mapping[int, Failure]] = {
    errno.EMFILE: _NO_DESCRIPTORS,
    errno.ENFILE: _NO_DESCRIPTORS,
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_QUOTA,
    errno.EFBIG: _NO_QUOTA,
    errno.EROFS: _READ_ONLY,
    errno.EACCES: _NOT_ALLOWED,
    errno.EPERM: _NOT_ALLOWED,
    errno.EIO: _BAD_DISK,
    errno.ESTALE: _BAD_DISK,
}
# The low byte of SQLite's codes, https://www.sqlite.org/rescode.html.
_OF_SQLITE: Final[Mapping[int, Failure]] = {
    sqlite3.SQLITE_FULL: _NO_ROOM,
    sqlite3.SQLITE_READONLY: _NOT_ALLOWED,
    sqlite3.SQLITE_PERM: _NOT_ALLOWED,
    sqlite3.SQLITE_CANTOPEN: _UNOPENED,
    sqlite3.SQLITE_IOERR: _BAD_DISK,
    sqlite3.SQLITE_BUSY: _BUSY,
    sqlite3.SQLITE_LOCKED: _BUSY,
    sqlite3.SQLITE_PROTOCOL: _NO_LOCKS,
}
_LOCKS_FAILED: Final = (
    sqlite3.SQLITE_IOERR_LOCK,
    sqlite3.SQLITE_IOERR_RDLOCK,
    sqlite3.SQLITE_IOERR_CHECKRESERVEDLOCK,
    sqlite3.SQLITE_IOERR_UNLOCK,
)
_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_PROBE: Final = bytes(16384)


def failure_of(path: Path, error: BaseException) -> Failure:
    """What is said of an error with the file at this path."""
    if isinstance(error, FileRefusedError):
        return Failure(error.problem, error.remedy)
    if isinstance(error, LocksMissingError):
        return _NO_LOCKS
    if isinstance(error, LocksRemovedError):
        return REMOVED
    if isinstance(error, OSError):
        return _of_system(path, error)
    code = getattr(error, "sqlite_errorcode", None)
    if code in _LOCKS_FAILED:
        return _NO_LOCKS
    if code is not None and code & 0xFF in _DAMAGED:
        return damaged(str(error))
    known = None if code is None else _OF_SQLITE.get(code & 0xFF)
    # SQLite does not say what the system said, so that is asked again.
    if known in (_NO_ROOM, _BAD_DISK) and _is_at_size_limit(path):
        return _NO_QUOTA
    if known in (_NO_ROOM, _NOT_ALLOWED, _UNOPENED, _BAD_DISK):
        found = _tried(path)
        return known if found is None else _of_system(path, found)
    return known or Failure(str(error), f"Copy it away before anything is done to it, {AGAIN}")


def damaged(problem: str) -> Failure:
    """What is said of a file with other content than it should have."""
    return Failure(
        f"it is damaged ({problem})",
        "Copy it away, then restore it from a backup, or save what can be read (sqlite3 FILE "
        ".recover)",
    )


def _of_system(path: Path, error: OSError) -> Failure:
    failure = _OF_ERRNO.get(error.errno or 0)
    if failure in (None, _NOT_ALLOWED, _READ_ONLY) and not _can_be_there(path):
        return Failure(f"its directory cannot be made ({error.strerror})", _NEW)
    text = str(error.strerror or error)
    return failure or Failure(text, f"Remove the cause, {AGAIN}; nothing in it was changed")


def _can_be_there(path: Path) -> bool:
    """Whether the directory of a file is there, or cannot be seen."""
    try:
        return stat.S_ISDIR(os.stat(path.parent).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


def _is_at_size_limit(path: Path) -> bool:
    """Whether this process may not make the file longer, as far as it would be (ulimit -f)."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit == resource.RLIM_INFINITY:
        return False
    beside = (path, path.with_name(f"{path.name}-journal"))
    sizes = [each.stat().st_size for each in beside if each.exists()]
    return max(sizes, default=0) + len(_PROBE) > limit


def _tried(path: Path) -> OSError | None:
    """What the system says when a file is written beside this one."""
    try:
        with tempfile.TemporaryFile(dir=path.parent) as file:
            file.write(_PROBE)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error
    return None
