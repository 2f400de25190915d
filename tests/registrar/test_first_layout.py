"""Journals of the first layout, which are merged into the one that replaced them."""

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from prefetch_kit.errors import JournalFailed
from prefetch_kit.fetch_setting import FetchSetting
from prefetch_kit.registrar.journal import Journal
from prefetch_kit.registrar.registrar import Registrar
from prefetch_kit.sandbox import Sandbox

pytestmark = pytest.mark.slow

APPID = "wx01"
OF_ONE_APP = """
CREATE TABLE runs (
    id INTEGER PRIMARY KEY, at TEXT NOT NULL, appid TEXT NOT NULL, action TEXT NOT NULL,
    returns_from INTEGER REFERENCES runs (id)
);
CREATE TABLE changes (
    run INTEGER NOT NULL REFERENCES runs (id), kind TEXT NOT NULL, before TEXT NOT NULL,
    wanted TEXT NOT NULL, outcome TEXT NOT NULL, detail TEXT NOT NULL, at TEXT NOT NULL,
    PRIMARY KEY (run, kind)
);
"""
OF_FLEETS = """
CREATE TABLE fleets (
    id INTEGER PRIMARY KEY, at TEXT NOT NULL, action TEXT NOT NULL, wanted TEXT NOT NULL,
    apps INTEGER NOT NULL, returns_from INTEGER REFERENCES fleets (id),
    ended INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE fleet_runs (
    run INTEGER PRIMARY KEY REFERENCES runs (id),
    fleet INTEGER NOT NULL REFERENCES fleets (id)
);
CREATE TABLE fleet_apps (
    appid TEXT PRIMARY KEY, fleet INTEGER NOT NULL REFERENCES fleets (id), outcome TEXT NOT NULL,
    cause TEXT NOT NULL, at TEXT NOT NULL
);
"""


AT_WECHAT = {
    "is_pre_fetch_open": True,
    "pre_fetch_type": 0,
    "pre_fetch_url": "https://shop.example/v3",
}


def setting(version: str) -> str:
    return json.dumps(FetchSetting.server(f"https://shop.example/{version}").to_dict())


class Old:
    """One journal of the first layout. Times are minutes of one hour."""

    def __init__(self, path: Path, *, fleets: bool = False) -> None:
        path.parent.mkdir(parents=True, mode=0o700)
        self.path = path
        self._fleets = fleets
        with closing(sqlite3.connect(path)) as db:
            db.executescript(OF_ONE_APP + (OF_FLEETS if fleets else ""))
        path.chmod(0o600)

    def run(
        self,
        minute: int,
        before: str,
        wanted: str,
        *,
        returns_from: int | None = None,
        outcome: str = "confirmed",
        appids: Sequence[str] = (APPID,),
        ended: bool = True,
    ) -> None:
        """One run that changed pre_fetch, of one app or a fleet."""
        at = f"2026-01-01T00:{minute:02}:00+00:00"
        action = "apply" if returns_from is None else "rollback"
        own, of_fleet = (None, returns_from) if self._fleets else (returns_from, None)
        with closing(sqlite3.connect(self.path)) as db, db:
            if self._fleets:
                row = at, action, "x", len(appids), of_fleet, ended
                db.execute("INSERT INTO fleets VALUES (NULL, ?, ?, ?, ?, ?, ?)", row)
            for appid in appids:
                add = "INSERT INTO runs VALUES (NULL, ?, ?, ?, ?)"
                run = db.execute(add, (at, appid, action, own)).lastrowid
                change = run, "pre_fetch", setting(before), setting(wanted), outcome, "", at
                db.execute("INSERT INTO changes VALUES (?, ?, ?, ?, ?, ?, ?)", change)
                if self._fleets:
                    db.execute("INSERT INTO fleet_runs SELECT ?, MAX(id) FROM fleets", (run,))
                    db.execute(
                        "INSERT OR REPLACE INTO fleet_apps SELECT ?, MAX(id), 'done', '', ?"
                        " FROM fleets",
                        (appid, at),
                    )


@pytest.fixture
def old(state_dir: Path) -> Callable[..., Old]:
    """`old(folder)`: the journal of an app, or of fleets for "+fleet", below the WeChat's own."""
    return lambda folder: Old(state_dir / folder / "journal.sqlite3", fleets=folder == "+fleet")


def holds(wx: Sandbox, version: str) -> bool:
    return wx.settings(APPID)["pre_fetch_url"] == f"https://shop.example/{version}"


def test_both_are_one_history(
    wx: Sandbox, registrar: Registrar, old: Callable[..., Old], state_dir: Path
) -> None:
    """By time: what a fleet did between two applies of the app is undone between them."""
    alone, fleet = old(APPID), old("+fleet")
    alone.run(1, "v0", "v1")
    fleet.run(2, "v1", "v2", appids=[APPID, "wx02"])
    alone.run(3, "v2", "v3")
    wx.put_settings(APPID, AT_WECHAT)
    for version in ("v2", "v1", "v0"):
        registrar.rollback()
        assert holds(wx, version)
    journal = Journal(state_dir / "journal.sqlite3")
    assert journal.runs() == [1, 2, 3, 4, 5, 6]
    assert journal.last_fleet_applied() == 2  # of wx02 it was not rolled back
    assert list(journal.changed(2)) == ["wx02"]
    assert [appid for appid, *_ in journal.results(2)] == [APPID, "wx02"]


@pytest.mark.parametrize(
    ("folder", "options", "left"),
    [
        (APPID, {}, 1),
        (APPID, {"outcome": "unknown"}, 2),
        ("+fleet", {}, 1),
        ("+fleet", {"outcome": "unknown", "ended": False}, 2),
        ("+fleet", {"ended": False}, 1),
    ],
)
def test_what_was_rolled_back_stays_so(
    old: Callable[..., Old], state_dir: Path, folder: str, options: dict[str, object], left: int
) -> None:
    """A rollback counts where all was confirmed; one that was cut short is finished."""
    journal = old(folder)
    journal.run(1, "v0", "v1")
    journal.run(2, "v1", "v2")
    journal.run(3, "v2", "v1", returns_from=2, **options)  # type: ignore[arg-type]
    merged = Journal(state_dir / "journal.sqlite3")
    assert merged.last_applied(APPID) == left
    assert merged.last_fleet_applied() == (left if folder == "+fleet" else None)


def test_all_hosts_of_wechat_are_one(root: Path) -> None:
    """What was done through api2.weixin.qq.com is known, and where it came from is recorded."""
    paths = [
        root / host / APPID / "journal.sqlite3"
        for host in ("api.weixin.qq.com", "api2.weixin.qq.com")
    ]
    for number, path in enumerate(paths, start=1):
        Old(path).run(number, f"v{number - 1}", f"v{number}")
    Old(root / "127.0.0.1%3A1" / APPID / "journal.sqlite3").run(9, "v8", "v9")
    journal = Journal(root / "api.weixin.qq.com" / "journal.sqlite3")
    assert journal.runs(APPID) == [1, 2]
    with closing(sqlite3.connect(journal.path)) as db:
        assert db.execute("SELECT path FROM merged ORDER BY path").fetchall() == [
            (str(path),) for path in paths
        ]


def test_they_are_merged_once(old: Callable[..., Old], state_dir: Path) -> None:
    """And stay as they are; what an old version adds later is somebody else's doing."""
    journal = old(APPID)
    journal.run(1, "v0", "v1")
    before = journal.path.read_bytes()
    assert Journal(state_dir / "journal.sqlite3").runs() == [1]
    assert journal.path.read_bytes() == before
    journal.run(2, "v1", "v2")
    assert Journal(state_dir / "journal.sqlite3").runs() == [1]


def test_one_that_cannot_be_read_is_named(old: Callable[..., Old], state_dir: Path) -> None:
    """Nothing is begun without its history, and there is no half of a new journal."""
    journal = old(APPID)
    journal.path.write_bytes(b"garbage " * 512)
    for _ in range(2):
        with pytest.raises(JournalFailed, match="cannot be merged") as caught:
            Journal(state_dir / "journal.sqlite3").runs()
        assert caught.value.path == str(journal.path)


def test_killed_while_they_are_merged(old: Callable[..., Old], state_dir: Path) -> None:
    """Again and again: in the end all of it is there, once."""
    journal = old("+fleet")
    journal.run(1, "v0", "v1")
    with closing(sqlite3.connect(journal.path)) as db, db:
        db.execute(
            "WITH RECURSIVE n (n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM n WHERE n < 30000)"
            " INSERT INTO runs SELECT n, at, appid || n, action, NULL FROM n, runs WHERE id = 1"
        )
        db.execute("INSERT INTO fleet_runs SELECT id, 1 FROM runs WHERE id > 1")
        db.execute(
            "INSERT INTO changes SELECT r.id, kind, before, wanted, outcome, detail, c.at"
            " FROM changes AS c, runs AS r WHERE r.id > 1 AND c.run = 1"
        )
    path = state_dir / "journal.sqlite3"
    program = (
        "import sys; from pathlib import Path; from prefetch_kit.registrar.journal import Journal;"
        "print('begun', flush=True); Journal(Path(sys.argv[1])).runs()"
    )
    for delay_s in (0, 0.05, 0.1, 0.2):
        with subprocess.Popen(
            [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(delay_s)
            process.kill()
    assert sum(1 for _ in Journal(path).changed(1)) == 30_000
