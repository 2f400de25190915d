"""One lock for each mini program, for everything that changes it, and who holds it."""

import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from prefetch_kit.concurrency.file_failures import failure_of
from prefetch_kit.concurrency.file_ranges import RangeHeldError, RangeLocks
from prefetch_kit.errors import JournalFailed, LockHeld
from prefetch_kit.registrar.journal import now

FLEET: Final = "the fleet"  # not a possible appid
# The holder of a lock is written into the file: the hash of a name finds its slot.
_SLOTS: Final = 4096
_SLOT_BYTES: Final = 256


class Locks:
    """The locks of one file. Raises `JournalFailed` where it cannot be used.

    For any number of threads, which take turns as processes do.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ranges = RangeLocks(path)

    @contextmanager
    def hold(self, name: str, *, run: int | None = None, wait_s: float = 0.0) -> Iterator[None]:
        """Hold the lock of a name; `run` is told to those who find it held.

        Raises `LockHeld` where it is not free within `wait_s` seconds.
        """
        with ExitStack() as held:
            try:
                held.enter_context(self._ranges.hold(name, wait_s=wait_s))
            except RangeHeldError as error:
                holder = self.holder(name)
                raise LockHeld(str(self._path), wait_s, name=name, holder=holder) from error
            except OSError as error:
                raise self._failure(error) from error
            with suppress(OSError):  # the lock is held all the same
                self._write_holder(name, run)
            yield

    def holder(self, name: str) -> str | None:
        """Who holds the lock of a name now, in words; None where it is free."""
        try:
            if not self._path.exists() or not self._ranges.is_held(name):
                return None
            with open(self._path, "rb", buffering=0) as file:
                written = os.pread(file.fileno(), _SLOT_BYTES, _slot(name))
        except OSError as error:
            raise self._failure(error) from error
        whose, _, holder = written.rstrip(b"\0 ").decode(errors="replace").partition("\t")
        return holder if whose == name else "another process"

    def _write_holder(self, name: str, run: int | None) -> None:
        holder = f"process {os.getpid()} on {socket.gethostname()} since {now()}"
        if run is not None:
            holder = f"run {run}, {holder}"
        text = f"{name}\t{holder}".encode()[:_SLOT_BYTES].ljust(_SLOT_BYTES)
        with open(self._path, "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), text, _slot(name))

    def _failure(self, error: OSError) -> JournalFailed:
        problem, remedy = failure_of(self._path, error)
        return JournalFailed(str(self._path), problem, remedy=remedy)


def _slot(name: str) -> int:
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8]) % _SLOTS * _SLOT_BYTES
