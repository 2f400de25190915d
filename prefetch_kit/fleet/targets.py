"""The mini programs of a fleet, and what is to be done for each: on the disk, not in memory."""

import json
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any, Final, Self

from prefetch_kit.errors import TemporaryFileFailed
from prefetch_kit.fetch_setting import FetchSetting, FetchSettings, Kind
from prefetch_kit.registrar.plan import Change, OffIfFrom, Plan, Wanted, plan_saved, plan_wanted
from prefetch_kit.registrar.plan_file import change_fields, read_changes

_PAGE: Final = 200

# From an appid, its text, and what WeChat holds, to its plan.
Planned = Callable[[str, str, FetchSettings], Plan]


class Targets:
    """A text for each appid, in the order they came. Ends with its process.

    Safe to share between threads. Raises `TemporaryFileFailed` where there is no temporary
    directory, or no room in it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # An empty name is a file of SQLite's own, which is already unlinked.
        self._db = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._do("PRAGMA journal_mode = OFF")
        self._do("PRAGMA cache_size = -1024")
        self._do("CREATE TABLE apps (id INTEGER PRIMARY KEY, appid UNIQUE, target, found)")
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._db.close()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Each appid and what is to be done for it."""
        return self._pages("SELECT id, appid, target FROM apps WHERE id > ? ORDER BY id LIMIT ?")

    def __contains__(self, appid: str) -> bool:
        return bool(self._do("SELECT 1 FROM apps WHERE appid = ?", appid)[1])

    def found(self) -> Iterator[tuple[str, str]]:
        """Each appid for which something was found, and what."""
        return self._pages(
            "SELECT id, appid, found FROM apps WHERE found IS NOT NULL AND id > ?"
            " ORDER BY id LIMIT ?"
        )

    def add(self, appid: str, target: str = "") -> bool:
        """False where this appid is there already."""
        sql = "INSERT OR IGNORE INTO apps (appid, target) VALUES (?, ?)"
        is_new = self._do(sql, appid, target)[0] > 0
        self._count += is_new
        return is_new

    def drop(self, appid: str) -> None:
        """Take an app out again."""
        self._count -= self._do("DELETE FROM apps WHERE appid = ?", appid)[0]

    def note(self, appid: str, found: str) -> None:
        """Keep what was found for an app."""
        self._do("UPDATE apps SET found = ? WHERE appid = ?", found, appid)

    def _pages(self, sql: str) -> Iterator[tuple[str, str]]:
        last = 0
        while rows := self._do(sql, last, _PAGE)[1]:
            for _, appid, text in rows:
                yield appid, text
            last = rows[-1][0]

    def _do(self, sql: str, *parameters: object) -> tuple[int, list[Any]]:
        """How many rows it changed, and which it gave."""
        try:
            with self._lock:
                cursor = self._db.execute(sql, parameters)
                return cursor.rowcount, cursor.fetchall()
        except sqlite3.Error as error:
            raise TemporaryFileFailed(str(error)) from error


def wanted_text(wanted: Wanted) -> str:
    return json.dumps(
        {
            kind: {"off_if_from": each.setting.to_dict()}
            if isinstance(each, OffIfFrom)
            else each.to_dict()
            for kind, each in wanted.items()
        }
    )


def read_wanted(text: str) -> Wanted:
    return {
        kind: OffIfFrom(FetchSetting.from_dict(plain["off_if_from"]))
        if "off_if_from" in plain
        else FetchSetting.from_dict(plain)
        for kind, plain in json.loads(text).items()
    }


def plan_of_wanted(appid: str, text: str, current: FetchSettings) -> Plan:
    return plan_wanted(appid, current, read_wanted(text))


def kinds_of(text: str) -> list[Kind]:
    """The kinds of pull that a text is about: one of `wanted_text` or of `changes_text`."""
    plain = json.loads(text) if text else {}
    return [each["kind"] for each in plain] if isinstance(plain, list) else list(plain)


def changes_text(changes: Iterable[Change]) -> str:
    return json.dumps([change_fields(change) for change in changes])


def changes_of(text: str) -> tuple[Change, ...]:
    return read_changes(json.loads(text))


def plan_of_changes(appid: str, text: str, current: FetchSettings) -> Plan:
    return plan_saved(appid, current, changes_of(text))


def settings_text(settings: FetchSettings) -> str:
    return json.dumps(asdict(settings))


def read_settings(text: str) -> FetchSettings:
    both = json.loads(text)
    return FetchSettings(**{kind: FetchSetting.from_dict(plain) for kind, plain in both.items()})
