"""Several processes that share answers through one redis-server."""

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

REDIS_SERVER: Final = shutil.which("redis-server") if find_spec("redis") else None


@contextmanager
def redis_server() -> Iterator[str]:
    """A redis-server that keeps nothing on disk. Yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    where = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            [REDIS_SERVER or "redis-server", *where], cwd=folder, stdout=subprocess.DEVNULL
        )
        try:
            _wait_for(port)
            yield f"redis://127.0.0.1:{port}"
        finally:
            server.kill()
            server.wait()


def _wait_for(port: int) -> None:
    ends_at = time.monotonic() + 30
    while time.monotonic() < ends_at:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(b"PING\r\n")
                connection.recv(1)
                return
        except ConnectionError:
            time.sleep(0.02)
    raise RuntimeError("redis-server did not start")


class Process:
    """A module of this package as a program that answers each line with a line of JSON."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._running = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, what: str) -> None:
        assert self._running.stdin is not None  # noqa: S101 (for the types)
        self._running.stdin.write(f"{what}\n")
        self._running.stdin.flush()

    def hear(self) -> Any:
        assert self._running.stdout is not None  # noqa: S101 (for the types)
        return json.loads(self._running.stdout.readline())

    def ask(self, what: str) -> Any:
        self.tell(what)
        return self.hear()

    def end(self) -> None:
        self._running.kill()
        self._running.communicate()
