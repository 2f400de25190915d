"""Which answers are kept, for how long, and for whom."""

import gc
import math
import re
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import count
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
from cachetools import TTLCache
from flask import Blueprint, Flask, got_request_exception
from werkzeug.wrappers import Response

from prefetch_kit import NO_DATA, CachePolicy, Prefetch, Pull, fast_path, pull_refused, pull_served
from prefetch_kit.cache import answers, entry, runner, single_flight
from prefetch_kit.concurrency import executor
from prefetch_kit.endpoint import background_tokens, request
from prefetch_kit.endpoint.app_state import process_of

App = Callable[..., Flask]
Ask = Callable[..., Response]
Handler = Callable[[Pull], object]
Logged = Callable[[], list[str]]
Send = Callable[..., Response]
Until = Callable[[Callable[[], bool]], None]

POLICY = CachePolicy(fresh=30, stale=60)


@dataclass
class Clock:
    """The clock that the cache reads; only a test moves it."""

    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (answers, entry, runner, single_flight, executor):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(TTLCache.__init__, "__defaults__", (clock.monotonic, None))
    return clock


@pytest.fixture
def facts() -> Iterator[list[object]]:
    """The fact `cache` of each pull, in order."""
    told: list[object] = []

    def tell(_: object, **facts: object) -> None:
        told.append(facts["cache"])

    with pull_served.connected_to(tell), pull_refused.connected_to(tell):
        yield told


def counting() -> Handler:
    """A handler that answers how often it ran."""
    ran = count(1)
    return lambda _: next(ran)


@pytest.mark.parametrize(
    ("age_s", "fact"), [(0, "hit"), (26.9, "hit"), (33.1, "stale"), (86.9, "stale"), (93.1, "miss")]
)
def test_answer_is_fresh_then_stale_then_over(
    make_app: App,
    prefetch: Prefetch,
    ask: Ask,
    clock: Clock,
    facts: list[object],
    age_s: float,
    fact: str,
) -> None:
    """Thirty seconds, give or take a tenth, then sixty more, then not at all."""
    prefetch.pre_fetch(cache=POLICY)(counting())
    app = make_app(prefetch)
    assert ask(app).json == 1
    clock.now += age_s
    assert ask(app).json == (2 if fact == "miss" else 1)
    assert facts == ["miss", fact]


def test_stale_answer_is_served_at_once_and_made_anew_once(
    make_app: App, prefetch: Prefetch, ask: Ask, until: Until, clock: Clock, gate: Event
) -> None:
    """Nobody waits for the run that goes on in the background."""
    ran = count(1)

    def handler(_: Pull) -> int:
        if (run := next(ran)) > 1:
            gate.wait()
        return run

    prefetch.pre_fetch(cache=POLICY)(handler)
    app = make_app(prefetch)
    ask(app)
    clock.now += 40
    assert [ask(app).json for _ in range(20)] == [1] * 20
    gate.set()
    until(lambda: ask(app).json == 2)
    assert [ask(app).json for _ in range(20)] == [2] * 20


@pytest.mark.parametrize("then", [NO_DATA, "new", None])
def test_a_handler_that_reads_more_than_before(
    make_app: App, prefetch: Prefetch, ask: Ask, until: Until, clock: Clock, then: object
) -> None:
    """What it answered when it read less is over, also where its answers now depend on the user.

    None stands for a handler that reads when its pull came, and is not cached any more.
    """
    state: list[object] = ["old"]

    @prefetch.pre_fetch(cache=POLICY)
    def page(pull: Pull) -> object:
        if state == ["old"]:
            return ["old"]
        return [str(pull.timestamp)] if then is None else (pull.user_id, then)[1]

    app = make_app(prefetch)
    assert ask(app).json == ["old"]
    state.append("changed")
    clock.now += 40
    assert ask(app).json == ["old"]
    until(lambda: b"old" not in ask(app).data)
    clock.now += 40
    assert b"old" not in ask(app).data


def test_of_two_stale_answers_the_later_is_served(
    make_app: App, prefetch: Prefetch, ask: Ask, clock: Clock, gate: Event
) -> None:
    """Though the older one was found by less."""
    ran: list[int] = []

    @prefetch.pre_fetch(cache=POLICY)
    def page(pull: Pull) -> int:
        ran.append(1)
        if len(ran) == 2:
            pull.query.get("id")
        if len(ran) > 2:
            gate.wait(30)
        return len(ran)

    app = make_app(prefetch)
    assert ask(app).json == 1
    clock.now += 95
    assert ask(app).json == 2
    kept = process_of(app).cache._store._entries
    first, second = kept.values()
    kept[next(iter(kept))] = replace(first, made_at=second.made_at - 1)
    clock.now += 40
    assert ask(app).json == 2


@pytest.mark.parametrize("way", ["no data", "time", "failure"])
def test_users_do_not_wait_for_each_other_where_nothing_is_kept(
    make_app: App, prefetch: Prefetch, ask: Ask, gate: Event, way: str
) -> None:
    """What such a run read is remembered as that of any other: the next user runs at once."""

    @prefetch.pre_fetch(cache=60, deadline=60)
    def page(pull: Pull) -> object:
        if pull.user_id == "slow":
            gate.wait(30)
        if way == "failure":
            raise ValueError
        return str(pull.timestamp) if way == "time" else NO_DATA

    prefetch.token_verifier(lambda _appid, token: token)
    app = make_app(prefetch)
    ask(app, token="first")
    with ThreadPoolExecutor(1) as others:
        slow = others.submit(ask, app, token="slow")
        while not process_of(app).cache._flights._flights:
            assert not slow.done()
        assert ask(app, token="quick").status_code == (500 if way == "failure" else 200)
        assert not slow.done()
        gate.set()


def test_each_users_stale_answer_is_made_anew_for_that_user(
    make_app: App, prefetch: Prefetch, ask: Ask, until: Until, clock: Clock
) -> None:
    """The run in the background answers the pull that set it off."""
    ran = count(1)
    prefetch.pre_fetch(cache=POLICY)(lambda pull: {"user": pull.user_id, "run": next(ran)})
    prefetch.token_verifier(lambda _appid, token: token)
    app, users = make_app(prefetch), ["alice", "bob", None]
    first = [{"user": user, "run": run} for run, user in enumerate(users, 1)]
    assert [ask(app, token=user).json for user in users] == first
    clock.now += 40
    assert [ask(app, token=user).json for user in users] == first
    for user in users:
        until(lambda: ask(app, token=user).json != first[users.index(user)])  # noqa: B023
        assert ask(app, token=user).json["user"] == user  # type: ignore[index]
    assert next(ran) == 7


def test_failing_refresh_leaves_the_stale_answer_and_is_told_once(
    make_app: App,
    prefetch: Prefetch,
    ask: Ask,
    until: Until,
    clock: Clock,
    facts: list[object],
    logged: Logged,
) -> None:
    """The failure is logged and sent to error trackers; the next try is a second away."""
    ran, errors = count(1), list[object]()
    prefetch.pre_fetch(cache=POLICY)(lambda _: 1 / (next(ran) == 1))
    app = make_app(prefetch)
    with got_request_exception.connected_to(lambda _, exception: errors.append(exception), app):
        ask(app)
        for wait_s, failures in ((40, 1), (0.99, 1), (0.02, 2), (0.5, 2), (0.51, 3)):
            clock.now += wait_s
            assert [ask(app).data for _ in range(5)] == [b"1.0"] * 5
            until(lambda: len(errors) == failures)  # noqa: B023 (used within its round)
        assert set(map(type, errors)) == {ZeroDivisionError}
        told = [line for line in logged() if line.startswith("ERROR a run that no pull waited for")]
        assert (len(told), next(ran)) == (3, 5)
        assert all("Traceback (most recent call last)" in line for line in told)
        clock.now += 93.1
        assert (ask(app).status_code, facts[-1]) == (500, None)


def test_refresh_that_works_again_ends_the_stale_answer(
    make_app: App, prefetch: Prefetch, ask: Ask, until: Until, clock: Clock, logged: Logged
) -> None:
    """One failure costs no more than its second."""
    ran = count(1)
    prefetch.pre_fetch(cache=POLICY)(lambda _: (run := next(ran)) / (run != 2))
    app = make_app(prefetch)
    assert ask(app).data == b"1.0"
    clock.now += 40
    assert ask(app).data == b"1.0"
    until(lambda: "ZeroDivisionError" in "".join(logged()))
    clock.now += 1.01
    until(lambda: ask(app).data == b"3.0")


def failing(_: Pull) -> object:
    raise ValueError("broken")


JUNK: dict[str, Handler] = {
    "NO_DATA": lambda _: NO_DATA,
    "empty str": lambda _: "",
    "empty bytes": lambda _: b"",
    "None": lambda _: None,
    "failure": failing,
    "NaN": lambda _: [math.nan],
    "set": lambda _: {1},
    "too large": lambda _: "x" * 101,
}


@pytest.mark.parametrize("handler", JUNK.values(), ids=JUNK)
def test_what_is_no_answer_is_not_kept(
    make_app: App, prefetch: Prefetch, ask: Ask, handler: Handler
) -> None:
    """No data, and what cannot be sent, is tried again by the next pull."""
    ran: list[Pull] = []

    def wrapped(pull: Pull) -> object:
        ran.append(pull)
        return handler(pull) if len(ran) < 3 else "good"

    prefetch.pre_fetch(cache=30)(wrapped)
    app = make_app(prefetch, PREFETCH_MAX_BYTES=100)
    assert [ask(app).data for _ in range(4)] == [b"", b"", b"good", b"good"]
    assert len(ran) == 3


@pytest.mark.parametrize("name", ["None", "failure", "NaN", "set", "too large"])
def test_last_good_answer_outlives_a_failed_refresh(
    make_app: App, prefetch: Prefetch, ask: Ask, until: Until, logged: Logged, name: str
) -> None:
    """A refresh that makes no answer leaves the one there was."""
    ran: list[Pull] = []

    def wrapped(pull: Pull) -> object:
        ran.append(pull)
        return "good" if len(ran) == 1 else JUNK[name](pull)

    prefetch.pre_fetch(cache=CachePolicy(fresh=1e-6))(wrapped)
    app = make_app(prefetch, PREFETCH_MAX_BYTES=100)
    assert [ask(app).data for _ in range(2)] == [b"good"] * 2
    until(lambda: "Traceback" in "".join(logged()))
    assert (ask(app).data, len(ran) > 1) == (b"good", True)


@pytest.mark.parametrize("value", [{}, [], 0, False, "x", b"\x00", {"a": None}])
def test_small_answers_are_kept_too(
    make_app: App, prefetch: Prefetch, ask: Ask, value: object
) -> None:
    """Everything with a body is data."""
    ran = count(1)
    prefetch.pre_fetch(cache=30)(lambda _: (value, next(ran))[0])
    app = make_app(prefetch)
    assert ask(app).data == ask(app).data != b""
    assert next(ran) == 2


def test_reader_of_the_timestamp_is_not_cached_and_told_once(
    make_app: App, prefetch: Prefetch, ask: Ask, facts: list[object], logged: Logged
) -> None:
    """Its answers could only be found by a pull of the same millisecond."""
    ran = count(1)
    prefetch.pre_fetch(cache=30)(lambda pull: [pull.timestamp.year, next(ran)])
    app = make_app(prefetch)
    assert [ask(app).json for _ in range(3)] == [[2023, 1], [2023, 2], [2023, 3]]
    (line,) = logged()
    assert line.startswith("WARNING tests.endpoint.test_cache.")
    assert line.endswith("which no two pulls share: its answers are not cached")
    assert facts == ["miss"] * 3


def test_what_was_not_asked_for_longest_is_dropped(
    make_app: App, prefetch: Prefetch, ask: Ask
) -> None:
    """A full store keeps what is used."""
    ran: list[str] = []

    def handler(pull: Pull) -> str:
        ran.append(pull.query["id"])
        return "x" * 1000

    prefetch.pre_fetch(cache=30)(handler)
    app = make_app(prefetch, PREFETCH_CACHE_BYTES=10_000)
    for i in range(100):
        ask(app, query=f"id={i}")
        ask(app, query="id=0")
    assert len(ran) == 100
    ask(app, query="id=99")
    assert len(ran) == 100
    ask(app, query="id=1")
    assert ran[-1] == "1"


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [str, lambda text: {"text": text}], ids=["text", "JSON"])
@pytest.mark.parametrize(("size", "bound", "pulls"), [(1, 300_000, 550), (2000, 500_000, 260)])
def test_bound_is_that_of_the_memory_used(
    make_app: App,
    prefetch: Prefetch,
    monkeypatch: pytest.MonkeyPatch,
    wrap: Callable[[str], object],
    size: int,
    bound: int,
    pulls: int,
) -> None:
    """Small answers and large: what is around them is counted too."""
    monkeypatch.setattr(request, "MAX_KNOWN", 1)  # a fixed megabyte beside the answers
    prefetch.pre_fetch(cache=30)(lambda pull: wrap(f"{pull.query['id']:>{size}}"))
    app = make_app(prefetch, PREFETCH_CACHE_BYTES=bound)
    client, query = app.test_client(), "appid=wx1&timestamp=1700000000&query=id%3D"
    for i in range(pulls):
        if i == 100:  # what is made once is there by now
            tracemalloc.start()
        client.get("/prefetch/pre_fetch", query_string=f"{query}{i}")
    gc.collect()  # Flask's own, of the requests
    used, _peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"{pulls} answers of {size} characters use {used / bound:.0%} of the bound")
    assert bound / 2 < used < bound * 1.1


@pytest.mark.parametrize("way", [lambda app: app.wsgi_app, fast_path])
@pytest.mark.parametrize("change", ["SECRET_KEY", "time"])
def test_user_is_proved_once_a_pull(
    make_app: App,
    prefetch: Prefetch,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    way: Callable[[Flask], Any],
) -> None:
    """A token that ends while its handler works leaves nothing for those without one."""

    def end() -> None:
        if change == "time":
            monkeypatch.setattr(background_tokens, "time", SimpleNamespace(time=lambda: 1e11))
        else:
            app.config[change] = "another"

    def cart(pull: Pull) -> object:
        user = pull.user_id
        end()
        return [user, pull.user_id]

    prefetch.pre_fetch(cache=30)(cart)
    app = make_app(prefetch)
    app.wsgi_app = way(app)  # type: ignore[method-assign]
    with app.app_context():
        token = prefetch.issue_token("alice", appid="wx1")
    client, query = app.test_client(), "/prefetch/pre_fetch?appid=wx1&timestamp=1700000000"
    assert client.get(f"{query}&token={token}").json == ["alice", "alice"]
    for others in ("", f"&token={token}", "&token=forged"):
        assert client.get(f"{query}{others}").json == [None, None]


def test_no_data_ends_what_was_kept(
    make_app: App,
    prefetch: Prefetch,
    ask: Ask,
    clock: Clock,
    until: Until,
) -> None:
    """What an earlier run found is not served as stale where a later one found nothing."""
    found: list[object] = ["price"]
    prefetch.pre_fetch(cache=POLICY)(lambda _: found.pop() if found else NO_DATA)
    app = make_app(prefetch)
    assert ask(app).data == b"price"
    clock.now += 40
    assert ask(app).data == b"price"  # stale, and asked for anew
    until(lambda: ask(app).data == b"")


@pytest.mark.slow
def test_parameters_that_nobody_reads_take_no_memory(make_app: App, prefetch: Prefetch) -> None:
    """However many different queries come, what is kept is what handlers read."""
    ran = count()
    prefetch.pre_fetch(cache=600)(lambda pull: {"id": pull.query["id"], "run": next(ran)})
    app = make_app(prefetch)
    client, query = app.test_client(), "appid=wx1&timestamp=1700000000&query=id%3D1%26"
    for i in range(1100):
        if i == 100:  # what is made once is there by now
            tracemalloc.start()
        client.get("/prefetch/pre_fetch", query_string=f"{query}{i}%3D{i}&{i}={i}&token={i}")
    gc.collect()  # Flask's own, of the requests
    used, _peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"1,000 different queries take {used:,} bytes")
    assert next(ran) == 1
    assert used < 200_000  # of entries there would be half a million


@pytest.mark.parametrize(("bound", "made"), [(0, 2), (700, 2), (10_000, 1)])
def test_answer_over_the_bound_is_served_and_not_kept(
    make_app: App, prefetch: Prefetch, ask: Ask, bound: int, made: int
) -> None:
    """Nothing fits into nothing."""
    prefetch.pre_fetch(cache=30)(counting())
    app = make_app(prefetch, PREFETCH_CACHE_BYTES=bound)
    assert [ask(app).json for _ in range(2)] == [1, made]


@pytest.mark.parametrize("seconds", [0, -1, -0.5, math.nan, math.inf, -math.inf])
def test_impossible_policy_is_refused(prefetch: Prefetch, seconds: float) -> None:
    """At the decorator, where the developer looks."""
    with pytest.raises(ValueError, match="cache takes seconds: more than 0 fresh"):
        prefetch.pre_fetch(cache=seconds)
    with pytest.raises(ValueError, match="cache takes seconds"):
        prefetch.period_fetch(cache=seconds)
    if seconds != 0:
        with pytest.raises(ValueError, match="0 or more stale"):
            CachePolicy(30, stale=seconds)


@pytest.mark.parametrize("kind", ["pre_fetch", "period_fetch"])
@pytest.mark.parametrize("given", [True, False, "30", b"30", [30], timedelta(30), 30j])
def test_what_is_no_number_of_seconds_is_refused(prefetch: Prefetch, kind: str, given: Any) -> None:
    """At the decorator too, and each argument by its name: none is taken for a number."""
    wanted = r"takes a number of seconds, such as 30{}, not .*{}"
    said = re.escape(repr(given))
    with pytest.raises(TypeError, match="cache " + wanted.format(", or a CachePolicy", said)):
        getattr(prefetch, kind)(cache=given)
    with pytest.raises(TypeError, match="deadline " + wanted.format(" or math.inf", said)):
        getattr(prefetch, kind)(deadline=given)
    for name, policy in (("fresh", {"fresh": given}), ("stale", {"fresh": 30, "stale": given})):
        with pytest.raises(TypeError, match=f"{name} " + wanted.format("", said)):
            CachePolicy(**policy)


def test_plain_seconds_are_stale_for_an_hour(
    make_app: App, prefetch: Prefetch, ask: Ask, clock: Clock, facts: list[object]
) -> None:
    """And CachePolicy(stale=0) is over as soon as it is not fresh."""
    prefetch.pre_fetch("pages/hour", cache=30)(counting())
    prefetch.pre_fetch("pages/never", cache=CachePolicy(30, stale=0))(counting())
    app = make_app(prefetch)
    for now, wanted in ((0, ["miss"] * 2), (3626.9, ["stale", "miss"]), (7260, ["miss"] * 2)):
        clock.now = 1000 + now
        facts.clear()
        for page in ("pages/hour", "pages/never"):
            ask(app, path=page)
        assert facts == wanted


def test_answers_made_together_do_not_end_together(
    make_app: App, prefetch: Prefetch, ask: Ask, clock: Clock, facts: list[object]
) -> None:
    """In the tenth around the end of their time, some are fresh and some are not."""
    prefetch.pre_fetch(cache=100)(lambda pull: pull.query["id"])
    app = make_app(prefetch)

    def told(ids: range) -> set[object]:
        facts.clear()
        for i in ids:
            ask(app, query=f"id={i}")
        return set(facts)

    assert told(range(80)) == {"miss"}
    clock.now += 89.9
    assert told(range(80)) == {"hit"}
    clock.now += 10
    assert told(range(40)) == {"hit", "stale"}
    clock.now += 10.2
    assert told(range(40, 80)) == {"stale"}


def test_scopes_share_nothing(make_app: App, prefetch: Prefetch, ask: Ask) -> None:
    """Appid, kind, page, blueprint and each registration of it are apart, whatever is read."""
    handler = counting()
    twin, nested = Prefetch("twin", __name__), Blueprint("nested", __name__, url_prefix="/nested")
    for each in (prefetch, twin):
        each.pre_fetch(cache=30)(handler)
        each.pre_fetch("pages/a", cache=30)(handler)
        each.pre_fetch("pages/b", cache=30)(handler)
        each.period_fetch(cache=30)(handler)
    app = make_app(prefetch, PREFETCH_APPIDS=["wx1", "wx11"])
    app.register_blueprint(prefetch, name="again", url_prefix="/again")
    app.register_blueprint(twin, url_prefix="/twin")
    nested.register_blueprint(twin)
    app.register_blueprint(nested)
    targets = [
        (f"/{where}/{what}", {"appid": appid, "path": path})
        for where in ("prefetch", "again", "twin", "nested")
        for what in ("pre_fetch", "period_fetch")
        for appid in ("wx1", "wx11")
        for path in (["pages/a", "pages/b", "pages/c"] if what == "pre_fetch" else [None])
    ]
    answers = [ask(app, at, **given).json for at, given in targets * 2]
    assert answers == [*range(1, 33)] * 2


def test_two_apps_share_nothing(make_app: App, prefetch: Prefetch, ask: Ask) -> None:
    """Not even if they register the same blueprint."""
    prefetch.pre_fetch(cache=30)(counting())
    apps = [make_app(prefetch), make_app(prefetch)]
    assert [ask(app).json for app in apps * 2] == [1, 2, 1, 2]


def test_head_and_get_share(make_app: App, prefetch: Prefetch, send: Send) -> None:
    """A probe fills the cache for the pulls that follow."""
    prefetch.pre_fetch(cache=30)(counting())
    app, target = make_app(prefetch), "/prefetch/pre_fetch?appid=wx1&timestamp=1700000000&path=a"
    head, got = send(app, target, method="HEAD"), send(app, target)
    assert (head.headers["Content-Length"], got.data) == ("1", b"1")


def test_hit_looks_like_a_miss(
    make_app: App, prefetch: Prefetch, ask: Ask, facts: list[object]
) -> None:
    """Fresh, stale or made just now: the bytes that go out are the same."""
    prefetch.pre_fetch("pages/fresh", cache=30)(lambda _: {"名": "茶"})
    prefetch.pre_fetch("pages/stale", cache=CachePolicy(1e-6))(lambda _: {"名": "茶"})
    prefetch.pre_fetch("pages/plain")(lambda _: {"名": "茶"})
    app = make_app(prefetch)
    pages = ["pages/plain", *["pages/fresh"] * 2, *["pages/stale"] * 2]
    replies = [ask(app, path=page) for page in pages]
    assert facts == [None, "miss", "hit", "miss", "stale"]
    shown = [
        (reply.status, [(k, v) for k, v in reply.headers if k != "Date"], reply.data)
        for reply in replies
    ]
    assert shown[1:] == shown[:-1]


def test_login_is_demanded_before_the_cache(
    make_app: App, prefetch: Prefetch, ask: Ask, facts: list[object]
) -> None:
    """An answer that is the same for all users is kept once, and for users only."""
    prefetch.pre_fetch(cache=30, login_required=True)(counting())
    app = make_app(prefetch)
    with app.app_context():
        tokens = [prefetch.issue_token(user, appid="wx1") for user in ("alice", "bob")]
    pulls = [None, tokens[0], tokens[1], None, "x" + tokens[0]]
    replies = [ask(app, token=token) for token in pulls]
    assert [reply.status_code for reply in replies] == [401, 200, 200, 401, 401]
    assert [reply.data for reply in replies] == [b"", b"1", b"1", b"", b""]
    assert facts == [None, "miss", "hit", None, None]


@pytest.mark.parametrize(
    ("second", "body", "fact"),
    [(lambda: 2, b"2", "miss"), (lambda: NO_DATA, b"", "miss"), (lambda: 1 / 0, b"1", "stale")],
)
def test_stale_answer_is_made_anew_within_the_pull(
    make_app: App,
    prefetch: Prefetch,
    ask: Ask,
    clock: Clock,
    facts: list[object],
    second: Callable[[], object],
    body: bytes,
    fact: str,
) -> None:
    """With PREFETCH_REFRESH=within it is what this very pull gets, unless that fails."""
    answers_of = iter([lambda: 1, second])
    prefetch.pre_fetch(cache=POLICY)(lambda _: next(answers_of)())
    app = make_app(prefetch, PREFETCH_REFRESH="within")
    assert ask(app).data == b"1"
    clock.now += 40
    assert (ask(app).data, facts) == (body, ["miss", fact])


def test_stale_answer_where_making_it_anew_is_late(
    make_app: App, prefetch: Prefetch, ask: Ask, clock: Clock, gate: Event
) -> None:
    """At the deadline the pull has the stale one."""
    ran = count(1)
    prefetch.pre_fetch(cache=POLICY, deadline=0.2)(lambda _: next(ran) == 1 or gate.wait(60))
    app = make_app(prefetch, PREFETCH_REFRESH="within")
    assert ask(app).data == b"true"
    clock.now += 40
    assert ask(app).data == b"true"
    assert next(ran) == 3
