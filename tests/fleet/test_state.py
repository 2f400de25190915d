"""The state directory of a fleet: its lock, its journal, and when neither can be had."""

import os
import resource
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefetch_kit.errors import JournalFailed, LockHeld, NothingToRollBack
from prefetch_kit.fleet.project import load_project
from prefetch_kit.fleet.run import Fleet, Limits
from prefetch_kit.registrar.locks import FLEET, Locks
from prefetch_kit.sandbox import Fault, Sandbox

if TYPE_CHECKING:
    from tests.fleet.conftest import Merchants

HOLDER = """
import sys
from pathlib import Path
from prefetch_kit.registrar.locks import FLEET, Locks
with Locks(Path(sys.argv[1]) / "apps.lock").hold(FLEET):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process can grow, which is what a full disk feels like."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def held(directory: Path) -> "Iterator[subprocess.Popen[str]]":
    """Another process that holds the fleet's lock."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HOLDER, str(directory)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def sets(wx: Sandbox) -> int:
    return wx.count(action="set_pre_fetch") + wx.count(action="set_period_fetch")


@pytest.fixture
def directory(merchants: "Merchants") -> Path:
    """Where the fleet of the merchants keeps its state."""
    return merchants.fleet().history.path.parent


def test_two_fleets_are_refused(merchants: "Merchants", directory: Path) -> None:
    """The second says at once who is at work, and neither asks nor sends anything."""
    merchants.add(3)
    with held(directory) as process, pytest.raises(LockHeld) as caught:
        merchants.apply()
    assert f"process {process.pid} on {os.uname().nodename} since 2" in str(caught.value)
    assert merchants.wx.requests() == []
    assert merchants.apply().exit_code == 0


def test_a_refused_one_leaves_the_holder_its_name(directory: Path) -> None:
    """However many try, the third hears the same as the second."""
    with held(directory):
        said = []
        for _ in range(3):
            with pytest.raises(LockHeld) as caught, Locks(directory / "apps.lock").hold(FLEET):
                pass
            said.append(str(caught.value))
    assert len(set(said)) == 1
    assert "process" in said[0]


def test_a_plan_needs_no_lock(merchants: "Merchants", directory: Path) -> None:
    """Looking is allowed while another fleet is at work."""
    merchants.add(2)
    with held(directory):
        assert merchants.fleet().plan().exit_code == 0


def test_a_plan_makes_no_state(merchants: "Merchants", directory: Path) -> None:
    """Nor does asking for the status: there is nothing to remember."""
    merchants.add(2)
    fleet = merchants.fleet()
    fleet.plan()
    assert fleet.history.last_fleet() is None
    assert not list(directory.glob("*.*"))


def test_a_journal_that_was_just_being_made(merchants: "Merchants", directory: Path) -> None:
    """Killed before it had anything in it, it is as if there were none."""
    merchants.add(1)
    directory.mkdir(parents=True, mode=0o700)
    (directory / "journal.sqlite3").touch(0o600)
    fleet = merchants.fleet()
    assert fleet.history.last_fleet() is None
    assert fleet.plan().exit_code == 0
    with pytest.raises(NothingToRollBack):
        merchants.fleet().rollback(Limits())
    assert merchants.apply().exit_code == 0


def test_only_the_owner_may_read(merchants: "Merchants", directory: Path) -> None:
    """Journal, locks and tokens, under a umask that forbids nothing."""
    merchants.add(1)
    before = os.umask(0)
    try:
        merchants.apply()
    finally:
        os.umask(before)
    found = {(p.is_dir(), p.stat().st_mode & 0o777) for p in directory.rglob("*")}
    assert found == {(True, 0o700), (False, 0o600)}
    assert directory.stat().st_mode & 0o777 == 0o700


def test_garbage_in_place_of_the_journal(merchants: "Merchants", directory: Path) -> None:
    """What cannot be recorded is not sent, and garbage is not overwritten."""
    merchants.add(2)
    directory.mkdir(parents=True, mode=0o700)
    (directory / "journal.sqlite3").write_bytes(b"garbage " * 512)
    (directory / "journal.sqlite3").chmod(0o600)
    with pytest.raises(JournalFailed, match="state_dir"):
        merchants.apply()
    assert sets(merchants.wx) == 0
    assert (directory / "journal.sqlite3").read_bytes() == b"garbage " * 512


def test_a_file_in_place_of_the_directory(merchants: "Merchants") -> None:
    """A state directory that cannot be made stops the fleet before its first call."""
    merchants.add(2)
    (merchants.folder / "state").write_text("")
    with pytest.raises(JournalFailed):
        merchants.apply()
    assert merchants.wx.requests() == []


def test_a_read_only_directory(merchants: "Merchants") -> None:
    """Nor can one be made where nothing can be written."""
    merchants.add(1)
    path = merchants.write()
    path.write_text(path.read_text().replace('"state"', '"/proc/self/state"'))
    fleet = Fleet(load_project(path), merchants.told)
    for go in (fleet.apply, fleet.rollback):
        with pytest.raises(JournalFailed):
            go(Limits())
    assert merchants.wx.requests() == []


def test_a_full_disk_before_anything_is_sent(merchants: "Merchants") -> None:
    """The journal cannot be begun, so nothing is set."""
    merchants.add(3)
    merchants.apply(version="v1")
    was = sets(merchants.wx)
    fleet = merchants.fleet(version="v2")
    with full_disk(), pytest.raises(JournalFailed):
        fleet.apply(Limits())
    assert sets(merchants.wx) == was


def test_a_disk_that_fills_up_under_way(merchants: "Merchants") -> None:
    """The fleet stops, says so, sends no more than was begun; run again, it is done."""
    merchants.add(40)
    merchants.wx.inject(Fault(kind="delay", action="set_period_fetch", after=3, delay_s=0.3))
    fleet = merchants.fleet(workers=4)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        while merchants.wx.count(action="set_period_fetch") < 4:
            time.sleep(0.001)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))

    filling = threading.Thread(target=fill)
    filling.start()
    try:
        with pytest.raises(JournalFailed):
            fleet.apply(Limits())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        filling.join()
    assert 0 < sets(merchants.wx) < 80
    assert merchants.apply().exit_code == 0
    merchants.fleet().rollback(Limits())
    assert {merchants.wx.settings(a)["is_pre_fetch_open"] for a in merchants.appids} == {False}


def test_an_intent_is_stored_before_its_call(merchants: "Merchants", directory: Path) -> None:
    """While the journal cannot be written, WeChat is read but nothing is sent."""
    (appid,) = merchants.add(1)
    merchants.wx.inject(Fault(kind="delay", action="get", delay_s=3.0))
    thread = threading.Thread(target=merchants.fleet().apply, args=(Limits(),))
    thread.start()
    while not merchants.told.fleets:
        time.sleep(0.001)
    with closing(sqlite3.connect(directory / "journal.sqlite3", isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        while not merchants.wx.count(action="get"):
            time.sleep(0.001)
        time.sleep(0.5)
        assert sets(merchants.wx) == 0
        db.execute("ROLLBACK")
    thread.join()
    assert merchants.wx.settings(appid)["is_pre_fetch_open"] is True


def test_a_result_that_cannot_be_stored_is_said(merchants: "Merchants") -> None:
    """Even if it is the last one, and a failure anyway."""
    merchants.spoil(merchants.add(1), 61007)
    fleet = merchants.fleet()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        while not merchants.told.fleets:
            time.sleep(0.001)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))

    merchants.wx.inject(Fault(kind="delay", action="get", delay_s=1.0))
    filling = threading.Thread(target=fill)
    filling.start()
    try:
        with pytest.raises(JournalFailed):
            fleet.apply(Limits())
    finally:
        filling.join()
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
