"""A process that shares answers; each line of its standard input is a command.

Its `PREFETCH_` settings come from the environment.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from urllib.parse import quote

from flask import Flask
from redis import Redis

from prefetch_kit import Prefetch, Pull
from prefetch_kit.cache import redis_breaker

redis_breaker.BUDGET_S = redis_breaker.CONNECT_S = redis_breaker.SILENCE_S = 30.0  # type: ignore[misc]
prefetch = Prefetch("prefetch", __name__, url_prefix="/prefetch")


@prefetch.pre_fetch("pages/index/index", cache=600)
def page(pull: Pull) -> str:
    if pull.query.get("hang"):
        say("hanging")
        time.sleep(600)
    time.sleep(float(pull.query.get("for", "0")))
    return f"made by {os.getpid()}"


app = Flask("shop")
app.config.update(SECRET_KEY="a key of the shop", PREFETCH_APPIDS=["wx1"])
app.register_blueprint(prefetch)


def say(*what: object) -> None:
    print(json.dumps(what), flush=True)


def pull(query: str) -> str:
    """The body, when it is shared too."""
    path = "/prefetch/pre_fetch?appid=wx1&timestamp=1700000000&path=pages/index/index&query="
    body = app.test_client().get(path + quote(query)).text
    with Redis.from_url(os.environ["PREFETCH_CACHE_URL"]) as redis:
        while redis.keys("*:run:*"):
            time.sleep(0.01)
    return body


def pull_at_once(query: str) -> None:
    with ThreadPoolExecutor(30) as pool:
        say(*pool.map(pull, [query] * 30))


def pull_in_child(query: str) -> None:
    if (child := os.fork()) == 0:
        say(os.getpid(), pull(query))
        os._exit(0)
    os.waitpid(child, 0)


def tell_what_is_live(_: str) -> None:
    open_files = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # it was the listing's own
            open_files.append(os.readlink(f"/proc/self/fd/{fd}"))
    sockets = [each for each in open_files if each.startswith("socket:")]
    say(threading.active_count(), sockets)


todo: dict[str, Callable[[str], None]] = {
    "pull": lambda query: say(pull(query)),
    "at-once": pull_at_once,
    "fork": pull_in_child,
    "live": tell_what_is_live,
}
for said in sys.stdin:
    command, _, argument = said.strip().partition(" ")
    todo[command](argument)
