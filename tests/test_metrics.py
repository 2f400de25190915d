"""Pulls are counted under labels from fixed sets, in one process and in several."""

import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import pytest
from flask import Flask
from prometheus_client import CollectorRegistry
from werkzeug.test import create_environ

from prefetch_kit import Prefetch, Pull, fast_path
from prefetch_kit.metrics import count_pulls

STRANGERS = int(os.environ.get("PREFETCH_KIT_STRANGERS", "4000"))
PULL = "/pre_fetch?appid=wx1&timestamp=1700000000&path="
SERVED_APP = """
from flask import Flask
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prefetch_kit import Prefetch
from prefetch_kit.metrics import count_pulls

prefetch = Prefetch("prefetch", __name__)
prefetch.pre_fetch("a")(lambda _: "four")
app = Flask(__name__)
app.config["PREFETCH_APPIDS"] = ["wx1"]
app.register_blueprint(prefetch)
count_pulls(app)

@app.get("/metrics")
def metrics():
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    return generate_latest(registry)
"""


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def app(registry: CollectorRegistry) -> Flask:
    prefetch = Prefetch("prefetch", __name__)

    def fails(_pull: Pull) -> object:
        raise ValueError

    prefetch.pre_fetch("kept", cache=60)(lambda _: "four")
    prefetch.pre_fetch("fails")(fails)
    prefetch.pre_fetch()(lambda pull: pull.path)
    app = Flask(__name__)
    app.config["PREFETCH_APPIDS"] = ["wx1"]
    app.register_blueprint(prefetch)
    app.wsgi_app = fast_path(app)  # type: ignore[method-assign]
    count_pulls(app, registry)
    return app


def counted(registry: CollectorRegistry) -> dict[tuple[str, ...], float]:
    """The counter's series that were ever counted."""
    samples = [s for metric in registry.collect() for s in metric.samples]
    names = ("page", "outcome", "cache")
    return {
        tuple(s.labels[name] for name in names): s.value
        for s in samples
        if s.name == "prefetch_pulls_total"
    }


def test_pulls_are_counted_by_what_became_of_them(app: Flask, registry: CollectorRegistry) -> None:
    """A miss, two hits before Flask, a failure, a page of the fallback, a refusal."""
    for path in ("kept", "kept", "kept", "fails", "other", "kept&scene=x"):
        app.test_client().get(PULL + path)
    app.test_client().post("/pre_fetch")
    assert counted(registry) == {
        ("kept", "served", "miss"): 1,
        ("kept", "served", "hit"): 2,
        ("fails", "failed", "none"): 1,
        ("", "served", "none"): 1,
        ("", "scene", "none"): 1,
        ("", "method", "none"): 1,
    }


def test_sizes_times_and_the_last_pull(app: Flask, registry: CollectorRegistry) -> None:
    """What a dashboard draws, and what an alarm for silence looks at."""
    started = time.time()
    app.test_client().get(f"{PULL}kept")
    labels = {"kind": "pre_fetch", "page": "kept"}
    assert registry.get_sample_value("prefetch_bytes_sum", labels) == 4
    assert registry.get_sample_value("prefetch_seconds_count", labels) == 1
    last = registry.get_sample_value("prefetch_last_pull_timestamp_seconds", {"kind": "pre_fetch"})
    assert last is not None
    assert started <= last <= time.time()


@pytest.mark.slow
def test_strangers_make_no_series(app: Flask, registry: CollectorRegistry) -> None:
    """However many random pulls come, they make no series but those of the app's pages."""
    chance, series = random.Random(7), []
    environ = create_environ("/pre_fetch")
    app.logger.disabled = True  # nearly all are refused, and pytest keeps every line
    for pulls in range(1, STRANGERS + 1):
        noise = f"{chance.random()}"
        parts = [f"appid=wx{chance.choice(['1', noise])}", f"path={noise}", f"token={noise}"]
        parts += [f"{noise}={noise}", "timestamp=1700000000"]
        query = "&".join(chance.sample(parts, chance.randrange(6)))
        b"".join(app(environ | {"QUERY_STRING": query}, lambda *_: lambda _: None))
        if pulls in (STRANGERS // 10, STRANGERS):
            series.append(sum(len(list(metric.samples)) for metric in registry.collect()))
    print(f"series after a tenth and after all of {STRANGERS:,} random pulls: {series}")
    assert {page for page, *_ in counted(registry)} == {""}
    assert len(set(series)) == 1


@pytest.fixture
def served(tmp_path: Path) -> Iterator[int]:
    """An app under gunicorn with two workers that count into one directory."""
    (tmp_path / "counting.py").write_text(SERVED_APP)
    (tmp_path / "counts").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        command = [sys.executable, "-m", "gunicorn", "--workers", "2", "counting:app"]
        shop = subprocess.Popen(
            [*command, "--bind", f"fd://{listening.fileno()}"],
            cwd=tmp_path,
            env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "counts")},
            pass_fds=[listening.fileno()],
        )
        yield listening.getsockname()[1]
        shop.terminate()
        shop.wait(timeout=30)


@pytest.mark.slow
def test_workers_count_together(served: int) -> None:
    """One scrape, answered by any worker, has the pulls of all."""

    def get(target: str) -> str:
        with closing(HTTPConnection("127.0.0.1", served, timeout=30)) as connection:
            connection.request("GET", target)
            return connection.getresponse().read().decode()

    assert [get(f"{PULL}a") for _ in range(30)] == ["four"] * 30
    labels = 'cache="none",kind="pre_fetch",outcome="served",page="a"'
    assert f"prefetch_pulls_total{{{labels}}} 30.0" in get("/metrics")


def test_debug_tells_time_and_source(app: Flask) -> None:
    """Only there: in production it would tell strangers what is cached."""
    assert "Server-Timing" not in app.test_client().get(f"{PULL}kept").headers
    app.debug = True
    timing = app.test_client().get(f"{PULL}kept").headers["Server-Timing"]
    assert timing.startswith("prefetch;dur=")
    assert timing.endswith(';desc="hit"')
