"""Records that WeChat handed out, how they are written, and what every store of them can do."""

import json
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar

from prefetch_kit.concurrency.file_failures import failure_of
from prefetch_kit.errors import TokenSourceError
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.answers import UnreadableError, parse

LOCK_WAIT_S: Final = 30.0
TOKEN_SHAPE: Final = re.compile(r"[!-~]{1,1024}\Z")

_T = TypeVar("_T")
_E = TypeVar("_E", bound=TokenSourceError)


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
        """The access token in this record: the record itself."""
        return self


@dataclass(frozen=True, slots=True)
class Codec(Generic[_T]):
    """How a kind of record is written.

    `decode` returns None for anything else. `merge` makes one record of two that two processes
    stored without knowing of each other.
    """

    encode: Callable[[_T], str]
    decode: Callable[[Mapping[str, object]], _T | None]
    merge: Callable[[_T, _T], _T]

    def read(self, content: bytes) -> _T | None:
        """The record in these bytes, None for anything else."""
        try:
            return self.decode(parse(content))
        except UnreadableError:
            return None


class Store(Protocol[_T]):
    """Keeps one record. `load` needs no lock; `save` is called under it.

    `save` returns the record that is stored afterwards: another, newer one where the lock was
    lost meanwhile. `reserve`, under the lock too, makes sure that what takes the place of this
    record can be stored. All raise TokenSourceError.
    """

    def lock(self) -> AbstractContextManager[None]: ...

    def load(self) -> _T | None: ...

    def save(self, record: _T) -> _T: ...

    def reserve(self, record: _T) -> None: ...


TokenStore = Store[StoredToken]


class Stores(Protocol):
    """Opens the store of one record of one account; the same names open the same record."""

    def open(self, account: str, name: str, codec: Codec[_T]) -> Store[_T]: ...


class MemoryStore(Generic[_T]):
    """Keeps a record in the memory of one process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._record: _T | None = None

    @contextmanager
    def lock(self) -> Iterator[None]:
        if not self._lock.acquire(timeout=LOCK_WAIT_S):
            raise lock_held("this process's memory", LOCK_WAIT_S)
        try:
            yield
        finally:
            self._lock.release()

    def load(self) -> _T | None:
        return self._record

    def save(self, record: _T) -> _T:
        self._record = record
        return record

    def reserve(self, record: _T) -> None:
        """There is always room."""


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


def _later(one: StoredToken, other: StoredToken) -> StoredToken:
    return one if one.expires_at >= other.expires_at else other


TOKEN_CODEC: Final = Codec(encode_token, decode_token, _later)


def unusable(kind: type[_E], path: Path, error: OSError | sqlite3.Error) -> _E:
    """For a file of records; its text is none of theirs."""
    problem, remedy = failure_of(path, error)
    return kind(str(path), problem, remedy=remedy)


def lock_held(where: str, waited_s: float) -> TokenSourceError:
    return TokenSourceError(
        where,
        f"another renewal holds its lock for {waited_s:g} s already",
        remedy="Try again; the lock ends with its process",
    )
