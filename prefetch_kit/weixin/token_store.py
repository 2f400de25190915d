"""Where an access token is kept, and the lock under which it is renewed.

Other secrets that WeChat hands out are kept the same way: a store is for one kind of record,
and a codec says how that is written.
"""

import json
import os
import re
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from filelock import FileLock, Timeout

from prefetch_kit.errors import TokenSourceError
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.answers import UnreadableError, parse

LOCK_WAIT_S = 30.0
_MAX_BYTES = 8192
TOKEN_SHAPE = re.compile(r"[!-~]{1,1024}\Z")

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class StoredToken:
    """A token and the wall-clock time, in seconds, at which it ends."""

    value: Secret
    expires_at: float

    def ends_soon(self, now: float) -> bool:
        """Whether less than a minute is left, too little to hand it out."""
        return self.expires_at - now < 60

    @property
    def access(self) -> "StoredToken":
        """The access token in this record, which is all there is of it."""
        return self


@dataclass(frozen=True, slots=True)
class Codec(Generic[_T]):
    """How a record is written; `decode` gives None for what is none."""

    encode: Callable[[_T], str]
    decode: Callable[[Mapping[str, object]], _T | None]


class Store(Protocol[_T]):
    """Keeps one record. `load` needs no lock; `save` is called under it.

    `save` hands back what stands there afterwards: that is another record, a newer one, where
    the lock was lost meanwhile. All raise TokenSourceError.
    """

    def lock(self) -> AbstractContextManager[None]: ...

    def load(self) -> _T | None: ...

    def save(self, record: _T) -> _T: ...


TokenStore = Store[StoredToken]


class MemoryStore(Generic[_T]):
    """For one process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._record: _T | None = None

    @contextmanager
    def lock(self) -> Iterator[None]:
        if not self._lock.acquire(timeout=LOCK_WAIT_S):
            raise _lock_held("this process's memory", LOCK_WAIT_S)
        try:
            yield
        finally:
            self._lock.release()

    def load(self) -> _T | None:
        return self._record

    def save(self, record: _T) -> _T:
        self._record = record
        return record


class MemoryTokenStore(MemoryStore[StoredToken]):
    """A token of one process."""


class FileStore(Generic[_T]):
    """A file with one record, shared by all processes of one user on this machine.

    The file is readable by its owner only and replaced in one step, so a reader sees the old
    record or the new one; once `save` returned, it survives a loss of power. Content that cannot
    be read counts as no record, since WeChat can be asked again. A file that belongs to someone
    else, or that others may read or write, is refused with TokenSourceError: what it holds may
    be planted, or known to others.
    """

    def __init__(self, path: Path, codec: Codec[_T], *, lock_wait_s: float = LOCK_WAIT_S) -> None:
        self._path = path
        self._codec = codec
        self._lock_wait_s = lock_wait_s

    @contextmanager
    def lock(self) -> Iterator[None]:
        # A lock of the operating system ends with its process, however that ends.
        lock = FileLock(f"{self._path}.lock", timeout=self._lock_wait_s, mode=0o600)
        problem = None
        try:
            self._make_directory()
            lock.acquire()
        except Timeout:
            problem = _lock_held(str(self._path), self._lock_wait_s)
        except OSError as error:
            problem = self._unusable(error)
        if problem is not None:
            raise problem
        try:
            yield
        finally:
            lock.release()

    def load(self) -> _T | None:
        problem = None
        try:
            return self._read()
        except FileNotFoundError:
            return None
        except OSError as error:
            problem = self._refused(f"it cannot be read ({error.strerror})")
        raise problem

    def save(self, record: _T) -> _T:
        problem = None
        try:
            self._make_directory()
            self._replace(record)
        except OSError as error:
            problem = self._unusable(error)
        if problem is not None:
            raise problem
        return record

    def _make_directory(self) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _read(self) -> _T | None:
        with open(self._path, "rb", opener=_open_in_place) as file:
            self._check_owner(os.fstat(file.fileno()))
            return decoded(file.read(_MAX_BYTES), self._codec)

    def _check_owner(self, found: os.stat_result) -> None:
        if not stat.S_ISREG(found.st_mode):
            raise self._refused("it is not a plain file")
        if found.st_uid != os.geteuid():
            raise self._refused("it belongs to another user")
        if found.st_mode & 0o077:
            problem = "other users may read or write it"
            raise self._refused(problem, remedy="Take it away from them (chmod go-rwx)")

    def _replace(self, record: _T) -> None:
        directory = self._path.parent
        handle, written = tempfile.mkstemp(dir=directory, prefix=f".{self._path.name}.")
        try:
            with open(handle, "w", encoding="ascii") as file:
                file.write(self._codec.encode(record))
                file.flush()
                os.fsync(handle)
            os.replace(written, self._path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(written)
            raise
        _sync_directory(directory)

    def _refused(self, problem: str, *, remedy: str = "Delete it") -> TokenSourceError:
        return TokenSourceError(
            str(self._path),
            problem,
            remedy=f"{remedy}, or point PREFETCH_STATE_DIR at another directory",
        )

    def _unusable(self, error: OSError) -> TokenSourceError:
        return TokenSourceError(
            str(self._path),
            f"it cannot be used ({error.strerror})",
            remedy="Point PREFETCH_STATE_DIR at a directory that this user can write to",
        )


def _open_in_place(path: str, flags: int) -> int:
    # O_NONBLOCK: a pipe put in its place must not hold us up.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def decoded(content: bytes, codec: Codec[_T]) -> _T | None:
    """The record that was written, None for anything else."""
    try:
        return codec.decode(parse(content))
    except UnreadableError:
        return None


def encode_token(token: StoredToken) -> str:
    return json.dumps({"access_token": token.value.reveal(), "expires_at": token.expires_at})


def decode_token(plain: Mapping[str, object]) -> StoredToken | None:
    value, expires_at = decode_secret(plain.get("access_token")), plain.get("expires_at")
    if value is None or not isinstance(expires_at, float | int):
        return None
    try:
        return StoredToken(value, float(expires_at))
    except OverflowError:  # an integer of hundreds of digits
        return None


def decode_secret(value: object) -> Secret | None:
    return Secret(value) if isinstance(value, str) and TOKEN_SHAPE.match(value) else None


TOKEN_CODEC = Codec(encode_token, decode_token)


class FileTokenStore(FileStore[StoredToken]):
    """A file of one account's token."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, TOKEN_CODEC)


def _lock_held(where: str, waited_s: float) -> TokenSourceError:
    return TokenSourceError(
        where,
        f"another renewal holds its lock for {waited_s:g} s already",
        remedy="Try again; the lock ends with its process",
    )
