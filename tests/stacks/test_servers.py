"""The kit under other servers, each the real one."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from shlex import split
from shutil import which
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.stacks.conftest import Reply

pytestmark = pytest.mark.slow

Ask = Callable[..., "Reply"]
Serving = Callable[..., str]
TOKEN = "canary" * 170  # 1,020 characters; 1,024 is the most that a pull has
BIN = Path(sys.executable).parent

SHOP = """
import time

from flask import Flask
from prefetch_kit import CachePolicy, Prefetch, fast_path

prefetch = Prefetch("prefetch", __name__, url_prefix="/prefetch")


@prefetch.pre_fetch("pages/index/index")
def index(pull):
    return {"products": ["tea"]}


@prefetch.pre_fetch("stale", cache=CachePolicy(fresh=0.05, stale=600))
def stale(pull):
    return str(time.time_ns())


@prefetch.pre_fetch("slow", deadline=0.2)
def slow(pull):
    time.sleep(5)


app = Flask("shop")
app.config.update(SECRET_KEY="a key", PREFETCH_APPIDS=["wx5e0f00d5ca1ab1e0"])
app.register_blueprint(prefetch)
app.wsgi_app = fast_path(app)
"""

GUNICORN = "gunicorn --bind 127.0.0.1:{port} --limit-request-line 8190 shop:app"
SERVERS = {
    "gunicorn": f"{GUNICORN} --worker-class gthread --threads 4",
    "gevent": f"{GUNICORN} --worker-class gevent --preload",
    "waitress": "waitress-serve --listen 127.0.0.1:{port} shop:app",
    "granian": "granian --interface wsgi --host 127.0.0.1 --port {port} shop:app",
    "uWSGI": "uwsgi --http-socket 127.0.0.1:{port} --master --processes 2 --die-on-term "
    "--module shop:app {added}",
}


@pytest.fixture
def serving(
    tmp_path: Path,
    until: Callable[..., None],
    demand: Callable[[object, str], None],
    added: Callable[[str], str],
) -> Iterator[Serving]:
    """`serving(server)`: the origin of the shop under that server."""
    (tmp_path / "shop.py").write_text(SHOP)
    with ExitStack() as ending, (tmp_path / "log").open("wb") as log:

        def serving(server: str) -> str:
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            name, *words = split(SERVERS[server].format(port=port, added=added(server)))
            program = which(BIN / name) or which(name)
            demand(program, name)
            assert program is not None
            process = subprocess.Popen(
                [program, *words],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
                stdout=log,
                stderr=log,
            )
            ending.enter_context(process)
            ending.callback(process.terminate)

            def listens() -> bool:
                assert process.poll() is None, (tmp_path / "log").read_text()
                with socket.socket() as probe:
                    return probe.connect_ex(("127.0.0.1", port)) == 0

            until(listens)
            return f"http://127.0.0.1:{port}"

        yield serving


@pytest.mark.parametrize("server", SERVERS)
def test_a_server(
    serving: Serving, ask: Ask, until: Callable[..., None], tmp_path: Path, server: str
) -> None:
    """Long tokens pass, stale answers are made anew between pulls, slow handlers are left."""
    origin = serving(server)
    assert ask(origin, token=TOKEN).body == b'{"products":["tea"]}'
    assert ask(origin, path="none").refused == "page"
    first = ask(origin, path="stale").body
    until(lambda: ask(origin, path="stale").body != first)
    assert ask(origin, path="slow").refused.partition(";")[0] == "late"  # type: ignore[union-attr]
    assert "canary" not in (tmp_path / "log").read_text()
