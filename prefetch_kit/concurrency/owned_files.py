"""Files of this user alone, in directories that only this user can write to.

What others may write to can hold a planted journal, lock or token, so it is refused, never made
right in silence. A symbolic link is followed where this user or root made it, as with releases
that share a state directory.
"""

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
# So that no token or journal gets into a repository in which the directory lies.
_IGNORE: Final = b"# Tokens and journals of prefetch_kit: for this machine alone.\n*\n"


class FileRefusedError(PermissionError):
    """A file or directory is not this user's alone; says why, and what to do."""

    def __init__(self, problem: str, *, remedy: str) -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(problem)


def make_directory(path: Path) -> None:
    """Make `STATE/<wechat>` where it is missing, and check both; made ones are 0700.

    What was made outlives a loss of power. The upper one of the two that is made here tells git
    to ignore all that is in it. Raises OSError.
    """
    made = _make_missing(path)
    check_directory(path)
    if made:
        try:
            _ignore_in_git(path.parent if path.parent in made else path)
        except OSError:
            for each in reversed(made):  # so that the next one writes it
                with suppress(OSError):
                    each.rmdir()
            raise


def _ignore_in_git(directory: Path) -> None:
    path = directory / ".gitignore"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:  # another process made it, or a person
        return
    try:
        with open(handle, "wb") as file:
            file.write(_IGNORE)
    except OSError:
        path.unlink()
        raise


def _make_missing(path: Path) -> list[Path]:
    if path.is_dir():
        return []
    made = _make_missing(path.parent)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "Not a directory", str(path)) from None
        return made
    path.chmod(0o700)  # the umask may have taken rights of our own away
    sync_directory(path.parent)
    return [*made, path]


def check_directory(path: Path) -> None:
    """Check `STATE/<wechat>` and `STATE`. Raises `FileRefusedError`, and OSError without them.

    `STATE` may be root's, as a mounted volume is.
    """
    for each in (path, *path.absolute().parents):
        _check_link(each)
    _check_owner(path, path.stat())
    above = path.absolute().parent
    found = above.stat()
    if found.st_uid != 0 or os.geteuid() == 0:  # else that is for root to decide
        _check_owner(above, found, is_above=True)


def make_file(path: Path, *, secret: bool = False) -> None:
    """Make an empty file of 0600, and its directory, where they are missing. Raises OSError."""
    make_directory(path.parent)
    with suppress(FileExistsError):
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        os.close(handle)
    check_file(path, path.lstat(), secret=secret)


def is_there(path: Path) -> bool:
    """Whether a file is there. Raises OSError as `make_file` does; makes nothing."""
    try:
        check_directory(path.parent)
        # It is not opened: closing it would end the locks that SQLite holds on it in other
        # threads, https://www.sqlite.org/howtocorrupt.html. Nobody else can exchange it.
        check_file(path, path.lstat())
    except FileNotFoundError:
        return False
    return True


def check_file(path: Path, found: os.stat_result, *, secret: bool = False) -> None:
    """Raise `FileRefusedError` for all but a plain file of this user that others cannot write to.

    A `secret` one they must not be able to read either.
    """
    if not stat.S_ISREG(found.st_mode):
        remedy = "Put the file itself there, or move away what is there"
        raise FileRefusedError(f"{path} is not a plain file", remedy=remedy)
    if secret and found.st_mode & _OTHERS and found.st_uid == os.geteuid():
        remedy = f"Take that away from them: chmod go-rwx {path}"
        raise FileRefusedError(f"other users may read or write {path}", remedy=remedy)
    _check_owner(path, found)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A new file of 0600 to write to, which is at `path` after the block, or nowhere."""
    handle, written = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(written)
        os.replace(written, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(written)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a loss of power."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _check_owner(path: Path, found: os.stat_result, *, is_above: bool = False) -> None:
    if found.st_uid != os.geteuid():
        remedy = "Run this as that user, or give it to this user if nobody else has written to it"
        raise FileRefusedError(f"{path} belongs to another user", remedy=remedy)
    # With the sticky bit, as /tmp has it, others can exchange nothing, but still add something.
    is_sticky = is_above and found.st_mode & stat.S_ISVTX
    if found.st_mode & _OTHERS_WRITE and not is_sticky:
        remedy = f"See whether all of it is yours, then take that away from them: chmod go-w {path}"
        raise FileRefusedError(f"other users may write to {path}", remedy=remedy)


def _check_link(path: Path) -> None:
    """Refuse a symbolic link that another user made: it leads where that user wants."""
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode) and found.st_uid not in (os.geteuid(), 0):
        remedy = "Put a directory, or a link of your own, in its place"
        raise FileRefusedError(f"the link {path} belongs to another user", remedy=remedy)
