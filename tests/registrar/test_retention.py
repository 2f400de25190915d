"""Copies of the journal, and pruning: what a rollback needs stays, whatever else goes."""

import random
import sqlite3
import stat
import subprocess
from collections import defaultdict
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from prefetch_kit.errors import BackupFailed, PlanStale
from prefetch_kit.fetch_setting import FetchSetting, FetchSettings, Kind
from prefetch_kit.registrar.journal import Action, Journal
from prefetch_kit.registrar.plan import Change, Plan
from prefetch_kit.registrar.registrar import Registrar
from prefetch_kit.registrar.retention import Pruned, backup, prune

APPIDS = ["wx01", "wx02", "wx03"]
NOTHING = FetchSetting()
LATER = datetime.now(UTC) + timedelta(days=1)


@pytest.fixture
def journal(state_dir: Path) -> Journal:
    return Journal(state_dir / "journal.sqlite3")


def server(number: int) -> FetchSetting:
    return FetchSetting.server(f"https://shop.example/{number}")


def confirmed(journal: Journal, run: int, appid: str, number: int) -> None:
    plan = Plan(
        appid,
        FetchSettings(NOTHING, NOTHING),
        (Change("pre_fetch", server(number - 1), server(number)),),
    )
    journal.record(run, plan)
    journal.mark(run, appid, "pre_fetch", "intent")
    journal.mark(run, appid, "pre_fetch", "confirmed")
    journal.flush()


def applied(journal: Journal, appid: str, number: int) -> int:
    run = journal.begin("apply", appid=appid)
    confirmed(journal, run, appid, number)
    return run


def test_all_but_the_last_apply_goes(journal: Journal) -> None:
    """A dry run says the same, and removes nothing."""
    runs = [applied(journal, "wx01", number) for number in range(5)]
    assert prune(journal, before=LATER, dry_run=True) == Pruned(4, 4)
    assert journal.runs() == runs
    assert prune(journal, before=LATER, dry_run=False) == Pruned(4, 4)
    assert (journal.runs(), journal.last_applied("wx01")) == (runs[-1:], runs[-1])
    assert journal.past("wx01", since=runs[-1])["pre_fetch"].before == server(3)
    assert applied(journal, "wx01", 5) == runs[-1] + 1


def test_what_is_young_stays(journal: Journal) -> None:
    """Age is that of the run and of its changes."""
    runs = [applied(journal, "wx01", number) for number in range(3)]
    before = datetime.now(UTC) - timedelta(days=90)
    assert prune(journal, before=before, dry_run=False) == Pruned(0, 0)
    assert journal.runs() == runs


def test_an_app_that_was_changed_long_ago_can_still_go_back(journal: Journal) -> None:
    """And `--to` any run that is left is whole: none after it is missing."""
    first = applied(journal, "wx02", 0)
    runs = [applied(journal, "wx01", number) for number in range(3)]
    assert prune(journal, before=LATER, dry_run=False) == Pruned(0, 0)
    assert journal.runs() == [first, *runs]


def test_one_that_was_cut_short_stays(journal: Journal) -> None:
    """The same command continues it."""
    run, _ = journal.begin_fleet("apply", apps=2)
    confirmed(journal, run, "wx01", 0)
    applied(journal, "wx01", 1)
    assert prune(journal, before=LATER, dry_run=False) == Pruned(0, 0)


@pytest.mark.parametrize("seed", range(30))
def test_no_rollback_finds_another_past(journal: Journal, seed: int) -> None:
    """Of any app, of the newest fleet, and of each run that is left, whatever came before."""
    chance = random.Random(seed)
    numbers: defaultdict[str, int] = defaultdict(int)
    fleets: list[int] = []
    for _ in range(chance.randint(3, 12)):
        what = chance.choice(["apply", "apply", "fleet", "rollback"])
        appid = chance.choice(APPIDS)
        numbers[appid] += 1
        if what == "fleet":
            action: Action = "apply"
            run, _ = journal.begin_fleet(action, apps=3)
            journal.end_fleet(run)  # else the next fleet would continue it
            fleets.append(run)
        elif fleets and chance.random() < 0.4:
            confirmed(journal, chance.choice(fleets), appid, numbers[appid])
        elif what == "rollback" and (since := journal.last_applied(appid)) is not None:
            run = journal.begin("rollback", appid=appid, returns_from=since)
            confirmed(journal, run, appid, numbers[appid])
            plan = Plan(appid, FetchSettings(NOTHING, NOTHING), ())
            journal.undo(run, plan, since=since)
        else:
            applied(journal, appid, numbers[appid])
    last = {appid: journal.last_applied(appid) for appid in APPIDS}
    fleet = journal.last_fleet_applied(), journal.last_fleet()
    runs = journal.runs()
    pasts = {(a, run): journal.past(a, since=run) for a in APPIDS for run in runs}
    changed = {run: set(journal.changed_since(run)) for run in runs}
    prune(journal, before=LATER, dry_run=False)
    left = journal.runs()
    assert left == runs[len(runs) - len(left) :]
    assert {appid: journal.last_applied(appid) for appid in APPIDS} == last
    assert (journal.last_fleet_applied(), journal.last_fleet()) == fleet
    for run in left:
        assert set(journal.changed_since(run)) == changed[run]
        for appid in APPIDS:
            assert journal.past(appid, since=run) == pasts[appid, run]


def test_a_copy_is_whole_and_private(journal: Journal, tmp_path: Path) -> None:
    """Taken while another connection is about to write."""
    run = applied(journal, "wx01", 1)
    copy = tmp_path / "copies" / "journal.sqlite3"
    copy.parent.mkdir(mode=0o700)
    with closing(sqlite3.connect(journal.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("DELETE FROM changes")
        backup(journal, copy)
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert [each.name for each in copy.parent.iterdir()] == [copy.name]
    assert Journal(copy).last_applied("wx01") == run


def test_a_copy_replaces_nothing(journal: Journal, tmp_path: Path) -> None:
    """An older copy may be the better one."""
    applied(journal, "wx01", 1)
    (tmp_path / "copy").write_text("older")
    with pytest.raises(BackupFailed, match="it is there already"):
        backup(journal, tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "older"


def test_no_copy_gets_into_a_repository(journal: Journal, tmp_path: Path) -> None:
    """The state directory itself is ignored there, so a copy may lie in it."""
    applied(journal, "wx01", 1)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    with pytest.raises(BackupFailed, match="would lie in the git repository"):
        backup(journal, tmp_path / "copy")
    backup(journal, journal.path.with_name("copy"))


def test_no_journal_no_copy(journal: Journal, tmp_path: Path) -> None:
    """Neither is made by asking."""
    with pytest.raises(BackupFailed, match="there is no journal"):
        backup(journal, tmp_path / "copy")
    assert not journal.path.exists()


def test_what_is_pruned_under_a_rollback_ends_it(
    registrar: Registrar, wanted: Mapping[Kind, FetchSetting], journal: Journal
) -> None:
    """While a person decides: it must not be taken for done."""
    registrar.apply(wanted)
    registrar.apply({kind: server(2) for kind in wanted})
    with pytest.raises(PlanStale):
        registrar.rollback(to=1, approve=lambda _: prune(journal, before=LATER, dry_run=False))
    assert journal.last_applied("wx01") == 2
