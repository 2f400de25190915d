"""What is to be done for each mini program, on the disk, so that their number costs no memory."""

import hashlib
import sqlite3
import threading
from collections.abc import Iterator
from typing import Any, Final, Self

from prefetch_kit.errors import JournalFailed

_WHERE: Final = "(a temporary file)"
_PAGE: Final = 200


class Spool:
    """Texts by appid, in the order they came; each appid once. Ends with its process.

    Safe to share between threads. Raises `JournalFailed` where the temporary directory is full.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # An empty name is a file of SQLite's own, which is already unlinked.
        self._db = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._do("PRAGMA journal_mode = OFF")
        self._do("PRAGMA cache_size = -1024")
        self._do("CREATE TABLE apps (id INTEGER PRIMARY KEY, appid UNIQUE, aim, found)")
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._db.close()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Each appid and what is to be done for it."""
        return self._pages("SELECT id, appid, aim FROM apps WHERE id > ? ORDER BY id LIMIT ?")

    def fingerprint(self) -> str:
        """Tells whether a later run is to do the same, for the same apps."""
        digest = hashlib.sha256()
        for appid, aim in self:
            digest.update(f"{appid} {aim}\n".encode())
        return digest.hexdigest()

    def found(self) -> Iterator[tuple[str, str]]:
        """Each appid for which something was found, and what."""
        return self._pages(
            "SELECT id, appid, found FROM apps WHERE found IS NOT NULL AND id > ?"
            " ORDER BY id LIMIT ?"
        )

    def add(self, appid: str, aim: str) -> bool:
        """False where this appid is there already."""
        if self._do("INSERT OR IGNORE INTO apps (appid, aim) VALUES (?, ?)", appid, aim)[0] == 0:
            return False
        self._count += 1
        return True

    def note(self, appid: str, found: str) -> None:
        """Put down what was found for an app."""
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
            raise JournalFailed(_WHERE, str(error)) from error
