"""Requests over loopback, by wrk or by the generator here, in a separate niced process."""

import json
import re
import selectors
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from benchmarks.children import Served, pinned
from benchmarks.timing import Sample

CONNECTIONS: Final = 8
_WRK: Final = shutil.which("wrk")
GENERATOR: Final = "wrk" if _WRK else "benchmarks.load"

_NICED: Final = ["nice", "-n", "19"]
_MS: Final = {"us": 0.001, "ms": 1.0, "s": 1000.0}


def load(served: Served, target: str, *, seconds: float, cores: set[int] | None = None) -> Sample:
    """Request one target repeatedly on all connections. Raises unless every status is 200.

    The server's CPU for each request is the best figure on a busy machine.
    """
    before = served.cpu_s()
    with pinned(cores):
        ask = _wrk if _WRK else _own
        done, rate, p99_ms = ask(served.port, target, seconds)
    cpu_us = (served.cpu_s() - before) / done * 1e6
    return {"requests_per_s": rate, "p99_ms": p99_ms, "server_cpu_us": cpu_us}


def _wrk(port: int, target: str, seconds: float) -> tuple[int, float, float]:
    how = ["-t1", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s", "--latency"]
    said = _run(["wrk", *how, f"http://127.0.0.1:{port}{target}"])
    if "Non-2xx" in said or "Socket errors" in said:
        raise RuntimeError(said)
    done = re.search(r"(\d+) requests in", said)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    slow = re.search(r"99%\s+([\d.]+)(us|ms|s)", said)
    if not done or not rate or not slow:
        raise RuntimeError(said)
    return int(done[1]), float(rate[1]), float(slow[1]) * _MS[slow[2]]


def _own(port: int, target: str, seconds: float) -> tuple[int, float, float]:
    said = _run([sys.executable, "-m", "benchmarks.load", str(port), target, str(seconds)])
    done, rate, p99_ms = json.loads(said)
    return done, rate, p99_ms


def _run(command: list[str]) -> str:
    done = subprocess.run(
        _NICED + command,
        check=True,
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    return done.stdout


class _Client:
    """One connection, reopened when the server closes it."""

    def __init__(self, port: int, target: str, ready: selectors.BaseSelector) -> None:
        self._port = port
        self._request = f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
        self._ready = ready
        self._open()
        self.send()

    def _open(self) -> None:
        self._socket = socket.create_connection(("127.0.0.1", self._port))
        self._ready.register(self._socket, selectors.EVENT_READ, self)

    def send(self) -> None:
        self._got = b""
        self._sent_at = time.perf_counter()
        self._socket.sendall(self._request)

    def receive(self) -> float | None:
        """Seconds that the answer took; None while it is incomplete."""
        chunk = self._socket.recv(65536)
        self._got += chunk
        head, _, body = self._got.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        if not length or len(body) < int(length[1]):
            if not chunk:
                raise RuntimeError("the server closed a connection without an answer")
            return None
        if b" 200 " not in head.partition(b"\r\n")[0]:
            raise RuntimeError(head.decode(errors="replace"))
        took_s = time.perf_counter() - self._sent_at
        if b"connection: close" in head.lower():
            self._ready.unregister(self._socket)
            self._socket.close()
            self._open()
        return took_s


def main(port: int, target: str, seconds: float) -> None:
    waits_s: list[float] = []
    with selectors.DefaultSelector() as ready:
        for _ in range(CONNECTIONS):
            _Client(port, target, ready)
        began_at = time.perf_counter()
        while time.perf_counter() - began_at < seconds:
            for chosen, _ in ready.select(1):
                if (took_s := chosen.data.receive()) is not None:
                    waits_s.append(took_s)
                    chosen.data.send()
    rate = len(waits_s) / (time.perf_counter() - began_at)
    slow = sorted(waits_s)[len(waits_s) * 99 // 100] * 1000
    print(json.dumps([len(waits_s), rate, slow]))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
