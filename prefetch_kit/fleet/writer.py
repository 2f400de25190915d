"""One thread that writes a journal for many: what waits is committed together."""

import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from prefetch_kit.errors import JournalFailed
from prefetch_kit.registrar.state_dir import make_file

_WAITING: Final = 1000
_GATHER_S: Final = 0.02

_T = TypeVar("_T")
_Job = tuple[Callable[[sqlite3.Connection], Any], "Future[Any] | None"]


class Writer:
    """Runs jobs on one connection, in the order they came, many in one transaction.

    A job is done once it is on the disk. After the first failure no job is done any more:
    `JournalFailed` then comes from every method, and `on_failure` was called once.
    """

    def __init__(self, path: Path, schema: str, *, on_failure: Callable[[], None]) -> None:
        self._path = path
        self._on_failure = on_failure
        self._jobs: queue.Queue[_Job | None] = queue.Queue(_WAITING)
        self._failure: JournalFailed | None = None
        self._db = _opened(path, schema)
        self._thread = threading.Thread(target=self._work, name="fleet-journal", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._jobs.put(None)
        self._thread.join()
        self._db.close()

    def ask(self, job: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run a job, wait until it is on the disk, and return what it returns."""
        answer: Future[_T] = Future()
        self._put(job, answer)
        return answer.result()

    def tell(self, job: Callable[[sqlite3.Connection], object]) -> None:
        """Have a job run soon; a failure stops all that come after it."""
        self._put(job, None)

    def check(self) -> None:
        """Wait for all that was told. Raises `JournalFailed` where some of it was not stored."""
        self.ask(lambda _: None)

    def _put(self, job: Callable[[sqlite3.Connection], Any], answer: "Future[Any] | None") -> None:
        if self._failure is not None:
            raise JournalFailed(self._failure.path, self._failure.cause)
        self._jobs.put((job, answer))

    def _work(self) -> None:
        is_last = False
        while not is_last:
            batch, is_last = self._gathered()
            if batch:
                self._commit(batch)

    def _gathered(self) -> tuple[list[_Job], bool]:
        """What waits, and whether nothing follows. Jobs that nobody waits for wait for more."""
        batch: list[_Job] = []
        job, ends_at = self._jobs.get(), time.monotonic() + _GATHER_S
        while job is not None:
            batch.append(job)
            if len(batch) == _WAITING:
                return batch, False
            if job[1] is not None:
                ends_at = 0
            try:
                job = self._jobs.get(timeout=max(0, ends_at - time.monotonic()))
            except queue.Empty:
                return batch, False
        return batch, True

    def _commit(self, batch: list[_Job]) -> None:
        results = None if self._failure else self._results(batch)
        for number, (_, answer) in enumerate(batch):
            if answer is None:
                continue
            if results is not None:
                answer.set_result(results[number])
            elif self._failure is not None:
                answer.set_exception(JournalFailed(self._failure.path, self._failure.cause))

    def _results(self, batch: list[_Job]) -> list[Any] | None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            results = [job(self._db) for job, _ in batch]
            self._db.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - whoever waits must hear of it
            self._failure = JournalFailed(str(self._path), str(error))
        else:
            return results
        self._on_failure()
        return None


def _opened(path: Path, schema: str) -> sqlite3.Connection:
    try:
        make_file(path)
        db = sqlite3.connect(path, timeout=5.0, check_same_thread=False, isolation_level=None)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.executescript(f"BEGIN IMMEDIATE; {schema}; COMMIT;")  # all of it, or nothing
        except BaseException:
            db.close()
            raise
    except (sqlite3.Error, OSError) as error:
        raise JournalFailed(str(path), str(error)) from error
    return db
