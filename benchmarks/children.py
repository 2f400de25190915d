"""Servers in separate processes, each on a free port of loopback."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.entrants import KB
from benchmarks.kit import KIT
from benchmarks.rivals import RIVALS

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

GRANIAN: Final = "granian"
SYNC: Final = "gunicorn sync"
GTHREAD: Final = "gunicorn gthread, 4 threads"
SIZE_BYTES: Final = 2 * KB

_ROW: Final = "BENCHMARKS_ROW"
_APP: Final = "benchmarks.children:app"
_GUNICORN: Final = ["gunicorn", "--limit-request-line", "8190", "--log-level", "warning"]
_COMMANDS: Final = {
    SYNC: [*_GUNICORN, "--worker-class", "sync"],
    GTHREAD: [*_GUNICORN, "--worker-class", "gthread", "--threads", "4"],
    GRANIAN: ["granian", "--interface", "wsgi", "--no-log"],
}


@dataclass(frozen=True)
class Served:
    """A server's port and its process, whose children answer."""

    port: int
    pid: int

    def cpu_s(self) -> float:
        """Seconds of CPU that it and its children have used."""
        pids = [self.pid]
        for pid in pids:  # it grows during the iteration
            pids += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return sum(map(_cpu_s, pids))


def _cpu_s(pid: int) -> float:
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


def app() -> "WSGIApplication":
    """The app that a server child serves: the row that its environment names."""
    return (RIVALS | KIT)[os.environ[_ROW]](SIZE_BYTES).app


@contextmanager
def serving(
    server: str, row: str, *, workers: int = 1, cores: set[int] | None = None
) -> Iterator[Served]:
    """Run a row behind a server, on these cores if any are given. Yields its address."""
    with socket.socket() as held:
        # granian takes a port, not a socket; this reserves the port meanwhile.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        command = [sys.executable, "-m", *_COMMANDS[server], "--workers", str(workers)]
        if server == GRANIAN:
            command += ["--factory", "--port", str(port), _APP]
        else:
            held.listen(1024)
            command += ["--bind", f"fd://{held.fileno()}", f"{_APP}()"]
        with pinned(cores):
            child = subprocess.Popen(
                command,
                cwd=Path(__file__).parent.parent,
                env=os.environ | {_ROW: row},
                pass_fds=[held.fileno()],
            )
        try:
            _wait_for(child, port)
            yield Served(port, child.pid)
        finally:
            child.terminate()
            child.wait(timeout=30)


def _wait_for(child: "subprocess.Popen[bytes]", port: int) -> None:
    ends_at = time.monotonic() + 30
    while True:
        with suppress(OSError, HTTPException):
            connection = HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/")
            connection.getresponse()
            connection.close()
            return
        if child.poll() is not None or time.monotonic() > ends_at:
            raise RuntimeError(f"the server did not start: {child.args!r}")
        time.sleep(0.05)


def one_core() -> set[int] | None:
    """A core to pin to; None where the system cannot do that."""
    return {min(os.sched_getaffinity(0))} if hasattr(os, "sched_setaffinity") else None


@contextmanager
def pinned(cores: set[int] | None) -> Iterator[None]:
    """Processes that are started inside run on these cores only, and so does this thread.

    Nothing is pinned where the system cannot do that.
    """
    if cores is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
