"""One fleet at a time in one state directory."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from prefetch_kit.errors import JournalFailed, LockHeld
from prefetch_kit.registrar.journal import now
from prefetch_kit.registrar.state_dir import make_directory


@contextmanager
def only_fleet(directory: Path) -> Iterator[None]:
    """Hold the directory's lock. It ends with the process, however that ends.

    Raises `LockHeld`, at once and with who holds it, and `JournalFailed`.
    """
    path, holder = directory / "fleet.lock", directory / "fleet.holder"
    try:
        make_directory(directory)
        lock = FileLock(path, timeout=0, mode=0o600).acquire()
    except Timeout:
        raise LockHeld(str(path), 0, holder=_read(holder)) from None
    except OSError as error:
        raise JournalFailed(str(path), str(error)) from error
    with lock:
        try:
            _write(holder)
        except OSError as error:
            raise JournalFailed(str(holder), str(error)) from error
        yield


def _write(path: Path) -> None:
    """Beside the lock: whoever tries that empties it."""
    written = path.with_suffix(".new")
    with suppress(FileNotFoundError):
        written.unlink()
    with open(os.open(written, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": now()}, file)
    written.replace(path)


def _read(path: Path) -> str | None:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return None
