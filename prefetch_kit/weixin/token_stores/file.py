"""One SQLite file for all records of one WeChat, for every process of one user on this machine.

`STATE/<wechat>/tokens.sqlite3`, where <wechat> is `api.weixin.qq.com` or the address of a sandbox.
Other tools may read its one table; the tokens in it are secrets:

    records(account TEXT, name TEXT, record TEXT, saved_at REAL, PRIMARY KEY (account, name))

`account` is an appid, `name` the kind of record (`access_token`, `ticket`, `component_token`,
`granted-to-<platform's appid>` ...), `record` a JSON object, `saved_at` seconds since the epoch.
`PRAGMA user_version` is the version of this schema, `PRAGMA application_id` is 0x70666b74.

A renewal holds a lock of its record alone, in `tokens.lock` beside the file, so a call to WeChat
blocks no other record. Records of the first version are taken over one by one.
"""

import errno
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Generic, TypeVar
from urllib.parse import quote

from prefetch_kit.concurrency.file_failures import damaged
from prefetch_kit.concurrency.file_ranges import RangeHeldError, RangeLocks
from prefetch_kit.concurrency.fork_lock import ForkLock
from prefetch_kit.concurrency.owned_files import (
    check_directory,
    check_file,
    sync_directory,
)
from prefetch_kit.errors import TokenSourceError, TokenStoreFailed
from prefetch_kit.weixin.token_stores.first_layout import FirstLayout
from prefetch_kit.weixin.token_stores.records import (
    LOCK_WAIT_S,
    Codec,
    Store,
    lock_held,
    unusable,
)

_APPLICATION_ID: Final = 0x70666B74
_VERSION: Final = 1
_SCHEMA: Final = f"""
BEGIN;
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_VERSION};
CREATE TABLE records (
    account TEXT NOT NULL,
    name TEXT NOT NULL,
    record TEXT NOT NULL,
    saved_at REAL NOT NULL,
    PRIMARY KEY (account, name)
) WITHOUT ROWID;
COMMIT;
"""
_LOAD: Final = "SELECT record FROM records WHERE account = ? AND name = ?"
_SAVE: Final = "INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?)"
# Over what was read before, and over nothing else.
_REPLACE: Final = """
INSERT INTO records VALUES (?, ?, ?, ?) ON CONFLICT (account, name)
DO UPDATE SET record = excluded.record, saved_at = excluded.saved_at
WHERE CAST(records.record AS BLOB) = ?
"""
# Longer than any other process writes; a rotated refresh token must not be lost to a short wait.
_BUSY_S: Final = 30.0
# A new access token and a new refresh token are together some 300 characters long.
_ROOM_FOR_TOKENS: Final = 512
_ANOTHER: Final = (
    "Restore the token store from a backup, or move what is there to a place of its own"
)

_T = TypeVar("_T")


class FileStores:
    """The records in one directory."""

    def __init__(self, directory: Path, *, lock_wait_s: float = LOCK_WAIT_S) -> None:
        self.directory = directory
        self.lock_wait_s = lock_wait_s
        self.locks = RangeLocks(directory / "tokens.lock")
        self.database = _Database(directory / "tokens.sqlite3", self.locks)

    def open(self, account: str, name: str, codec: Codec[_T]) -> Store[_T]:
        return FileStore(self, account, name, codec)


class FileStore(Generic[_T]):
    """One record in the file; once `save` returned, it survives a loss of power.

    Text that is no record of its kind counts as none. A file that is no token store, or belongs
    to someone else, or that others may read or write, is refused with TokenSourceError.
    """

    def __init__(self, stores: FileStores, account: str, name: str, codec: Codec[_T]) -> None:
        self._stores = stores
        self._first = FirstLayout(stores.directory, account, name)
        self._key = (account, name)
        self._codec = codec
        # What was read last, and its digest. The text itself would stand in frames and dumps.
        self._read: tuple[bytes, _T | None] = (b"", None)

    @contextmanager
    def lock(self) -> Iterator[None]:
        path, wait_s = self._stores.database.path, self._stores.lock_wait_s
        problem = None
        with ExitStack() as held:
            try:
                held.enter_context(self._stores.locks.hold("\0".join(self._key), wait_s=wait_s))
            except RangeHeldError:
                problem = lock_held(f"{path} ({' '.join(self._key)})", wait_s)
            except OSError as error:
                problem = unusable(TokenStoreFailed, path.with_name("tokens.lock"), error)
            if problem is not None:
                raise problem
            held.enter_context(self._first.lock(wait_s=wait_s))
            yield

    def load(self) -> _T | None:
        ask = self._stores.database.ask
        rows = ask(lambda db: db.execute(_LOAD, self._key).fetchall(), create=False)
        content = rows[0][0] if rows else None
        kept = self._record_in(content) if isinstance(content, bytes) else None
        first = self._first.load(self._codec)
        if first is None:
            return kept
        newest = first if kept is None else self._codec.merge(kept, first)
        if newest != kept:
            # What was read is right even where it cannot be copied.
            with suppress(TokenSourceError):
                self._write(_REPLACE, newest, content)
        return newest

    def _record_in(self, content: bytes) -> _T | None:
        digest = sha256(content).digest()
        known, record = self._read
        if digest != known:  # each call to WeChat loads its token: mostly what it was before
            record = self._codec.read(content)
            self._read = digest, record
        return record

    def save(self, record: _T) -> _T:
        self._write(_SAVE, record)
        return record

    def reserve(self, record: _T) -> None:
        self._write(_SAVE, record, padding=_ROOM_FOR_TOKENS)

    def _write(self, sql: str, record: _T, *parameters: object, padding: int = 0) -> None:
        def write(db: sqlite3.Connection) -> None:
            # No local name for the text: an interrupt shows this frame.
            db.execute(
                sql,
                (
                    *self._key,
                    self._codec.encode(record) + " " * padding,
                    time.time(),
                    *parameters,
                ),
            )

        self._stores.database.ask(write)


class _Database:
    """The SQLite file and this process's one connection to it, used by one thread at a time."""

    def __init__(self, path: Path, locks: RangeLocks) -> None:
        self.path = path
        self._locks = locks
        self._guard = ForkLock(self._leave_inherited)  # so that no fork splits a transaction
        self._connection: sqlite3.Connection | None = None
        self._inherited: list[sqlite3.Connection] = []
        self._file: tuple[int, int] | None = None
        self._checked: tuple[int, ...] | None = None  # the directory, as it was found to be safe

    def __del__(self) -> None:
        self._close()

    def ask(self, work: Callable[[sqlite3.Connection], Any], *, create: bool = True) -> Any:
        """What `work` returns; None where there is no file and none is made.

        Raises TokenSourceError, from no frame that has seen a record.
        """
        problem: TokenSourceError
        try:
            if create and not os.path.lexists(self.path):
                self._create()
            with self._guard:
                connection = self._connected()
                if connection is not None:
                    return work(connection)
            if not create:
                return None
            removed = FileNotFoundError(errno.ENOENT, "it was just removed")
            problem = unusable(TokenStoreFailed, self.path, removed)
        except RangeHeldError as error:
            problem = lock_held(str(self.path), error.waited_s)
        except (OSError, sqlite3.Error) as error:
            problem = unusable(TokenStoreFailed, self.path, error)
        raise problem

    def _connected(self) -> sqlite3.Connection | None:
        """The connection; None where there is no file. Made anew where it is another file."""
        try:
            found = self.path.lstat()
        except FileNotFoundError:
            self._close()
            return None
        # Not opened to look at it: closing a file ends the locks that SQLite has on it in other
        # threads, https://www.sqlite.org/howtocorrupt.html.
        self._check_directory()
        check_file(self.path, found, secret=True)
        if self._connection is None or self._file != (found.st_dev, found.st_ino):
            self._close()
            self._connection, self._file = self._opened(), (found.st_dev, found.st_ino)
        return self._connection

    def _check_directory(self) -> None:
        found = os.stat(self.path.parent)
        is_as = found.st_dev, found.st_ino, found.st_mode, found.st_uid
        if is_as != self._checked:  # all of its parents are looked at, which is slow
            check_directory(self.path.parent)
            self._checked = is_as

    def _opened(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"file:{quote(os.fsencode(self.path.absolute()))}?mode=rw",
            uri=True,
            timeout=_BUSY_S,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            # Text that is not UTF-8 would be quoted in an error.
            connection.text_factory = bytes
            # The journal's removal is what commits; EXTRA makes that survive a loss of power.
            connection.execute("PRAGMA synchronous = EXTRA")
            self._check(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _check(self, connection: sqlite3.Connection) -> None:
        """Refuse what is no token store, is cut short, or was written by a newer version."""
        if _number(connection, "application_id") != _APPLICATION_ID:
            raise self._refused("it is not a token store", remedy=_ANOTHER)
        if self.path.stat().st_size % _number(connection, "page_size"):
            # SQLite would read zeros in the last page.
            problem, remedy = damaged("it is cut short")
            raise self._refused(problem, remedy=remedy)
        version = _number(connection, "user_version")
        if version > _VERSION:
            problem = f"a newer prefetch-kit wrote it (schema {version}, this one knows {_VERSION})"
            raise self._refused(problem, remedy="Upgrade prefetch-kit; leave the file as it is")

    def _refused(self, problem: str, *, remedy: str) -> TokenSourceError:
        return TokenSourceError(str(self.path), problem, remedy=remedy)

    def _create(self) -> None:
        """Put a complete, empty file there, unless another process has."""
        with self._locks.hold("", wait_s=_BUSY_S):
            if os.path.lexists(self.path):
                return
            handle, new = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
            try:
                os.close(handle)
                with closing(sqlite3.connect(new)) as connection:
                    connection.executescript(_SCHEMA)
                os.replace(new, self.path)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(new)
                raise
            sync_directory(self.path.parent)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _leave_inherited(self) -> None:
        """Never use or close a connection of the parent: both could harm the file."""
        if self._connection is not None:
            self._inherited.append(self._connection)
        self._connection = None


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    [(number,)] = connection.execute(f"PRAGMA {pragma}").fetchall()
    return int(number)
