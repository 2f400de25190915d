"""A WeChat for `benchmarks.fleet`: fetchdatasetting alone, with a delay and little CPU.

It runs as a separate process: `python -m benchmarks.wechat FD DELAY_S`.
"""

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

_OK: Final = {"errcode": 0, "errmsg": "ok"}
# Of this many apps, all but one have the wanted settings from the start.
_ONE_IN: Final = 10


def wanted_url(appid: str) -> str:
    return f"https://shop.example/p/{appid}/pre_fetch"


class _Wechat(asyncio.Protocol):
    """One connection; tokens are appids. Those that begin with `done` are set already."""

    kept: Final[dict[str, dict[str, Any]]] = {}

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, found, rest = self._read.partition(b"\r\n\r\n")
        length = _length(head) if found else 0
        if not found or len(rest) < length:
            return
        self._read = rest[length:]
        appid = head.split(b" ", 2)[1].partition(b"access_token=")[2].decode()
        answer = json.dumps(self._answer(appid, json.loads(rest[:length]))).encode()
        raw = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        loop = asyncio.get_running_loop()
        loop.call_later(self._delay_s, self._transport.write, raw % (len(answer), answer))

    def _answer(self, appid: str, asked: dict[str, Any]) -> dict[str, Any]:
        if asked.pop("action") == "get":
            return _OK | (self.kept.get(appid) or _at_first(appid))
        self.kept[appid] = asked
        return _OK


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


def _at_first(appid: str) -> dict[str, Any]:
    if not appid.startswith("done") or int(appid[4:]) % _ONE_IN == 0:
        return {}
    url = wanted_url(appid)
    return {"is_pre_fetch_open": True, "pre_fetch_type": 0, "pre_fetch_url": url}


@contextmanager
def played(delay_s: float) -> Iterator[str]:
    """Run this WeChat; yields its base URL."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        number = listening.fileno()
        child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.wechat", str(number), str(delay_s)],
            cwd=Path(__file__).parent.parent,
            pass_fds=[number],
        )
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            child.terminate()
            child.wait(timeout=30)


async def _serve(number: int, delay_s: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Wechat(delay_s), sock=socket.socket(fileno=number))
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), float(sys.argv[2])))
