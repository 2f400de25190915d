"""Strangers and slow pages take nothing from other users and other pages."""

import math
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
from flask import Flask
from werkzeug.wrappers import Response

from prefetch_kit import Prefetch, Pull
from prefetch_kit.endpoint.app_state import process_of, state_of

pytestmark = pytest.mark.slow

App = Callable[..., Flask]
Ask = Callable[..., Response]
Logged = Callable[[], list[str]]
Until = Callable[[Callable[[], bool]], None]

ITEM, SLOW, OTHER = "pages/item", "pages/slow", "pages/other"


def outcome(reply: Response) -> tuple[int, str]:
    return reply.status_code, reply.headers.get("X-Prefetch-Refused", "").partition(";")[0]


def test_anonymous_pulls_of_a_branch_make_nobody_late(
    make_app: App, prefetch: Prefetch, ask: Ask, gate: Event, until: Until
) -> None:
    """They keep the guess coarse, and a run of theirs for the same item hangs all the time."""
    ran: list[str | None] = []

    @prefetch.pre_fetch(ITEM, cache=60, deadline=30)
    def item(pull: Pull) -> object:
        if pull.query.get("id") is None:
            return "top"
        ran.append(pull.user_id)
        if pull.user_id == "stranger":
            gate.wait(30)
        return {"for": pull.user_id}

    prefetch.token_verifier(lambda _appid, token: token)
    app = make_app(prefetch)
    ask(app, path=ITEM, query="id=9", token="warm")
    for _ in range(3):
        ask(app, path=ITEM)  # a hit, so that this is the most useful way to read
    [route] = [route for route in state_of(app).routes if route.kind == "pre_fetch"]
    for each in route:
        assert each.scope is not None
        each.scope.run_times.add(1000.0, now=0.0)
    with ThreadPoolExecutor(13) as pool:
        stranger = pool.submit(ask, app, path=ITEM, query="id=7", token="stranger")
        until(lambda: "stranger" in ran)
        users = [f"honest{n}" for n in range(12)]
        replies = pool.map(lambda user: ask(app, path=ITEM, query="id=7", token=user), users)
        assert [reply.json for reply in replies] == [{"for": user} for user in users]
        gate.set()
        assert stranger.result().json == {"for": "stranger"}


@pytest.mark.parametrize("cache", [None, 30])
def test_a_slow_page_leaves_threads_to_the_others(
    make_app: App, prefetch: Prefetch, ask: Ask, gate: Event, cache: float | None
) -> None:
    """However many pulls of it come, it has half of them, and a second slow page half of the rest.

    64 pulls with 64 threads: none is refused elsewhere.
    """
    for page in (SLOW, f"{SLOW}er"):
        prefetch.pre_fetch(page, cache=cache, deadline=0.5)(
            lambda pull: pull.query["id"] == "quick" or gate.wait()
        )
    prefetch.pre_fetch(OTHER, cache=cache, deadline=60)(lambda pull: pull.query["id"])
    app = make_app(prefetch)
    with ThreadPoolExecutor(64) as pool:
        for page, threads in ((SLOW, 32), (f"{SLOW}er", 16)):
            ask(app, path=page, query="id=quick")  # so that it is known that the page reads the id
            pulls = pool.map(lambda n, page=page: ask(app, path=page, query=f"id={n}"), range(64))
            outcomes = Counter(map(outcome, pulls))
            assert outcomes == {(503, "late"): threads, (503, "busy"): 64 - threads}
    elsewhere = Counter(outcome(ask(app, path=OTHER, query=f"id={n}")) for n in range(64))
    print(f"64 pulls of a slow page, then of another page: {dict(elsewhere)}")
    assert elsewhere == {(200, ""): 64}


def test_a_slow_verifier_of_one_page_leaves_threads_to_the_others(
    make_app: App, prefetch: Prefetch, ask: Ask, gate: Event
) -> None:
    """Tokens that take long, all sent to one page, do not keep other pages from asking."""
    for page, deadline in ((SLOW, 0.5), (OTHER, 60)):
        prefetch.pre_fetch(page, login_required=True, deadline=deadline)(lambda pull: pull.user_id)
    prefetch.token_verifier(lambda _, token: token + str(token == "slow" and gate.wait()))
    app = make_app(prefetch, PREFETCH_THREADS=8)
    with ThreadPoolExecutor(8) as pool:
        outcomes = Counter(pool.map(lambda _: outcome(ask(app, path=SLOW, token="slow")), range(8)))
    assert outcomes == {(503, "late"): 4, (503, "busy"): 4}
    assert outcome(ask(app, path=OTHER, token="alice")) == (200, "")


@pytest.mark.parametrize(
    ("deadline", "limit", "retry_after"),
    [
        (None, "within 0.3 s (PREFETCH_DEADLINE)", "1"),
        (0.25, "within 0.25 s (its deadline)", "1"),
    ],
)
def test_late_and_busy_name_page_seconds_and_setting(
    make_app: App,
    prefetch: Prefetch,
    ask: Ask,
    gate: Event,
    logged: Logged,
    deadline: float | None,
    limit: str,
    retry_after: str,
) -> None:
    """The log says what to change; a client hears when to come again."""
    prefetch.pre_fetch(SLOW, deadline=deadline)(lambda _: gate.wait())
    app = make_app(prefetch, PREFETCH_DEADLINE=0.3, PREFETCH_THREADS=2)
    late, busy = ask(app, path=SLOW), ask(app, path=SLOW)
    assert [outcome(late), outcome(busy)] == [(503, "late"), (503, "busy")]
    assert "Retry-After" not in late.headers
    assert busy.headers["Retry-After"] == retry_after
    said_late, said_busy = (said.partition("): ")[2] for said in logged())
    name = f"page {SLOW!r} of prefetch.pre_fetch"
    assert said_late == f"{name} gave no answer {limit}"
    assert said_busy == (
        f"no thread for {name}: it has 1 of the 2 threads, half of what others leave. "
        f"Its runs should end {limit}; PREFETCH_THREADS is 2"
    )


def test_a_user_whom_nobody_proves_in_time_is_said_to_be_late(
    make_app: App, prefetch: Prefetch, ask: Ask, gate: Event, logged: Logged
) -> None:
    """And not the handler, which has not begun."""
    prefetch.period_fetch(login_required=True)(lambda pull: pull.user_id)
    prefetch.token_verifier(lambda *_: str(gate.wait()))
    app = make_app(prefetch, PREFETCH_DEADLINE=0.05)
    assert outcome(ask(app, "/prefetch/period_fetch", token="t")) == (503, "late")
    [said] = logged()
    assert said.endswith(
        "nobody said within 0.05 s (PREFETCH_DEADLINE) who the user of prefetch.period_fetch is"
    )


def test_a_page_without_a_deadline_is_tried_again_in_a_minute(
    make_app: App, prefetch: Prefetch, ask: Ask, gate: Event, until: Until
) -> None:
    """Nobody knows when its runs will end."""
    inside: list[str] = []

    @prefetch.pre_fetch(SLOW, cache=30, deadline=math.inf)
    def slow(pull: Pull) -> str:
        inside.append(pull.query["id"])
        gate.wait(30)
        return "data"

    app = make_app(prefetch, PREFETCH_THREADS=1)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, app, path=SLOW, query="id=1")
        until(lambda: inside != [])
        [route] = [route for route in state_of(app).routes if route.kind == "pre_fetch"]
        [scope] = [each.scope for each in route]
        assert scope is not None
        scope.read_sets.saw(("query=id",))  # so that the next pull does not wait for this run
        busy = ask(app, path=SLOW, query="id=2")
        assert (outcome(busy), busy.headers["Retry-After"]) == ((503, "busy"), "60")
        gate.set()
        assert first.result().data == b"data"
    assert process_of(app).handler_executor.max_threads == 1
