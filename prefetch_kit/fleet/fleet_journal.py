"""The journal of a fleet: whose runs belong together, and what became of each app."""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from prefetch_kit.errors import JournalFailed
from prefetch_kit.fetch_setting import FetchSetting, Kind
from prefetch_kit.fleet.writer import Writer
from prefetch_kit.registrar.journal import (
    SCHEMA,
    Action,
    Outcome,
    dump,
    now,
    read_confirmed,
    read_past,
)
from prefetch_kit.registrar.plan import Past, Plan
from prefetch_kit.registrar.state_dir import check_file

_FLEET_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS fleets (
    id INTEGER PRIMARY KEY,
    at TEXT NOT NULL,
    action TEXT NOT NULL,
    wanted TEXT NOT NULL,
    apps INTEGER NOT NULL,
    returns_from INTEGER REFERENCES fleets (id),
    ended INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS fleet_runs (
    run INTEGER PRIMARY KEY REFERENCES runs (id),
    fleet INTEGER NOT NULL REFERENCES fleets (id)
);
CREATE INDEX IF NOT EXISTS runs_of_fleet ON fleet_runs (fleet);
CREATE TABLE IF NOT EXISTS fleet_apps (
    appid TEXT PRIMARY KEY,
    fleet INTEGER NOT NULL REFERENCES fleets (id),
    outcome TEXT NOT NULL,
    cause TEXT NOT NULL,
    at TEXT NOT NULL
);
CREATE VIEW IF NOT EXISTS changed AS
SELECT fleet, runs.id AS run, appid FROM fleet_runs
JOIN runs ON runs.id = fleet_runs.run JOIN changes ON changes.run = runs.id
WHERE outcome NOT IN ('planned', 'refused', 'unsent');
"""
_LAST_APPLIED: Final = """
SELECT id FROM fleets AS applied
WHERE action = 'apply' AND EXISTS (SELECT 1 FROM changed WHERE fleet = applied.id)
AND NOT EXISTS (
    SELECT 1 FROM fleets AS back
    WHERE back.ended AND back.returns_from <= applied.id AND back.id > applied.id
)
ORDER BY id DESC LIMIT 1
"""
_KNOWN: Final = """
SELECT id FROM fleets WHERE EXISTS (SELECT 1 FROM changed WHERE fleet = id) ORDER BY id
"""
_FIRST_RUN: Final = "SELECT MIN(run) FROM fleet_runs WHERE fleet >= ?"
_CHANGED_SINCE: Final = "SELECT appid FROM changed WHERE run >= ? GROUP BY appid ORDER BY MIN(run)"
# A fleet that was cut short is gone on with by one that wants the same.
_UNFINISHED: Final = """
SELECT id FROM (SELECT * FROM fleets ORDER BY id DESC LIMIT 1)
WHERE NOT ended AND action = ? AND wanted = ? AND returns_from IS ?
"""


@dataclass(frozen=True, slots=True)
class FleetRecord:
    """One fleet as the journal has it."""

    id: int
    at: str
    action: Action
    apps: int
    returns_from: int | None
    ended: bool


class FleetJournal:
    """What a fleet writes down, from any thread; ends with `with`.

    An intent is on the disk before `mark` returns. A result is written a little later: where
    that fails, `on_failure` is called and nothing more can be written. Raises `JournalFailed`.
    """

    def __init__(self, path: Path, *, on_failure: Callable[[], None]) -> None:
        self._writer = Writer(path, SCHEMA + _FLEET_SCHEMA, on_failure=on_failure)
        self._lock = threading.Lock()
        last = self._writer.ask(lambda db: db.execute("SELECT MAX(id) FROM runs").fetchone()[0])
        self._last_run = int(last or 0)
        self.fleet = 0
        self.resumed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._writer.__exit__(*exc_info)

    def begin_fleet(
        self, action: Action, wanted: str, *, apps: int, returns_from: int | None = None
    ) -> None:
        """Open a fleet, or the last one again, if it wanted the same and was cut short."""

        def job(db: sqlite3.Connection) -> tuple[int, bool]:
            found = db.execute(_UNFINISHED, (action, wanted, returns_from)).fetchone()
            if found is not None:
                db.execute("UPDATE fleets SET apps = ? WHERE id = ?", (apps, found[0]))
                return int(found[0]), True
            cursor = db.execute(
                "INSERT INTO fleets (at, action, wanted, apps, returns_from)"
                " VALUES (?, ?, ?, ?, ?)",
                (now(), action, wanted, apps, returns_from),
            )
            return int(cursor.lastrowid or 0), False

        self.fleet, self.resumed = self._writer.ask(job)

    def end_fleet(self, *, ended: bool) -> None:
        """Wait until every result is stored, and say whether it may be gone on with."""
        self._writer.check()
        if ended:
            sql = "UPDATE fleets SET ended = 1 WHERE id = ?"
            self._writer.ask(lambda db: db.execute(sql, (self.fleet,)).rowcount)

    def begin(self, plan: Plan, action: Action) -> int:
        """Record one app's plan; on the disk with the first intent. Returns its number."""
        with self._lock:
            self._last_run += 1
            run = self._last_run
        changes = [(run, c.kind, dump(c.before), dump(c.after), now()) for c in plan.changes]

        def job(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT INTO runs (id, at, appid, action) VALUES (?, ?, ?, ?)",
                (run, now(), plan.appid, action),
            )
            db.execute("INSERT INTO fleet_runs VALUES (?, ?)", (run, self.fleet))
            db.executemany("INSERT INTO changes VALUES (?, ?, ?, ?, 'planned', '', ?)", changes)

        self._writer.tell(job)
        return run

    def mark(self, run: int, kind: Kind, outcome: Outcome, *, detail: str = "") -> None:
        """Record how far one change of a run has come."""
        sql = "UPDATE changes SET outcome = ?, detail = ?, at = ? WHERE run = ? AND kind = ?"
        row = (outcome, detail, now(), run, kind)
        if outcome == "intent":
            self._writer.ask(lambda db: db.execute(sql, row).rowcount)
        else:
            self._writer.tell(lambda db: db.execute(sql, row))

    def note(self, appid: str, outcome: str, cause: str) -> None:
        """Record what became of an app in this fleet."""
        row = (appid, self.fleet, outcome, cause, now())
        sql = "INSERT OR REPLACE INTO fleet_apps VALUES (?, ?, ?, ?, ?)"
        self._writer.tell(lambda db: db.execute(sql, row))

    def confirmed(self, appid: str) -> dict[Kind, FetchSetting]:
        """What was read back last as it was set, for each kind."""
        return self._writer.ask(lambda db: read_confirmed(db, appid))

    def past(self, appid: str, first_run: int) -> dict[Kind, Past]:
        """What stood there before this run, and what was wanted since."""
        return self._writer.ask(lambda db: read_past(db, appid, first=first_run))


class FleetHistory:
    """What a fleet's journal tells, read without making or changing anything."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def exists(self) -> bool:
        """Whether there is one; what was killed while it was made is none yet."""
        try:
            check_file(self.path)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise JournalFailed(str(self.path), str(error)) from error
        return any(self._select("SELECT 1 FROM sqlite_master WHERE name = 'changed'"))

    def last_applied(self) -> int | None:
        """The newest fleet apply that may have changed something and was not rolled back."""
        return next((row[0] for row in self._rows(_LAST_APPLIED)), None)

    def known(self) -> list[int]:
        """The fleets that may have changed something, oldest first."""
        return [row[0] for row in self._rows(_KNOWN)]

    def first_run(self, fleet: int) -> int:
        """The first run of this fleet or a later one."""
        return int(next(self._rows(_FIRST_RUN, fleet))[0])

    def changed_since(self, run: int) -> Iterator[str]:
        """The apps that this run or a later one may have changed."""
        return (row[0] for row in self._rows(_CHANGED_SINCE, run))

    def last(self) -> FleetRecord | None:
        """The newest fleet."""
        sql = (
            "SELECT id, at, action, apps, returns_from, ended FROM fleets ORDER BY id DESC LIMIT 1"
        )
        row = next(self._rows(sql), None)
        if row is None:
            return None
        number, at, action, apps, returns_from, ended = row
        return FleetRecord(number, at, action, apps, returns_from, bool(ended))

    def apps(self, fleet: int) -> Iterator[tuple[str, str, str]]:
        """Appid, outcome and cause of each app that the fleet came to."""
        sql = "SELECT appid, outcome, cause FROM fleet_apps WHERE fleet = ? ORDER BY rowid"
        return self._rows(sql, fleet)

    def confirmed(self, appid: str) -> dict[Kind, FetchSetting]:
        """What was read back last as it was set, for each kind."""
        with closing(self._open()) as db:
            try:
                return read_confirmed(db, appid)
            except (sqlite3.Error, ValueError, TypeError) as error:
                raise JournalFailed(str(self.path), str(error)) from None

    def _rows(self, sql: str, *parameters: object) -> Iterator[Any]:
        if self.exists():
            yield from self._select(sql, *parameters)

    def _select(self, sql: str, *parameters: object) -> Iterator[Any]:
        with closing(self._open()) as db:
            try:
                yield from db.execute(sql, parameters)
            except sqlite3.Error as error:
                raise JournalFailed(str(self.path), str(error)) from error

    def _open(self) -> sqlite3.Connection:
        try:
            return sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)
        except sqlite3.Error as error:
            raise JournalFailed(str(self.path), str(error)) from error
