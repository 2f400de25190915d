"""How the journal notes that changes of an app were undone."""

import sqlite3
from typing import Final

_FIRST: Final = "SELECT MIN(id) FROM effects WHERE appid = :appid AND run >= :since"
# Undone are the app's changes from a run on, in the order in which they were made: a fleet that
# began sooner may have come to the app later. A rollback that is undone itself undoes no more.
_UNDO: Final = (
    """UPDATE changes SET undone_by = NULL
    WHERE appid = :appid AND undone_by >= :since AND id < :first""",
    """UPDATE changes SET undone_by = :run
    WHERE appid = :appid AND id BETWEEN :first AND
        COALESCE((SELECT MAX(id) FROM changes WHERE appid = :appid AND run = :run), :last)""",
)


def undo(
    db: sqlite3.Connection, run: int, appid: str, *, since: int, last: int = 2**63 - 1
) -> None:
    """Note that rollback `run` undid all that was done to an app from run `since` on.

    Of changes after its own, or after the change `last` if it has none, it undid nothing.
    """
    values = {"run": run, "appid": appid, "since": since, "last": last}
    values["first"] = db.execute(_FIRST, values).fetchone()[0]
    for sql in _UNDO:
        db.execute(sql, values)
