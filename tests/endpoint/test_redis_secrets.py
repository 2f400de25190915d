"""The password of the Redis is nowhere to be seen, whether it is right or wrong."""

import logging
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask, got_request_exception
from werkzeug.wrappers import Response

from prefetch_kit import Prefetch, Pull
from prefetch_kit.endpoint.app_state import process_of
from prefetch_kit.errors import ConfigError

App = Callable[..., Flask]
Ask = Callable[..., Response]
Until = Callable[[Callable[[], bool]], None]
Logged = Callable[[], list[str]]

CANARY = "canary-5d81"
PAGE = "pages/index/index"


@pytest.fixture
def redis_server(make_redis: Callable[..., Any]) -> Any:
    server = make_redis("--requirepass", CANARY)
    server.url = f"redis://:{CANARY}@127.0.0.1:{server.port}"
    return server


@pytest.fixture(autouse=True)
def everything(logged: Logged, caplog: pytest.LogCaptureFixture) -> None:
    """In these tests the log holds what redis-py tells, too."""
    caplog.set_level(logging.DEBUG, "redis")


def shown(error: BaseException) -> str:
    """What a debugger or an error tracker shows of it."""
    whole = traceback.TracebackException.from_exception(error, capture_locals=True)
    return "".join(whole.format())


@pytest.mark.usefixtures("patient")
def test_the_right_password_shows_nowhere(
    process: App, prefetch: Prefetch, ask: Ask, until: Until, logged: Logged
) -> None:
    """Not in the log down to DEBUG, nor in what a handler's failure goes through."""
    failures: list[BaseException] = []

    @prefetch.pre_fetch(PAGE, cache=600)
    def page(pull: Pull) -> str:
        return f"{1 / int(pull.query['id'])} of {id(pull)}"

    app, other = process(prefetch), process(prefetch)
    got_request_exception.connect(lambda _, exception: failures.append(exception), app, weak=False)
    until(lambda: ask(app, query="id=1").data == ask(other, query="id=1").data)
    assert ask(app, query="id=0").status_code == 500
    [failure] = failures
    assert CANARY not in shown(failure) + "".join(logged())


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    ("url", "failure"),
    [
        ("redis://:{password}@127.0.0.1:{port}", "AuthenticationError"),
        ("redis://{password}:{password}@127.0.0.1:{port}", "AuthenticationError"),
        ("redis://:{password}@127.0.0.1:1", "ConnectionError"),
        ("rediss://:{password}@127.0.0.1:1?ssl_ca_certs=/no/file", "ConnectionError"),
    ],
)
def test_what_is_wrong_is_said_without_the_address(
    process: App,
    prefetch: Prefetch,
    redis_server: Any,
    ask: Ask,
    until: Until,
    logged: Logged,
    url: str,
    failure: str,
) -> None:
    """The log names the kind of failure; no object of ours shows the address."""
    prefetch.pre_fetch(PAGE, cache=600)(lambda pull: [pull.query.get("id")])
    url = url.format(password=f"wrong-{CANARY}", port=redis_server.port)
    app = process(prefetch, PREFETCH_CACHE_URL=url)
    assert ask(app).status_code == 200
    with app.app_context():
        prefetch.forget(PAGE)
    until(lambda: any(f"({failure}); going on without it" in said for said in logged()))
    store: Any = process_of(app).cache._redis
    breaker: Any = store._redis
    assert CANARY not in f"{logged()} {vars(store)} {vars(breaker)} {vars(breaker._client)}"


@pytest.mark.parametrize("url", ["redis://:a#{}@host", "redis://:{}/@host", "{}", "redis://{}:x"])
def test_an_address_that_is_none_is_not_repeated(
    make_app: App, prefetch: Prefetch, url: str
) -> None:
    """The app does not start, and the error shows none of it."""
    with pytest.raises(ConfigError) as caught:
        make_app(prefetch, PREFETCH_CACHE_URL=url.format(CANARY))
    frames = [entry.frame.f_locals for entry in caught.traceback if "config.py" in str(entry.path)]
    ours = [value for held in frames for name, value in held.items() if name != "settings"]
    assert ours
    assert CANARY not in f"{caught.value} {ours}"
