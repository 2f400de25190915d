"""The journal and the lock are the way to WeChat: without them nothing is sent."""

import os
import resource
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest

from prefetch_kit.errors import JournalFailed, LockHeld
from prefetch_kit.fetch_setting import FetchSetting, Kind
from prefetch_kit.registrar import registrar as registrar_module
from prefetch_kit.registrar.journal import Journal
from prefetch_kit.registrar.plan import Plan
from prefetch_kit.registrar.registrar import Registrar
from prefetch_kit.sandbox import Sandbox
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.tokens import StaticToken
from prefetch_kit.weixin.transport import Transport

APPID = "wx01"
PRE_URL = "https://shop.example/prefetch/pre_fetch"
HOLDER = """
import sys
from pathlib import Path
from prefetch_kit.registrar.locks import Locks
with Locks(Path(sys.argv[1])).hold(sys.argv[2], run=7):
    print("held", flush=True)
    sys.stdin.read()
"""


NOBODY = 65534
WRITER = """
import sqlite3, sys
sqlite3.connect(sys.argv[1], timeout=0).execute("BEGIN IMMEDIATE")
"""


class SpoilingTokens(StaticToken):
    """Ruins a file when the token is asked for the eighth time, which is to read back."""

    def __init__(self, value: Secret, path: Path) -> None:
        super().__init__(value)
        self._path = path
        self._asked = 0

    def get(self) -> Secret:
        self._asked += 1
        if self._asked == 8:
            self._path.write_bytes(b"garbage " * 512)
        return super().get()


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process can grow, which is what a full disk feels like."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def held(state_dir: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the lock."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(state_dir / "apps.lock"), APPID],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_garbage_instead_of_the_journal(
    wx: Sandbox, apply: Callable[[], Plan], state_dir: Path
) -> None:
    """What cannot be recorded is not sent."""
    state_dir.mkdir(parents=True, mode=0o700)
    (state_dir / "journal.sqlite3").write_bytes(b"garbage " * 512)
    with pytest.raises(JournalFailed, match=r"it is damaged .* Copy it away"):
        apply()
    assert wx.settings(APPID) == {}


def test_a_file_instead_of_the_directory(
    wx: Sandbox, apply: Callable[[], Plan], state_dir: Path
) -> None:
    """A state directory that cannot be made stops the apply."""
    state_dir.parent.mkdir(parents=True)
    state_dir.write_text("")
    with pytest.raises(JournalFailed):
        apply()
    assert wx.settings(APPID) == {}


def test_a_directory_on_a_read_only_filesystem(
    wx: Sandbox,
    make_registrar: Callable[[Path], Registrar],
    wanted: Mapping[Kind, FetchSetting],
) -> None:
    """Nor can one be made where nothing can be written."""
    registrar = make_registrar(Path("/proc/self/state"))
    with pytest.raises(JournalFailed):
        registrar.apply(wanted, approve=lambda _: None)
    assert wx.settings(APPID) == {}


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """The rights of an ordinary user, if root runs the tests."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    yield
    os.seteuid(user)


@pytest.fixture
def journal(apply: Callable[[], Plan], state_dir: Path) -> Path:
    """The journal of one apply."""
    apply()
    return state_dir / "journal.sqlite3"


def put_symlink(path: Path) -> None:
    path.symlink_to(path.rename(path.with_name("elsewhere")))


def put_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def test_only_the_owner_may_read_or_write(apply: Callable[[], Plan], state_dir: Path) -> None:
    """Files 0600, directory 0700, under a umask that forbids nothing."""
    before = os.umask(0)
    try:
        apply()
    finally:
        os.umask(before)
    assert {stat.S_IMODE(each.stat().st_mode) for each in state_dir.iterdir()} == {0o600}
    assert stat.S_IMODE(state_dir.stat().st_mode) == 0o700


@pytest.mark.parametrize("granted", [0o770, 0o707, 0o720, 0o1777])
def test_a_directory_others_may_write_to(
    registrar: Registrar, journal: Path, wanted: Mapping[Kind, FetchSetting], granted: int
) -> None:
    """What lies there may be planted, so it is neither read nor locked."""
    journal.parent.chmod(granted)
    with pytest.raises(JournalFailed, match="other users may write to"):
        registrar.rollback(approve=lambda _: None)
    with pytest.raises(JournalFailed, match="other users may write to"):
        registrar.apply({"pre_fetch": FetchSetting.server(f"{PRE_URL}/v2")}, approve=lambda _: None)


def test_a_directory_of_another_user(unprivileged: None) -> None:
    """What somebody else owns is not ours to trust."""
    with pytest.raises(JournalFailed, match="/usr belongs to another user"):
        Journal(Path("/usr/journal.sqlite3")).last_applied(APPID)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_journal_of_another_user(registrar: Registrar, journal: Path) -> None:
    """Nor is a file of somebody else's in our directory."""
    os.chown(journal, NOBODY, NOBODY)
    with pytest.raises(JournalFailed, match="belongs to another user"):
        registrar.rollback(approve=lambda _: None)


@pytest.mark.parametrize("granted", [0o660, 0o606, 0o620, 0o602])
def test_a_journal_others_may_write_to(registrar: Registrar, journal: Path, granted: int) -> None:
    """Where it leads back to may be forged."""
    journal.chmod(granted)
    with pytest.raises(JournalFailed, match="other users may write to"):
        registrar.rollback(approve=lambda _: None)


@pytest.mark.parametrize("put", [put_symlink, put_fifo])
def test_a_journal_that_is_no_plain_file(
    registrar: Registrar, journal: Path, put: Callable[[Path], None]
) -> None:
    """Nothing is followed or waited for."""
    put(journal)
    with pytest.raises(JournalFailed, match="is not a plain file"):
        registrar.rollback(approve=lambda _: None)


def test_looking_at_the_journal_leaves_its_locks_alone(journal: Path) -> None:
    """What one thread is writing stays locked while another one reads."""
    with closing(sqlite3.connect(journal, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        assert Journal(journal).last_applied(APPID) is not None
        other = subprocess.run(
            [sys.executable, "-c", WRITER, str(journal)], capture_output=True, check=False
        )
    assert b"database is locked" in other.stderr


def test_full_disk(wx: Sandbox, apply: Callable[[], Plan], approved: list[Plan]) -> None:
    """A journal that was fine yesterday and cannot grow today stops the apply."""
    apply()
    wx.put_settings(APPID, {})
    with full_disk(), pytest.raises(JournalFailed):
        apply()
    assert wx.settings(APPID) == {}
    assert len(approved) == 2


def test_a_result_that_cannot_be_stored_is_said(
    wx: Sandbox,
    transport: Transport,
    wanted: Mapping[Kind, FetchSetting],
    root: Path,
    state_dir: Path,
) -> None:
    """Lost behind the last call, the journal is missed all the same."""
    wx.put_settings(APPID, {"is_pre_fetch_open": False})
    token = Secret(wx.access_token(APPID))
    tokens = SpoilingTokens(token, state_dir / "journal.sqlite3")
    registrar = Registrar(APPID, tokens=tokens, state_dir=root, transport=transport)
    with pytest.raises(JournalFailed, match="Something was sent for wx01: show says what WeChat"):
        registrar.apply(wanted, approve=lambda _: None)
    assert wx.count(action="set_period_fetch") == 1


ANOTHER = """
import shutil, sys
from pathlib import Path
from prefetch_kit.registrar.journal import Journal
from prefetch_kit.registrar.locks import Locks
directory, what = Path(sys.argv[1]), sys.argv[2]
(directory / "apps.lock").unlink() if what == "locks" else shutil.rmtree(directory)
if "made anew" in what:
    with Locks(directory / "apps.lock").hold("wx01"):
        Journal(directory / "journal.sqlite3").begin("apply", appid="wx01")
"""


class RemovingTokens(StaticToken):
    """Has another process remove something when the token is asked for, which is per call."""

    def __init__(self, value: Secret, directory: Path, what: str, *, call: int) -> None:
        super().__init__(value)
        self._command = [sys.executable, "-c", ANOTHER, str(directory), what]
        self._calls_left = call

    def get(self) -> Secret:
        self._calls_left -= 1
        if self._calls_left == 0:
            subprocess.run(self._command, check=True)
        return super().get()


@pytest.mark.parametrize("what", ["directory", "directory, made anew", "locks"])
@pytest.mark.parametrize("action", ["apply", "rollback"])
def test_what_is_removed_under_an_apply_ends_it(
    wx: Sandbox,
    apply: Callable[[], Plan],
    transport: Transport,
    root: Path,
    state_dir: Path,
    what: str,
    action: str,
) -> None:
    """Between its two calls: the second is not sent, and nothing is written to what is new."""
    apply()
    before = wx.count(action="set_period_fetch")
    # Read to plan, read under the lock, set the first kind: there it goes.
    tokens = RemovingTokens(Secret(wx.access_token(APPID)), state_dir, what, call=3)
    registrar = Registrar(APPID, tokens=tokens, state_dir=root, transport=transport)
    wanted = FetchSetting.server(f"{PRE_URL}/new")
    new: Mapping[Kind, FetchSetting] = {"pre_fetch": wanted, "period_fetch": wanted}
    go: Callable[[], object] = registrar.rollback
    if action == "apply":
        go = partial(registrar.apply, new)
    with pytest.raises(JournalFailed, match="was removed or replaced while this process used it"):
        go()
    assert wx.count(action="set_period_fetch") == before
    if "anew" in what:
        assert Journal(state_dir / "journal.sqlite3").runs() == []
    elif what == "directory":
        assert not state_dir.exists()


def test_the_lock_is_waited_for_and_then_named(
    wx: Sandbox,
    apply: Callable[[], Plan],
    held: "subprocess.Popen[str]",
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While another process holds the lock, nothing is changed."""
    monkeypatch.setattr(registrar_module, "_LOCK_WAIT_S", 0.2)
    with pytest.raises(LockHeld) as caught:
        apply()
    assert caught.value.waited_s == 0.2
    assert wx.settings(APPID) == {}


def test_the_lock_ends_with_its_process(
    apply: Callable[[], Plan], held: "subprocess.Popen[str]"
) -> None:
    """A holder that is killed leaves nothing behind to clean up."""
    held.kill()
    held.wait()
    assert len(apply().changes) == 2


def test_many_registrars_write_once(
    wx: Sandbox,
    make_registrar: Callable[[Path], Registrar],
    wanted: Mapping[Kind, FetchSetting],
    root: Path,
) -> None:
    """Of eight that plan the same at once, one writes and seven find it done: all succeed."""
    together = threading.Barrier(8, timeout=60)
    changes: list[int] = []

    def run() -> None:
        done = make_registrar(root).apply(wanted, approve=lambda _: together.wait())
        changes.append(len(done.changes))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wx.count(action="set_pre_fetch") == wx.count(action="set_period_fetch") == 1
    assert sorted(changes) == [0] * 7 + [2]
