"""Directories and files of state: this user's alone, by one rule for journal and token store."""

import errno
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prefetch_kit.errors import JournalFailed, TokenSourceError
from prefetch_kit.registrar.journal import Journal
from prefetch_kit.registrar.locks import Locks
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.token_stores.file import FileStores
from prefetch_kit.weixin.token_stores.records import TOKEN_CODEC, StoredToken

NOBODY = 65534
TOKEN = StoredToken(Secret("canary-token"), 1.9e9)

Use = Callable[[Path], object]


def write_journal(directory: Path) -> None:
    Journal(directory / "journal.sqlite3").begin("apply", appid="wx01")


def take_lock(directory: Path) -> None:
    with Locks(directory / "apps.lock").hold("wx01"):
        pass


def save_token(directory: Path) -> None:
    store = FileStores(directory).open("wx01", "access_token", TOKEN_CODEC)
    with store.lock():
        store.save(TOKEN)


def read_token(directory: Path) -> None:
    FileStores(directory).open("wx01", "access_token", TOKEN_CODEC).load()


def read_journal(directory: Path) -> None:
    Journal(directory / "journal.sqlite3").last_applied("wx01")


USES = [write_journal, take_lock, save_token]
ALL = [*USES, read_journal, read_token]
use_each = pytest.mark.parametrize("use", USES)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give something away")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where the state of one WeChat is to be: nothing of it is there yet."""
    return tmp_path / "instance" / "state" / "api.weixin.qq.com"


def fill(directory: Path) -> None:
    for use in USES:
        use(directory)


def refusal(use: Use, directory: Path) -> str:
    with pytest.raises((JournalFailed, TokenSourceError)) as caught:
        use(directory)
    return str(caught.value)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@use_each
@pytest.mark.parametrize("mask", [0, 0o022, 0o777])
def test_what_is_made_is_for_this_user_alone(use: Use, directory: Path, mask: int) -> None:
    """All directories, whatever the umask lets through."""
    with umask(mask):
        use(directory)
    made = [directory, directory.parent, directory.parent.parent]
    assert [stat.S_IMODE(each.stat().st_mode) for each in made] == [0o700] * 3


@pytest.mark.parametrize("use", ALL)
@pytest.mark.parametrize("mode", [0o770, 0o702, 0o720, 0o1777])
def test_a_directory_others_may_write_to(use: Use, directory: Path, mode: int) -> None:
    """What lies there may be planted; the remedy names the command."""
    fill(directory)
    directory.chmod(mode)
    said = refusal(use, directory)
    assert "other users may write to" in said
    assert f"chmod go-w {directory}" in said


@pytest.mark.parametrize("use", ALL)
def test_the_directory_above_is_checked_too(use: Use, directory: Path) -> None:
    """Who may write to it can exchange the one below."""
    fill(directory)
    directory.parent.chmod(0o770)
    assert f"other users may write to {directory.parent}" in refusal(use, directory)


@as_root
@pytest.mark.parametrize("use", ALL)
@pytest.mark.parametrize("levels", [0, 1])
def test_a_directory_of_another_user(use: Use, directory: Path, levels: int) -> None:
    """Whose it is decides what is in it."""
    fill(directory)
    foreign = [directory, directory.parent][levels]
    os.chown(foreign, NOBODY, NOBODY)
    assert f"{foreign} belongs to another user" in refusal(use, directory)


@as_root
@pytest.mark.parametrize("use", ALL)
@pytest.mark.parametrize("levels", [0, 1, 2])
def test_a_link_of_another_user(use: Use, directory: Path, levels: int) -> None:
    """It leads where that user wants, even to a directory of ours."""
    fill(directory)
    link = [directory, directory.parent, directory.parent.parent][levels]
    link.symlink_to(link.rename(link.with_name("elsewhere")))
    os.chown(link, NOBODY, NOBODY, follow_symlinks=False)
    assert f"the link {link} belongs to another user" in refusal(use, directory)


def test_an_own_link_is_followed(directory: Path) -> None:
    """Releases share a state directory that way."""
    fill(directory)
    shared = directory.parent
    shared.symlink_to(shared.rename(shared.with_name("shared")))
    for use in ALL:
        use(directory)


@as_root
@use_each
@pytest.mark.parametrize("spoil", ["give away", "let others write"])
def test_a_file_of_another_user(use: Use, directory: Path, spoil: str) -> None:
    """Also the files of the locks: who holds one could lock out everybody."""
    fill(directory)
    for path in directory.iterdir():
        if spoil == "give away":
            os.chown(path, NOBODY, NOBODY)
        else:
            path.chmod(0o620)
    assert "another user" in (said := refusal(use, directory)) or "other users may" in said


@pytest.fixture(scope="module")
def no_locks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that, preloaded, answers as a file system without locks."""
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("no C compiler")
    made = tmp_path_factory.mktemp("preloaded") / "no_locks.so"
    source = Path(__file__).with_name("no_locks.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", made, source, "-ldl"], check=True)
    return made


WITHOUT_LOCKS = """
import pathlib, sys
from prefetch_kit.concurrency import file_ranges
from tests.concurrency import test_owned_files
{first}
try:
    test_owned_files.{use}(pathlib.Path(sys.argv[1]))
except Exception as error:
    sys.exit(f"{{type(error).__name__}}: {{error}}")
"""


@pytest.mark.parametrize("use", ["take_lock", "save_token"])
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
@pytest.mark.parametrize("has_ranges", [True, False])
def test_a_file_system_without_locks(
    no_locks: Path, directory: Path, use: str, number: int, has_ranges: bool
) -> None:
    """It is refused in a sentence: nothing stands in for a lock."""
    first = "" if has_ranges else "file_ranges._HAS_RANGES = False"
    said = run_without_locks(
        no_locks, directory, WITHOUT_LOCKS.format(use=use, first=first), number
    )
    assert "its file system has no locks" in said
    assert said.startswith(("JournalFailed", "TokenStoreFailed"))


def run_without_locks(no_locks: Path, directory: Path, program: str, number: int) -> str:
    environment = os.environ | {"LD_PRELOAD": str(no_locks), "NO_LOCKS_ERRNO": str(number)}
    command = [sys.executable, "-c", program, str(directory)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    return done.stderr


def test_an_old_file_without_locks(no_locks: Path, directory: Path) -> None:
    """The lock that processes of the first version share is no other."""
    old = directory / "wx01" / "access_token.json"
    old.parent.mkdir(parents=True, mode=0o700)
    for each in old.parents[:3]:
        each.chmod(0o700)
    old.touch(0o600)
    program = """
import sys
from pathlib import Path
from prefetch_kit.weixin.token_stores.first_layout import FirstLayout
try:
    with FirstLayout(Path(sys.argv[1]), "wx01", "access_token").lock(wait_s=0):
        pass
except Exception as error:
    sys.exit(str(error))
"""
    assert "has no locks" in run_without_locks(no_locks, directory, program, errno.ENOSYS)


@use_each
@pytest.mark.parametrize("is_made", [True, False])
def test_git_ignores_it(use: Use, directory: Path, tmp_path: Path, is_made: bool) -> None:
    """An instance folder lies in the repository; no token may get there."""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    if not is_made:
        directory.parent.mkdir(parents=True, mode=0o700)
    use(directory)
    (tmp_path / "app.py").touch()
    status = ["git", "-C", str(tmp_path), "status", "--porcelain", "--untracked-files=all"]
    assert subprocess.check_output(status, text=True) == "?? app.py\n"


def test_a_gitignore_that_is_there_is_kept(directory: Path) -> None:
    """A person may have decided otherwise."""
    directory.mkdir(parents=True, mode=0o700)
    (directory / ".gitignore").write_text("!journal.sqlite3\n")
    fill(directory)
    assert (directory / ".gitignore").read_text() == "!journal.sqlite3\n"
