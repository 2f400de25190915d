"""Somebody else writes to the Redis: what he alters, swaps, replays or plants is not believed."""

import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask
from redis import Redis
from werkzeug.wrappers import Response

from prefetch_kit import Prefetch, Pull
from prefetch_kit.cache import redis_format
from prefetch_kit.cache.digests import Digests
from prefetch_kit.endpoint.app_state import process_of

App = Callable[..., Flask]
Ask = Callable[..., Response]
Until = Callable[[Callable[[], bool]], None]
Settled = Callable[[], None]
Logged = Callable[[], list[str]]

PAGE, MARKS = "pages/index/index", "prefetch_kit:forgotten"
ADD_MANY = "for n = 1, ARGV[1] do redis.call('xadd', KEYS[1], '*', 'm', ARGV[2]) end"
HIGHEST = f"{2**64 - 1}-{2**64 - 1}"

pytestmark = pytest.mark.usefixtures("patient")


class Hostile:
    """Finds by SCAN what is kept, and writes it elsewhere, later or otherwise."""

    def __init__(self, redis: Any) -> None:
        self._redis = redis

    def keys(self, kind: str) -> list[bytes]:
        return sorted(self._redis.scan_iter(f"*:{kind}:*"))

    def take(self, kind: str) -> dict[bytes, bytes]:
        return {key: self._redis.get(key) for key in self.keys(kind)}

    def put(self, taken: dict[bytes, bytes]) -> None:
        for key, value in taken.items():
            self._redis.set(key, value, px=4_000_000)

    def swap(self, kind: str) -> None:
        taken = self.take(kind)
        self.put(dict(zip(taken, reversed(taken.values()), strict=True)))

    def alter(self, kind: str, old: bytes, new: bytes) -> None:
        self.put({key: value.replace(old, new) for key, value in self.take(kind).items()})


@pytest.fixture
def hostile(redis: Any) -> Hostile:
    return Hostile(redis)


@pytest.fixture
def ran(prefetch: Prefetch) -> list[str]:
    """For whom the page's handler ran, in all processes; it reads the user."""
    ran: list[str] = []

    @prefetch.pre_fetch(PAGE, cache=600)
    def page(pull: Pull) -> str:
        ran.append(f"{pull.user_id}")
        return f"{ran[-1]} in run {len(ran)}"

    prefetch.token_verifier(lambda _appid, token: token)
    return ran


# Answers.


@pytest.mark.parametrize("is_checked", [True, False])
def test_swapped_answers_reach_nobody(
    process: App,
    prefetch: Prefetch,
    ran: list[str],
    ask: Ask,
    settled: Settled,
    hostile: Hostile,
    monkeypatch: pytest.MonkeyPatch,
    is_checked: bool,
) -> None:
    """Each user runs the handler anew; where digests are not checked, each gets the other's."""
    for user in ("alice", "bob"):
        ask(process(prefetch), token=user)
        settled()
    hostile.swap("answer")
    if not is_checked:
        monkeypatch.setattr(Digests, "verify", lambda *_: True)
    reply = ask(process(prefetch), token="alice").data
    assert reply == (b"alice in run 3" if is_checked else b"bob in run 2")


def test_an_altered_answer_reaches_nobody(
    process: App,
    prefetch: Prefetch,
    ran: list[str],
    ask: Ask,
    settled: Settled,
    hostile: Hostile,
) -> None:
    """A body that says something else does not fit the digest in its header."""
    ask(process(prefetch), token="alice")
    settled()
    hostile.alter("answer", b"alice in run 1", b"alice is a fool")
    assert ask(process(prefetch), token="alice").data == b"alice in run 2"


@pytest.mark.parametrize("later_s", [0, 5000])
def test_a_stretched_life_revives_nothing(
    process: App,
    prefetch: Prefetch,
    ran: list[str],
    ask: Ask,
    settled: Settled,
    hostile: Hostile,
    monkeypatch: pytest.MonkeyPatch,
    later_s: int,
) -> None:
    """An answer says when it was made; put back after its end, it is a miss."""
    ask(process(prefetch), token="alice")
    settled()
    taken, now = hostile.take("answer"), time.time
    clock = SimpleNamespace(time=lambda: now() + later_s, monotonic=time.monotonic)
    monkeypatch.setattr(redis_format, "time", clock)
    hostile.put(taken)
    ask(process(prefetch), token="alice")
    assert len(ran) == (2 if later_s else 1)


def test_a_replayed_answer_stays_forgotten(
    process: App,
    prefetch: Prefetch,
    ran: list[str],
    ask: Ask,
    settled: Settled,
    hostile: Hostile,
) -> None:
    """It says before which mark its run began."""
    first = process(prefetch)
    ask(first, token="alice")
    settled()
    taken = hostile.take("answer")
    with first.app_context():
        prefetch.forget(user_id="alice")
    hostile.put(taken)
    assert ask(process(prefetch), token="alice").data == b"alice in run 2"


def test_an_answer_of_another_namespace_is_foreign(
    process: App,
    prefetch: Prefetch,
    ran: list[str],
    ask: Ask,
    settled: Settled,
    hostile: Hostile,
) -> None:
    """Two deployments with one SECRET_KEY do not take each other's."""
    other = process(prefetch, PREFETCH_CACHE_NAMESPACE="b")
    ask(other, token="bob")  # so that it is known there that the page reads the user
    settled()
    ask(process(prefetch), token="alice")
    settled()
    taken = hostile.take("answer")
    hostile.put({key.replace(b"prefetch_kit:", b"b:"): taken[key] for key in taken})
    ask(other, token="alice")
    assert ran == ["bob", "alice", "alice"]


def test_what_is_found_is_judged_by_ones_own_limit(
    process: App, prefetch: Prefetch, ask: Ask, settled: Settled
) -> None:
    """A genuine answer of a process with a larger limit is too large for this one."""
    size = count(1001, -501)
    prefetch.pre_fetch(PAGE, cache=600)(lambda _: "x" * next(size))
    assert len(ask(process(prefetch)).data) == 1001
    settled()
    assert len(ask(process(prefetch, PREFETCH_MAX_BYTES=1000)).data) == 500


@pytest.mark.parametrize("kind", ["answer", "reads"])
def test_giants_cost_no_more_than_ones_own_limit(
    process: App,
    prefetch: Prefetch,
    ran: list[str],
    ask: Ask,
    settled: Settled,
    hostile: Hostile,
    redis: Any,
    kind: str,
) -> None:
    """Of 50 MB under a key, only the beginning is fetched."""
    ask(process(prefetch), token="alice")
    settled()
    hostile.put(dict.fromkeys(hostile.keys(kind), b"Z" * 50_000_000))
    redis.config_resetstat()
    assert ask(process(prefetch), token="alice").data == b"alice in run 2"
    settled()
    assert redis.info("stats")["total_net_output_bytes"] < 2_000_000


# Keys.


def test_fallbacks_verify_what_the_last_key_signed(
    process: App, prefetch: Prefetch, ran: list[str], ask: Ask, settled: Settled
) -> None:
    """Keys rotate, also in a process that runs; a stranger's key verifies nothing."""
    apps = [process(prefetch, SECRET_KEY=key) for key in ("old", "new", "other")]
    ask(apps[0], token="alice")
    settled()
    apps[1].config["SECRET_KEY_FALLBACKS"] = ["old"]
    assert ask(apps[1], token="alice").data == b"alice in run 1"
    assert ask(apps[2], token="alice").data == b"alice in run 2"
    settled()
    apps[0].config["SECRET_KEY"] = "other"
    ask(apps[0], token="bob")
    settled()
    last = process(prefetch, SECRET_KEY="other", SECRET_KEY_FALLBACKS=["old"])
    assert ask(last, token="bob").data == b"bob in run 3"


def test_without_a_key_answers_are_shared_and_a_warning_says_whom_that_trusts(
    process: App, prefetch: Prefetch, ran: list[str], ask: Ask, settled: Settled, logged: Logged
) -> None:
    """Once in each process."""
    for _ in range(2):
        app = process(prefetch, SECRET_KEY=None)
        for user in ("alice", "bob"):
            ask(app, token=user)
            settled()
    assert ran == ["alice", "bob"]
    assert sum("there is no SECRET_KEY" in said for said in logged()) == 2


# Marks.


def test_a_mark_signed_by_another_key_forgets_everything(
    process: App, prefetch: Prefetch, ran: list[str], ask: Ask, until: Until, redis: Any
) -> None:
    """It may have meant anything, and nobody else's answers are served instead."""
    app = process(prefetch)
    made = ask(app, token="alice").data
    until(lambda: bool(redis.xlen(MARKS)))
    other = redis_format.RedisFormat(Digests(lambda: [b"another"]), max_bytes=1)
    redis.xadd(MARKS, other.write_marks(MARKS.encode(), [("prefetch", None, "nobody", None)]))
    until(lambda: ask(app, token="alice").data != made)


@pytest.mark.parametrize(
    ("at", "is_deleted"),
    [
        *((HIGHEST, is_deleted) for is_deleted in (False, True)),
        *((f"{10**15}-{2**64 - 1}", is_deleted) for is_deleted in (False, True)),
        (f"{2**41}-{2**64 - 1}", False),
    ],
)
@pytest.mark.parametrize("fields", [{"m": "[]"}, None])
def test_a_stream_without_room_is_begun_anew(
    process: App,
    prefetch: Prefetch,
    ran: list[str],
    ask: Ask,
    until: Until,
    redis: Any,
    fields: dict[Any, Any] | None,
    at: str,
    is_deleted: bool,
) -> None:
    """After a record at the highest position, forgetting reaches all processes again."""
    first, second = process(prefetch), process(prefetch)
    ask(first, token="alice")
    until(lambda: bool(redis.xlen(MARKS)))
    genuine = redis.xrange(MARKS)[0][1]
    redis.xadd(MARKS, fields or genuine, id=at)
    if is_deleted:
        redis.xdel(MARKS, at)
    for user in ("alice", "bob", "carol"):
        made = ask(second, token=user).data
        with first.app_context():
            prefetch.forget(user_id=user)
        until(lambda: ask(second, token=user).data != made)  # noqa: B023 (called at once)
    until(lambda: redis.xinfo_stream(MARKS)["last-generated-id"] < b"2")


@pytest.mark.parametrize(
    ("planted", "bytes_each", "sent"),
    [(200_000, 5, 8_000_000), (1, 4_000_000, 60_000_000)],
    ids=["many", "large"],
)
def test_what_strangers_add_to_the_marks_is_read_once(
    process: App,
    prefetch: Prefetch,
    ran: list[str],
    ask: Ask,
    until: Until,
    redis: Any,
    planted: int,
    bytes_each: int,
    sent: int,
) -> None:
    """In part where it is much, and no run reads the last of it again; then all goes on."""
    first, second = process(prefetch), process(prefetch)
    made = ask(first, token="alice").data
    ask(second, token="alice")
    before = redis.info("stats")["total_net_output_bytes"]
    redis.eval(ADD_MANY, 1, MARKS, planted, b"x" * bytes_each)
    for app in (first, second):
        until(lambda: ask(app, token="alice").data != made)  # noqa: B023 (called at once)
        until(lambda: len(redis.xrevrange(MARKS, count=1)[0][1][b"m"]) < 100_000)
        for n in range(20):
            ask(app, token=f"user {n}")
    assert redis.info("stats")["total_net_output_bytes"] - before < sent
    made = ask(first, token="alice").data
    until(lambda: ask(second, token="alice").data == made)


@pytest.mark.parametrize("how", ["junk", "a copy instead of all", "nothing"])
def test_a_storm_of_marks_ends_no_sharing_of_runs(
    process: App, prefetch: Prefetch, ask: Ask, redis: Any, how: str
) -> None:
    """Whatever strangers do there, all is forgotten five times a second and not more often."""
    ran: list[float] = []

    @prefetch.pre_fetch(PAGE, cache=600)
    def page(_: Pull) -> str:
        ran.append(time.monotonic())
        time.sleep(0.01)
        return "data"

    app = process(prefetch)
    ask(app)
    genuine = redis.xrange(MARKS)[0][1]
    began, is_over = time.monotonic(), threading.Event()

    def add() -> None:
        while not is_over.wait(0.001):
            if how == "nothing":
                redis.delete(MARKS)
            elif how == "junk":
                redis.xadd(MARKS, {"m": "x"})
            else:
                redis.xadd(MARKS, genuine, maxlen=1, approximate=False)

    stranger = threading.Thread(target=add)
    stranger.start()
    pulls = 0
    while time.monotonic() < began + 3:
        pulls += ask(app).data == b"data"
    is_over.set()
    stranger.join()
    runs_a_second = len(ran) / (time.monotonic() - began)
    print(f"{pulls} pulls, {runs_a_second:.1f} runs a second")
    assert len(ran) > 1
    assert runs_a_second < 8


# Leases.


@pytest.mark.parametrize(
    "lease",
    [b"", b"hostile", b"-", b"x" * 1_000_000, "forged", None],
    ids=["empty", "text", "dash", "large", "forged", "list"],
)
def test_a_foreign_lease_is_not_waited_for(
    process: App,
    prefetch: Prefetch,
    ran: list[str],
    ask: Ask,
    settled: Settled,
    monkeypatch: pytest.MonkeyPatch,
    redis: Any,
    lease: bytes | str | None,
) -> None:
    """Without an end it would make each first pull late; it is replaced, and then ends."""
    app = process(prefetch, PREFETCH_DEADLINE=20)
    cache = process_of(app).cache
    assert cache._redis is not None
    key, keys = cache._redis.key, list[bytes]()
    if lease == "forged":  # it would end in a minute, but the stranger has no key
        lease = struct.pack("<16sd", b"", time.time() + 60) + bytes(32)

    def planting(kind: bytes, name: bytes) -> bytes:
        at = key(kind, name)
        if kind == b"run" and at not in keys:
            keys.append(at)
            redis.lpush(at, "x") if lease is None else redis.set(at, lease)
        return at

    monkeypatch.setattr(cache._redis, "key", planting)
    assert ask(app, token="alice").data == b"alice in run 1"
    assert keys != []
    settled()


def test_a_replayed_lease_ends_when_it_was_to_end(
    process: App,
    prefetch: Prefetch,
    ask: Ask,
    until: Until,
    settled: Settled,
    hostile: Hostile,
    redis: Any,
) -> None:
    """Put back without an end, it is waited for no longer than its own process may have it."""
    taken: dict[bytes, bytes] = {}

    @prefetch.pre_fetch(PAGE, cache=600)
    def page(_: Pull) -> str:
        if not taken:
            taken.update(hostile.take("run"))
        return "data"

    assert ask(process(prefetch, PREFETCH_DEADLINE=0.5)).data == b"data"
    settled()
    redis.flushall()
    for key, value in taken.items():
        redis.set(key, value)
    assert ask(process(prefetch, PREFETCH_DEADLINE=20)).data == b"data"


DENIED = (
    *("eval", "get", "set", "getrange", "pttl", "del", "xadd", "xread", "info"),
    *("@scripting", "@write", "@read", "@stream", "@string", "@keyspace"),
)


@pytest.mark.parametrize("denied", DENIED)
def test_nobody_is_late_whatever_redis_refuses(
    process: App,
    prefetch: Prefetch,
    ask: Ask,
    redis: Any,
    redis_server: Any,
    denied: str,
) -> None:
    """No lease is taken that cannot be given back: no process waits for one in vain."""
    prefetch.pre_fetch(PAGE, cache=600, deadline=20)(lambda pull: pull.query["id"])
    redis.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", f"-{denied}")
    url = f"redis://app:pw@127.0.0.1:{redis_server.port}/0"
    apps = [process(prefetch, PREFETCH_CACHE_URL=url) for _ in range(2)]
    replies = [ask(app, query=f"id={n}") for n in range(3) for app in apps]
    assert Counter(reply.status_code for reply in replies) == {200: 6}
    with Redis(port=redis_server.port) as root:
        ends_at = time.monotonic() + 30
        while [key for key in root.scan_iter("*:run:*") if root.get(key)]:
            assert time.monotonic() < ends_at
            time.sleep(0.01)
