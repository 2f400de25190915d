"""How much of the package takes part in a pull, an apply and a fleet: calls, modules, lines.

`python -m benchmarks.figures` counts the calls of the package's own functions in all threads, the
modules that they are in, and how often the most entered module is entered from another one. It
needs nothing but public names, so `python benchmarks/figures.py` counts an older checkout too,
with PYTHONPATH set to that.
"""

import json
import logging
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median_low
from types import FrameType
from typing import Any, Final

from flask import Flask
from werkzeug.test import EnvironBuilder

import prefetch_kit
from prefetch_kit import Prefetch, Pull, fast_path
from prefetch_kit.cli import commands
from prefetch_kit.sandbox import Sandbox

_ROOT: Final = str(Path(prefetch_kit.__file__).parent)
_SETTLE_S: Final = 0.1
_AT: Final = "/prefetch/pre_fetch"

Row = dict[str, int]


class _Calls:
    """The calls of one counted stretch, by module."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: Counter[str] = Counter()
        self._entries: Counter[str] = Counter()
        self.is_on = False

    def note(self, frame: FrameType, event: str, _: object) -> None:
        module = _module(frame)
        if not self.is_on or event != "call" or module is None:
            return
        caller = frame.f_back
        with self._lock:
            self._calls[module] += 1
            if caller is None or _module(caller) != module:
                self._entries[module] += 1

    def row(self) -> Row:
        return {
            "calls": self._calls.total(),
            "modules": len(self._calls),
            "most_entries": max(self._entries.values()),
        }


def _module(frame: FrameType) -> str | None:
    """The package's module that this frame is in; None outside, and in the sandbox."""
    name = frame.f_code.co_filename
    is_ours = name.startswith(_ROOT) and not name.startswith(f"{_ROOT}/sandbox")
    return name if is_ours and frame.f_code.co_name != "<module>" else None


def _count(work: Callable[[], object]) -> Row:
    """What a piece of work calls, with what it leaves to other threads."""
    calls = _CALLS[0] = _Calls()
    calls.is_on = True
    sys.setprofile(_note)
    try:
        work()
    finally:
        sys.setprofile(None)
    time.sleep(_SETTLE_S)
    calls.is_on = False
    return calls.row()


_CALLS: Final = [_Calls()]


def _note(frame: FrameType, event: str, argument: object) -> None:
    _CALLS[0].note(frame, event, argument)


def _shop(**config: object) -> Flask:
    prefetch = Prefetch("prefetch", "shop", url_prefix="/prefetch")

    def answer(pull: Pull) -> object:
        return {"id": pull.query.get("id")}

    def fail(_: Pull) -> object:
        raise ValueError

    prefetch.pre_fetch("plain")(answer)
    prefetch.pre_fetch("kept", cache=600)(answer)
    prefetch.pre_fetch("fails")(fail)
    prefetch.pre_fetch("kept/fails", cache=600)(fail)
    app = Flask("shop")
    app.logger.setLevel(logging.CRITICAL)
    app.config.update({"PREFETCH_APPIDS": ["wx1"], "SECRET_KEY": "a key"} | config)
    app.register_blueprint(prefetch)
    return app


def _pull(wsgi: Any, page: str, number: int = 1) -> None:
    query = f"appid=wx1&timestamp={1_700_000_000 + number}&path={page}&query=id%3D{number}"
    environ = EnvironBuilder(path=_AT, query_string=query).get_environ()
    b"".join(wsgi(environ, lambda *_: None))


def _pulls() -> Iterator[tuple[str, Row]]:
    for way, wsgi in (("", _shop().wsgi_app), (", fast path", fast_path(_shop()))):
        for page in ("plain", "kept"):
            for _ in range(5):
                _pull(wsgi, page)
        yield f"cached hit{way}", _count(lambda: _pull(wsgi, "kept"))  # noqa: B023 (called here)
        yield f"uncached pull{way}", _count(lambda: _pull(wsgi, "plain"))  # noqa: B023
        yield f"miss{way}", _count(lambda: _pull(wsgi, "kept", 99))  # noqa: B023


def _miss_with_redis(port: int) -> Row:
    wsgi = _shop(PREFETCH_CACHE_URL=f"redis://127.0.0.1:{port}").wsgi_app
    for number in range(5):
        _pull(wsgi, "kept", number)
    time.sleep(0.6)
    rows = [_count(lambda: _pull(wsgi, "kept", 100 + n)) for n in range(9)]  # noqa: B023
    # What listens for invalidations counts with some of them.
    return rows[[row["calls"] for row in rows].index(median_low(r["calls"] for r in rows))]


@contextmanager
def _redis() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--save", "", "--appendonly", "no"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        time.sleep(1)
        try:
            yield port
        finally:
            server.terminate()


class _Logged(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def _frames_above(page: str) -> int:
    """How many frames of ours the logged traceback shows above the handler's own."""
    logged = _Logged()
    app = _shop()
    app.logger.setLevel(logging.ERROR)
    app.logger.propagate = False
    app.logger.handlers = [logged]
    _pull(app.wsgi_app, page)
    [error] = [record.exc_info[2] for record in logged.records if record.exc_info]
    return sum(frame.filename.startswith(_ROOT) for frame in traceback.extract_tb(error))


def _commands(directory: str) -> Iterator[tuple[str, Row]]:
    with Sandbox() as wechat:
        wechat.add_app("wx1", secret="a secret")  # noqa: S106 (the sandbox's)
        wechat.add_domain("wx1", "shop.example")
        app = _shop(
            PREFETCH_APP_SECRET="a secret",  # noqa: S106 (the sandbox's)
            PREFETCH_BASE_URL="https://shop.example",
            PREFETCH_API_BASE_URL=wechat.base_url,
            PREFETCH_STATE_DIR=f"{directory}/state",
        )
        run = app.test_cli_runner()
        run.invoke(commands, ["show"])
        yield "apply", _count(lambda: run.invoke(commands, ["apply", "--yes", "--skip-probe"]))
        Path(directory, "apps.csv").write_text("appid\nwx1\n")
        Path(directory, "secrets.json").write_text('{"wx1": "a secret"}')
        project = Path(directory, "prefetch.toml")
        project.write_text(
            f'api_base_url = "{wechat.base_url}"\nstate_dir = "state"\n[apps]\nlist = "apps.csv"\n'
            '[urls]\npre_fetch = "https://shop.example/{appid}/x"\n'
            '[tokens]\napp_secrets = {file = "secrets.json"}\n'
        )
        arguments = ["fleet", "apply", "--yes", "--config", str(project)]
        yield "fleet of one", _count(lambda: run.invoke(commands, arguments))


def _lines() -> int:
    modules = Path(_ROOT).rglob("*.py")
    return sum(
        len(path.read_text().splitlines())
        for path in modules
        if not str(path).startswith(f"{_ROOT}/sandbox")
    )


def main() -> None:
    threading.setprofile(_note)
    rows: dict[str, Row | int] = dict(_pulls())
    with _redis() as port:
        rows["miss with Redis"] = _miss_with_redis(port)
    with tempfile.TemporaryDirectory() as directory:
        rows |= dict(_commands(directory))
    rows["frames above an uncached handler"] = _frames_above("fails")
    rows["frames above a cached handler"] = _frames_above("kept/fails")
    rows["lines without the sandbox"] = _lines()
    for name, row in rows.items():
        print(f"{name:34}", json.dumps(row))


if __name__ == "__main__":
    main()
