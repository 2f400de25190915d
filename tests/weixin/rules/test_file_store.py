"""The file of tokens: who may read it, what may be in it, what a crash leaves of it."""

import json
import os
import resource
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from subprocess import Popen

import pytest

from prefetch_kit.errors import TokenSourceError
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.token_stores.file import FileStores
from prefetch_kit.weixin.token_stores.records import TOKEN_CODEC, StoredToken, TokenStore
from prefetch_kit.weixin.tokens import StableToken

CANARY = "canary-access-token"
TOKEN = StoredToken(Secret(CANARY), 1_900_000_000.5)
OTHER = StoredToken(Secret("another"), 1_900_000_000.0)
NOBODY = 65534

KILL_SAVERS = """
import itertools
import os
import random
import signal
import sys
import time
from pathlib import Path
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.token_stores.file import FileStores
from prefetch_kit.weixin.token_stores.records import TOKEN_CODEC, StoredToken

store = FileStores(Path(sys.argv[1])).open("wx01", "access_token", TOKEN_CODEC)
tokens = [StoredToken(Secret(size * "x"), 1.9e9) for size in (1, 1000)]
store.save(tokens[0])
for _ in range(60):
    child = os.fork()
    if not child:
        for token in itertools.islice(itertools.cycle(tokens), 1000):
            store.save(token)
        os._exit(0)
    time.sleep(random.uniform(0, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if store.load() not in tokens:
        sys.exit("corrupt")
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the `store` fixture keeps its token."""
    return tmp_path / "state" / "tokens.sqlite3"


def opened(path: Path, account: str = "wx01", name: str = "access_token") -> TokenStore:
    """The store of a record, as another process has it."""
    return FileStores(path.parent).open(account, name, TOKEN_CODEC)


def change(path: Path, sql: str, *parameters: object) -> None:
    """Change the file with another tool."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(sql, parameters)


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """The rights of an ordinary user, if root runs the tests."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    yield
    os.seteuid(user)


@pytest.fixture
def read_only() -> Iterator[TokenStore]:
    """A store in a directory that everyone may enter and nobody may write to."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o555)  # noqa: S103 (it is the point)
        yield opened(Path(directory) / "tokens.sqlite3")


@contextmanager
def full_disk() -> Iterator[None]:
    """Writing fails behind the first 10 bytes of any file, so nothing may be printed inside."""
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_was_saved_is_loaded_elsewhere(store: TokenStore, path: Path) -> None:
    """Another store in front of the same file has the token and its end."""
    store.save(TOKEN)
    assert opened(path).load() == TOKEN


def test_records_do_not_mix(store: TokenStore, path: Path) -> None:
    """Each account and each kind has its own record, all of them in one file."""
    store.save(TOKEN)
    opened(path, "wx02").save(OTHER)
    assert (store.load(), opened(path, "wx02").load()) == (TOKEN, OTHER)
    assert opened(path, "wx01", "ticket").load() is None
    assert sorted(os.listdir(path.parent)) == [".gitignore", "tokens.lock", path.name]


def test_other_tools_can_read_the_file(store: TokenStore, path: Path) -> None:
    """The schema that the module's docstring promises."""
    store.save(TOKEN)
    with closing(sqlite3.connect(path)) as other:
        [(account, name, record, saved_at)] = other.execute("SELECT * FROM records").fetchall()
        assert other.execute("PRAGMA user_version").fetchone() == (1,)
    assert (account, name) == ("wx01", "access_token")
    assert json.loads(record) == {"access_token": CANARY, "expires_at": 1_900_000_000.5}
    assert saved_at > 1.7e9


def test_nothing_is_there_before_the_first_save(store: TokenStore, path: Path) -> None:
    """Looking creates nothing."""
    assert store.load() is None
    assert not path.parent.exists()


def test_only_the_owner_may_read(store: TokenStore, path: Path) -> None:
    """File 0600, directory 0700, under a umask that forbids nothing."""
    before = os.umask(0)
    try:
        with store.lock():
            store.save(TOKEN)
    finally:
        os.umask(before)
    assert {mode(each) for each in path.parent.iterdir()} == {0o600}
    assert mode(path.parent) == 0o700


def test_a_reader_never_sees_half_a_file(
    store: TokenStore, path: Path, start: Callable[..., Popen[str]]
) -> None:
    """60 writers killed at random instants: the old token or the new one, never neither."""
    killer = start(KILL_SAVERS, str(path.parent))
    assert killer.wait(60) == 0
    assert store.load() is not None


GARBAGE = [
    b"",
    b"\0" * 100,
    b"\xff\xfe",
    b"{",
    b"[]",
    b'"canary"',
    b"[" * 8000,
    b" " * 2**20,
    b'{"access_token": "x", "expires_at": NaN}',
    b'{"access_token": "x", "expires_at": "1"}',
    b'{"access_token": "x", "expires_at": 1%s}' % (b"0" * 400),
    b'{"access_token": "x", "expires_at": 1%s}' % (b"0" * 5000),
    b'{"access_token": "", "expires_at": 1}',
    b'{"access_token": "a\\nb", "expires_at": 1}',
    b'{"access_token": "\\ud800", "expires_at": 1}',
    b'{"access_token": 7, "expires_at": 1}',
    b'{"expires_at": 1}',
    b'{"access_token": "x"}',
    b'{"access_token": "x", "expires_at": 1, "expires_at": 2}',
]


@pytest.mark.parametrize("content", GARBAGE, ids=lambda content: repr(content[:50]))
def test_unreadable_content_is_no_token_and_is_replaced(
    store: TokenStore,
    stable: Callable[[TokenStore], StableToken],
    path: Path,
    content: bytes,
) -> None:
    """Asking WeChat again costs nothing, so nobody has to tidy up by hand."""
    store.save(TOKEN)
    change(path, "UPDATE records SET record = ?", content)
    assert store.load() is None
    fresh = stable(store).get()
    assert (store.load() or TOKEN).value == fresh


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o601, 0o666])
def test_a_file_open_to_others_is_refused(store: TokenStore, path: Path, mode: int) -> None:
    """Its token may be known to others, or planted by them."""
    store.save(TOKEN)
    path.chmod(mode)
    with pytest.raises(TokenSourceError, match="other users may read or write") as caught:
        store.load()
    assert (caught.value.source, caught.value.remedy.split()[-1]) == (str(path),) * 2
    assert CANARY not in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's file")
def test_a_file_of_another_user_is_refused(store: TokenStore, path: Path) -> None:
    """A token that someone else put there is not used."""
    store.save(TOKEN)
    os.chown(path, NOBODY, NOBODY)
    with pytest.raises(TokenSourceError, match="belongs to another user"):
        store.load()


def put_symlink(path: Path) -> None:
    elsewhere = path.with_name("elsewhere.sqlite3")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def put_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def put_directory(path: Path) -> None:
    path.unlink()
    path.mkdir(0o700)


Put = Callable[[Path], None]
PUT = [put_symlink, put_fifo, put_directory]


@pytest.mark.parametrize("put", PUT)
def test_what_is_no_plain_file_is_refused_at_once(store: TokenStore, path: Path, put: Put) -> None:
    """Nothing is followed or waited for, to read or to write."""
    store.save(TOKEN)
    put(path)
    for attempt in (store.load, lambda: store.save(OTHER)):
        with pytest.raises(TokenSourceError, match="is not a plain file"):
            attempt()


@pytest.mark.parametrize("put", PUT)
def test_a_refused_file_stays_open_nowhere(store: TokenStore, path: Path, put: Put) -> None:
    """A long-lived process that tries again and again does not run out of descriptors."""
    store.save(TOKEN)
    put(path)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(TokenSourceError):
        store.load()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_directory_that_others_write_to_is_refused(store: TokenStore, path: Path) -> None:
    """They could exchange the file; the remedy says how to take that right away."""
    store.save(TOKEN)
    path.parent.chmod(0o777)
    with pytest.raises(TokenSourceError, match="from them: chmod go-w /"):
        store.load()


def test_a_file_that_was_moved_away_is_not_written_to(store: TokenStore, path: Path) -> None:
    """What is saved afterwards is in a new file of that name."""
    store.save(TOKEN)
    path.rename(path.with_name("old.sqlite3"))
    assert store.load() is None
    store.save(OTHER)
    assert (opened(path).load(), path.with_name("old.sqlite3").exists()) == (OTHER, True)


def test_a_file_that_was_restored_from_a_backup_is_used(store: TokenStore, path: Path) -> None:
    """A running process reads and writes the restored one, not the one it had open."""
    store.save(TOKEN)
    backup = Path(shutil.copy2(path, path.with_name("backup.sqlite3")))
    store.save(OTHER)
    backup.replace(path)
    assert store.load() == TOKEN
    store.save(OTHER)
    assert opened(path).load() == OTHER


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda _: b"",
    "text": lambda _: b"not a database" * 1000,
    "cut inside a page": lambda whole: whole[:5000],
    "cut between pages": lambda whole: whole[:4096],
    "a page of zeros": lambda whole: whole[:4096] + bytes(4096),
    "another program's": lambda whole: whole[:68] + b"\0\0\0\7" + whole[72:],
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_file_that_is_no_token_store_is_refused_and_kept(
    store: TokenStore, path: Path, kind: str
) -> None:
    """It may hold the only refresh tokens: nothing replaces it, and no remedy says to delete it."""
    store.save(TOKEN)
    damaged = DAMAGE[kind](path.read_bytes())
    path.write_bytes(damaged)
    for attempt in (opened(path).load, lambda: opened(path).save(OTHER)):
        with pytest.raises(TokenSourceError, match=r"not a token store|is damaged") as caught:
            attempt()
        assert "elete" not in caught.value.remedy
    assert path.read_bytes() == damaged


def test_the_file_of_a_newer_version_is_refused(store: TokenStore, path: Path) -> None:
    """It may say what this version would lose; the remedy is the newer version."""
    store.save(TOKEN)
    change(path, "PRAGMA user_version = 2")
    for attempt in (opened(path).load, lambda: opened(path).save(OTHER)):
        with pytest.raises(TokenSourceError, match=r"schema 2, this one knows 1\).*Upgrade"):
            attempt()


def test_the_journal_is_as_private_as_the_file(store: TokenStore, path: Path) -> None:
    """While a change is written, SQLite keeps old pages in a file beside it."""
    before = os.umask(0)
    try:
        store.save(TOKEN)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN")
            other.execute("UPDATE records SET saved_at = 1")
            assert mode(path.with_name(f"{path.name}-journal")) == 0o600
    finally:
        os.umask(before)


def test_a_full_disk_leaves_the_old_token_and_no_rest(store: TokenStore, path: Path) -> None:
    """The failure names the file and a way out, and no half-written copy is left."""
    store.save(TOKEN)
    with full_disk(), pytest.raises(TokenSourceError, match="may store no more") as caught:
        store.save(StoredToken(Secret(CANARY * 2), 1.0))
    assert (store.load(), len(os.listdir(path.parent))) == (TOKEN, 3)  # .gitignore, file and lock
    assert caught.value.source == str(path)
    assert CANARY not in str(caught.value)


def test_a_full_disk_at_the_very_start(store: TokenStore, path: Path) -> None:
    """A file that could not be made whole is not there; later all is well."""
    with full_disk(), pytest.raises(TokenSourceError, match="may store no more"):
        store.save(TOKEN)
    assert not path.exists()
    store.save(TOKEN)
    assert store.load() == TOKEN


def take_the_lock(store: TokenStore) -> None:
    with store.lock():
        pass


@pytest.mark.parametrize("attempt", [lambda store: store.save(TOKEN), take_the_lock])
def test_a_read_only_directory_is_named(
    read_only: TokenStore, unprivileged: None, attempt: Callable[[TokenStore], None]
) -> None:
    """Saving and locking fail alike, with what to change; loading finds nothing."""
    assert read_only.load() is None
    with pytest.raises(TokenSourceError, match="another user") as caught:
        attempt(read_only)
    assert "/tokens." in caught.value.source
    assert CANARY not in str(caught.value)


def test_a_file_instead_of_the_directory_is_refused(tmp_path: Path) -> None:
    """A state directory that is a file does not end in a traceback."""
    (tmp_path / "state").write_text("")
    store = opened(tmp_path / "state" / "tokens.sqlite3")
    with pytest.raises(TokenSourceError, match="Not a directory"):
        store.load()
    with pytest.raises(TokenSourceError, match=r"Not a directory.* point PREFETCH_STATE_DIR"):
        store.save(TOKEN)


def test_no_token_is_in_the_frames_of_a_failure(store: TokenStore) -> None:
    """Error trackers send local variables along; those of the store hold only a Secret."""
    store.load()
    with full_disk(), pytest.raises(TokenSourceError) as caught:
        store.save(TOKEN)
    frames = [entry.frame.f_locals for entry in caught.traceback]
    assert CANARY not in repr(frames)
    assert caught.value.__context__ is None


def test_the_lock_is_free_after_a_failure_inside(store: TokenStore) -> None:
    """A renewal that fails does not lock the others out."""
    with pytest.raises(ValueError, match="inside"), store.lock():
        raise ValueError("inside")
    with store.lock():
        pass


def test_the_lock_of_one_record_blocks_no_other(store: TokenStore, path: Path) -> None:
    """During one merchant's call to WeChat all others read, write and lock."""
    with store.lock():
        other = opened(path, "wx02")
        with other.lock():
            other.save(OTHER)
        assert other.load() == OTHER
    assert sorted(os.listdir(path.parent)) == [".gitignore", "tokens.lock", path.name]


FORK_WHILE_SAVING = """
import os
import sys
import threading
import time
from pathlib import Path
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.token_stores.file import FileStores
from prefetch_kit.weixin.token_stores.records import TOKEN_CODEC, StoredToken

stores, over = FileStores(Path(sys.argv[1])), threading.Event()

def save(account, rounds):
    store = stores.open(account, "access_token", TOKEN_CODEC)
    for n in rounds:
        with store.lock():
            store.save(StoredToken(Secret(f"{account}-{n}"), n))

def until_over():
    n = 0
    while not over.is_set():
        save("parent", [n := n + 1])
        time.sleep(0.002)

def times_open():
    handles = [f"/proc/self/fd/{handle}" for handle in os.listdir("/proc/self/fd")]
    return sum(os.path.realpath(handle).endswith("/tokens.sqlite3") for handle in handles)

save("parent", [0])
thread = threading.Thread(target=until_over)
thread.start()
children = []
for n in range(8):
    child = os.fork()
    if not child:
        save(f"child-{n}", range(3))
        os._exit(times_open() != 2)  # as the parent had it, and anew
    children.append(child)
statuses = [os.waitpid(child, 0)[1] for child in children]
over.set()
thread.join()
sys.exit(any(statuses))
"""


def test_children_of_a_fork_open_the_file_anew(
    path: Path, start: Callable[..., Popen[str]]
) -> None:
    """Forked while another thread writes and locks: nobody hangs, and nothing is lost."""
    assert start(FORK_WHILE_SAVING, str(path.parent)).wait(120) == 0
    for n in range(8):
        kept = opened(path, f"child-{n}").load()
        assert kept == StoredToken(Secret(f"child-{n}-2"), 2)
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("PRAGMA integrity_check").fetchone() == ("ok",)
