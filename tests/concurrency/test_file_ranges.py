"""Locks of byte ranges: exclusive for a name, between threads, processes and instances."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from prefetch_kit.concurrency import file_ranges
from prefetch_kit.concurrency.file_ranges import RangeHeldError, RangeLocks

pytestmark = pytest.mark.slow

HOLD = """
import os
import sys
from pathlib import Path
from prefetch_kit.concurrency.file_ranges import RangeLocks

with RangeLocks(Path(sys.argv[1])).hold("a", wait_s=0):
    if sys.argv[2] == "forks":
        if not os.fork():
            sys.stdin.readline()  # outlives its parent
            os._exit(0)
    print("held", flush=True)
    sys.stdin.readline()
"""
COUNT = """
import sys
from pathlib import Path
from prefetch_kit.concurrency.file_ranges import RangeLocks

locks, counter = RangeLocks(Path(sys.argv[1])), Path(sys.argv[2])
for _ in range(100):
    with locks.hold("counter", wait_s=60):
        counter.write_text(str(int(counter.read_text()) + 1))
"""

Hold = Callable[[str], subprocess.Popen[str]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.lock"


@pytest.fixture
def locks(path: Path) -> RangeLocks:
    return RangeLocks(path)


@pytest.fixture
def hold(path: Path) -> Iterator[Hold]:
    """`hold(how)`: another process that holds the lock of "a"."""
    begun: list[subprocess.Popen[str]] = []

    def hold(how: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        argv = [sys.executable, "-c", HOLD, str(path), how]
        begun.append(subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True))
        assert begun[-1].stdout is not None
        assert begun[-1].stdout.readline() == "held\n"
        return begun[-1]

    yield hold
    for process in begun:
        with suppress(BrokenPipeError), process:
            process.kill()


def try_lock(locks: RangeLocks, name: str) -> None:
    with locks.hold(name, wait_s=0):
        pass


def test_each_name_has_its_own_lock(locks: RangeLocks, path: Path) -> None:
    """However many names there are, there is one empty file, which only its owner can read."""
    with locks.hold("a", wait_s=0), locks.hold("b", wait_s=0), locks.hold("", wait_s=0):
        assert os.listdir(path.parent) == [path.name]
        assert (path.stat().st_size, path.stat().st_mode & 0o777) == (0, 0o600)


@pytest.mark.parametrize("other", ["same instance", "other instance"])
def test_a_held_name_is_refused_in_other_threads(locks: RangeLocks, path: Path, other: str) -> None:
    """The error names what is held and how long it was waited for."""
    another = locks if other == "same instance" else RangeLocks(path)
    with ThreadPoolExecutor(1) as pool, locks.hold("a", wait_s=0):
        with pytest.raises(RangeHeldError, match="another holder has the lock of a") as caught:
            pool.submit(try_lock, another, "a").result(60)
        assert (caught.value.name, caught.value.waited_s) == ("a", 0)
    try_lock(another, "a")


def test_another_process_keeps_us_out(locks: RangeLocks, hold: Hold) -> None:
    """Out of this name, and of no other."""
    hold("alone")
    with pytest.raises(RangeHeldError):
        try_lock(locks, "a")
    try_lock(locks, "b")


@pytest.mark.parametrize("how", ["alone", "forks"])
def test_the_lock_of_a_killed_process_is_free(locks: RangeLocks, hold: Hold, how: str) -> None:
    """Even where a child of a fork lives on, with copies of all that was open."""
    holder = hold(how)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locks.hold("a", wait_s=60):
        pass


def test_a_child_of_a_fork_holds_nothing_and_ends_nothing(locks: RangeLocks) -> None:
    """It cannot get what the parent holds; and that it ends changes nothing for the parent."""
    with locks.hold("a", wait_s=0):
        child = os.fork()
        if not child:
            try:
                try_lock(locks, "a")
            except RangeHeldError:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        with pytest.raises(RangeHeldError), ThreadPoolExecutor(1) as pool:
            pool.submit(try_lock, locks, "a").result(60)


def test_no_two_are_inside_at_once(locks: RangeLocks, path: Path, tmp_path: Path) -> None:
    """Four processes and four threads add to one number."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    argv = [sys.executable, "-c", COUNT, str(path), str(counter)]
    processes = [subprocess.Popen(argv) for _ in range(4)]

    def add(_: int) -> None:
        for _ in range(100):
            with locks.hold("counter", wait_s=60):
                counter.write_text(str(int(counter.read_text()) + 1))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(4)))
    assert [process.wait(60) for process in processes] == [0] * 4
    assert counter.read_text() == "800"


def test_where_a_platform_has_no_locks_of_open_files(
    locks: RangeLocks, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each name has a file beside it, and excludes the same way."""
    monkeypatch.setattr(file_ranges, "_HAS_RANGES", False)
    with ThreadPoolExecutor(1) as pool, locks.hold("a", wait_s=0), locks.hold("b", wait_s=0):
        with pytest.raises(RangeHeldError):
            pool.submit(try_lock, RangeLocks(path), "a").result(60)
        assert len(os.listdir(path.parent)) == 3
    try_lock(locks, "a")


def test_a_link_instead_of_the_file_is_not_followed(locks: RangeLocks, path: Path) -> None:
    """It could make us create or lock a file elsewhere."""
    path.symlink_to(path.with_name("elsewhere"))
    with pytest.raises(OSError, match="not a plain file"):
        try_lock(locks, "a")
    assert not path.with_name("elsewhere").exists()
