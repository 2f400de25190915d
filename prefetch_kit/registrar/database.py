"""The journal's SQLite file: its layout, its connections, and how many threads write to it."""

import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from prefetch_kit.concurrency.file_failures import REMOVED, Failure, failure_of
from prefetch_kit.concurrency.owned_files import is_there, make_file
from prefetch_kit.errors import JournalFailed
from prefetch_kit.registrar import first_layout

_T = TypeVar("_T")
# Something to be written, and who waits for it.
_Job = tuple[Callable[[sqlite3.Connection], Any], "Future[Any] | None"]
LOCKS: Final = "apps.lock"  # beside the journal
_LAYOUT: Final = 2
_BUSY_S: Final = 30.0
_MOST_AT_ONCE: Final = 1000
_LATE_S: Final = 0.5

# `undone_by` is the rollback that brought back what WeChat held before this change; a rollback's
# own changes name that rollback once it is complete for the app. `results` has the newest of each.
_SCHEMA: Final = (
    """CREATE TABLE runs (
        id INTEGER PRIMARY KEY,
        at TEXT NOT NULL,
        action TEXT NOT NULL,
        appid TEXT,
        wanted TEXT NOT NULL,
        apps INTEGER NOT NULL,
        returns_from INTEGER REFERENCES runs (id),
        ended INTEGER NOT NULL
    )""",
    """CREATE TABLE changes (
        id INTEGER PRIMARY KEY,
        run INTEGER NOT NULL REFERENCES runs (id),
        appid TEXT NOT NULL,
        kind TEXT NOT NULL,
        before TEXT NOT NULL,
        wanted TEXT NOT NULL,
        outcome TEXT NOT NULL,
        detail TEXT NOT NULL,
        at TEXT NOT NULL,
        undone_by INTEGER REFERENCES runs (id)
    )""",
    "CREATE INDEX changes_of_app ON changes (appid)",
    "CREATE INDEX changes_of_run ON changes (run)",
    """CREATE TABLE results (
        appid TEXT PRIMARY KEY,
        run INTEGER NOT NULL REFERENCES runs (id),
        outcome TEXT NOT NULL,
        cause TEXT NOT NULL,
        at TEXT NOT NULL
    )""",
    "CREATE INDEX results_of_run ON results (run)",
    "CREATE TABLE merged (path TEXT PRIMARY KEY, at TEXT NOT NULL)",
    # What may have taken effect.
    """CREATE VIEW effects AS
        SELECT * FROM changes WHERE outcome NOT IN ('planned', 'refused', 'unsent')""",
)


class Database:
    """A file that many threads and processes write to.

    What several threads write at the same time is committed together. In a `with` block one
    connection is kept, else each call has its own. Raises `JournalFailed`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writing = threading.Lock()
        self._jobs: deque[_Job] = deque()
        self._db: sqlite3.Connection | None = None
        self._kept: dict[Path, os.stat_result] = {}
        self._written_at = 0.0

    def __enter__(self) -> Self:
        with self._writing, self._failing():
            self._db = self._open()
            # Without the file of the locks, another process could change the same apps.
            paths = self.path, self.path.with_name(LOCKS)
            self._kept = {path: path.stat() for path in paths if path.exists()}
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._writing:
            if self._db is not None:
                self._db.close()
                self._db = None

    def exists(self) -> bool:
        """Whether there is one, or what it is made of."""
        with self._failing():
            return is_there(self.path) or bool(first_layout.journals(self.path.parent))

    def read(self, sql: str, parameters: Any = (), *, writes_first: bool = True) -> list[Any]:
        """All rows; without `writes_first` those of what is on the disk already."""
        with self._writing:
            if writes_first and self._jobs:
                self._commit()
            with self._failing():
                if self._db is not None:
                    return self._db.execute(sql, parameters).fetchall()
        return list(self.rows(sql, parameters))

    def rows(self, sql: str, parameters: Any) -> Iterator[Any]:
        """Each row, on a connection of their own. A journal that is missing is not made."""
        if self.exists():
            with self._failing(), closing(self._open()) as db:
                yield from db.execute(sql, parameters)

    def copy_to(self, other: sqlite3.Connection) -> None:
        """Write all of it to another database, as it is at one moment."""
        with self._failing(), closing(self._open()) as db:
            # A read that waits until it may: SQLite's copying would wait without an end.
            db.execute("BEGIN")
            db.execute("SELECT 1 FROM runs LIMIT 1").fetchall()
            db.backup(other)

    def write_later(self, work: Callable[[sqlite3.Connection], object]) -> None:
        """Have it written with what is written next."""
        self._jobs.append((work, None))

    def write_now(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Write all that waits, or have another thread write it; what `work` returns."""
        answer: Future[_T] = Future()
        self._jobs.append((work, answer))
        with self._writing:
            while not answer.done():
                self._commit()
        return answer.result()

    def write_soon(self, work: Callable[[sqlite3.Connection], object]) -> None:
        """Have it written, with more that waits or comes within half a second."""
        self.write_later(work)
        is_late = time.monotonic() - self._written_at > _LATE_S
        # Where another thread writes, the next call of any thread does this.
        if is_late and self._writing.acquire(blocking=False):
            try:
                self._commit()
            finally:
                self._writing.release()

    def _commit(self) -> None:
        """Write what waits in one transaction. Raises `JournalFailed` if nobody waits for it."""
        jobs = [self._jobs.popleft() for _ in range(min(len(self._jobs), _MOST_AT_ONCE))]
        answers = [answer for _, answer in jobs if answer is not None]
        try:
            with self._failing(), self._connected() as db, db:
                db.execute("BEGIN IMMEDIATE")
                results = [work(db) for work, _ in jobs]
        except BaseException as error:
            failure = error if isinstance(error, JournalFailed) else self._failure(error)
            for answer in answers:
                answer.set_exception(failure)
            if not answers or not isinstance(error, Exception):
                raise
        else:
            for (_, awaited), result in zip(jobs, results, strict=True):
                if awaited is not None:
                    awaited.set_result(result)
        self._written_at = time.monotonic()

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        if self._db is None:
            with closing(self._open()) as db:
                yield db
            return
        self._check_not_moved()
        yield self._db
        self._check_not_moved()  # it may have been moved with what was just written

    def _check_not_moved(self) -> None:
        if (path := self._moved()) is not None:
            raise self._failed(REMOVED, path)

    def _moved(self) -> Path | None:
        """What is no longer the file that it was when the kept connection was made."""
        for path, was in self._kept.items() if self._db is not None else ():
            try:
                if not os.path.samestat(path.stat(), was):
                    return path
            except (FileNotFoundError, NotADirectoryError):
                return path
        return None

    def _open(self) -> sqlite3.Connection:
        make_file(self.path)
        db = sqlite3.connect(
            self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
        )
        try:
            # The directory may lie on a network disk, where a write-ahead log does not work.
            db.execute("PRAGMA journal_mode = TRUNCATE")
            db.execute("PRAGMA synchronous = FULL")
            if self._layout(db) < _LAYOUT:
                with db:
                    db.execute("BEGIN IMMEDIATE")
                    if self._layout(db) < _LAYOUT:  # else another process was first
                        for sql in _SCHEMA:
                            db.execute(sql)
                        first_layout.merge(db, first_layout.journals(self.path.parent))
                        db.execute(f"PRAGMA user_version = {_LAYOUT}")
        except BaseException:
            db.close()
            raise
        return db

    def _layout(self, db: sqlite3.Connection) -> int:
        layout = int(db.execute("PRAGMA user_version").fetchone()[0])
        if layout > _LAYOUT:
            raise JournalFailed(
                str(self.path),
                f"its layout is version {layout}, and this prefetch_kit knows version {_LAYOUT}",
                remedy="Run the version of prefetch_kit that wrote it, or a newer one, with the "
                "same state directory",
            )
        return layout

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise self._failure(error) from error

    def _failure(self, error: BaseException) -> JournalFailed:
        with suppress(OSError):  # then the error itself says more
            if (path := self._moved()) is not None:
                return self._failed(REMOVED, path)
        return self._failed(failure_of(self.path, error), self.path)

    def _failed(self, failure: Failure, path: Path) -> JournalFailed:
        return JournalFailed(str(path), failure.problem, remedy=failure.remedy)
