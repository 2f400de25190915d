"""What the journal knows of a run, app by app, for people who ask."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Final

from prefetch_kit.fetch_setting import FetchSetting, Kind
from prefetch_kit.registrar.journal import Journal, Outcome

# A result is kept for the newest run of an app, and written a little later than its changes.
_OF_RUN: Final = """
SELECT apps.appid, results.outcome, results.cause, results.at,
    changes.kind, changes.before, changes.wanted, changes.outcome, changes.detail, changes.at
FROM (SELECT appid FROM results WHERE run = :run UNION SELECT appid FROM changes WHERE run = :run)
    AS apps
LEFT JOIN results ON results.appid = apps.appid AND results.run = :run
LEFT JOIN changes ON changes.appid = apps.appid AND changes.run = :run
ORDER BY apps.appid, changes.id
"""
_NEWEST: Final = """
SELECT run, kind, before, wanted, outcome, detail, at FROM changes
WHERE appid = :appid AND run = (SELECT MAX(run) FROM changes WHERE appid = :appid) ORDER BY id
"""
_RUN: Final = "SELECT COUNT(*) FROM results WHERE run = ? AND at >= ?"
# Of these outcomes WeChat certainly holds nothing.
UNSENT: Final[frozenset[Outcome]] = frozenset({"planned", "refused", "unsent"})


@dataclass(frozen=True, slots=True)
class ChangeRecord:
    """What became of one kind of pull in a run, after all tries; `at` is an ISO 8601 time, UTC."""

    kind: Kind
    before: FetchSetting
    wanted: FetchSetting
    outcome: Outcome
    detail: str
    at: str


@dataclass(frozen=True, slots=True)
class AppRecord:
    """What became of one app in a run of a fleet.

    `outcome`, `cause` and `at` are None where no result was recorded: the run is at this app now,
    was killed there, or a later run has come to it.
    """

    appid: str
    outcome: str | None
    cause: str | None
    at: str | None
    changes: tuple[ChangeRecord, ...]


def app_records(journal: Journal, run: int) -> Iterator[AppRecord]:
    """Each app that a fleet's run came to, by appid. Raises `JournalFailed`."""
    rows = journal.rows(_OF_RUN, {"run": run})
    for (appid, outcome, cause, at), group in groupby(rows, key=lambda row: tuple(row[:4])):
        changes = _merged(row[4:] for row in group if row[4] is not None)
        yield AppRecord(appid, outcome, cause, at, changes)


def newest_changes(journal: Journal, appid: str) -> tuple[int, tuple[ChangeRecord, ...]]:
    """The newest run that planned something for an app, and that; 0 where there is none."""
    rows = list(journal.rows(_NEWEST, {"appid": appid}))
    return (rows[0][0] if rows else 0), _merged(row[1:] for row in rows)


def results_since(journal: Journal, run: int, at: str) -> int:
    """For how many apps a run of a fleet has had a result from `at` on."""
    return sum(count for (count,) in journal.rows(_RUN, (run, at)))


def _merged(rows: Iterator[Any]) -> tuple[ChangeRecord, ...]:
    """The newest try of each kind, with what WeChat held before the first one."""
    found: dict[Kind, ChangeRecord] = {}
    for kind, before, wanted, outcome, detail, at in rows:
        record = ChangeRecord(kind, _load(before), _load(wanted), outcome, detail, at)
        found[kind] = replace(record, before=found[kind].before) if kind in found else record
    return tuple(found.values())


def _load(text: str) -> FetchSetting:
    return FetchSetting.from_dict(json.loads(text))
