"""Answers shared through a real Redis: each app here plays another process."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from werkzeug.wrappers import Response

from prefetch_kit import NO_DATA, CachePolicy, Prefetch, Pull, pull_served
from prefetch_kit.cache.digests import Digests
from prefetch_kit.endpoint.app_state import process_of

App = Callable[..., Flask]
Ask = Callable[..., Response]
Until = Callable[[Callable[[], bool]], None]
Settled = Callable[[], None]

PAGE = "pages/index/index"


pytestmark = pytest.mark.usefixtures("patient")


@pytest.fixture
def ran(prefetch: Prefetch) -> list[str]:
    """Which answers the page's handler made, in all processes; it reads the id."""
    ran: list[str] = []

    @prefetch.pre_fetch(PAGE, cache=600)
    def page(pull: Pull) -> str:
        ran.append(pull.query.get("id", ""))
        return f"{ran[-1]} in run {len(ran)}"

    return ran


def kept(redis: Any) -> list[bytes]:
    keys: list[bytes] = redis.keys("*:answer:*")
    return keys


# What is shared.


def test_what_one_process_made_all_serve(
    process: App, prefetch: Prefetch, ran: list[str], ask: Ask, settled: Settled
) -> None:
    """A process that never ran the handler learns what it reads, and takes the answer."""
    first, second = process(prefetch), process(prefetch)
    made = [ask(first, query=f"id={n}&other={n}").data for n in range(3)]
    settled()
    assert [ask(second, query=f"id={n}&other=x").data for n in range(3)] == made
    assert ran == ["0", "1", "2"]


def test_one_thread_is_enough_to_share(
    process: App, prefetch: Prefetch, ran: list[str], ask: Ask, settled: Settled
) -> None:
    """Where no other thread is free, the one that made an answer shares it."""
    made = ask(process(prefetch, PREFETCH_THREADS=1)).data
    settled()
    assert ask(process(prefetch, PREFETCH_THREADS=1)).data == made
    assert len(ran) == 1


def test_a_handler_that_reads_more_leaves_no_old_answer_behind(
    process: App, prefetch: Prefetch, ask: Ask, settled: Settled, until: Until
) -> None:
    """A new process would find what an earlier run made without reading so much."""
    reads_id: list[bool] = []

    @prefetch.pre_fetch(PAGE, cache=CachePolicy(fresh=1e-6))
    def page(pull: Pull) -> str:
        return f"new {pull.query.get('id')}" if reads_id else "old"

    app = process(prefetch)
    assert ask(app, query="id=1").data == b"old"
    settled()
    reads_id.append(True)
    until(lambda: ask(app, query="id=1").data == b"new 1")
    settled()
    until(lambda: not process_of(app).cache._flights._flights)
    assert ask(process(prefetch), query="id=2").data == b"new 2"


def test_users_and_mini_programs_stay_apart(
    process: App, prefetch: Prefetch, ask: Ask, settled: Settled
) -> None:
    """A user gets no answer that another process made for another user."""
    prefetch.token_verifier(lambda _appid, token: token)
    ran: list[list[str | None]] = []

    @prefetch.pre_fetch(PAGE, cache=600)
    def page(pull: Pull) -> object:
        ran.append([pull.appid, pull.user_id])
        return ran[-1]

    pulls: list[dict[str, str | None]] = [
        {"appid": appid, "token": user} for appid in ("wx1", "wx2") for user in ("u1", "u2", None)
    ]
    for app in [process(prefetch, PREFETCH_APPIDS=["wx1", "wx2"]) for _ in range(2)]:
        answers = [json.loads(ask(app, **pull).data) for pull in pulls]
        assert answers == [[pull["appid"], pull["token"]] for pull in pulls]
        settled()
    assert len(ran) == len(pulls)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"PREFETCH_RELEASE": "1"}, {"PREFETCH_RELEASE": "2"}),
        ({"PREFETCH_RELEASE": "1"}, {}),
        ({"PREFETCH_CACHE_NAMESPACE": "a"}, {"PREFETCH_CACHE_NAMESPACE": "b"}),
        (
            {"PREFETCH_CACHE_NAMESPACE": "a", "PREFETCH_RELEASE": "b:c"},
            {"PREFETCH_CACHE_NAMESPACE": "a:b", "PREFETCH_RELEASE": "c"},
        ),
    ],
)
def test_deployments_stay_apart(
    process: App,
    prefetch: Prefetch,
    ran: list[str],
    ask: Ask,
    settled: Settled,
    one: dict[str, str],
    other: dict[str, str],
) -> None:
    """Another release or namespace has its own answers, however they are written."""
    for number, config in enumerate((one, other, one, other), start=1):
        ask(process(prefetch, **config))
        settled()
        assert len(ran) == min(number, 2)


@pytest.mark.parametrize(
    "outcome", [NO_DATA, None, "x" * 262_145], ids=["no data", "failed", "too large"]
)
def test_what_is_no_answer_is_not_shared(
    process: App, prefetch: Prefetch, ask: Ask, settled: Settled, redis: Any, outcome: object
) -> None:
    """No data, a failure and too much are made anew by each process."""
    ran: list[object] = []

    @prefetch.pre_fetch(PAGE, cache=600)
    def page(_: Pull) -> object:
        ran.append(outcome)
        return outcome

    for app in (process(prefetch), process(prefetch)):
        assert ask(app).data == b""
        settled()
    assert len(ran) == 2
    assert kept(redis) == []


def freshness(app: Flask) -> list[str]:
    told: list[str] = []
    pull_served.connect(lambda _, cache, **__: told.append(cache), app, weak=False)
    return told


@pytest.mark.parametrize("cache_bytes", [2**20, 0])
def test_an_answer_is_as_old_everywhere(
    cache_bytes: int,
    process: App,
    prefetch: Prefetch,
    ran: list[str],
    ask: Ask,
    settled: Settled,
    until: Until,
    redis: Any,
) -> None:
    """What is stale where it was made is stale in the others, and made anew by the first of them.

    So it is where nothing is kept in the process, and no later pull could see to it.
    """
    first, fresh = process(prefetch), process(prefetch)
    stale = process(prefetch, PREFETCH_CACHE_BYTES=cache_bytes)
    told = freshness(fresh)
    made = ask(first).data
    settled()
    [answer] = kept(redis)  # fresh for 600 s, stale for 3600 s more
    redis.pexpire(answer, 4_000_000)
    assert [ask(fresh).data, ask(fresh).data] == [made, made]
    redis.pexpire(answer, 3_000_000)
    assert told == ["miss", "hit"]
    assert ask(stale).data == made
    until(lambda: len(ran) == 2)


@pytest.mark.parametrize("left_ms", [-1, 4_300_000, 2**52])
def test_an_answer_with_an_impossible_age_is_a_miss(
    process: App,
    prefetch: Prefetch,
    ran: list[str],
    ask: Ask,
    settled: Settled,
    redis: Any,
    left_ms: int,
) -> None:
    """Its end was removed, or moved past what its policy allows."""
    ask(process(prefetch))
    settled()
    [answer] = kept(redis)
    redis.persist(answer) if left_ms < 0 else redis.pexpire(answer, left_ms)
    ask(process(prefetch))
    assert len(ran) == 2


# Foreign and damaged data in Redis.

SPOILED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "short": lambda value: value[:20],
    "cut": lambda value: value[:-1],
    "longer": lambda value: value + b" ",
    "magic": lambda value: b"pfk0" + value[4:],
    "times": lambda value: value[:4] + b"\xff" * 24 + value[28:],
    "made at": lambda value: value[:28] + b"\xff" * 8 + value[36:],
    "position": lambda value: value[:36] + b"\xff" * 16 + value[52:],
    "digest of the body": lambda value: value[:52] + b"\0" * 32 + value[84:],
    "keyed digest": lambda value: value[:84] + b"\0" * 32 + value[116:],
    "body": lambda value: value[:116] + b"X" + value[117:],
    "foreign": lambda _: b'{"banners": []}' * 10,
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_a_spoiled_answer_is_a_miss(
    process: App,
    prefetch: Prefetch,
    ran: list[str],
    ask: Ask,
    settled: Settled,
    redis: Any,
    spoil: Callable[[bytes], bytes],
) -> None:
    """Whatever bytes are under its key; the next answer replaces them."""
    ask(process(prefetch))
    settled()
    [answer] = kept(redis)
    redis.set(answer, spoil(redis.get(answer)), px=2_000_000)
    assert ask(process(prefetch)).data == b" in run 2"
    settled()
    assert ask(process(prefetch)).data == b" in run 2"


def test_a_foreign_type_is_a_miss_and_is_logged_once(
    process: App,
    prefetch: Prefetch,
    ran: list[str],
    ask: Ask,
    settled: Settled,
    redis: Any,
    logged: Callable[[], list[str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Lists where our answers and read sets should be spoil nothing else."""
    ask(process(prefetch))
    settled()
    for foreign in redis.keys("*"):
        redis.delete(foreign)
        redis.lpush(foreign, "x")
    app = process(prefetch)
    assert [ask(app, query=f"id={n}").data for n in range(3)] == [
        f"{n} in run {n + 2}".encode() for n in range(3)
    ]
    settled()
    told = [one.name for one in caplog.records if "Redis refuses some" in one.getMessage()]
    assert told.count(app.logger.name) == 1  # the other one may have seen it too
    assert not any("going on without it" in said for said in logged())


def test_an_answer_under_another_key_is_a_miss(
    process: App, prefetch: Prefetch, ran: list[str], ask: Ask, settled: Settled, redis: Any
) -> None:
    """A reply that came out of turn never reaches a pull it was not made for."""
    first = process(prefetch)
    ask(first, query="id=1")
    settled()
    [one] = kept(redis)
    ask(first, query="id=2")
    settled()
    [other] = set(kept(redis)) - {one}
    redis.rename(one, other)
    assert ask(process(prefetch), query="id=2").data == b"2 in run 3"


@pytest.mark.parametrize(
    "foreign", [b"", b"\xff\xfe", b"{}", b"null", b"5", b"[" * 100_000, b"1" * 5000, b'["query"']
)
@pytest.mark.parametrize("is_signed", [False, True])
def test_foreign_read_sets_are_none(
    process: App,
    prefetch: Prefetch,
    ran: list[str],
    ask: Ask,
    settled: Settled,
    redis: Any,
    foreign: bytes,
    is_signed: bool,
) -> None:
    """What a handler reads is found out anew, and shared again."""
    ask(process(prefetch))
    settled()
    [reads] = redis.keys("*:reads:*")
    redis.set(reads, signed(reads, foreign) if is_signed else foreign)
    made = ask(process(prefetch)).data
    settled()
    assert ask(process(prefetch)).data == made
    assert len(ran) == 2


@pytest.mark.parametrize(
    "foreign",
    [
        *(b"{}", b"null", b'"path"', b"[1]", b"[null]", b"[[]]", b'["timestamp"]'),
        *(b'["__class__"]', b'["_inputs"]', b'["appid"]'),
        json.dumps([f"query={n}" for n in range(40)]).encode(),
    ],
)
def test_impossible_read_sets_are_passed_over(
    process: App,
    prefetch: Prefetch,
    ran: list[str],
    ask: Ask,
    settled: Settled,
    redis: Any,
    foreign: bytes,
) -> None:
    """What no run can have read is not looked up, and ours beside it still is."""
    made = ask(process(prefetch)).data
    settled()
    [reads] = redis.keys("*:reads:*")
    redis.set(reads, signed(reads, b'[%b, ["query=id"]]' % foreign))
    assert ask(process(prefetch)).data == made
    assert len(ran) == 1


def signed(reads: bytes, raw: bytes) -> bytes:
    """As a process of ours would write it."""
    return Digests(lambda: [b"a key of the shop"]).sign(b"reads", reads, raw) + raw


def test_names_and_users_need_not_be_utf_8(
    process: App, prefetch: Prefetch, ask: Ask, settled: Settled, until: Until
) -> None:
    """Half a character in a read set or in a mark is shared like any other."""
    prefetch.token_verifier(lambda *_: "\ud83d")
    ran: list[object] = []

    @prefetch.pre_fetch(PAGE, cache=600)
    def page(pull: Pull) -> str:
        ran.append((pull.user_id, pull.query.get("\ud83d")))
        return f"run {len(ran)}"

    first, second = process(prefetch), process(prefetch)
    made = ask(first, token="t").data
    settled()
    assert ask(second, token="t").data == made
    with first.app_context():
        prefetch.forget(user_id="\ud83d")
    until(lambda: ask(second, token="t").data != made)


def test_an_answer_made_anew_in_between_is_not_taken_for_younger(
    process: App, prefetch: Prefetch, ran: list[str], ask: Ask, settled: Settled, redis: Any
) -> None:
    """Redis is asked for the time it has left first, and then for the answer."""
    first, second = process(prefetch), process(prefetch)
    ask(first)
    settled()
    with redis.monitor() as seen:
        ask(second)
        names = []
        for one in seen.listen():
            names += [one["command"].split()[0]] if b":answer:" in one["command"].encode() else []
            if len(names) == 2:
                break
    assert names == ["PTTL", "GETRANGE"]
