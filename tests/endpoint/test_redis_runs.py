"""One run for all processes, and what one of them forgets all forget."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
from flask import Flask
from werkzeug.wrappers import Response

from prefetch_kit import NO_DATA, CachePolicy, Prefetch, Pull
from prefetch_kit.cache import redis as redis_store
from prefetch_kit.cache import redis_breaker, redis_invalidation
from prefetch_kit.endpoint.app_state import process_of

App = Callable[..., Flask]
Ask = Callable[..., Response]
Until = Callable[[Callable[[], bool]], None]
Settled = Callable[[], None]
Logged = Callable[[], list[str]]

PAGE, MARKS = "pages/index/index", "prefetch_kit:forgotten"

pytestmark = pytest.mark.usefixtures("patient")


@pytest.fixture
def ran(prefetch: Prefetch) -> list[str]:
    """Which answers the page's handler made, in all processes; it reads the id and the user."""
    ran: list[str] = []

    @prefetch.pre_fetch(PAGE, cache=600)
    def page(pull: Pull) -> str:
        ran.append(f"{pull.query.get('id')} {pull.user_id}")
        return f"{ran[-1]} in run {len(ran)}"

    prefetch.token_verifier(lambda _appid, token: token)
    return ran


def forget(app: Flask, prefetch: Prefetch, page: str | None = None, **what: str | None) -> None:
    with app.app_context():
        prefetch.forget(page, **what)


# One run.


def test_a_cold_answer_is_made_once(process: App, prefetch: Prefetch, ask: Ask) -> None:
    """60 pulls in two processes wait for one run."""
    ran: list[int] = []

    @prefetch.pre_fetch(PAGE, cache=600)
    def page(_: Pull) -> str:
        ran.append(1)
        time.sleep(0.3)
        return "data"

    apps = [process(prefetch), process(prefetch)]
    for app in apps:
        ask(app, path="pages/none")  # so that its server runs
    with ThreadPoolExecutor(60) as pool:
        assert {one.data for one in pool.map(ask, apps * 30)} == {b"data"}
    print(f"60 pulls of a cold page in two processes: runs {len(ran)}")
    assert len(ran) == 1


def test_an_expired_answer_is_made_anew_once_and_nobody_waits(
    process: App, prefetch: Prefetch, ask: Ask, settled: Settled, gate: Event
) -> None:
    """200 pulls in two processes get what is stale while the one run hangs."""
    ran: list[int] = []

    @prefetch.pre_fetch(PAGE, cache=CachePolicy(fresh=0.01))
    def page(_: Pull) -> str:
        ran.append(1)
        if len(ran) > 1:
            gate.wait(30)
        return f"run {len(ran)}"

    apps = [process(prefetch), process(prefetch)]
    ask(apps[0])
    settled()
    ask(apps[1])
    time.sleep(0.02)
    with ThreadPoolExecutor(50) as pool:
        assert {one.data for one in pool.map(ask, apps * 100)} == {b"run 1"}
    print(f"200 pulls of a stale page in two processes: runs {len(ran) - 1}")
    assert len(ran) == 2


def test_no_data_drops_the_shared_answer(
    process: App, prefetch: Prefetch, ask: Ask, settled: Settled, until: Until, redis: Any
) -> None:
    """Where one process finds no data any more, no other serves what is in Redis."""
    found = ["data"]
    policy = CachePolicy(fresh=0.01)
    prefetch.pre_fetch(PAGE, cache=policy)(lambda _: found.pop() if found else NO_DATA)
    assert ask(process(prefetch)).data == b"data"
    settled()
    assert len(redis.keys("*:answer:*")) == 1
    time.sleep(0.02)
    other = process(prefetch)
    assert ask(other).data == b"data"  # stale, and asked for anew
    until(lambda: ask(other).data == b"" and redis.keys("*:answer:*") == [])


def test_a_run_that_fails_ends_its_lease(
    process: App, prefetch: Prefetch, ask: Ask, until: Until, gate: Event
) -> None:
    """At once, and the next process takes it."""
    ran: list[int] = []

    @prefetch.pre_fetch(PAGE, cache=600)
    def page(_: Pull) -> str:
        ran.append(1)
        if len(ran) == 1:
            gate.wait(30)
            raise OSError
        return "data"

    apps = process(prefetch), process(prefetch)
    ask(apps[1], path="pages/none")
    with ThreadPoolExecutor(2) as pool:
        failing = pool.submit(ask, apps[0])
        until(lambda: len(ran) == 1)
        waiting = pool.submit(ask, apps[1])
        gate.set()
        assert (failing.result().status_code, waiting.result().data) == (500, b"data")


def test_a_failure_is_told_once(
    process: App, prefetch: Prefetch, ask: Ask, until: Until, redis: Any, logged: Logged
) -> None:
    """Ending the lease is not reported as a second failure."""
    prefetch.pre_fetch(PAGE, cache=600)(lambda _: None)
    assert ask(process(prefetch)).status_code == 500
    until(lambda: "cmdstat_eval" in redis.info("commandstats"))
    time.sleep(0.05)
    assert sum("Traceback" in said for said in logged()) == 1


def test_a_late_run_ends_no_lease_of_another(
    process: App, prefetch: Prefetch, ask: Ask, until: Until, redis: Any, gate: Event
) -> None:
    """Its own ended by itself, and the process that took the next one keeps it."""

    @prefetch.pre_fetch(PAGE, cache=600)
    def page(_: Pull) -> str:
        gate.wait(30)
        return "data"

    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(ask, process(prefetch))
        until(lambda: bool(redis.keys("*:run:*")))
        [lease] = redis.keys("*:run:*")
        redis.set(lease, "another's")
        gate.set()
        assert late.result().data == b"data"
    until(lambda: "cmdstat_eval" in redis.info("commandstats"))
    assert redis.get(lease) == b"another's"


# Forgetting.


def test_every_process_forgets_what_one_forgot(
    process: App,
    prefetch: Prefetch,
    ran: list[str],
    ask: Ask,
    settled: Settled,
    until: Until,
    logged: Logged,
) -> None:
    """That and nothing else, also where it is kept in the process itself."""
    first, second = process(prefetch), process(prefetch)
    made = {user: ask(first, token=user).data for user in ("u1", "u2")}
    settled()
    assert {user: ask(second, token=user).data for user in made} == made
    forget(first, prefetch, user_id="u1")
    assert ask(first, token="u1").data != made["u1"]
    until(lambda: ask(second, token="u1").data != made["u1"])
    assert [ask(app, token="u2").data for app in (first, second)] == [made["u2"]] * 2
    assert logged() == []


def test_an_answer_that_was_begun_before_is_invalidated_too(
    process: App, prefetch: Prefetch, ask: Ask, until: Until, settled: Settled, gate: Event
) -> None:
    """What a process was making while another invalidated it is unreachable in both."""
    ran: list[int] = []

    @prefetch.pre_fetch(PAGE, cache=600)
    def page(_: Pull) -> str:
        ran.append(1)
        if len(ran) == 1:
            gate.wait(30)
            return "of before"
        return "of after"

    first, second = process(prefetch), process(prefetch)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(ask, first)
        until(lambda: len(ran) == 1)
        forget(second, prefetch)
        gate.set()
        assert slow.result().data == b"of before"
    settled()
    assert ask(second).data == b"of after"
    until(lambda: ask(first).data == b"of after")


def test_a_run_that_began_later_wins(
    process: App,
    prefetch: Prefetch,
    ask: Ask,
    until: Until,
    settled: Settled,
    redis: Any,
    gate: Event,
) -> None:
    """An answer that another process began before it and ends after it does not replace it."""
    ran: list[int] = []

    @prefetch.pre_fetch(PAGE, cache=600)
    def page(_: Pull) -> str:
        ran.append(1)
        if len(ran) == 1:
            gate.wait(30)
            return "of before"
        return "of after"

    first, second = process(prefetch), process(prefetch)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(ask, first)
        until(lambda: len(ran) == 1)
        forget(second, prefetch, user_id="nobody")  # or it would wait for that run
        assert ask(second).data == b"of after"
        until(lambda: bool(redis.keys("*:answer:*")))
        gate.set()
        assert slow.result().data == b"of before"
    settled()
    assert ask(process(prefetch)).data == b"of after"


@pytest.mark.parametrize("others", [0, 150])
def test_nothing_is_taken_before_all_that_was_forgotten_is_known(
    process: App,
    prefetch: Prefetch,
    ran: list[str],
    ask: Ask,
    settled: Settled,
    monkeypatch: pytest.MonkeyPatch,
    others: int,
) -> None:
    """A process that has not listened since hears of it with the first answer it asks for."""
    monkeypatch.setattr(redis_store, "_listen", lambda *_: None)
    first, second = process(prefetch), process(prefetch)
    made = ask(first, query="id=1").data
    ask(second, query="id=2")
    settled()
    for _ in range(others):
        forget(first, prefetch, user_id="nobody")
    forget(first, prefetch, PAGE)
    assert ask(second, query="id=1").data != made


@pytest.mark.parametrize("marks", [1, 150])
def test_a_new_process_knows_what_was_forgotten(
    process: App,
    prefetch: Prefetch,
    ran: list[str],
    ask: Ask,
    settled: Settled,
    until_shared: Callable[[Flask, Flask], str],
    marks: int,
) -> None:
    """Before it takes an answer that others made; few marks or many."""
    first = process(prefetch)
    made = ask(first, query="id=1").data
    settled()
    for _ in range(marks):
        forget(first, prefetch, PAGE)
    new = process(prefetch)
    assert ask(new, query="id=1").data != made
    until_shared(first, new)


def test_marks_that_are_not_kept_any_more_forget_everything_before(
    process: App,
    prefetch: Prefetch,
    ran: list[str],
    ask: Ask,
    settled: Settled,
    until_shared: Callable[[Flask, Flask], str],
    redis: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A new process cannot know what they said."""
    monkeypatch.setattr(redis_invalidation, "_RECORDS", 100)
    first = process(prefetch)
    made = ask(first, query="id=1").data
    settled()
    forget(first, prefetch, PAGE)
    for _ in range(300):
        forget(first, prefetch, user_id="nobody")
    assert redis.xlen(MARKS) < 300
    new = process(prefetch)
    until_shared(first, new)
    assert ask(new, query="id=1").data != made


@pytest.fixture
def both(
    process: App,
    prefetch: Prefetch,
    ran: list[str],
    ask: Ask,
    settled: Settled,
    until: Until,
    redis: Any,
) -> tuple[Flask, Flask]:
    """Two processes that keep the same answer, and have heard of all that was forgotten."""
    first, second = process(prefetch), process(prefetch)
    made = ask(first).data
    settled()
    until(lambda: bool(redis.xlen(MARKS)))
    assert ask(second).data == made
    return first, second


@pytest.mark.parametrize("known", [0, 3])
def test_what_is_forgotten_before_redis_is_emptied_stays_so(
    both: tuple[Flask, Flask],
    prefetch: Prefetch,
    ask: Ask,
    until: Until,
    until_shared: Callable[[Flask, Flask], str],
    redis: Any,
    known: int,
) -> None:
    """A process that had not heard of it knows that it missed something, the first time too."""
    first, second = both
    for _ in range(known):
        forget(first, prefetch, user_id="nobody")
    until_shared(first, second)
    made = ask(second).data
    forget(first, prefetch, PAGE)
    redis.flushall()
    until(lambda: ask(second).data != made)
    until_shared(first, second)
    until_shared(second, first)


def test_marks_that_a_pull_hears_of_first_are_not_taken_for_lost(
    both: tuple[Flask, Flask],
    prefetch: Prefetch,
    ask: Ask,
    redis: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that listens at the same time would invalidate everything, everywhere."""
    monkeypatch.setattr(redis_breaker, "LISTEN_S", 0.001)
    with ThreadPoolExecutor(8) as pool:
        pulls = pool.map(lambda n: ask(both[n % 2], query=f"id={n}").status_code, range(300))
        for _ in range(300):
            forget(both[0], prefetch, user_id="nobody")
        assert set(pulls) == {200}
    assert b"null" not in {fields[b"m"] for _, fields in redis.xrange(MARKS)}


def test_redis_may_be_emptied_while_its_clock_goes_back(
    both: tuple[Flask, Flask],
    prefetch: Prefetch,
    ask: Ask,
    until: Until,
    until_shared: Callable[[Flask, Flask], str],
    redis: Any,
) -> None:
    """What is forgotten afterwards still comes after all that was known before."""
    first, second = both
    redis.xadd(MARKS, {"m": '[["prefetch", null, "nobody", null]]'}, id=f"{10**14}-7")
    until_shared(first, second)
    redis.flushall()
    until(lambda: bool(redis.xlen(MARKS)))
    until_shared(first, second)
    made = ask(second).data
    forget(first, prefetch, PAGE)
    until(lambda: ask(second).data != made)


def test_processes_that_start_on_an_empty_redis_forget_nothing(
    both: tuple[Flask, Flask], redis: Any
) -> None:
    """A process that has read no invalidation has missed none."""
    assert {fields[b"m"] for _, fields in redis.xrange(MARKS)} == {b"[]"}


@pytest.mark.parametrize(
    "fields",
    [
        {"x": "y"},
        *({"m": m} for m in (b"", b"\xff", b"5", b"null", b"{}", b"[5]", b'["abcd"]')),
        *({"m": m} for m in (b"[[]]", b'[[1,"a","b","c"]]', b"[[null,null,null,null]]")),
        *({"m": m} for m in (b'[["prefetch",null,null]]', b"[" * 100_000, b"1" * 5000)),
    ],
)
def test_a_mark_that_cannot_be_read_forgets_everything(
    process: App,
    prefetch: Prefetch,
    ran: list[str],
    ask: Ask,
    settled: Settled,
    until: Until,
    redis: Any,
    fields: dict[Any, Any],
) -> None:
    """It may have meant anything."""
    app = process(prefetch)
    made = ask(app).data
    settled()
    redis.xadd(MARKS, fields)
    assert ask(process(prefetch)).data != made
    until(lambda: ask(app).data != made)


def test_something_else_instead_of_the_marks(
    process: App,
    prefetch: Prefetch,
    ran: list[str],
    ask: Ask,
    settled: Settled,
    until: Until,
    redis: Any,
) -> None:
    """It is replaced, everything is forgotten once, and forgets reach all again."""
    first, second = process(prefetch), process(prefetch)
    made = ask(first).data
    settled()
    redis.delete(MARKS)
    redis.lpush(MARKS, "x")
    until(lambda: redis.type(MARKS) == b"stream")
    until(lambda: ask(first).data != made)
    settled()
    until(lambda: ask(second).data == ask(first).data)
    kept = ask(second).data
    forget(first, prefetch)
    until(lambda: ask(second).data != kept)


def test_a_process_without_work_asks_little_and_hears_at_once(
    process: App,
    prefetch: Prefetch,
    ran: list[str],
    ask: Ask,
    settled: Settled,
    until: Until,
    redis: Any,
) -> None:
    """It waits in Redis: two commands a second, and news that come meanwhile end the wait."""
    app = process(prefetch)
    made = ask(app).data
    settled()
    until(lambda: any("b" in client["flags"] for client in redis.client_list()))  # blocked
    before, began = redis.info("stats")["total_commands_processed"], time.monotonic()
    time.sleep(3)
    idle = redis.info("stats")["total_commands_processed"] - before - 1  # one is ours
    a_second = idle / (time.monotonic() - began)
    print(f"commands of a process without work in a second: {a_second:.1f}")
    assert a_second < 3
    store = process_of(app).cache._redis
    assert store is not None
    fields = store.format.write_marks(MARKS.encode(), None)
    redis.xadd(MARKS, fields)
    until(lambda: ask(app).data != made)
