"""The cost of a cached pull with many pages and users: P6."""

import random
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import cycle
from typing import TYPE_CHECKING, Final

from flask import Flask

from benchmarks.entrants import APPID, PAGE, USER, caller, query_string
from benchmarks.kit import app_with, blueprint
from benchmarks.report import Goal, Table
from benchmarks.timing import Measure, cost_of, interleaved
from prefetch_kit import Pull, fast_path

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

FEW: Final = 10
SOME_USERS: Final = 1_000
MANY_PAGES: Final = 1_000
MANY_USERS: Final = 1_000_000
# Of these small answers the default PREFETCH_CACHE_BYTES keeps some 80,000; these certainly.
KEPT_USERS: Final = 50_000

_DAY_S = 24 * 3600
_GROWTH = 1.1
_DOORS: Final[dict[str, Callable[[Flask], "WSGIApplication"]]] = {
    "no fast path": lambda app: app,
    "fast path": fast_path,
}


@dataclass(frozen=True)
class Load:
    """An app, pulls whose answers it keeps, and the runs of its handlers so far.

    `rival` names the smaller load that this one is to cost no more than.
    """

    app: Flask
    queries: list[str]
    runs: list[str | None]
    rival: str | None = None


def run(
    *, rounds: int, seconds: float = 0.2, pages: int = MANY_PAGES, users: int = MANY_USERS
) -> Iterator[Table]:
    few = f"{FEW} pages"
    loads = {few: _pages(FEW), f"{pages:,} pages": replace(_pages(pages), rival=few)}
    yield _table("scale, pages", loads, rounds, seconds)
    yield _table("scale, users", _users_loads(users), rounds, seconds)


def _users_loads(users: int) -> dict[str, Load]:
    few, some = f"{FEW} users", f"{SOME_USERS:,} users"
    loads = {few: _users(FEW), some: _users(SOME_USERS)}
    everyone = _users(users)
    # A pull in turn with a thousand others finds the caches of the CPU cold: so each number
    # of users is compared with as many who are all there are, and the largest with the fewest.
    for pulling, rival in ((FEW, few), (SOME_USERS, some), (KEPT_USERS, few)):
        loads[f"{pulling:,} of {users:,} users"] = replace(
            everyone, queries=everyone.queries[:pulling], rival=rival
        )
    return loads


def _table(name: str, loads: dict[str, Load], rounds: int, seconds: float) -> Table:
    measures: dict[str, Measure | None] = {}
    goals = []
    runs = [len(load.runs) for load in loads.values()]
    for way, door in _DOORS.items():
        for title, load in loads.items():
            row = f"{title}, {way}"
            call = caller(door(load.app), cycle(load.queries).__next__)
            measures[row] = cost_of(call, seconds=seconds)
            if load.rival:
                rival = f"{load.rival}, {way}"
                goals.append(
                    Goal(name="P6", row=row, rival=rival, figure="cpu_us", at_most=_GROWTH)
                )
    samples = interleaved(measures, rounds=rounds)
    if runs != [len(load.runs) for load in loads.values()]:
        raise RuntimeError("a pull was no hit")
    return Table(name, samples, goals)


def _pages(count: int) -> Load:
    pages = [f"{PAGE}/{number}" for number in range(count)]
    app, runs, mint = _app(pages)
    token = mint(USER)
    return _filled(app, runs, (query_string(token, path=page) for page in pages))


def _users(count: int) -> Load:
    app, runs, mint = _app([PAGE])
    if count > KEPT_USERS:
        print(f"{count:,} users pull once each …", file=sys.stderr)
    return _filled(app, runs, (query_string(mint(f"user-{n}")) for n in range(count)))


def _app(pages: list[str]) -> tuple[Flask, list[str | None], Callable[[str], str]]:
    """An app with these pages, the users its handlers ran for, and what mints their tokens."""
    prefetch = blueprint()
    runs: list[str | None] = []

    def answer(pull: Pull) -> object:
        runs.append(pull.user_id)
        return {"user": pull.user_id}

    for page in pages:
        prefetch.pre_fetch(page, cache=_DAY_S)(answer)
    app = app_with(prefetch)

    def mint(user_id: str) -> str:
        with app.app_context():
            return prefetch.issue_token(user_id, appid=APPID)

    return app, runs, mint


def _filled(app: Flask, runs: list[str | None], queries: Iterator[str]) -> Load:
    """Pull all of them once, then the last ones in random order."""
    kept: deque[str] = deque(maxlen=KEPT_USERS)
    pull = caller(app, lambda: kept[-1])
    for query in queries:
        kept.append(query)
        pull()
    return Load(app, random.sample(kept, len(kept)), runs)
