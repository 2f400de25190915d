"""Many callers want an answer that has just expired: P5."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Final

from flask import Flask, jsonify

from benchmarks.entrants import PAGE, SOME_TOKEN, URL, caller, query_string
from benchmarks.kit import app_with, blueprint
from benchmarks.report import Goal, Table
from benchmarks.sharing import REDIS_SERVER, Process, redis_server
from benchmarks.timing import Measure, Sample, interleaved
from prefetch_kit import CachePolicy, Pull

CALLERS: Final = 500
PROCESSES: Final = 4
_FRESH_S = 2
_EXPIRED = "kit, expired"
_SHARED = f"kit, expired, {PROCESSES} processes with Redis"


class SlowHandler:
    """A slow handler that counts its runs."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self.begun = self.ended = 0

    def __call__(self) -> dict[str, Any]:
        with self._lock:
            self.begun += 1
        time.sleep(self._seconds)
        with self._lock:
            self.ended += 1
        return {"products": []}

    def settle(self) -> None:
        while self.begun != self.ended:
            time.sleep(0.01)


def run(*, rounds: int, seconds: float = 0.3) -> Iterator[Table]:
    measures = {
        _EXPIRED: _burst(_kit, seconds, is_cold=False),
        _SHARED: _burst_of_processes(seconds) if REDIS_SERVER else None,
        "kit, nothing kept": _burst(_kit, seconds, is_cold=True),
        "Flask-Caching memoize, expired": _burst(_memoized, seconds, is_cold=False),
    }
    goals = [
        goal
        for row in (_EXPIRED, _SHARED)
        for goal in (
            Goal(name="P5", row=row, figure="runs", at_least=1, of=min),
            Goal(name="P5", row=row, figure="runs", at_most=1, of=max),
            Goal(name="P5", row=row, figure="slowest_ms", at_most=seconds * 1000, of=max),
            Goal(name="P5", row=row, figure="refused", at_most=0, of=max),
        )
    ]
    yield Table(
        "stampede",
        interleaved(measures, rounds=rounds),
        goals,
        note=f"{CALLERS} threads at once, a handler of {seconds * 1000:g} ms",
    )


def _burst(
    make: Callable[[SlowHandler], Flask], seconds: float, *, is_cold: bool
) -> Measure | None:
    try:
        make(SlowHandler(0))
    except ImportError:
        return None

    def measure() -> Sample:
        handler = SlowHandler(seconds)
        statuses: list[str] = []
        call = caller(make(handler), lambda: query_string(SOME_TOKEN), statuses)
        if not is_cold:
            call()
            time.sleep(_FRESH_S * 1.2)
        before = handler.begun
        waits_s = _all_at_once(call, CALLERS)
        handler.settle()
        return _sample(waits_s, statuses, handler.begun - before)

    return measure


def _sample(waits_s: list[float], statuses: list[str], runs: int) -> Sample:
    return {
        "runs": runs,
        "slowest_ms": max(waits_s) * 1000,
        "median_ms": sorted(waits_s)[CALLERS // 2] * 1000,
        "refused": sum(not status.startswith("200") for status in statuses),
    }


def _burst_of_processes(seconds: float) -> Measure:
    def measure() -> Sample:
        with redis_server() as url, ExitStack() as started:
            processes = []
            for _ in range(PROCESSES):
                processes.append(Process("benchmarks.stampede", url, str(seconds)))
                started.callback(processes[-1].end)
            for process in processes:
                process.ask("runs")  # until all have started
            for process in processes:  # the first makes the answer, and the others take it
                process.ask("pull")
            time.sleep(_FRESH_S * 1.2)
            before = sum(process.ask("runs") for process in processes)
            for process in processes:
                process.tell("burst")
            found = [process.hear() for process in processes]
            time.sleep(seconds * 2)  # for a run that began late
            runs = sum(process.ask("runs") for process in processes)
        waits_s = [wait for waits, _ in found for wait in waits]
        return _sample(waits_s, [one for _, told in found for one in told], runs - before)

    return measure


def _serve(url: str, seconds: float) -> None:
    """One of the processes; it reads commands from standard input."""
    handler, statuses = SlowHandler(seconds), list[str]()
    app = _kit(handler, PREFETCH_CACHE_URL=url)
    call = caller(app, lambda: query_string(SOME_TOKEN), statuses)
    for said in sys.stdin:
        match said.strip():
            case "runs":
                _say(handler.begun)
            case "pull":
                call()
                time.sleep(0.1)  # until it is shared
                _say(statuses)
            case "burst":
                statuses.clear()
                waits_s = _all_at_once(call, CALLERS // PROCESSES)
                handler.settle()
                _say([waits_s, statuses])


def _say(what: object) -> None:
    print(json.dumps(what), flush=True)


def _all_at_once(call: Callable[[], bytes], callers: int) -> list[float]:
    """The seconds that each caller waited."""
    waits_s: list[float] = []
    gate = threading.Barrier(callers)

    def wait() -> None:
        gate.wait()
        began_at = time.perf_counter()
        call()
        waits_s.append(time.perf_counter() - began_at)

    threads = [threading.Thread(target=wait) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return waits_s


def _kit(handler: SlowHandler, **settings: object) -> Flask:
    prefetch = blueprint()

    @prefetch.pre_fetch(PAGE, cache=CachePolicy(fresh=_FRESH_S, stale=60))
    def products(_pull: Pull) -> object:
        return handler()

    return app_with(prefetch, **settings)


def _memoized(handler: SlowHandler) -> Flask:
    from flask_caching import Cache

    app = Flask("benchmarks")
    cache = Cache(app, config={"CACHE_TYPE": "SimpleCache"})

    def products() -> dict[str, Any]:
        return handler()

    kept = cache.memoize(timeout=_FRESH_S)(products)
    app.add_url_rule(URL, view_func=lambda: jsonify(kept()), endpoint="memoized")
    return app


if __name__ == "__main__":
    _serve(sys.argv[1], float(sys.argv[2]))
