"""The journal: what it remembers, and what happens when it cannot."""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from prefetch_kit.errors import JournalFailed
from prefetch_kit.fetch_setting import FetchSetting, FetchSettings
from prefetch_kit.registrar.journal import Action, Journal, Outcome
from prefetch_kit.registrar.plan import Change, Past, Plan

OLD = FetchSetting(open=True, source="server", url="https://old.example/data")
NEW = FetchSetting(open=True, source="server", url="https://shop.example/prefetch/pre_fetch")
CLOUD = FetchSetting(open=False, source="cloud_function", env="e-1", function_name="main")
PLAN = Plan(
    "wx01",
    FetchSettings(pre_fetch=OLD, period_fetch=CLOUD),
    (Change("pre_fetch", OLD, NEW), Change("period_fetch", CLOUD, NEW)),
)


@pytest.fixture
def journal(state_dir: Path) -> Journal:
    return Journal(state_dir / "journal.sqlite3")


def begun(journal: Journal) -> int:
    """A run of which both halves are on their way."""
    run = recorded(journal, "apply")
    for change in PLAN.changes:
        journal.mark(run, "wx01", change.kind, "intent")
    return run


def recorded(journal: Journal, action: Action) -> int:
    """A run that was begun, and of which nothing was sent."""
    run = journal.begin(action, appid="wx01")
    journal.record(run, PLAN)
    return run


def test_what_stood_there_comes_back_unchanged(journal: Journal) -> None:
    """Both sources survive the way through the file."""
    run = begun(journal)
    assert Journal(journal.path).past("wx01", since=run) == {
        "pre_fetch": Past(before=OLD, wanted=NEW),
        "period_fetch": Past(before=CLOUD, wanted=NEW),
    }


@pytest.mark.parametrize(
    ("outcomes", "counts"),
    [
        (["planned", "planned"], False),
        (["refused", "planned"], False),
        (["intent", "planned"], True),
        (["refused", "unsent"], False),
        (["refused", "intent"], True),
        (["intent", "intent"], True),
        (["unknown", "unsent"], True),
        (["confirmed", "confirmed"], True),
    ],
)
def test_only_a_run_that_may_have_changed_something_counts(
    journal: Journal, outcomes: list[Outcome], counts: bool
) -> None:
    """A run whose every half was refused or never sent leaves nothing to undo."""
    run = recorded(journal, "apply")
    for change, outcome in zip(PLAN.changes, outcomes, strict=True):
        journal.mark(run, "wx01", change.kind, outcome)
    assert (journal.last_applied("wx01") == run) is counts
    assert (journal.past("wx01", since=run) != {}) is counts


def test_a_run_that_was_only_begun_does_not_count(journal: Journal) -> None:
    """Killed before anything was sent, it leaves nothing to undo."""
    run = recorded(journal, "apply")
    assert journal.last_applied("wx01") is None
    assert journal.past("wx01", since=run) == {}


def test_a_rollback_counts_once_it_is_complete(journal: Journal) -> None:
    """Until then the apply is to be undone again; what comes later is not undone by it."""
    applied = begun(journal)
    back = recorded(journal, "rollback")
    journal.mark(back, "wx01", "pre_fetch", "confirmed")
    assert journal.last_applied("wx01") == applied
    later = begun(journal)
    journal.undo(back, PLAN, since=applied)
    assert journal.last_applied("wx01") == later
    journal.undo(recorded(journal, "rollback"), PLAN, since=later)
    assert journal.last_applied("wx01") is None


def test_apps_do_not_share_their_runs(journal: Journal) -> None:
    """Another app's apply is not ours to undo."""
    begun(journal)
    assert journal.last_applied("wx02") is None


def test_a_refusal_keeps_its_sentence(
    journal: Journal, rows: Callable[[], list[tuple[object, ...]]]
) -> None:
    """The detail is there for whoever reads the file later."""
    run = recorded(journal, "apply")
    journal.mark(run, "wx01", "pre_fetch", "refused", detail="WeChat refused")
    journal.flush()
    assert rows()[0] == (run, "apply", "pre_fetch", "refused", "WeChat refused")


def test_only_the_owner_may_enter(journal: Journal) -> None:
    """The directory is closed to others, whatever the umask says."""
    before = os.umask(0)
    journal.begin("apply", appid="wx01")
    os.umask(before)
    assert journal.path.parent.stat().st_mode & 0o077 == 0


def test_a_file_that_is_no_database(journal: Journal) -> None:
    """Garbage in the journal's place is named, not overwritten."""
    journal.path.parent.mkdir(parents=True)
    journal.path.write_bytes(b"garbage " * 512)
    with pytest.raises(JournalFailed) as caught:
        journal.begin("apply", appid="wx01")
    assert caught.value.path == str(journal.path)
    assert journal.path.read_bytes() == b"garbage " * 512


@pytest.mark.parametrize(
    "damage", ["UPDATE changes SET before = ?", "UPDATE changes SET wanted = ?"]
)
@pytest.mark.parametrize("text", ["{", "null", "7", '{"open": 1}', "{}"])
def test_a_row_that_cannot_be_read(journal: Journal, damage: str, text: str) -> None:
    """A damaged row is a failure of the journal, not a crash."""
    run = begun(journal)
    with closing(sqlite3.connect(journal.path)) as db, db:
        db.execute(damage, [text])
    with pytest.raises(JournalFailed):
        journal.past("wx01", since=run)


def test_a_journal_of_another_shape(journal: Journal) -> None:
    """A file with other columns is refused."""
    journal.path.parent.mkdir(parents=True)
    with closing(sqlite3.connect(journal.path)) as db, db:
        db.execute("CREATE TABLE runs (id INTEGER PRIMARY KEY)")
    with pytest.raises(JournalFailed):
        journal.last_applied("wx01")


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    """A file in the way of the state directory is a failure of the journal too."""
    (tmp_path / "state").write_text("")
    with pytest.raises(JournalFailed):
        Journal(tmp_path / "state" / "journal.sqlite3").last_applied("wx01")
