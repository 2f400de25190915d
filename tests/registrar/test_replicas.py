"""Many replicas that start at once: one of them registers."""

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from prefetch_kit.sandbox import Sandbox

pytestmark = pytest.mark.slow

REPLICAS, MACHINES = 20, 3
APP = """
from flask import Flask
from prefetch_kit import NO_DATA, Prefetch

def create_app():
    prefetch = Prefetch("prefetch", __name__, url_prefix="/prefetch")
    prefetch.pre_fetch()(lambda pull: NO_DATA)
    prefetch.period_fetch()(lambda pull: NO_DATA)
    app = Flask(__name__)
    app.config.update(PREFETCH_APPIDS=["wx01"], PREFETCH_BASE_URL="https://shop.example")
    app.register_blueprint(prefetch)
    return app
"""


class Handler(BaseHTTPRequestHandler):
    """An app with no data, which lets all that are there go on at the same moment, twice.

    First from waiting for it, then from probing it: by then each wants to set both URLs.
    """

    server: "Server"

    def do_HEAD(self) -> None:
        self._answer_with(self.server.started, timeout_s=50)

    def do_GET(self) -> None:
        if "/pre_fetch" in self.path:
            self._answer_with(self.server.probed, timeout_s=8)
        else:
            self._answer()

    def _answer_with(self, others: threading.Barrier, *, timeout_s: float) -> None:
        with suppress(threading.BrokenBarrierError):  # a slow machine has some come later
            others.wait(timeout_s)
        self._answer()

    def _answer(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


class Server(ThreadingHTTPServer):
    request_queue_size = 128
    started: threading.Barrier
    probed: threading.Barrier


@pytest.fixture
def server(wx: Sandbox, tmp_path: Path) -> Iterator[Server]:
    """Where all replicas listen."""
    (tmp_path / "hooked_app.py").write_text(APP)
    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,)).start()
        wx.map_origin("shop.example", f"http://127.0.0.1:{server.server_port}")
        yield server
        server.shutdown()


@pytest.fixture
def start_at_once(wx: Sandbox, server: Server, tmp_path: Path) -> Callable[..., Counter[str]]:
    """A child of the hook for each state directory; how often each last line was said."""

    def start(state_dir: Path) -> "subprocess.Popen[str]":
        own = {"PREFETCH_API_BASE_URL": wx.base_url, "PREFETCH_STATE_DIR": str(state_dir)}
        own |= {"PREFETCH_APP_SECRET": "canary-app-secret"}
        hook = [sys.executable, "-m", "prefetch_kit.registrar.gunicorn", "hooked_app:create_app()"]
        return subprocess.Popen(
            [*hook, f"127.0.0.1|{server.server_port}"],
            cwd=tmp_path,
            env=os.environ | own,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def start_at_once(state_dirs: list[Path]) -> Counter[str]:
        server.started = threading.Barrier(len(state_dirs))
        server.probed = threading.Barrier(len(state_dirs))
        children = [start(state_dir) for state_dir in state_dirs]
        said = [child.communicate(timeout=300) for child in children]
        assert [child.returncode for child in children] == [0] * len(children), said
        return Counter(stdout.splitlines()[-1] for stdout, _ in said)

    return start_at_once


def sets(wx: Sandbox) -> tuple[int, int]:
    return wx.count(action="set_pre_fetch"), wx.count(action="set_period_fetch")


def test_one_registrar_of_twenty_replicas(
    wx: Sandbox, start_at_once: Callable[..., Counter[str]], tmp_path: Path
) -> None:
    """One state directory: one sets each kind and reads it back, the others find it done."""
    said = start_at_once([tmp_path / "state"] * REPLICAS)
    print(f"{REPLICAS} replicas, one state directory: sets {sets(wx)}")
    assert sets(wx) == (1, 1)
    assert said == {"Done, and read back from WeChat.": 1, "wx01: nothing to do.": REPLICAS - 1}


def test_replicas_that_share_nothing(
    wx: Sandbox, start_at_once: Callable[..., Counter[str]], tmp_path: Path
) -> None:
    """Each may set the same once, and all are right; those that come later change nothing."""
    state_dirs = [tmp_path / f"state{number}" for number in range(MACHINES)]
    start_at_once(state_dirs)
    first = sets(wx)
    print(f"{MACHINES} replicas, {MACHINES} state directories: sets {first}, then none")
    assert all(1 <= number <= MACHINES for number in first)
    assert wx.settings("wx01")["period_fetch_url"] == "https://shop.example/prefetch/period_fetch"
    assert start_at_once(state_dirs) == {"wx01: nothing to do.": MACHINES}
    assert sets(wx) == first
