"""The hook, under a real gunicorn."""

import http.client
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest

from prefetch_kit.registrar import gunicorn
from prefetch_kit.registrar.gunicorn import when_ready
from prefetch_kit.sandbox import Sandbox
from tests.conftest import until

pytestmark = pytest.mark.slow

APP = """
import os
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
CONFIG = """
from prefetch_kit.registrar.gunicorn import when_ready as when_ready
wsgi_app = "hooked_app:create_app()"
"""


class Served:
    """A gunicorn, the port it answers on and what it and its child have said."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, output: Path) -> None:
        self.process = process
        self.port = port
        self._output = output

    @property
    def said(self) -> str:
        return self._output.read_text()

    def until(self, is_so: Callable[[], bool]) -> None:
        until(is_so, lambda: self.said)

    def answers(self) -> int:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)) as client:
            client.request("GET", "/prefetch/period_fetch?appid=wx01&timestamp=1700000000")
            return client.getresponse().status


Serve = Callable[..., Served]


@pytest.fixture
def serve(wx: Sandbox, tmp_path: Path) -> Iterator[Serve]:
    """Start gunicorn with the hook; more binds and environment as given."""
    (tmp_path / "hooked_app.py").write_text(APP)
    (tmp_path / "gunicorn.conf.py").write_text(CONFIG)
    started: list[subprocess.Popen[bytes]] = []

    def start(*first_binds: str, **environment: str) -> Served:
        with listening(wx) as sock, (tmp_path / "output").open("wb") as output:
            binds = [*first_binds, f"fd://{sock.fileno()}"]
            process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn"]
                + [word for bind in binds for word in ("--bind", bind)],
                cwd=tmp_path,
                env=os.environ | variables(wx, tmp_path) | environment,
                pass_fds=[sock.fileno()],
                stdout=output,
                stderr=output,
            )
            started.append(process)
            return Served(process, sock.getsockname()[1], tmp_path / "output")

    yield start
    for process in started:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that every user may enter, unlike tmp_path."""
    with TemporaryDirectory() as made:
        os.chmod(made, 0o777)  # noqa: S103 (it is the point)
        yield Path(made)


@pytest.fixture
def more_groups() -> Iterator[None]:
    """Root in a group besides its own."""
    before = os.getgroups()
    os.setgroups([65532])
    yield
    os.setgroups(before)


@contextmanager
def listening(wx: Sandbox) -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        wx.map_origin("shop.example", f"http://127.0.0.1:{sock.getsockname()[1]}")
        yield sock


def variables(wx: Sandbox, home: Path) -> dict[str, str]:
    return {
        "HOME": str(home),
        "PREFETCH_API_BASE_URL": wx.base_url,
        "PREFETCH_APP_SECRET": "canary-app-secret",
        "PREFETCH_STATE_DIR": str(home / "state"),
    }


def test_it_registers_once_and_serves(wx: Sandbox, serve: Serve) -> None:
    """Both URLs are set once and read back, and the app answers."""
    served = serve()
    served.until(lambda: "read back from WeChat" in served.said)
    assert wx.settings("wx01")["period_fetch_url"] == "https://shop.example/prefetch/period_fetch"
    assert wx.count(action="set_pre_fetch") == wx.count(action="set_period_fetch") == 1
    assert served.answers() == 200
    assert "canary-app-secret" not in served.said


def test_a_unix_socket_can_come_first(wx: Sandbox, serve: Serve, tmp_path: Path) -> None:
    """The child waits at whatever address comes first."""
    served = serve(f"unix:{tmp_path}/sock")
    served.until(lambda: "read back from WeChat" in served.said)
    assert wx.count(action="set_pre_fetch") == 1


def test_the_import_path_of_gunicorn_is_the_childs(
    wx: Sandbox, serve: Serve, tmp_path: Path
) -> None:
    """An app that only `pythonpath` leads to is found, before one of the same name."""
    for name in ("first", "last"):
        (tmp_path / name).mkdir()
    (tmp_path / "hooked_app.py").rename(tmp_path / "last" / "hooked_app.py")
    (tmp_path / "first" / "hooked_app.py").write_text("raise SystemExit('the wrong app')")
    served = serve(GUNICORN_CMD_ARGS="--pythonpath first,last")
    served.until(lambda: "read back from WeChat" in served.said)
    assert wx.count(action="set_pre_fetch") == 1


def test_an_env_file_is_not_read(wx: Sandbox, serve: Serve, tmp_path: Path) -> None:
    """gunicorn's workers do not either, and what they serve is registered."""
    (tmp_path / ".env").write_text("PREFETCH_PERIOD_FETCH=off\n")
    served = serve()
    served.until(lambda: "read back from WeChat" in served.said)
    assert wx.settings("wx01")["is_period_fetch_open"] is True


def test_a_refused_registration_does_not_stop_serving(wx: Sandbox, serve: Serve) -> None:
    """The refusal is said, and the app answers all the same."""
    wx.deny("wx01", 48001)
    served = serve()
    served.until(lambda: "48001" in served.said)
    assert served.answers() == 200
    assert wx.settings("wx01") == {}


@pytest.fixture
def or_stop(serve: Serve, tmp_path: Path) -> None:
    """The hook, instead of which the stricter one was imported."""
    strict = CONFIG.replace("when_ready as", "when_ready_or_stop as")
    (tmp_path / "gunicorn.conf.py").write_text(strict)


def test_a_refused_registration_stops_who_asked_for_it(
    wx: Sandbox, serve: Serve, or_stop: None
) -> None:
    """The refusal is said, and the exit status tells whoever started gunicorn."""
    wx.deny("wx01", 48001)
    served = serve()
    assert served.process.wait(timeout=60) == 1
    assert "48001" in served.said
    assert "not registered, so gunicorn ends" in served.said


def test_a_registration_that_succeeds_stops_nobody(
    wx: Sandbox, serve: Serve, or_stop: None
) -> None:
    """Both kinds are set, the child is gone, and the app answers."""
    served = serve()
    served.until(lambda: "read back from WeChat" in served.said)
    served.until(lambda: not children(served.process.pid, "prefetch_kit.registrar.gunicorn"))
    assert served.answers() == 200


def test_requests_under_way_are_answered(
    wx: Sandbox, serve: Serve, or_stop: None, tmp_path: Path
) -> None:
    """Although gunicorn ends, and with a status that says why."""
    slow = "prefetch.period_fetch()(lambda pull: __import__('time').sleep(1.5) or NO_DATA)"
    app = APP.replace("prefetch.period_fetch()(lambda pull: NO_DATA)", slow)
    (tmp_path / "hooked_app.py").write_text(app)
    wx.deny("wx01", 48001)
    with (tmp_path / "gunicorn.conf.py").open("a") as config:
        config.write("threads = 4\n")
    served = serve()
    statuses = []
    while "gunicorn ends" not in served.said:
        statuses.append(served.answers())
    assert served.process.wait(timeout=60) == 1
    assert set(statuses) == {200}


def test_who_ends_gunicorn_otherwise_gets_its_status(
    wx: Sandbox, serve: Serve, or_stop: None
) -> None:
    """A registration that succeeded says nothing at the end."""
    served = serve()
    served.until(lambda: "read back from WeChat" in served.said)
    served.process.terminate()
    assert served.process.wait(timeout=60) == 0


def children(parent: int, module: str) -> list[str]:
    """The command lines of those children that run a module."""
    pids = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    lines = [Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in pids]
    return [line for line in lines if module in line]


def test_an_app_that_does_not_start_is_not_registered(wx: Sandbox, serve: Serve) -> None:
    """Where gunicorn ends before it answers, WeChat is not asked at all."""
    served = serve(PREFETCH_MAX_BYTES="many")
    served.until(lambda: "nothing was registered" in served.said)
    assert served.process.wait(timeout=30) != 0
    assert wx.requests() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.filterwarnings("ignore:subprocess:ResourceWarning")  # the hook does not wait for it
@pytest.mark.parametrize(
    ("uid", "gid", "who"), [(65534, 65533, "65534 65533 65533"), (65534, 0, "65534 0 0")]
)
def test_the_child_has_the_workers_rights(
    home: Path, monkeypatch: pytest.MonkeyPatch, more_groups: None, uid: int, gid: int, who: str
) -> None:
    """Under root the app is imported as the user that gunicorn's workers become."""
    python = home / "python"
    python.write_text('#!/bin/sh\necho $(id -u) $(id -g) $(id -G) > "$PWD/part"; mv part who\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    cfg = SimpleNamespace(chdir=str(home), pythonpath=None, uid=uid, gid=gid)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = SimpleNamespace(app_uri="hooked_app")
        when_ready(SimpleNamespace(LISTENERS=[listener], app=app, cfg=cfg, log=logging))
    until((home / "who").exists)
    assert (home / "who").read_text() == f"{who}\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_the_stricter_child_gives_up_its_rights(
    wx: Sandbox, home: Path, monkeypatch: pytest.MonkeyPatch, more_groups: None
) -> None:
    """It keeps gunicorn's own, to be able to end it; what imports the app has the workers'."""
    python = home / "python"
    python.write_text('#!/bin/sh\necho $(id -u) $(id -g) $(id -G) > "$PWD/who"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.chdir(home)
    listener = wx.base_url.removeprefix("http://").replace(":", "|")
    identity = json.dumps({"user": 65534, "group": 65533, "extra_groups": []})
    gunicorn._main("hooked_app", listener, "0", identity)
    assert (home / "who").read_text() == "65534 65533 65533\n"


def test_a_full_queue_is_waited_for(tmp_path: Path) -> None:
    """A Unix socket that no worker serves yet, and more callers than its queue takes."""
    path = str(tmp_path / "sock")
    with (
        socket.socket(socket.AF_UNIX) as listener,
        socket.socket(socket.AF_UNIX) as caller,
        ThreadPoolExecutor() as pool,
    ):
        listener.bind(path)
        listener.listen(0)
        caller.connect(path)
        connecting = pool.submit(gunicorn._connect, "", path)
        with pytest.raises(TimeoutError):
            connecting.result(timeout=0.2)
        listener.accept()[0].close()
        connecting.result(timeout=30).close()


def test_a_queue_that_stays_full_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait has an end, and leaves no socket open."""
    monkeypatch.setattr(gunicorn, "_BOOT_WAIT_S", 1)
    path = str(tmp_path / "sock")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as caller:
        listener.bind(path)
        listener.listen(0)
        caller.connect(path)
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(OSError, match="unavailable"):
            gunicorn._connect("", path)
        assert len(os.listdir("/proc/self/fd")) <= before


def test_the_hook_never_raises(caplog: pytest.LogCaptureFixture) -> None:
    """Where no child can be started gunicorn hears of it and goes on."""
    when_ready(SimpleNamespace(LISTENERS=[], log=logging.getLogger("gunicorn.error")))
    assert "could not be started" in caplog.text
