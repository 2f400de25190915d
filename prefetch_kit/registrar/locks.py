"""One lock for each mini program, for all that change it: byte ranges of one file.

Each name is hashed to a byte of a range of 2**62. An open file description holds the locks
(F_OFD_SETLK, https://man7.org/linux/man-pages/man2/fcntl_locking.2.html): they end with their
process, also after kill -9, and no other descriptor of the file that is closed ends them. Where
the platform has none, each name has a file that filelock locks.
"""

import hashlib
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Final
from weakref import WeakSet

try:
    import fcntl
except ImportError:  # Windows
    _HAS_RANGES = False
else:
    _HAS_RANGES = hasattr(fcntl, "F_OFD_SETLK")

from filelock import FileLock, Timeout

from prefetch_kit.errors import JournalFailed, LockHeld
from prefetch_kit.registrar.journal import now
from prefetch_kit.registrar.state_dir import make_directory, make_file

FLEET: Final = "+fleet"  # the name of no appid
_RANGE: Final = 2**62
_POLL_S: Final = 0.05
# Who holds a lock is written into the file: a name's slot is found by its hash.
_SLOTS: Final = 4096
_SLOT_BYTES: Final = 256
_FLOCK: Final = "hhqqi0q"  # struct flock with 64-bit offsets; the process id must be 0


class Locks:
    """The locks in one directory. Raises `JournalFailed` where it cannot be used.

    For any number of threads, which take turns as processes do.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mutex = threading.Lock()
        self._held: dict[int, FileLock | None] = {}
        self._file = -1

    @contextmanager
    def hold(self, name: str, *, run: int | None = None, wait_s: float = 0.0) -> Iterator[None]:
        """Hold the lock of a name; `run` is told to those who find it held.

        Raises `LockHeld` where it is not free within `wait_s` seconds.
        """
        offset = _offset(name)
        ends_at = time.monotonic() + wait_s
        while not self._take(name, offset, run):
            if time.monotonic() >= ends_at:
                raise LockHeld(str(self._path), wait_s, name=name, holder=self.holder(name))
            time.sleep(_POLL_S)
        try:
            yield
        finally:
            self._release(offset)

    def holder(self, name: str) -> str | None:
        """Who holds the lock of a name now, in words; None where it is free."""
        if not _HAS_RANGES:
            return self._file_holder(name)
        try:
            with open(self._path, "rb", buffering=0) as file:
                asked = _flock(fcntl.F_WRLCK, _offset(name))
                found = fcntl.fcntl(file, fcntl.F_OFD_GETLK, asked)
                if struct.unpack(_FLOCK, found)[0] == fcntl.F_UNLCK:
                    return None
                written = os.pread(file.fileno(), _SLOT_BYTES, _slot(name))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise JournalFailed(str(self._path), str(error)) from error
        whose, _, holder = written.rstrip(b"\0 ").decode(errors="replace").partition("\t")
        return holder if whose == name else "another process"

    def _take(self, name: str, offset: int, run: int | None) -> bool:
        with self._mutex:
            if offset in self._held:
                return False
            try:
                lock = None
                if _HAS_RANGES:
                    self._lock_range(name, offset, run)
                else:
                    lock = self._lock_file(name)
            except (BlockingIOError, Timeout):
                self._close_unused()
                return False
            except OSError as error:
                self._close_unused()
                raise JournalFailed(str(self._path), str(error)) from error
            self._held[offset] = lock
            return True

    def _lock_range(self, name: str, offset: int, run: int | None) -> None:
        if self._file == -1:
            make_file(self._path)
            self._file = os.open(self._path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            _open.add(self)
            _watch_forks()
        fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _flock(fcntl.F_WRLCK, offset))
        holder = f"process {os.getpid()} on {socket.gethostname()} since {now()}"
        if run is not None:
            holder = f"run {run}, {holder}"
        text = f"{name}\t{holder}".encode()[:_SLOT_BYTES].ljust(_SLOT_BYTES)
        with suppress(OSError):  # the lock is held all the same
            os.pwrite(self._file, text, _slot(name))

    def _lock_file(self, name: str) -> FileLock:
        make_directory(self._path.parent)
        lock = FileLock(self._path.with_name(f"{name}.lock"), timeout=0, mode=0o600)
        lock.acquire()
        return lock

    def _file_holder(self, name: str) -> str | None:
        if not self._path.with_name(f"{name}.lock").exists():
            return None
        try:
            self._lock_file(name).release()
        except Timeout:
            return "another process"
        return None

    def _release(self, offset: int) -> None:
        with self._mutex:
            lock = self._held.pop(offset, None)
            if lock is not None:
                lock.release()
            elif self._file != -1:
                # Said, and not left to closing: a child that was forked may have the file too.
                fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK, offset))
            self._close_unused()

    def _close_unused(self) -> None:
        if not self._held and self._file != -1:
            os.close(self._file)
            self._file = -1

    def _forget(self) -> None:
        """In a child that was forked: what the parent holds is the parent's alone."""
        self._mutex = threading.Lock()
        self._held = {}
        self._close_unused()


_open: WeakSet[Locks] = WeakSet()


@cache
def _watch_forks() -> None:
    """A child that kept the file would keep the locks when its parent is killed."""

    def forget() -> None:
        for each in list(_open):
            each._forget()

    os.register_at_fork(after_in_child=forget)


def _offset(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % _RANGE


def _slot(name: str) -> int:
    return _offset(name) % _SLOTS * _SLOT_BYTES


def _flock(kind: int, offset: int) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, offset, 1, 0)
