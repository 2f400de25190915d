"""Locks between processes: byte ranges of one file, one for each name."""

import errno
import fcntl
import hashlib
import os
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

from prefetch_kit.concurrency.fork_lock import ForkLock
from prefetch_kit.concurrency.owned_files import check_file, make_file

_POLL_S: Final = 0.01
_LONGEST_POLL_S: Final = 0.1
_HAS_RANGES: Final = sys.platform == "linux"
# struct flock of Linux: type, whence, start, length, pid, and its padding.
_FLOCK: Final = "hhqqi0q"
# As some network disks and containers answer. A file that only marks a lock is no substitute: it
# outlives its process, or lets two in.
_NO_LOCKS: Final = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)


class RangeHeldError(Exception):
    """Another holder has the lock of `name`, and had it for `waited_s` seconds."""

    def __init__(self, name: str, waited_s: float) -> None:
        self.name = name
        self.waited_s = waited_s
        super().__init__(f"another holder has the lock of {name} for {waited_s:g} s already")


class LocksMissingError(OSError):
    """The file system has no locks."""


class LocksRemovedError(OSError):
    """The file of the locks was removed or replaced while a lock was held or taken."""


class RangeLocks:
    """The locks of one file. Each name has its own, and none blocks another.

    A lock excludes other threads and processes, whichever RangeLocks of the same path they use,
    and ends with its process however that ends. The file and its directory are made with the
    first lock, and are this user's alone. Where the platform has no locks of open files (OFD
    locks), each name has a file beside it instead.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._guard = ForkLock(self._close_inherited)
        # What holds a name in this process; a lock that no thread uses is gone from here.
        self._queues: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
        self._file: int | None = None
        self._users = 0

    @contextmanager
    def hold(self, name: str, *, wait_s: float) -> Iterator[None]:
        """Hold the lock of a name. Raises RangeHeldError after `wait_s` seconds, and OSError."""
        ends_at = time.monotonic() + wait_s
        lock = self._locked_range if _HAS_RANGES else self._own_file
        # Threads of this process queue here, so that one of them polls.
        with self._queued(name, wait_s), ExitStack() as held:
            try:
                held.enter_context(lock(name, ends_at))
            except TimeoutError:
                raise RangeHeldError(name, wait_s) from None
            yield

    def is_held(self, name: str) -> bool:
        """Whether anybody holds the lock of a name now. Raises OSError."""
        queue = self._queues.get(name)
        if queue is not None and queue.locked():
            return True
        if _HAS_RANGES:
            with self._open_file() as file:
                return _is_range_held(file, name)
        try:
            with self._own_file(name, time.monotonic()):
                return False
        except TimeoutError:
            return True

    def _close_inherited(self) -> None:
        # With a copy open, a lock would outlive a parent that is killed.
        if self._file is not None:
            os.close(self._file)
        self._file, self._users, self._queues = None, 0, WeakValueDictionary()

    @contextmanager
    def _queued(self, name: str, wait_s: float) -> Iterator[None]:
        with self._guard:
            queue = self._queues.setdefault(name, threading.Lock())
        if not queue.acquire(timeout=wait_s):
            raise RangeHeldError(name, wait_s)
        try:
            yield
        finally:
            queue.release()

    @contextmanager
    def _locked_range(self, name: str, ends_at: float) -> Iterator[None]:
        with self._open_file() as file:
            _wait_until(lambda: _set_range(file, name), ends_at)
            pid = os.getpid()
            try:
                self._check_not_replaced(file)  # it may be another by now, which others lock
                yield
            finally:
                if pid == os.getpid():  # a child has closed its copy
                    _set_range(file, name, unlock=True)  # of copies in children too

    @contextmanager
    def _open_file(self) -> Iterator[int]:
        """The descriptor, which all that hold or want a lock share."""
        with self._guard:
            if self._file is None:
                make_file(self._path)
                flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
                self._file = os.open(self._path, flags)
            else:
                self._check_not_replaced(self._file)
            self._users += 1
            file, pid = self._file, os.getpid()
        try:
            yield file
        finally:
            if pid == os.getpid():
                with self._guard:
                    self._users -= 1
                    if not self._users:
                        os.close(file)
                        self._file = None

    def _check_not_replaced(self, file: int) -> None:
        """Raise LocksRemovedError where the path no longer leads to the open file."""
        try:
            if os.path.samestat(self._path.stat(), os.fstat(file)):
                return
        except (FileNotFoundError, NotADirectoryError):
            pass
        raise LocksRemovedError(errno.ESTALE, "it was removed or replaced", str(self._path))

    @contextmanager
    def _own_file(self, name: str, ends_at: float) -> Iterator[None]:
        path = self._path.with_name(f"{self._path.name}.{_hash(name):x}")
        make_file(self._path)
        with hold_file(path, ends_at=ends_at):
            yield


@contextmanager
def hold_file(path: Path, *, ends_at: float) -> Iterator[None]:
    """Hold the lock of a whole file (flock), which is made where it is missing.

    Raises TimeoutError at `ends_at` of the monotonic clock, and OSError.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    file = os.open(path, flags, 0o600)
    try:
        check_file(path, os.fstat(file))
        _wait_until(lambda: _set_whole(file), ends_at)
        pid = os.getpid()
        try:
            yield
        finally:
            if pid == os.getpid():
                fcntl.flock(file, fcntl.LOCK_UN)  # of copies in children too
    finally:
        os.close(file)


def _wait_until(is_locked: Callable[[], bool], ends_at: float) -> None:
    """Try until it is locked. Raises TimeoutError."""
    pause_s = _POLL_S
    while not is_locked():
        if time.monotonic() >= ends_at:
            raise TimeoutError
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, _LONGEST_POLL_S)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogatepass")).digest()[:8]) >> 2


@contextmanager
def _with_locks() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise LocksMissingError(error.errno, error.strerror) from None


def _set_range(handle: int, name: str, *, unlock: bool = False) -> bool:
    """Lock the byte of a name, or unlock it; False where somebody else has it."""
    kind = fcntl.F_UNLCK if unlock else fcntl.F_WRLCK
    try:
        with _with_locks():
            fcntl.fcntl(handle, fcntl.F_OFD_SETLK, _flock(kind, name))
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, as the system likes
        return False
    return True


def _set_whole(handle: int) -> bool:
    """Lock a whole file; False where somebody else has it."""
    try:
        with _with_locks():
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _is_range_held(handle: int, name: str) -> bool:
    """Whether another open file has the byte of a name; nobody is kept from it meanwhile."""
    with _with_locks():
        found = fcntl.fcntl(handle, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, name))
    return bool(struct.unpack(_FLOCK, found)[0] != fcntl.F_UNLCK)


def _flock(kind: int, name: str) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, _hash(name), 1, 0)
