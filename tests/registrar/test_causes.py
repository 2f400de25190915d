"""Why a journal or a token store cannot be used: each cause has its sentence and a safe remedy."""

import gc
import os
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest

from prefetch_kit.errors import JournalFailed, TokenSourceError
from prefetch_kit.registrar import database
from prefetch_kit.registrar.journal import Journal
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.token_stores import file
from prefetch_kit.weixin.token_stores.file import FileStores
from prefetch_kit.weixin.token_stores.records import TOKEN_CODEC, StoredToken

# What would lead away from the journal, or lose a refresh token.
HARMFUL = ("delete", "remove it", "elsewhere", "point prefetch_state_dir", "move it away")

Use = Callable[[Path], object]


def write_journal(directory: Path) -> None:
    Journal(directory / "journal.sqlite3").begin("apply", appid="wx01")


def save_token(directory: Path) -> None:
    store = FileStores(directory).open("wx01", "access_token", TOKEN_CODEC)
    store.save(StoredToken(Secret("canary-token"), 1.9e9))


USES: dict[Use, str] = {write_journal: "journal.sqlite3", save_token: "tokens.sqlite3"}
use_each = pytest.mark.parametrize("use", USES)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A state directory in use, with a journal and tokens in it."""
    for use in USES:
        use(tmp_path / "state")
    return tmp_path / "state"


def refusal(use: Use, directory: Path) -> str:
    with pytest.raises((JournalFailed, TokenSourceError)) as caught:
        use(directory)
    said = str(caught.value)
    assert not [word for word in HARMFUL if word in said.lower()], said
    return said


@contextmanager
def limited(what: int, most: int) -> Iterator[None]:
    before = resource.getrlimit(what)
    resource.setrlimit(what, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, before)


@contextmanager
def no_descriptors() -> Iterator[None]:
    with ExitStack() as opened, limited(resource.RLIMIT_NOFILE, 256):
        with suppress(OSError):
            while True:
                opened.callback(os.close, os.open("/", os.O_RDONLY))
        yield


@use_each
def test_out_of_descriptors(use: Use, directory: Path) -> None:
    """Nothing is wrong with the file."""
    with no_descriptors():
        said = refusal(use, directory)
    assert "too many files are open" in said
    assert "ulimit -n" in said


@use_each
def test_no_room(use: Use, directory: Path) -> None:
    """The journal stays where it is, and is what has to grow."""
    with limited(resource.RLIMIT_FSIZE, 0):
        assert "may store no more there" in refusal(use, directory)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, that can be filled and made read-only."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@use_each
def test_a_full_disk(use: Use, small_disk: Path) -> None:
    """As the system says it."""
    use(small_disk / "state")
    with (small_disk / "other").open("wb", buffering=0) as other, suppress(OSError):
        while True:
            other.write(bytes(4096))
    said = refusal(use, small_disk / "state")
    assert "there is no room for it. Make room on its disk" in said


@use_each
def test_a_read_only_file_system(use: Use, small_disk: Path) -> None:
    """What is there is not given up for another directory."""
    use(small_disk / "state")
    gc.collect()  # what is open for writing keeps it from being remounted
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert "its file system is read-only" in refusal(use, small_disk / "state")


@use_each
def test_a_damaged_file(use: Use, directory: Path) -> None:
    """It may be all there is: it is copied before anything else."""
    path = directory / USES[use]
    size = path.stat().st_size
    path.write_bytes(b"garbage " * (size // 8))
    said = refusal(use, directory)
    assert "it is damaged" in said
    assert "Copy it away" in said
    assert path.stat().st_size == size


@use_each
def test_another_process_writes(use: Use, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for, then named as what it is."""
    monkeypatch.setattr(database, "_BUSY_S", 0.1)
    monkeypatch.setattr(file, "_BUSY_S", 0.1)
    with closing(sqlite3.connect(directory / USES[use], isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert "another process is writing to it" in refusal(use, directory)


@use_each
def test_no_directory_yet(use: Use, tmp_path: Path) -> None:
    """Only where no journal can be is another directory a remedy, and a lost disk is told first."""
    with pytest.raises((JournalFailed, TokenSourceError)) as caught:
        use(Path("/proc/self/state"))
    assert "If its disk is not mounted, mount it; for a new deployment point" in str(caught.value)


TARGETS = """
from prefetch_kit.errors import TemporaryFileFailed
from prefetch_kit.fleet.targets import Targets
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
try:
    with Targets() as targets:
        for number in range(50_000):
            targets.add(f"wx{number:016x}", "x" * 200)
except TemporaryFileFailed as error:
    print(error)
"""


def test_no_room_for_a_temporary_file() -> None:
    """It is not the journal that fails, and where there is room can be said."""
    said = subprocess.check_output([sys.executable, "-c", TARGETS], text=True)
    assert said.startswith("A temporary file cannot be used")
    assert "TMPDIR" in said
