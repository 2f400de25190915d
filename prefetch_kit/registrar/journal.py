"""What was wanted, tried and confirmed, and what stood there before: a SQLite file."""

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, TypeVar

from prefetch_kit.errors import JournalFailed
from prefetch_kit.fetch_setting import KINDS, FetchSetting, Kind
from prefetch_kit.registrar.plan import Past, Plan
from prefetch_kit.registrar.state_dir import make_file

Action = Literal["apply", "rollback"]
_T = TypeVar("_T")
# Planned: not sent yet. Intent: being sent, so it may have taken effect. Unsent: given up before.
Outcome = Literal["planned", "intent", "confirmed", "refused", "unknown", "unsent"]

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS runs (
    id INTEGER PRIMARY KEY,
    at TEXT NOT NULL,
    appid TEXT NOT NULL,
    action TEXT NOT NULL,
    returns_from INTEGER REFERENCES runs (id)
);
CREATE TABLE IF NOT EXISTS changes (
    run INTEGER NOT NULL REFERENCES runs (id),
    kind TEXT NOT NULL,
    before TEXT NOT NULL,
    wanted TEXT NOT NULL,
    outcome TEXT NOT NULL,
    detail TEXT NOT NULL,
    at TEXT NOT NULL,
    PRIMARY KEY (run, kind)
);
CREATE INDEX IF NOT EXISTS runs_of_app ON runs (appid);
"""
# A rollback that was cut short is finished by the next one, so only a confirmed one counts.
_LAST_APPLIED: Final = """
SELECT id FROM runs AS applied
WHERE appid = ? AND action = 'apply'
AND EXISTS (
    SELECT 1 FROM changes WHERE run = applied.id
    AND outcome NOT IN ('planned', 'refused', 'unsent')
)
AND NOT EXISTS (
    SELECT 1 FROM runs AS back WHERE back.appid = applied.appid
    AND back.returns_from <= applied.id AND back.id > applied.id
    AND NOT EXISTS (SELECT 1 FROM changes WHERE run = back.id AND outcome != 'confirmed')
)
ORDER BY id DESC LIMIT 1
"""
_PAST: Final = """
SELECT kind, before, wanted FROM changes JOIN runs ON runs.id = run
WHERE appid = ? AND run BETWEEN ? AND ? AND outcome NOT IN ('planned', 'refused', 'unsent')
ORDER BY run
"""
_CONFIRMED: Final = """
SELECT kind, wanted FROM changes JOIN runs ON runs.id = run
WHERE appid = ? AND outcome = 'confirmed' ORDER BY run
"""
_RUNS: Final = """
SELECT id FROM runs WHERE appid = ? AND EXISTS (
    SELECT 1 FROM changes WHERE run = id AND outcome NOT IN ('planned', 'refused', 'unsent')
) ORDER BY id
"""
_LAST_ID: Final = 2**63 - 1


class Journal:
    """The record of every change, written before it is sent and again when its result is known.

    Raises `JournalFailed` where the file cannot be read or written: what cannot be recorded is
    not sent.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, plan: Plan, action: Action, *, returns_from: int | None = None) -> int:
        """Record a plan before any of it is sent; returns the number of the run."""
        with self._open() as db:
            cursor = db.execute(
                "INSERT INTO runs (at, appid, action, returns_from) VALUES (?, ?, ?, ?)",
                (now(), plan.appid, action, returns_from),
            )
            run = cursor.lastrowid
            if run is None:
                raise JournalFailed(str(self.path), "no row was written")
            db.executemany(
                "INSERT INTO changes VALUES (?, ?, ?, ?, 'planned', '', ?)",
                [(run, c.kind, dump(c.before), dump(c.after), now()) for c in plan.changes],
            )
        return run

    def mark(self, run: int, kind: Kind, outcome: Outcome, *, detail: str = "") -> None:
        """Record how far one change of a run has come."""
        with self._open() as db:
            db.execute(
                "UPDATE changes SET outcome = ?, detail = ?, at = ? WHERE run = ? AND kind = ?",
                (outcome, detail, now(), run, kind),
            )

    def last_applied(self, appid: str) -> int | None:
        """The newest run that may have changed something and was not rolled back."""
        with self._open() as db:
            row = db.execute(_LAST_APPLIED, (appid,)).fetchone()
        return None if row is None else int(row[0])

    def past(self, appid: str, run: int) -> dict[Kind, Past]:
        """What a run found and wanted, for each kind it may have changed."""
        return self._past(appid, run, run)

    def since(self, appid: str, run: int) -> dict[Kind, Past]:
        """The same for this run and all after it, as if they were one."""
        return self._past(appid, run, _LAST_ID)

    def confirmed(self, appid: str) -> dict[Kind, FetchSetting]:
        """What was read back last as it was set, for each kind; nothing is made for this."""
        try:
            if not self.path.exists():
                return {}
        except OSError as error:
            raise JournalFailed(str(self.path), str(error)) from error
        with self._open() as db:
            return self._read(lambda: read_confirmed(db, appid))

    def runs(self, appid: str) -> list[int]:
        """The runs that may have changed something, oldest first."""
        with self._open() as db:
            return [int(run) for (run,) in db.execute(_RUNS, (appid,))]

    def _past(self, appid: str, first: int, last: int) -> dict[Kind, Past]:
        with self._open() as db:
            return self._read(lambda: read_past(db, appid, first=first, last=last))

    def _read(self, read: Callable[[], _T]) -> _T:
        try:
            return read()
        except (TypeError, ValueError):
            raise JournalFailed(str(self.path), "a run in it cannot be read") from None

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            make_file(self.path)
            with closing(sqlite3.connect(self.path, timeout=5.0)) as db:
                db.executescript(SCHEMA)
                with db:
                    yield db
        except (sqlite3.Error, OSError) as error:
            raise JournalFailed(str(self.path), str(error)) from error


def read_past(
    db: sqlite3.Connection, appid: str, *, first: int, last: int = _LAST_ID
) -> dict[Kind, Past]:
    """What the runs from `first` to `last` found and wanted. Raises TypeError or ValueError."""
    chains: dict[Kind, list[FetchSetting]] = {}
    for kind, before, wanted in db.execute(_PAST, (appid, first, last)):
        chains.setdefault(kind, []).extend((load(before), load(wanted)))
    return {
        kind: Past(chain[0], chain[-1], tuple(chain[1:-1]))
        for kind in KINDS
        if (chain := chains.get(kind))
    }


def read_confirmed(db: sqlite3.Connection, appid: str) -> dict[Kind, FetchSetting]:
    """What was confirmed last for each kind. Raises TypeError or ValueError."""
    return {kind: load(wanted) for kind, wanted in db.execute(_CONFIRMED, (appid,))}


def dump(setting: FetchSetting) -> str:
    return json.dumps(setting.to_dict())


def load(text: str) -> FetchSetting:
    return FetchSetting.from_dict(json.loads(text))


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
