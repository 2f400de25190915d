"""The lock of each mini program: who has it, who waits, and when it ends."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prefetch_kit.errors import JournalFailed, LockHeld
from prefetch_kit.registrar.locks import Locks

HOLDER = """
import os, sys, time
from pathlib import Path
from prefetch_kit.registrar.locks import Locks
with Locks(Path(sys.argv[1])).hold("wx01", run=7):
    if sys.argv[2] == "alone" or os.fork() == 0:
        print(os.getpid(), flush=True)
    time.sleep(600)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "apps.lock"


@pytest.fixture
def start(path: Path) -> "Iterator[Callable[[str], subprocess.Popen[str]]]":
    """`start(how)`: another process that holds wx01; it, or its child, says its number."""
    started: list[subprocess.Popen[str]] = []

    def start(how: str = "alone") -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", HOLDER, str(path), how]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def number_said_by(process: "subprocess.Popen[str]") -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


@pytest.fixture(params=["ranges", "files"])
def locks(request: pytest.FixtureRequest, path: Path, monkeypatch: pytest.MonkeyPatch) -> Locks:
    """Also as they are where the platform has no locks of open file descriptions."""
    if request.param == "files":
        monkeypatch.setattr("prefetch_kit.concurrency.file_ranges._HAS_RANGES", False)
    return Locks(path)


def test_a_held_lock_names_its_holder(
    path: Path, start: "Callable[..., subprocess.Popen[str]]"
) -> None:
    """Process, machine and run, after the time that was waited; other apps are free."""
    process = start()
    number_said_by(process)
    locks = Locks(path)
    with pytest.raises(LockHeld) as caught, locks.hold("wx01", wait_s=0.1):
        pass
    assert caught.value.waited_s == 0.1
    held_by = f"run 7, process {process.pid} on {os.uname().nodename} since 2"
    assert str(locks.holder("wx01")).startswith(held_by)
    assert held_by in str(caught.value)
    with locks.hold("wx02"):
        assert locks.holder("wx02") is not None


@pytest.mark.parametrize("how", ["alone", "forks"])
def test_it_ends_with_its_process(
    path: Path, start: "Callable[..., subprocess.Popen[str]]", how: str
) -> None:
    """Killed with -9, and also where a child that it forked lives on."""
    process = start(how)
    child = number_said_by(process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    try:
        with Locks(path).hold("wx01"):
            pass
    finally:
        if how == "forks":
            os.kill(child, signal.SIGKILL)


def test_threads_take_turns(locks: Locks, path: Path) -> None:
    """Those that share one object, and those that do not."""
    inside, most = 0, 0

    def work(own: Locks) -> None:
        nonlocal inside, most
        for _ in range(5):
            with own.hold("wx01", wait_s=60):
                inside += 1
                most = max(most, inside)
                time.sleep(0.001)  # where others are let in, they are
                inside -= 1

    threads = [threading.Thread(target=work, args=(own,)) for own in (locks, locks, Locks(path))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert locks.holder("wx01") is None


def test_nobody_waits_for_another_app(locks: Locks) -> None:
    """A hundred are held at once by one process."""
    held = [locks.hold(f"wx{number}") for number in range(100)]
    for each in held:
        each.__enter__()
    with pytest.raises(LockHeld), locks.hold("wx99"):
        pass
    for each in held:
        each.__exit__(None, None, None)
    with locks.hold("wx99"):
        pass


def test_many_apps_have_one_file(path: Path) -> None:
    """However many there are; it is closed when none is held."""
    locks = Locks(path)
    for number in range(1000):
        with locks.hold(f"wx{number}"):
            pass
    assert sorted(os.listdir(path.parent)) == [".gitignore", "apps.lock"]
    assert path.stat().st_size <= 2**20
    links = (Path(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))
    assert str(path) not in {os.readlink(link) for link in links if link.is_symlink()}


def test_another_descriptor_that_is_closed_ends_no_lock(path: Path) -> None:
    """As it would end a lock of the process."""
    with Locks(path).hold("wx01"):
        path.open("r+").close()
        with path.open("r+") as other, pytest.raises(BlockingIOError):
            fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_file_that_others_may_write_to_is_no_lock(path: Path) -> None:
    """Who can write to it could hold any lock."""
    with Locks(path).hold("wx01"):
        pass
    path.chmod(0o666)
    with pytest.raises(JournalFailed, match="other users may write"), Locks(path).hold("wx01"):
        pass
