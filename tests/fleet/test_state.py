"""The state directory of a fleet: its lock, its journal, and when neither can be had."""

import os
import resource
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefetch_kit.errors import JournalFailed, LockHeld, NothingToRollBack
from prefetch_kit.fetch_setting import FetchSetting, FetchSettings
from prefetch_kit.fleet.project import Pace, load_project
from prefetch_kit.fleet.run import Fleet, Limits
from prefetch_kit.registrar import Registrar, Secret, StaticToken, Transport, Wanted
from prefetch_kit.registrar.locks import FLEET, Locks
from prefetch_kit.sandbox import Fault, Sandbox
from prefetch_kit.weixin.settings import SettingsApi
from tests.conftest import until

if TYPE_CHECKING:
    from tests.fleet.conftest import Merchants

pytestmark = pytest.mark.slow

HOLDER = """
import sys
from pathlib import Path
from prefetch_kit.registrar.locks import Locks
with Locks(Path(sys.argv[1]) / "apps.lock").hold(sys.argv[2]):
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
def held(directory: Path, name: str = FLEET) -> "Iterator[subprocess.Popen[str]]":
    """Another process that holds the fleet's lock, or an app's."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HOLDER, str(directory), name]
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


def test_an_app_that_is_held_is_for_another_run(
    merchants: "Merchants", directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No worker waits for it: the others are done, and it is said why this one is not."""
    monkeypatch.setattr("random.uniform", lambda low, high: low + (high - low) / 1000)
    first, *_ = merchants.add(4)
    with held(directory, first):
        summary = merchants.apply(workers=1)
    assert (summary.exit_code, merchants.outcomes()) == (75, {"done": 3, "deferred": 1})
    assert "another process is changing it" in merchants.told.results[first].cause
    assert merchants.wx.settings(first) == {}
    assert merchants.apply().exit_code == 0


class Reached(SettingsApi):
    """Calls `then` when a fleet comes to an app, and lets that be read and set."""

    def __init__(self, merchants: "Merchants", appid: str, then: Callable[[], object]) -> None:
        tokens = StaticToken(Secret(merchants.wx.access_token(appid)))
        super().__init__(Transport(base_url=merchants.wx.base_url), tokens)
        self._then = then

    def read(self) -> FetchSettings:
        self._then()
        return super().read()


def fleet_that(merchants: "Merchants", then: Callable[[str], object]) -> Fleet:
    """A fleet with one worker that calls `then` with each appid that it comes to."""
    project = load_project(merchants.write())
    return Fleet(
        project,
        merchants.told,
        pace=Pace(workers=1, canary=0),
        settings_of=lambda appid: Reached(merchants, appid, lambda: then(appid)),
    )


def test_an_app_that_is_held_for_a_while_is_done(
    merchants: "Merchants", directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fleet comes back to it."""
    monkeypatch.setattr("random.uniform", lambda _, high: high / 20)
    first, second = merchants.add(2)
    merchants.switch_off()
    with ExitStack() as holding:
        holding.enter_context(Locks(directory / "apps.lock").hold(first))
        fleet_that(merchants, lambda _: holding.close()).apply(Limits())
    assert list(merchants.told.results) == [second, first]
    assert merchants.outcomes() == {"done": 2}


def test_an_apply_for_one_app_waits_for_the_fleet(
    merchants: "Merchants", transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For its app alone, and no longer than a bound: then it says which run holds it."""
    monkeypatch.setattr("prefetch_kit.registrar.registrar._LOCK_WAIT_S", 0.1)
    (appid,) = merchants.add(1)
    tokens = StaticToken(Secret(merchants.wx.access_token(appid)))
    state_dir = merchants.folder / "state"
    alone = Registrar(appid, tokens=tokens, state_dir=state_dir, transport=transport)
    wanted: Wanted = {"pre_fetch": FetchSetting.server("https://shop.example/alone")}
    said: list[str] = []

    def apply(_: str) -> None:
        if not said:
            with pytest.raises(LockHeld) as caught:
                alone.apply(wanted)
            said.append(str(caught.value))

    assert fleet_that(merchants, apply).apply(Limits()).exit_code == 0
    assert f"run 1, process {os.getpid()} on " in said[0]
    assert f"lock of {appid} in " in said[0]
    alone.apply(wanted)
    assert alone.read().pre_fetch == wanted["pre_fetch"]


def test_a_directory_that_is_removed_ends_the_fleet(
    merchants: "Merchants", directory: Path
) -> None:
    """No journal, no more sets, and a sentence that says what happened."""
    merchants.add(40)
    merchants.wx.inject(Fault(kind="delay", action="set_pre_fetch", after=2, delay_s=0.2))
    fleet = merchants.fleet(workers=2)

    def remove() -> None:
        until(lambda: merchants.wx.count(action="set_pre_fetch") >= 3)
        directory.rename(directory.with_name("removed"))

    removing = threading.Thread(target=remove)
    removing.start()
    with pytest.raises(JournalFailed, match="it was removed"):
        fleet.apply(Limits())
    removing.join()
    assert sets(merchants.wx) < 20


ANOTHER = """
import shutil, sys
from pathlib import Path
from prefetch_kit.registrar.journal import Journal
from prefetch_kit.registrar.locks import FLEET, Locks
directory, what = Path(sys.argv[1]), sys.argv[2]
(directory / "apps.lock").unlink() if what == "locks" else shutil.rmtree(directory)
if "made anew" in what:
    with Locks(directory / "apps.lock").hold(FLEET):
        Journal(directory / "journal.sqlite3").begin("apply", appid="wx01")
"""


@pytest.mark.parametrize("what", ["directory", "directory, made anew", "locks"])
def test_what_another_process_removes_ends_the_fleet(
    merchants: "Merchants", directory: Path, what: str
) -> None:
    """Also where it made another directory or lock, with which it could change the same apps."""
    appids = merchants.add(5)
    merchants.switch_off()

    def then(appid: str) -> None:
        if appid == appids[2] and merchants.wx.count(action="set_pre_fetch") == 2:
            subprocess.run([sys.executable, "-c", ANOTHER, str(directory), what], check=True)

    with pytest.raises(JournalFailed, match="was removed or replaced while this process used it"):
        fleet_that(merchants, then).apply(Limits())
    assert merchants.wx.count(action="set_pre_fetch") == 2


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
    assert {path.name for path in directory.glob("*.*")} == {"tokens.lock", "tokens.sqlite3"}


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
    found = {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()}
    files = {"apps.lock", "journal.sqlite3", "tokens.lock", "tokens.sqlite3"}
    assert found.keys() - {"journal.sqlite3-journal"} == files
    assert set(found.values()) == {0o600}
    assert directory.stat().st_mode & 0o777 == 0o700


def test_garbage_instead_of_the_journal(merchants: "Merchants", directory: Path) -> None:
    """What cannot be recorded is not sent, and garbage is not overwritten."""
    merchants.add(2)
    directory.mkdir(parents=True, mode=0o700)
    (directory / "journal.sqlite3").write_bytes(b"garbage " * 512)
    (directory / "journal.sqlite3").chmod(0o600)
    with pytest.raises(JournalFailed, match=r"it is damaged .* Copy it away"):
        merchants.apply()
    assert sets(merchants.wx) == 0
    assert (directory / "journal.sqlite3").read_bytes() == b"garbage " * 512


def test_a_file_instead_of_the_directory(merchants: "Merchants") -> None:
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
        until(lambda: merchants.wx.count(action="set_period_fetch") >= 4)
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
    merchants.add(1)
    merchants.apply(version="v0")
    was, locked = sets(merchants.wx), threading.Event()
    path = directory / "journal.sqlite3"
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as db:

        def lock(_: str) -> None:
            if not locked.is_set():
                db.execute("BEGIN IMMEDIATE")
                locked.set()

        thread = threading.Thread(target=fleet_that(merchants, lock).apply, args=(Limits(),))
        thread.start()
        locked.wait(60)
        thread.join(0.3)
        assert thread.is_alive()
        assert sets(merchants.wx) == was
        db.execute("ROLLBACK")
        thread.join()
    assert merchants.urls() == {"pre_fetch"}


def test_a_result_that_cannot_be_stored_is_said(merchants: "Merchants") -> None:
    """Even if it is the last one, and a failure anyway."""
    merchants.spoil(merchants.add(1), 61007)
    fleet = merchants.fleet()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        until(lambda: merchants.told.fleets)
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
