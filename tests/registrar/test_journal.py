"""The journal: what it remembers, and what happens when it cannot."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
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
    """The detail is there for people who read the file later."""
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
    """Garbage instead of the journal is named, not overwritten."""
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


def test_one_that_is_newer_is_left_alone(journal: Journal) -> None:
    """The file, its version and the remedy are named, for readers and writers alike."""
    begun(journal)
    with closing(sqlite3.connect(journal.path)) as db:
        db.execute("PRAGMA user_version = 3")
    before = journal.path.read_bytes()
    for go in (lambda: journal.last_applied("wx01"), lambda: begun(journal), journal.__enter__):
        with pytest.raises(JournalFailed, match=r"version 3, .* knows version 2") as caught:
            go()
        assert caught.value.path == str(journal.path)
        assert "Run the version of prefetch_kit that wrote it" in str(caught.value)
        assert "Point PREFETCH_STATE_DIR" not in str(caught.value)
    assert journal.path.read_bytes() == before


def test_one_that_was_removed_is_not_made_anew(journal: Journal) -> None:
    """While it is written to: what it held cannot be rolled back any more, and that is said."""
    with journal:
        begun(journal)
        journal.path.rename(journal.path.with_name("elsewhere"))
        for _ in range(2):
            with pytest.raises(JournalFailed, match="it was removed or replaced"):
                begun(journal)
        begun(Journal(journal.path))
        with pytest.raises(JournalFailed, match="it was removed or replaced"):
            begun(journal)


@pytest.mark.parametrize("what", ["file", "directory", "directory, replaced by a file"])
def test_one_that_is_removed_during_a_write(journal: Journal, what: str) -> None:
    """SQLite notices only a part of that, and what it says then leads to the wrong remedy."""
    path = journal.path if what == "file" else journal.path.parent

    def work(db: sqlite3.Connection) -> None:
        path.rename(path.with_name("elsewhere"))
        if "replaced" in what:
            path.touch()
        db.execute("UPDATE runs SET apps = apps")

    with journal:
        begun(journal)
        with pytest.raises(JournalFailed, match="it was removed or replaced"):
            journal.write_now(work)


def test_many_threads_write_at_once(journal: Journal) -> None:
    """Each hears of its own, and nothing is lost, however many transactions they share."""
    told: list[int] = []

    def work(number: int) -> None:
        told.append(journal.begin("apply", appid=f"wx{number}"))
        journal.note(told[-1], f"wx{number}", "done", "")

    with journal:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        journal.flush()
        assert sorted(told) == list(range(1, 65))
        assert sum(1 for run in told for _ in journal.results(run)) == 64


def test_a_failure_is_told_to_all_who_wait(journal: Journal) -> None:
    """Also where what cannot be written was recorded by another thread before."""
    with journal:
        run = begun(journal)
        journal.note(run, "wx01", "done", "")
        journal.record(2**70, PLAN)  # no number of SQLite's
        with pytest.raises(JournalFailed):
            journal.mark(run, "wx01", "pre_fetch", "intent")
        journal.mark(run, "wx01", "pre_fetch", "intent")


def test_what_is_committed_is_on_the_disk(journal: Journal) -> None:
    """Without a write-ahead log, which a network disk cannot have."""
    begun(journal)
    pragmas = ("synchronous", 2), ("journal_mode", "truncate")
    with journal:
        assert [(name, *journal.read(f"PRAGMA {name}")[0]) for name, _ in pragmas] == [*pragmas]


TRACED = """
import sys
from pathlib import Path
from prefetch_kit.fetch_setting import FetchSetting, FetchSettings
from prefetch_kit.registrar.journal import Journal
from prefetch_kit.registrar.plan import Change, Plan
now, then = FetchSetting(), FetchSetting.server("https://shop.example/")
journal = Journal(Path(sys.argv[1]))
run = journal.begin("apply", appid="wx01")
journal.record(run, Plan("wx01", FetchSettings(now, now), (Change("pre_fetch", now, then),)))
print("begun", flush=True)
journal.mark(run, "wx01", "pre_fetch", "intent")
print("sent", flush=True)
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is missing")
def test_an_intent_outlives_a_power_failure(tmp_path: Path) -> None:
    """Before anything is sent the disk has SQLite's own journal, the file, and both their names."""
    path = tmp_path / "state" / "here" / "journal.sqlite3"
    trace = ["strace", "-f", "-y", "-e", "trace=fsync,fdatasync,write"]
    command = [*trace, sys.executable, "-c", TRACED, str(path)]
    calls = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    before, _, sending = calls.partition('"begun')
    for directory in (tmp_path, tmp_path / "state", path.parent):
        assert re.search(rf"sync\(\d+<{re.escape(str(directory))}>", before), directory
    synced = re.findall(r"sync\(\d+<[^>]*/(journal[^>/]*)>", sending.partition('"sent')[0])
    assert synced[0] == f"{path.name}-journal"
    assert synced[-2:] == [path.name, f"{path.name}-journal"]
