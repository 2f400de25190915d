"""What was wanted, tried and confirmed, and what WeChat held before: a SQLite file.

One for each WeChat. A run is an apply or a rollback, of one mini program or of a fleet of them;
all of them have numbers of one sequence. Each try at a kind of pull of an app is a change.
"""

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from prefetch_kit.concurrency.file_failures import damaged
from prefetch_kit.errors import JournalFailed
from prefetch_kit.fetch_setting import KINDS, FetchSetting, Kind
from prefetch_kit.registrar.database import Database
from prefetch_kit.registrar.plan import Past, Plan
from prefetch_kit.registrar.undo import undo

Action = Literal["apply", "rollback"]
# Planned: not sent yet. Intent: being sent, so it may have taken effect. Sent: WeChat said ok, and
# does not show it yet. Unsent: given up before.
Outcome = Literal["planned", "intent", "sent", "confirmed", "refused", "unknown", "unsent"]

_BEGIN: Final = """
INSERT INTO runs (at, action, appid, wanted, apps, returns_from, ended)
VALUES (?, ?, ?, ?, ?, ?, ?)
"""
_PAST: Final = """
SELECT kind, before, wanted, undone_by IS NULL FROM effects
WHERE appid = :appid
AND id >= (SELECT MIN(id) FROM effects WHERE appid = :appid AND run >= :since) ORDER BY id
"""
_LAST_APPLIED: Final = """
SELECT run FROM effects JOIN runs ON runs.id = run
WHERE effects.appid = ? AND action = 'apply' AND undone_by IS NULL ORDER BY effects.id DESC LIMIT 1
"""
_LAST_FLEET_APPLIED: Final = """
SELECT id FROM runs WHERE appid IS NULL AND action = 'apply'
AND EXISTS (SELECT 1 FROM effects WHERE run = runs.id AND undone_by IS NULL)
ORDER BY id DESC LIMIT 1
"""
_CHANGED: Final = """
SELECT appid FROM effects WHERE run = ? AND undone_by IS NULL GROUP BY appid ORDER BY MIN(id)
"""
_CHANGED_SINCE: Final = "SELECT appid FROM effects WHERE run >= ? GROUP BY appid ORDER BY MIN(id)"
_HELD: Final = "SELECT kind, before, wanted FROM effects WHERE appid = ?"
_OLDER: Final = """
SELECT run, COUNT(DISTINCT effects.appid) FROM effects JOIN runs ON runs.id = run
WHERE run < :run AND runs.appid IS NULL AND action = 'apply' AND undone_by IS NULL
AND effects.appid NOT IN (SELECT appid FROM effects WHERE run = :run AND undone_by IS NULL)
GROUP BY run ORDER BY run DESC LIMIT 1
"""
_CONFIRMED: Final = """
SELECT kind, wanted FROM changes WHERE appid = ? AND outcome = 'confirmed' ORDER BY id
"""
# The columns beside MAX are those of its row, https://www.sqlite.org/lang_select.html#bareagg.
_LATEST: Final = """
SELECT kind, wanted, outcome IN ('intent', 'unknown') OR detail != '', at, MAX(id) FROM effects
WHERE appid = ? GROUP BY kind
"""
_RECORD: Final = """
INSERT INTO changes (run, appid, kind, before, wanted, outcome, detail, at)
VALUES (?, ?, ?, ?, ?, 'planned', '', ?)
"""
_MARK: Final = """
UPDATE changes SET outcome = ?, detail = ?, at = ?
WHERE id = (SELECT MAX(id) FROM changes WHERE appid = ? AND run = ? AND kind = ?)
"""
# What was cut short is continued by the next of its kind, whatever that wants: so one rollback
# brings back what WeChat held before all of it.
_UNFINISHED: Final = """
SELECT id FROM (SELECT * FROM runs WHERE appid IS NULL ORDER BY id DESC LIMIT 1)
WHERE NOT ended AND action = ? AND returns_from IS ?
"""
_LAST_FLEET: Final = """
SELECT id, at, action, apps, returns_from, ended != 0 FROM runs WHERE appid IS NULL
ORDER BY id DESC LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class FleetRun:
    """One run of a fleet as the journal has it."""

    id: int
    at: str
    action: Action
    apps: int
    returns_from: int | None
    ended: bool


@dataclass(frozen=True, slots=True)
class Recent:
    """What was set last for one kind of an app, and how long ago that is known.

    `may_arrive` says that a call of it was not answered, and so may arrive later.
    """

    wanted: FetchSetting
    may_arrive: bool
    age_s: float


class Journal(Database):
    """The record of every change, for any number of threads and processes.

    An intent is on the disk before `mark` returns. Other outcomes wait for what is written next,
    or for `flush`. Raises `JournalFailed` where the file cannot be read or written: what cannot
    be recorded is not sent.
    """

    def begin(self, action: Action, *, appid: str, returns_from: int | None = None) -> int:
        """Record a run of one app; returns its number."""
        row = now(), action, appid, "", 1, returns_from, 1
        return self.write_now(lambda db: _insert_run(db, row))

    def begin_fleet(
        self, action: Action, *, apps: int, returns_from: int | None = None
    ) -> tuple[int, bool]:
        """Record a fleet's run, or continue the last one if that was cut short.

        Returns its number, and whether it is continued.
        """

        def work(db: sqlite3.Connection) -> tuple[int, bool]:
            found = db.execute(_UNFINISHED, (action, returns_from)).fetchone()
            if found is None:
                row = now(), action, None, "", apps, returns_from, 0
                return _insert_run(db, row), False
            return int(found[0]), True

        return self.write_now(work)

    def resize(self, run: int, *, apps: int) -> None:
        """Record for how many apps a run is, now that it is continued."""
        self.write_now(lambda db: db.execute("UPDATE runs SET apps = ? WHERE id = ?", (apps, run)))

    def end_fleet(self, run: int) -> None:
        """Say that there is nothing of this run to continue."""
        self.write_now(lambda db: db.execute("UPDATE runs SET ended = 1 WHERE id = ?", (run,)))

    def record(self, run: int, plan: Plan) -> None:
        """Record one app's plan; it is on the disk with the first intent."""
        at = now()
        rows = [
            (run, plan.appid, c.kind, _dump(c.before), _dump(c.after), at) for c in plan.changes
        ]
        self.write_later(lambda db: db.executemany(_RECORD, rows))

    def mark(self, run: int, appid: str, kind: Kind, outcome: Outcome, *, detail: str = "") -> None:
        """Record how far one change of a run has come."""
        row = outcome, detail, now(), appid, run, kind
        write = self.write_now if outcome == "intent" else self.write_later
        write(lambda db: db.execute(_MARK, row))

    def undo(self, run: int, plan: Plan, *, since: int) -> None:
        """Record that a rollback is complete for an app: all from run `since` on is undone."""
        # Without changes of its own it is done now: a change that comes later is not undone by it.
        write = self.write_later if plan.changes else self.write_now
        write(lambda db: undo(db, run, plan.appid, since=since))

    def note(self, run: int, appid: str, outcome: str, cause: str) -> None:
        """Record what became of an app in a fleet's run."""
        row = appid, run, outcome, cause, now()
        sql = "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?)"
        self.write_soon(lambda db: db.execute(sql, row))

    def flush(self) -> None:
        """Wait until all that was recorded is on the disk."""
        self.write_now(lambda _: None)

    def past(self, appid: str, *, since: int) -> dict[Kind, Past]:
        """What WeChat held before run `since` for each kind, and what was wanted from it on."""
        chains: dict[Kind, list[tuple[FetchSetting, bool]]] = {}
        values = {"appid": appid, "since": since}
        for kind, before, wanted, counts in self.read(_PAST, values):
            settings = self._load(before), self._load(wanted)
            chains.setdefault(kind, []).extend((each, bool(counts)) for each in settings)
        return {
            kind: Past(
                chain[0][0], chain[-1][0], tuple(each for each, counts in chain[1:-1] if counts)
            )
            for kind in KINDS
            if (chain := chains.get(kind))
        }

    def last_applied(self, appid: str) -> int | None:
        """The run that may have changed an app last and was not rolled back, a fleet's too."""
        return next((run for (run,) in self.read(_LAST_APPLIED, (appid,))), None)

    def last_fleet_applied(self) -> int | None:
        """The newest apply of a fleet of which not all was rolled back."""
        return next((run for (run,) in self.read(_LAST_FLEET_APPLIED)), None)

    def held(self, appid: str, kind: Kind) -> list[FetchSetting]:
        """All that WeChat held, or may have held, by what was seen and set from here."""
        rows = self.read(_HELD, (appid,))
        return [self._load(each) for of, *texts in rows if of == kind for each in texts]

    def older_fleet_apply(self, run: int) -> tuple[int, int] | None:
        """The newest apply of a fleet before this run that holds for others than this run's apps.

        Its number, and for how many.
        """
        return next(iter(self.read(_OLDER, {"run": run})), None)

    def last_fleet(self) -> FleetRun | None:
        """The newest run of a fleet."""
        rows = self.read(_LAST_FLEET)
        return FleetRun(*rows[0]) if rows else None

    def runs(self, appid: str | None = None) -> list[int]:
        """The runs that may have changed something, of one app or any, oldest first."""
        if appid is None:
            found = self.read("SELECT DISTINCT run FROM effects ORDER BY run")
        else:
            sql = "SELECT DISTINCT run FROM effects WHERE appid = ? ORDER BY run"
            found = self.read(sql, (appid,))
        return [run for (run,) in found]

    def changed(self, run: int) -> Iterator[str]:
        """The apps that a run may have changed, of which it was not rolled back."""
        return (appid for (appid,) in self.rows(_CHANGED, (run,)))

    def changed_since(self, run: int) -> Iterator[str]:
        """The apps that this run or a later one may have changed."""
        return (appid for (appid,) in self.rows(_CHANGED_SINCE, (run,)))

    def results(self, run: int) -> Iterator[tuple[str, str, str]]:
        """Appid, outcome and cause of each app that a fleet's run came to."""
        sql = "SELECT appid, outcome, cause FROM results WHERE run = ? ORDER BY rowid"
        return self.rows(sql, (run,))

    def confirmed(self, appid: str) -> dict[Kind, FetchSetting]:
        """What was read back last as it was set, for each kind."""
        return {kind: self._load(text) for kind, text in self.read(_CONFIRMED, (appid,))}

    def recent(self, appid: str, *, within_s: float) -> dict[Kind, Recent]:
        """What was set last for each kind, where that is less than `within_s` seconds ago."""
        clock = datetime.now(UTC)
        found: dict[Kind, Recent] = {}
        # What waits to be written in this process is of other apps, or of no effect.
        rows = self.read(_LATEST, (appid,), writes_first=False)
        for kind, wanted, may_arrive, at, _ in rows:
            # Times are kept in whole seconds. One in the future is from before the clock was set
            # back, and so may be of just now.
            age_s = max(0.0, (clock - datetime.fromisoformat(at)).total_seconds() - 1)
            if age_s < within_s:
                found[kind] = Recent(self._load(wanted), bool(may_arrive), age_s)
        return found

    def _load(self, text: str) -> FetchSetting:
        try:
            return FetchSetting.from_dict(json.loads(text))
        except (TypeError, ValueError):
            problem, remedy = damaged("a run in it cannot be read")
            raise JournalFailed(str(self.path), problem, remedy=remedy) from None


def _insert_run(db: sqlite3.Connection, row: tuple[object, ...]) -> int:
    return int(db.execute(_BEGIN, row).lastrowid or 0)


def _dump(setting: FetchSetting) -> str:
    return json.dumps(setting.to_dict())


def now() -> str:
    return _text(datetime.now(UTC))


def _text(time: datetime) -> str:
    return time.isoformat(timespec="seconds")
