"""An app that DispatcherMiddleware mounts, under gunicorn with the hook that registers it."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from prefetch_kit.sandbox import Sandbox

APPID = "wx5e0f00d5ca1ab1e0"
WSGI = """
from flask import Flask
from prefetch_kit import Prefetch
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix

prefetch = Prefetch("prefetch", __name__, url_prefix="/prefetch")
prefetch.pre_fetch()(lambda pull: {"products": ["tea"]})


def shop(name):
    app = Flask(name)
    app.config["PREFETCH_APPIDS"] = ["wx5e0f00d5ca1ab1e0"]
    app.config["PREFETCH_BASE_URL"] = "https://shop.example/shop"
    app.register_blueprint(prefetch)
    return app


home, app_of_shop = Flask("home"), shop("shop")


def stamped(inside):
    return lambda environ, start_response: inside(environ, start_response)


application = DispatcherMiddleware(home, {"/shop": stamped(ProxyFix(app_of_shop.wsgi_app))})
"""
HOOK = "from prefetch_kit.registrar.gunicorn import when_ready\nwsgi_app = 'wsgi:application'\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "wsgi.py").write_text(WSGI)
    (tmp_path / "gunicorn.conf.py").write_text(HOOK)
    return tmp_path


@pytest.fixture
def environment(folder: Path) -> dict[str, str]:
    paths = os.pathsep.join([str(folder), *sys.path])
    return {**os.environ, "PYTHONPATH": paths, "PREFETCH_STATE_DIR": str(folder / "state")}


@pytest.mark.slow
def test_it_is_registered_where_it_is_mounted(
    folder: Path, environment: dict[str, str], until: Callable[..., None]
) -> None:
    """The hook finds the app in what gunicorn serves, and WeChat's pulls find it there."""
    with Sandbox() as wx, socket.create_server(("127.0.0.1", 0)) as listening:
        wx.add_app(APPID, secret="any")
        wx.add_user(APPID, "alice")
        wx.add_domain(APPID, "shop.example")
        wx.map_origin("shop.example", f"http://127.0.0.1:{listening.getsockname()[1]}")
        fd = listening.fileno()
        with subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "--bind", f"fd://{fd}"],
            cwd=folder,
            env=environment | {"PREFETCH_APP_SECRET": "any", "PREFETCH_API_BASE_URL": wx.base_url},
            pass_fds=[fd],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        ) as gunicorn:
            try:
                until(lambda: "pre_fetch_url" in wx.settings(APPID))
                pulled = wx.cold_start(APPID, "alice")
            finally:
                gunicorn.terminate()
    assert pulled.url == "https://shop.example/shop/prefetch/pre_fetch"
    assert pulled.kept, pulled.reason


@pytest.mark.slow
@pytest.mark.parametrize(
    ("app", "added", "status", "said"),
    [
        ("wsgi:application", "", 0, "/prefetch/pre_fetch"),
        ("wsgi", "app = None", 0, "/prefetch/pre_fetch"),
        ("wsgi:home", "", 1, "is not registered on this app"),
        (
            "wsgi:both",
            "both = DispatcherMiddleware(shop('one'), {'/b': shop('two')})",
            1,
            "Several apps are possible: one, two. Choose with --app.",
        ),
        ("wsgi:none", "none = stamped(home.wsgi_app)", 1, "leads to no Flask app"),
    ],
)
def test_commands(
    folder: Path, environment: dict[str, str], app: str, added: str, status: int, said: str
) -> None:
    """`--app` may name the middleware, where the kit is in one app inside of it."""
    (folder / "wsgi.py").write_text(WSGI + added)
    command = [sys.executable, "-m", "prefetch_kit", "--app", app, "routes"]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, said in done.stdout + done.stderr) == (status, True), done.stderr
