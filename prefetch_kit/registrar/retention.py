"""Copies of the journal, and how it is made shorter without what a rollback still needs."""

import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from prefetch_kit.concurrency.file_failures import failure_of
from prefetch_kit.concurrency.owned_files import whole_file
from prefetch_kit.errors import BackupFailed
from prefetch_kit.registrar.database import Database

# The oldest run that is needed: of each app, all since the newest apply that was not rolled back,
# for `rollback`; of the newest apply of a fleet, for `fleet rollback`; runs that were cut short;
# what was read back last, which tells drift from a change; and what is not old enough.
_FIRST_NEEDED: Final = """
WITH newest AS (
    SELECT appid, run FROM (
        SELECT effects.appid, run,
            ROW_NUMBER() OVER (PARTITION BY effects.appid ORDER BY effects.id DESC) AS nth
        FROM effects JOIN runs ON runs.id = run
        WHERE action = 'apply' AND undone_by IS NULL
    ) WHERE nth = 1
),
since AS (
    SELECT effects.appid, MIN(effects.id) AS first FROM effects
    JOIN newest ON newest.appid = effects.appid AND effects.run >= newest.run
    GROUP BY effects.appid
)
SELECT MIN(run) FROM (
    SELECT MIN(run) AS run FROM effects JOIN since USING (appid) WHERE effects.id >= first
    UNION ALL
    SELECT MAX(id) FROM runs WHERE appid IS NULL AND action = 'apply'
    AND EXISTS (SELECT 1 FROM effects WHERE run = runs.id AND undone_by IS NULL)
    UNION ALL
    SELECT MIN(run) FROM changes WHERE id IN (
        SELECT MAX(id) FROM changes WHERE outcome = 'confirmed' GROUP BY appid, kind
    )
    UNION ALL
    SELECT MAX(id) FROM runs UNION ALL SELECT MAX(id) FROM runs WHERE appid IS NULL
    UNION ALL
    SELECT MIN(id) FROM runs WHERE NOT ended OR at >= :before
    UNION ALL
    SELECT MIN(run) FROM changes WHERE at >= :before
)
"""
# A fleet that began sooner may have come to an app later: that is undone with what is kept.
_BETWEEN: Final = """
SELECT MIN(run) FROM effects AS older WHERE run < :first AND id > (
    SELECT MIN(id) FROM effects WHERE appid = older.appid AND run >= :first
)
"""
_COUNT: Final = """
SELECT (SELECT COUNT(*) FROM runs WHERE id < :first),
    (SELECT COUNT(*) FROM changes WHERE run < :first)
"""
_DELETE: Final = (
    "DELETE FROM runs WHERE id < ?",
    "DELETE FROM changes WHERE run < ?",
    "DELETE FROM results WHERE run < ?",
)


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many runs and changes were removed, or would be."""

    runs: int
    changes: int


def prune(journal: Database, *, before: datetime, dry_run: bool) -> Pruned:
    """Remove the runs that are older than that, up to the first that a rollback needs.

    What is left is whole, so `--to` undoes all or refuses. `before` is in UTC. No fleet may run
    meanwhile. The room is used again, not given back. Raises `JournalFailed`.
    """
    at = before.isoformat(timespec="seconds")

    def work(db: sqlite3.Connection) -> Pruned:
        first: int | None = db.execute(_FIRST_NEEDED, {"before": at}).fetchone()[0]
        between = first
        while between is not None:
            first = between
            (between,) = db.execute(_BETWEEN, {"first": first}).fetchone()
        if dry_run:
            return Pruned(*db.execute(_COUNT, {"first": first}).fetchone())
        runs, changes, _ = (db.execute(sql, (first,)).rowcount for sql in _DELETE)
        return Pruned(runs, changes)

    return journal.write_now(work) if journal.exists() else Pruned(0, 0)


def backup(journal: Database, path: Path) -> None:
    """Copy the journal, also beside a running fleet, to a new file of 0600.

    It is there whole or not at all. Raises `BackupFailed` and `JournalFailed`.
    """
    path = path.absolute()
    if path.exists():
        raise BackupFailed(str(path), "it is there already", remedy="Name a new file")
    if (repository := _repository_of(path.parent)) is not None:
        raise BackupFailed(
            str(path),
            f"it would lie in the git repository {repository}",
            remedy="Name a file outside, or in a directory whose .gitignore is *",
        )
    if not journal.exists():
        raise BackupFailed(str(path), f"there is no journal {journal.path}", remedy="Run apply")
    try:
        with whole_file(path) as written, closing(sqlite3.connect(written)) as copy:
            journal.copy_to(copy)
    except (OSError, sqlite3.Error) as error:
        problem, remedy = failure_of(path, error)
        raise BackupFailed(str(path), problem, remedy=remedy) from error


def _repository_of(directory: Path) -> Path | None:
    """The git repository that would take a file of this directory up; None without one."""
    for each in (directory, *directory.parents):
        with suppress(OSError, UnicodeDecodeError):
            if "*" in (each / ".gitignore").read_text(encoding="utf-8").split():
                return None
        if (each / ".git").exists():
            return each
    return None
