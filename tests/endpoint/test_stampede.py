"""Many pulls at the same time cost one run, and a few odd ones cost the others nothing."""

import sys
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from random import Random
from threading import Event

import pytest
from flask import Flask, abort, got_request_exception
from werkzeug.test import create_environ
from werkzeug.wrappers import Response

from prefetch_kit import CachePolicy, Prefetch, Pull
from prefetch_kit.cache.single_flight import Flight

pytestmark = pytest.mark.slow

App = Callable[..., Flask]
Ask = Callable[..., Response]
Logged = Callable[[], list[str]]
Until = Callable[[Callable[[], bool]], None]


def waiting() -> int:
    """How many pulls wait for a run just now."""
    return sum(
        any(each.f_code is Flight.wait.__code__ for each, _ in traceback.walk_stack(frame))
        for frame in sys._current_frames().values()
    )


def together(n: int, ask: Callable[[int], Response]) -> list[Response]:
    """The replies to pulls that are under way at the same time."""
    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(ask, range(n)))


def pull_in(app: Flask, query_string: str) -> bytes:
    """A pull without a server between, for very many of them."""
    environ = create_environ("/prefetch/pre_fetch")
    environ["QUERY_STRING"] = f"appid=wx1&timestamp=1700000000&{query_string}"
    return b"".join(app.wsgi_app(environ, lambda *_: lambda _: None))


def test_two_hundred_pulls_of_a_cold_page_are_one_run(
    make_app: App, prefetch: Prefetch, ask: Ask, until: Until
) -> None:
    """Pulls that come while it is made wait for it."""
    ran = count(1)

    def handler(pull: Pull) -> list[object]:
        until(lambda: waiting() == 200)
        return [pull.query["id"], next(ran)]

    prefetch.pre_fetch(cache=30, deadline=60)(handler)
    app = make_app(prefetch)
    replies = together(200, lambda i: ask(app, query=f"id=7&unread={i}", token=f"{i}"))
    assert {reply.data for reply in replies} == {b'["7",1]'}
    print(f"200 pulls of a cold page: runs {next(ran) - 1}")


def test_identical_pulls_share_a_refusal(
    make_app: App, prefetch: Prefetch, ask: Ask, until: Until, logged: Logged
) -> None:
    """An abort on purpose answers all that wait for it, and is no error for any of them."""
    ran = count(1)

    def handler(pull: Pull) -> object:
        assert pull.query["id"] == "7"
        next(ran)
        until(lambda: waiting() == 20)
        abort(410)

    prefetch.pre_fetch(cache=30, deadline=60)(handler)
    app = make_app(prefetch)
    replies = together(20, lambda i: ask(app, query=f"id=7&unread={i}"))
    assert {(reply.status_code, reply.data) for reply in replies} == {(410, b"")}
    assert next(ran) == 2
    assert [line.split()[0] for line in logged()] == ["INFO"] * 20


def test_two_hundred_pulls_of_a_stale_page_are_one_run_and_wait_for_nothing(
    make_app: App, prefetch: Prefetch, ask: Ask, until: Until, gate: Event
) -> None:
    """All are answered while the run that makes it anew cannot go on."""
    ran = count(1)

    def handler(_: Pull) -> int:
        if (run := next(ran)) > 1:
            gate.wait()
        return run

    prefetch.pre_fetch(cache=CachePolicy(fresh=1e-6))(handler)
    app = make_app(prefetch)
    ask(app)
    assert {reply.data for reply in together(200, lambda _: ask(app))} == {b"1"}
    runs = next(ran) - 2  # without the first
    print(f"200 pulls of a stale page: runs {runs}")
    assert runs == 1


def test_users_at_a_cold_page_each_get_their_own(
    make_app: App, prefetch: Prefetch, ask: Ask, until: Until
) -> None:
    """They wait for one run, see that it is not theirs, and each user is run for once."""
    ran: list[str | None] = []

    def handler(pull: Pull) -> object:
        if not ran:
            until(lambda: waiting() == 40)
        ran.append(pull.user_id)
        return {"user": pull.user_id}

    prefetch.pre_fetch(cache=30, deadline=60)(handler)
    prefetch.token_verifier(lambda _appid, token: token)
    app, users = make_app(prefetch), [f"user{i % 20}" for i in range(40)]
    for _ in range(2):
        replies = together(40, lambda i: ask(app, token=users[i]))
        assert [reply.json for reply in replies] == [{"user": user} for user in users]
    assert sorted(map(str, ran)) == sorted(set(users))


def test_answer_made_while_a_pull_looks_is_found(
    make_app: App, prefetch: Prefetch, ask: Ask, until: Until
) -> None:
    """A run that ends between the look and the decision to run does not cost a second one."""
    ran: list[str] = []
    asked, early = Event(), Future[Response]()

    def handler(pull: Pull) -> str:
        ran.append(name := pull.query["id"])
        if name == "2":
            until(asked.is_set)
        return f"{pull.user_id if name == '1' else ''} {len(ran)}"

    def verify(_appid: str, token: str) -> str:
        if token == "late":  # having looked for what everybody gets, in vain
            asked.set()
            until(early.done)
        return token

    prefetch.pre_fetch(cache=30, deadline=60)(handler)
    prefetch.token_verifier(verify)
    app = make_app(prefetch)
    for user, name in (("first", "1"), (None, "0")):
        ask(app, query=f"id={name}", token=user)
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(ask, app, query="id=2")
        until(lambda: "2" in ran)
        assert ask(app, query="id=2", token="late").data == early.result().data == b" 3"


def test_readers_of_the_timestamp_are_run_for_themselves(
    make_app: App, prefetch: Prefetch, ask: Ask, until: Until
) -> None:
    """What they waited for is for one pull only."""
    ran = count(1)

    def handler(pull: Pull) -> object:
        if (run := next(ran)) == 1:
            until(lambda: waiting() == 10)
        return [pull.timestamp.year, run]

    prefetch.pre_fetch(cache=30, deadline=60)(handler)
    app = make_app(prefetch)
    replies = together(10, lambda _: ask(app))
    assert {reply.data for reply in replies} == {b"[2023,%d]" % run for run in range(1, 11)}


def test_failure_shared_by_many_is_told_once(
    make_app: App, prefetch: Prefetch, ask: Ask, until: Until, logged: Logged
) -> None:
    """All are refused; one error with its traceback stands for them."""
    errors: list[object] = []

    def handler(_: Pull) -> object:
        until(lambda: waiting() == 50)
        raise ValueError("broken")

    prefetch.pre_fetch(cache=30, deadline=60)(handler)
    app = make_app(prefetch)
    with got_request_exception.connected_to(lambda _, exception: errors.append(exception), app):
        replies = together(50, lambda _: ask(app))
    assert {(reply.status_code, reply.data) for reply in replies} == {(500, b"")}
    incidents = {reply.headers["X-Prefetch-Refused"] for reply in replies}
    assert len(incidents) == 50
    assert all(incident.startswith("failed; incident=") for incident in incidents)
    told = [line for line in logged() if line.startswith("ERROR") or "Traceback" in line]
    assert (len(told), len(errors)) == (1, 1)
    assert "ValueError: broken" in told[0]


def test_refusal_shared_by_many_refuses_all(
    make_app: App, prefetch: Prefetch, ask: Ask, until: Until
) -> None:
    """A key that none of them brought is missing to all of them."""

    def handler(pull: Pull) -> object:
        until(lambda: waiting() == 20)
        return pull.query["id"]

    prefetch.pre_fetch(cache=30, deadline=60)(handler)
    app = make_app(prefetch)
    replies = together(20, lambda i: ask(app, scene=str(i)))
    refused = {(reply.status_code, reply.headers["X-Prefetch-Refused"]) for reply in replies}
    assert refused == {(400, "query")}


@pytest.mark.parametrize(("usual_runs", "odd_runs"), [(500, 1), (500, 8), (0, 8), (0, 40)])
def test_odd_runs_cost_the_others_nothing(
    make_app: App, prefetch: Prefetch, usual_runs: int, odd_runs: int
) -> None:
    """A few runs that read everything, after the usual ones or first, leave their hits alone."""
    ran: list[str] = []

    def handler(pull: Pull) -> str:
        ran.append(name := pull.query["id"])
        if name.startswith("odd"):
            return f"{[pull.query.get(name), *pull.query]}"
        return name

    def share_of_hits(pulls: int) -> float:
        ran.clear()
        for i in range(pulls):
            assert pull_in(app, f"query=id%3D{i % 20}%26n%3D{i}") == str(i % 20).encode()
        return 1 - len(ran) / pulls

    prefetch.pre_fetch(cache=600)(handler)
    app = make_app(prefetch)
    before = share_of_hits(usual_runs) if usual_runs else 1
    for i in range(odd_runs):
        pull_in(app, f"query=id%3Dodd{i}%26n%3D{i}")
    after = share_of_hits(3_000)
    print(f"hit rate {before:.2%}, after {odd_runs} odd runs {after:.2%}")
    assert after >= 0.99 * before


@pytest.mark.parametrize("before", ["odd 1", "odd 1 1 1", "1 1 1 odd", "1 odd 1"])
def test_odd_run_does_not_bring_a_stampede(
    make_app: App, prefetch: Prefetch, until: Until, before: str
) -> None:
    """Pulls that differ in what only the odd one read still are one run when all is forgotten."""
    ran: list[str] = []

    def handler(pull: Pull) -> object:
        ran.append(name := pull.query["id"])
        if len(ran) > 2:
            until(lambda: waiting() == 50)
        return [*pull.query] if name == "odd" else name

    prefetch.pre_fetch(cache=600, deadline=60)(handler)
    app = make_app(prefetch)
    for name in before.split():
        pull_in(app, f"query=id%3D{name}")
    with app.app_context():
        prefetch.forget()
    with ThreadPoolExecutor(50) as pool:
        pulls = pool.map(lambda i: pull_in(app, f"query=id%3D1%26n%3D{i}"), range(50))
        assert set(pulls) == {b"1"}
    assert len(ran) == 3


def test_eight_ways_to_read_are_all_found_again(make_app: App, prefetch: Prefetch) -> None:
    """Each of them keeps its hits; a ninth costs misses, never a wrong answer."""
    ran: list[str] = []

    def handler(pull: Pull) -> str:
        ran.append(name := pull.query["way"])
        return f"{name} {pull.query.get(name)}"

    prefetch.pre_fetch(cache=600)(handler)
    app, dice = make_app(prefetch), Random(1)
    for ways, most in ((8, 24), (12, 3000)):
        ran.clear()
        for _ in range(3000):
            way, value = dice.randrange(ways), dice.randrange(3)
            answer = pull_in(app, f"query=way%3Dw{way}%26w{way}%3D{value}%26other%3D{value}")
            assert answer == f"w{way} {value}".encode()
        assert len(ran) <= most


def test_racing_pulls_are_never_answered_wrongly(make_app: App, prefetch: Prefetch) -> None:
    """Many threads, more ways to read than are remembered, a store that is always full."""

    def handler(pull: Pull) -> str:
        name = pull.query["way"]
        return f"{name} {pull.query.get(name)} {pull.user_id if name in 'abcd' else ''}"

    prefetch.pre_fetch(cache=CachePolicy(1e-6))(handler)
    prefetch.token_verifier(lambda _appid, token: token)
    app = make_app(prefetch, PREFETCH_CACHE_BYTES=40_000, PREFETCH_DEADLINE=60)

    def pull(seed: int) -> None:
        dice = Random(seed)
        for _ in range(250):
            way, value, user = dice.choice("abcdefghijkl"), dice.randrange(4), dice.choice("xyz")
            answer = pull_in(app, f"query=way%3D{way}%26{way}%3D{value}&token={user}")
            assert answer == f"{way} {value} {user if way in 'abcd' else ''}".encode()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(pull, range(8)))
