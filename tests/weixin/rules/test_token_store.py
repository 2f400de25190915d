"""The token's file: who may read it, what may be in it, what a crash leaves of it."""

import json
import os
import resource
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

import pytest

from prefetch_kit.errors import TokenSourceError
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.token_store import FileTokenStore, StoredToken, TokenStore
from prefetch_kit.weixin.tokens import StableToken

CANARY = "canary-access-token"
TOKEN = StoredToken(Secret(CANARY), 1_900_000_000.5)
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
from prefetch_kit.weixin.token_store import FileTokenStore, StoredToken

store = FileTokenStore(Path(sys.argv[1]))
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
    return tmp_path / "state" / "token.json"


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """The rights of an ordinary user, if root runs the tests."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    yield
    os.seteuid(user)


@pytest.fixture
def read_only() -> Iterator[FileTokenStore]:
    """A store in a directory that everyone may enter and nobody may write to."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o555)  # noqa: S103 - it is the point
        yield FileTokenStore(Path(directory) / "token.json")


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


def test_what_was_saved_is_loaded_elsewhere(store: FileTokenStore, path: Path) -> None:
    """Another store in front of the same file has the token and its end."""
    store.save(TOKEN)
    assert FileTokenStore(path).load() == TOKEN


def test_nothing_is_there_before_the_first_save(store: FileTokenStore, path: Path) -> None:
    """Looking creates nothing."""
    assert store.load() is None
    assert not path.parent.exists()


def test_only_the_owner_may_read(store: FileTokenStore, path: Path) -> None:
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
    store: FileTokenStore, path: Path, start: Callable[..., Popen[str]]
) -> None:
    """60 writers killed at random instants: the old token or the new one, never neither."""
    killer = start(KILL_SAVERS, str(path))
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
    store: FileTokenStore,
    stable: Callable[[TokenStore], StableToken],
    path: Path,
    content: bytes,
) -> None:
    """Asking WeChat again costs nothing, so nobody has to tidy up by hand."""
    store.save(TOKEN)
    path.write_bytes(content)
    assert store.load() is None
    fresh = stable(store).get()
    assert (store.load() or TOKEN).value == fresh


@pytest.mark.parametrize("granted", [0o640, 0o604, 0o620, 0o602, 0o601, 0o666])
def test_a_file_open_to_others_is_refused(store: FileTokenStore, path: Path, granted: int) -> None:
    """Its token may be known to others, or planted by them."""
    store.save(TOKEN)
    path.chmod(granted)
    with pytest.raises(TokenSourceError, match="other users may read or write it") as caught:
        store.load()
    assert (caught.value.source, caught.value.remedy[:12]) == (str(path), "Take it away")
    assert CANARY not in str(caught.value)


def test_a_file_of_another_user_is_refused(unprivileged: None) -> None:
    """A token that someone else put there is not used."""
    with pytest.raises(TokenSourceError, match="belongs to another user"):
        FileTokenStore(Path("/etc/passwd")).load()


def put_symlink(path: Path) -> None:
    elsewhere = path.with_name("elsewhere.json")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def put_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def put_directory(path: Path) -> None:
    path.unlink()
    path.mkdir(0o700)


@pytest.mark.parametrize("put", [put_symlink, put_fifo, put_directory])
def test_what_is_no_plain_file_is_refused_at_once(
    store: FileTokenStore, path: Path, put: Callable[[Path], None]
) -> None:
    """Nothing is followed or waited for; deleting it is the way out."""
    store.save(TOKEN)
    put(path)
    with pytest.raises(TokenSourceError, match="Delete it, or point PREFETCH_STATE_DIR"):
        store.load()


@pytest.mark.parametrize("put", [put_symlink, put_fifo, put_directory])
def test_a_refused_file_stays_open_nowhere(
    store: FileTokenStore, path: Path, put: Callable[[Path], None]
) -> None:
    """A long-lived process that tries again and again does not run out of descriptors."""
    store.save(TOKEN)
    put(path)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(TokenSourceError):
        store.load()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_saving_replaces_a_symlink_not_its_target(store: FileTokenStore, path: Path) -> None:
    """A link put in the file's place cannot send the token anywhere."""
    store.save(TOKEN)
    put_symlink(path)
    store.save(StoredToken(Secret("another"), 1.0))
    assert not path.is_symlink()
    assert json.loads(path.with_name("elsewhere.json").read_text())["access_token"] == CANARY


def test_a_full_disk_leaves_the_old_token_and_no_rest(store: FileTokenStore, path: Path) -> None:
    """The failure names the file and a way out, and the half-written copy is gone."""
    store.save(TOKEN)
    with full_disk(), pytest.raises(TokenSourceError, match="cannot be used") as caught:
        store.save(StoredToken(Secret(CANARY * 2), 1.0))
    assert (store.load(), os.listdir(path.parent)) == (TOKEN, [path.name])
    assert caught.value.source == str(path)
    assert CANARY not in str(caught.value)


def take_the_lock(store: FileTokenStore) -> None:
    with store.lock():
        pass


@pytest.mark.parametrize("attempt", [lambda store: store.save(TOKEN), take_the_lock])
def test_a_read_only_directory_is_named(
    read_only: FileTokenStore, unprivileged: None, attempt: Callable[[FileTokenStore], None]
) -> None:
    """Saving and locking fail alike, with what to change; loading finds nothing."""
    assert read_only.load() is None
    with pytest.raises(TokenSourceError, match="PREFETCH_STATE_DIR at a directory") as caught:
        attempt(read_only)
    assert caught.value.source.endswith("token.json")
    assert CANARY not in str(caught.value)


def test_a_file_in_the_directorys_place_is_refused(tmp_path: Path) -> None:
    """A state directory that is none does not end in a traceback."""
    (tmp_path / "state").write_text("")
    store = FileTokenStore(tmp_path / "state" / "token.json")
    with pytest.raises(TokenSourceError, match="Not a directory"):
        store.load()
    with pytest.raises(TokenSourceError, match="cannot be used"):
        store.save(TOKEN)


def test_no_token_is_in_the_frames_of_a_failure(store: FileTokenStore) -> None:
    """Error trackers send local variables along; those of the store hold only a Secret."""
    with full_disk(), pytest.raises(TokenSourceError) as caught:
        store.save(TOKEN)
    frames = [entry.frame.f_locals for entry in caught.traceback]
    assert CANARY not in repr(frames)
    assert caught.value.__context__ is None


def test_the_lock_is_free_after_a_failure_inside(store: FileTokenStore) -> None:
    """A renewal that fails does not lock the others out."""
    with pytest.raises(ValueError, match="inside"), store.lock():
        raise ValueError("inside")
    with store.lock():
        pass
