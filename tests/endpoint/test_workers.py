"""Under a real gunicorn: each kind of worker, preloaded or not, with and without Redis."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

pytestmark = pytest.mark.slow

Until = Callable[[Callable[[], bool]], None]

SHOP = """
import time

from flask import Flask

from prefetch_kit import CachePolicy, Prefetch, fast_path

prefetch = Prefetch("prefetch", __name__, url_prefix="/prefetch")


@prefetch.pre_fetch("kept", cache=600)
def kept(pull):
    time.sleep(0.05)
    return f"{pull.query['id']} {time.time_ns()}"


@prefetch.pre_fetch("stale", cache=CachePolicy(fresh=0.05, stale=600))
def stale(pull):
    return str(time.time_ns())


@prefetch.pre_fetch("slow", deadline=0.2)
@prefetch.pre_fetch("slow and cached", deadline=0.2, cache=600)
def slow(pull):
    time.sleep(10)


app = Flask("shop")
app.config.update(SECRET_KEY="a key of the shop", PREFETCH_APPIDS=["wx1"])
app.register_blueprint(prefetch)
app.wsgi_app = fast_path(app)
"""


@contextmanager
def gunicorn(directory: Path, *options: str, **environment: str) -> Iterator[int]:
    """A gunicorn that serves the shop; gives its port."""
    (directory / "shop.py").write_text(SHOP)
    with socket.create_server(("127.0.0.1", 0)) as bound:
        command = [
            "-m",
            "gunicorn",
            "--bind",
            f"fd://{bound.fileno()}",
            "--graceful-timeout",
            "1",
        ]
        with (directory / "log").open("wb") as log:
            server = subprocess.Popen(
                [sys.executable, *command, *options, "shop:app"],
                cwd=directory,
                env=os.environ | environment,
                pass_fds=[bound.fileno()],
                stderr=log,
            )
        with server:
            yield bound.getsockname()[1]
            server.terminate()
    assert server.returncode == 0


def pull(port: int, page: str, number: int = 0) -> tuple[int, str]:
    query = f"appid=wx1&timestamp=1700000000&path={page.replace(' ', '+')}&query=id%3D{number}"
    try:
        with urlopen(f"http://127.0.0.1:{port}/prefetch/pre_fetch?{query}", timeout=60) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as refused:
        with refused:
            return refused.code, refused.headers["X-Prefetch-Refused"].partition(";")[0]


def pulls_at_once(port: int, number: int) -> list[tuple[int, str]]:
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda _: pull(port, "kept", number), range(20)))


@pytest.mark.parametrize("shares", [False, True], ids=["memory", "redis"])
@pytest.mark.parametrize("preload", [[], ["--preload"]], ids=["", "preload"])
@pytest.mark.parametrize("worker", ["sync", "gthread", "gevent"])
def test_pulls_are_answered_kept_and_refused_in_time(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    until: Until,
    worker: str,
    preload: list[str],
    shares: bool,
) -> None:
    """What is kept is served, what is stale is made anew, and a slow handler is left behind."""
    url = request.getfixturevalue("redis_server").url if shares else ""
    how = ["--worker-class", worker, "--threads", "4" if worker == "gthread" else "1"]
    numbers = count()
    workers = ["--workers", "2" if shares else "1"]
    with gunicorn(tmp_path, *how, *workers, *preload, PREFETCH_CACHE_URL=url) as port:
        stale = pull(port, "stale")
        assert stale[0] == 200
        until(lambda: pull(port, "stale") != stale)
        # A process that finds Redis too slow makes its own answer.
        until(lambda: [status for status, _ in {*pulls_at_once(port, next(numbers))}] == [200])
        started = time.monotonic()
        assert [pull(port, page) for page in ("slow", "slow and cached")] == [(503, "late")] * 2
        assert time.monotonic() - started < 10
        good = [status for status, _ in pulls_at_once(port, next(numbers))].count(200)
        print(f"{worker} {preload} {'Redis' if shares else 'memory'}: {good} of 20 pulls good")
        assert good == 20
    assert "Traceback" not in (tmp_path / "log").read_text()
