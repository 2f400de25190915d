"""Separate processes that share answers: one run in all, killed ones, forks."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from werkzeug.wrappers import Response

from prefetch_kit import Prefetch

App = Callable[..., Flask]
Ask = Callable[..., Response]

PAGE = "pages/index/index"
PROGRAM = Path(__file__).with_name("process.py")


class Process:
    """A separate process, and the commands it takes."""

    def __init__(self, **environment: str) -> None:
        self.running = subprocess.Popen(
            [sys.executable, "-W", "error", PROGRAM],
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, what: str) -> None:
        assert self.running.stdin is not None
        self.running.stdin.write(f"{what}\n")
        self.running.stdin.flush()

    def hear(self) -> list[Any]:
        assert self.running.stdout is not None
        said: list[Any] = json.loads(self.running.stdout.readline())
        return said

    def ask(self, what: str) -> list[Any]:
        self.tell(what)
        return self.hear()


@pytest.fixture
def start(redis_server: Any) -> Iterator[Callable[..., Process]]:
    """`start(deadline="30")`: a process that shares its answers."""
    with ExitStack() as started:

        def start(deadline: str = "30") -> Process:
            process = Process(PREFETCH_CACHE_URL=redis_server.url, PREFETCH_DEADLINE=deadline)
            started.enter_context(process.running)
            started.callback(process.running.kill)
            return process

        yield start


def test_two_processes_make_a_cold_answer_once(start: Callable[..., Process]) -> None:
    """60 pulls wait for one run."""
    processes = [start(), start()]
    for process in processes:
        assert process.ask("live")
    for process in processes:
        process.tell("at-once for=0.5")
    assert len({body for process in processes for body in process.hear()}) == 1


@pytest.mark.usefixtures("patient")
def test_a_process_with_a_lease_may_be_killed(
    start: Callable[..., Process], process: App, prefetch: Prefetch, ask: Ask, redis: Any
) -> None:
    """The others wait until the lease ends by itself."""
    prefetch.pre_fetch(PAGE, cache=600)(lambda _: "data")
    dying = start(deadline="10")
    assert dying.ask("pull hang=1") == ["hanging"]
    dying.running.kill()
    assert all(redis.pttl(lease) in {-2, *range(10_001)} for lease in redis.keys("*:run:*"))
    assert ask(process(prefetch)).data == b"data"


def test_a_fork_answers_and_shares(start: Callable[..., Process]) -> None:
    """It uses neither the threads nor the connection of its parent."""
    parent = start()
    [made] = parent.ask("pull for=0")
    assert parent.ask("fork for=0")[1] == made
    child, made_there = parent.ask("fork for=0.01")
    assert made_there == f"made by {child}"
    assert parent.ask("pull for=0.01") == [made_there]
    assert start().ask("pull for=0.01") == [made_there]


def test_no_pull_waits_for_the_import_of_the_client(redis_server: Any) -> None:
    """It takes a second on a busy machine, and so begins with the app."""
    program = """if True:
        import sys
        from flask import Flask
        from prefetch_kit import Prefetch
        app = Flask("shop")
        app.config["PREFETCH_APPIDS"] = ["wx1"]
        app.register_blueprint(Prefetch("prefetch", __name__))
        print("redis" in sys.modules)
    """
    environments = [{}, {"PREFETCH_CACHE_URL": redis_server.url}]
    said = [
        subprocess.check_output([sys.executable, "-c", program], env=os.environ | each, text=True)
        for each in environments
    ]
    assert said == ["False\n", "True\n"]


def test_nothing_is_live_before_the_first_pull(start: Callable[..., Process]) -> None:
    """An app that is loaded before it forks has no client, no thread and no connection."""
    process = start()
    assert process.ask("live") == [1, []]
    process.ask("pull for=0")
    threads, sockets = process.ask("live")
    assert threads > 1
    assert sockets
