"""Locks between processes: byte ranges of one file, one for each name."""

import hashlib
import os
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from prefetch_kit.concurrency.fork_lock import ForkLock

_POLL_S: Final = 0.01
_LONGEST_POLL_S: Final = 0.1
_HAS_RANGES: Final = sys.platform == "linux"
# struct flock of Linux: type, whence, start, length, pid, and its padding.
_FLOCK: Final = "hhqqi0q"


class RangeHeldError(Exception):
    """Another holder has the lock of `name`, and had it for `waited_s` seconds."""

    def __init__(self, name: str, waited_s: float) -> None:
        self.name = name
        self.waited_s = waited_s
        super().__init__(f"another holder has the lock of {name} for {waited_s:g} s already")


class RangeLocks:
    """The locks of one file. Each name has its own, and none blocks another.

    A lock excludes other threads and other processes, whichever RangeLocks of the same path they
    use, and ends with its process however that ends. The file appears with the first lock, in a
    directory that must exist; it is readable by its owner only and stays empty. Where the
    platform has no locks of open files (OFD locks), each name has a file beside it instead.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._guard = ForkLock(self._close_inherited)
        self._queues: dict[str, _Queue] = {}
        self._open: set[int] = set()

    @contextmanager
    def hold(self, name: str, *, wait_s: float) -> Iterator[None]:
        """Hold the lock of a name. Raises RangeHeldError after `wait_s` seconds, and OSError."""
        ends_at = time.monotonic() + wait_s
        # Threads of this process queue here, so that one of them polls.
        with self._queued(name, wait_s), self._locked(name, ends_at, wait_s):
            yield

    def _close_inherited(self) -> None:
        # With a copy open, a lock would outlive a parent that is killed.
        for handle in self._open:
            os.close(handle)
        self._open, self._queues = set(), {}

    @contextmanager
    def _queued(self, name: str, wait_s: float) -> Iterator[None]:
        with self._guard:
            queue = self._queues.setdefault(name, _Queue())
            queue.users += 1
        try:
            if not queue.lock.acquire(timeout=wait_s):
                raise RangeHeldError(name, wait_s)
            try:
                yield
            finally:
                queue.lock.release()
        finally:
            with self._guard:
                queue.users -= 1
                if not queue.users:
                    self._queues.pop(name, None)

    @contextmanager
    def _locked(self, name: str, ends_at: float, wait_s: float) -> Iterator[None]:
        if not _HAS_RANGES:
            with self._own_file(name, ends_at, wait_s):
                yield
            return
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        with self._guard:
            handle, pid = os.open(self._path, flags, 0o600), os.getpid()
            self._open.add(handle)
        try:
            pause_s = _POLL_S
            while not _set_range(handle, name):
                if time.monotonic() >= ends_at:
                    raise RangeHeldError(name, wait_s)
                time.sleep(pause_s)
                pause_s = min(pause_s * 1.5, _LONGEST_POLL_S)
            yield
        finally:
            if pid == os.getpid():  # a child has closed its copy
                with self._guard:
                    self._open.discard(handle)
                    _set_range(handle, name, unlock=True)  # of copies in children too
                    os.close(handle)

    @contextmanager
    def _own_file(self, name: str, ends_at: float, wait_s: float) -> Iterator[None]:
        path = self._path.with_name(f"{self._path.name}.{_hash(name):x}")
        lock = FileLock(path, timeout=max(0.0, ends_at - time.monotonic()), mode=0o600)
        try:
            lock.acquire()
        except Timeout:
            raise RangeHeldError(name, wait_s) from None
        try:
            yield
        finally:
            lock.release()


class _Queue:
    """The threads of this process that want one name."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogatepass")).digest()[:8]) >> 2


def _set_range(handle: int, name: str, *, unlock: bool = False) -> bool:
    """Lock the byte of a name, or unlock it; False where somebody else has it."""
    import fcntl  # not on Windows

    kind = fcntl.F_UNLCK if unlock else fcntl.F_WRLCK
    wanted = struct.pack(_FLOCK, kind, os.SEEK_SET, _hash(name), 1, 0)
    try:
        fcntl.fcntl(handle, fcntl.F_OFD_SETLK, wanted)
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, as the system likes
        return False
    return True
