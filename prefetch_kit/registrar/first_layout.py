"""Journals of the first layout: one for each mini program, one for fleets, for each host of WeChat.

They are merged once, in the transaction that makes the journal, so a process that is killed
meanwhile leaves nothing half done. The old files stay as they are. What an older version still
writes to them afterwards, during a rolling deploy, counts as set by somebody else: a rollback
leaves it alone unless takeover is allowed.
"""

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Final

from prefetch_kit.addresses import first_layout_names
from prefetch_kit.concurrency.file_failures import failure_of
from prefetch_kit.concurrency.owned_files import is_there
from prefetch_kit.errors import JournalFailed
from prefetch_kit.registrar.undo import undo

_TABLES: Final = (
    """CREATE TEMP TABLE old_runs (
        source, id, at, action, appid, wanted, apps, returns_from, ended
    )""",
    """CREATE TEMP TABLE old_changes (
        source, run, at, appid, kind, before, wanted, outcome, detail, marked_at
    )""",
    "CREATE TEMP TABLE old_results (source, run, appid, outcome, cause, at)",
)
_RUNS: Final = "INSERT INTO temp.old_runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_CHANGES: Final = "INSERT INTO temp.old_changes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_RESULTS: Final = "INSERT INTO temp.old_results VALUES (?, ?, ?, ?, ?, ?)"
# What is written, and what it is read with, of a journal of one app and of fleets.
_OF_AN_APP: Final = (
    (_RUNS, "SELECT ?, id, at, action, appid, '', 1, returns_from, 1 FROM runs"),
    (
        _CHANGES,
        """SELECT ?, run, runs.at, appid, kind, before, wanted, outcome, detail, changes.at
        FROM changes JOIN runs ON runs.id = run ORDER BY run, changes.rowid""",
    ),
)
_OF_FLEETS: Final = (
    (_RUNS, "SELECT ?, id, at, action, NULL, wanted, apps, returns_from, ended FROM fleets"),
    (
        _CHANGES,
        """SELECT ?, fleet, runs.at, appid, kind, before, wanted, outcome, detail, changes.at
        FROM changes JOIN runs ON runs.id = changes.run JOIN fleet_runs ON fleet_runs.run = runs.id
        ORDER BY runs.id, changes.rowid""",
    ),
    (_RESULTS, "SELECT ?, fleet, appid, outcome, cause, at FROM fleet_apps ORDER BY rowid"),
)
# By time; of one journal always in its own order, whatever its clock did.
_MERGE: Final = (
    """CREATE TEMP TABLE numbered AS SELECT *, ROW_NUMBER() OVER (ORDER BY since, source, id) AS new
    FROM (SELECT *, MAX(at) OVER (PARTITION BY source ORDER BY id) AS since FROM old_runs)""",
    "CREATE INDEX temp.by_old ON numbered (source, id)",
    """INSERT INTO runs (id, at, action, appid, wanted, apps, returns_from, ended)
    SELECT new, at, action, appid, wanted, apps,
        (SELECT new FROM numbered AS back
            WHERE back.source = it.source AND back.id = it.returns_from),
        ended
    FROM numbered AS it ORDER BY new""",
    """INSERT INTO changes (run, appid, kind, before, wanted, outcome, detail, at)
    SELECT new, it.appid, kind, before, it.wanted, outcome, detail, marked_at
    FROM (
        SELECT *, rowid AS nth, MAX(at) OVER (PARTITION BY source ORDER BY rowid) AS tried
        FROM old_changes
    ) AS it JOIN numbered ON numbered.source = it.source AND numbered.id = it.run
    ORDER BY tried, it.source, nth""",
    """INSERT OR REPLACE INTO results (appid, run, outcome, cause, at)
    SELECT it.appid, new, outcome, cause, it.at
    FROM old_results AS it JOIN numbered ON numbered.source = it.source AND numbered.id = it.run
    ORDER BY it.at""",
)
_ROLLBACKS: Final = """
SELECT id, returns_from, appid, ended FROM runs WHERE action = 'rollback' AND returns_from NOTNULL
ORDER BY id
"""
# The apps for which it is complete, and the last of their changes that it may undo: where all that
# it sent was confirmed, where nothing was to be sent, and all of a fleet that came to its end.
_BACK: Final = """
SELECT changes.appid, MAX(changes.id) FROM changes JOIN runs ON runs.id = run
WHERE run <= ?1 AND changes.appid IN (
    SELECT ?3 UNION SELECT appid FROM changes WHERE ?3 IS NULL AND run BETWEEN ?2 AND ?1
)
GROUP BY changes.appid
HAVING SUM(run >= ?2) > 0 AND SUM(run = ?1 AND outcome != 'confirmed') = 0 AND (
    SUM(run = ?1) > 0 OR ?3 NOTNULL OR ?4 AND SUM(run >= ?2 AND runs.appid IS NULL) > 0
)
"""


def journals(directory: Path) -> list[Path]:
    """The journals of the first layout of the WeChat that this directory is for."""
    folders = (directory.parent / name for name in first_layout_names(directory.name))
    return sorted(path for folder in folders for path in folder.glob("*/journal.sqlite3"))


def merge(db: sqlite3.Connection, paths: Iterable[Path]) -> None:
    """Fill a new journal from old ones. Raises `JournalFailed` for one that cannot be read."""
    for sql in _TABLES:
        db.execute(sql)
    for path in paths:
        try:
            _collect(db, path)
        except (sqlite3.Error, OSError) as error:
            problem, remedy = failure_of(path, error)
            remedy += "; moved away, what it tells cannot be rolled back"
            raise JournalFailed(
                str(path), f"it cannot be merged: {problem}", remedy=remedy
            ) from error
        db.execute("INSERT INTO merged VALUES (?, datetime())", (str(path),))
    for sql in _MERGE:
        db.execute(sql)
    for run, since, appid, ended in db.execute(_ROLLBACKS).fetchall():
        for each, last in db.execute(_BACK, (run, since, appid, ended)).fetchall():
            undo(db, run, each, since=since, last=last)
    for table in ("old_runs", "old_changes", "old_results", "numbered"):
        db.execute(f"DROP TABLE temp.{table}")


def _collect(db: sqlite3.Connection, path: Path) -> None:
    is_there(path)  # and nobody else may have written to it
    with closing(sqlite3.connect(path, timeout=30)) as old:
        tables = {name for (name,) in old.execute("SELECT name FROM sqlite_master")}
        if "changes" not in tables:  # killed while it was made
            return
        for insert, select in _OF_FLEETS if "fleets" in tables else _OF_AN_APP:
            db.executemany(insert, old.execute(select, (str(path),)))
