"""The example, started as anybody would start it."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def leftovers(tmp_path: Path) -> Callable[[], list[int]]:
    """The processes that a test here started, directly or not, and that still run."""

    def find() -> list[int]:
        mark = f"EXAMPLE_TEST={tmp_path}".encode()
        found = Path("/proc").glob("[0-9]*/environ")
        return [int(path.parent.name) for path in found if mark in read(path)]

    return find


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.fixture
def start(tmp_path: Path, leftovers: Callable[[], list[int]]) -> Iterator[Start]:
    """Run `python -m example_app` with these words and this environment."""
    started: list[subprocess.Popen[str]] = []

    def run(*words: str, **environment: str) -> "subprocess.Popen[str]":
        # All processes it starts inherit the mark, and keep their files in one directory.
        own = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "EXAMPLE_TEST": str(tmp_path)}
        process = subprocess.Popen(
            [sys.executable, "-m", "example_app", *words],
            cwd=ROOT,
            env=os.environ | own | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for pid in leftovers():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for process in started:
        with process:
            process.kill()
