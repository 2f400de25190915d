"""A miss joins a run that will probably answer it, and loses no time of its own by that."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from prefetch_kit.cache.answers import AnswerCache
from prefetch_kit.cache.digests import Digests
from prefetch_kit.cache.invalidation import Invalidations
from prefetch_kit.cache.key import answer_key
from prefetch_kit.cache.read_sets import Reads
from prefetch_kit.cache.redis import RedisStore, SharedRun
from prefetch_kit.cache.redis_format import RedisFormat
from prefetch_kit.cache.runner import Handle
from prefetch_kit.cache.scope import RunTimes, Scope
from prefetch_kit.concurrency.executor import Executor, Late, deadline_in
from prefetch_kit.concurrency.redis_client import Budget
from prefetch_kit.endpoint.users import Request
from prefetch_kit.logs import SafeLogger
from prefetch_kit.secret import Secret

if TYPE_CHECKING:
    from tests.conftest import RedisServer

MakeCache = Callable[..., AnswerCache]
MakeRequest = Callable[..., Request]
Until = Callable[[Callable[[], bool]], None]

COARSE, FINE = ("query=id",), ("query=id", "user_id")
LOGGER = SafeLogger(logging.getLogger("shop"))


@pytest.fixture
def make_cache() -> MakeCache:
    def make_cache(redis: RedisStore | None = None) -> AnswerCache:
        return AnswerCache(
            max_bytes=2**20,
            executor=Executor(16, on_lost_error=lambda _: None),
            logger=LOGGER,
            invalidations=redis.invalidations if redis else Invalidations(),
            redis=redis,
        )

    return make_cache


@pytest.fixture
def scope(make_scope: Callable[[str], Scope]) -> Scope:
    """A page whose answers depend on the id and the user, and one branch on the id alone.

    The branch was useful last, and the page's runs take longer than a pull may.
    """
    scope = make_scope("page")
    for names in (FINE, COARSE):
        scope.read_sets.add(names)
    scope.read_sets.proved_useful(COARSE)
    scope.run_times.add(1000.0, now=0.0)
    scope.deadline_s = 30.0
    return scope


class Page:
    """A handler that reads the id and the user; runs for "stranger" end when the gate opens."""

    def __init__(self, gate: threading.Event, *names: str) -> None:
        self.ran: list[str | None] = []
        self._gate = gate
        self._names = names or FINE

    def prepare(self, user_id: str | None) -> Callable[[], Handle]:
        def handle(reads: Reads) -> bytes:
            self.ran.append(user_id)
            if user_id == "stranger":
                self._gate.wait(30)
            for name in self._names:
                reads.note(name)
            return f"for {user_id}".encode()

        return lambda: handle


def fetch(cache: AnswerCache, scope: Scope, request: Request, page: Page) -> bytes:
    user_id = request.user_id()
    return cache.fetch(scope, request, page.prepare(user_id), ends_at=deadline_in(10)).body


def test_a_stranger_does_not_lengthen_a_miss(
    make_cache: MakeCache,
    scope: Scope,
    make_request: MakeRequest,
    gate: threading.Event,
    until: Until,
) -> None:
    """His run proves not to be for others: they begin their own while there is time for it."""
    cache, page = make_cache(), Page(gate)
    stranger, alice = (make_request("id%3D1", user_id=name) for name in ("stranger", "alice"))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(fetch, cache, scope, stranger, page)
        until(lambda: page.ran == ["stranger"])
        assert fetch(cache, scope, alice, page) == b"for alice"
        gate.set()
        assert first.result() == b"for stranger"


def test_a_reader_of_the_timestamp_waits_for_nobody_too_long(
    make_cache: MakeCache,
    scope: Scope,
    make_request: MakeRequest,
    gate: threading.Event,
    until: Until,
) -> None:
    """No run is for two of them, not even for two pulls that are alike in everything."""
    cache, page = make_cache(), Page(gate, "timestamp")
    scope.read_sets.saw(("timestamp",))
    request = make_request("id%3D1", user_id="stranger")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(fetch, cache, scope, request, page)
        until(lambda: page.ran == ["stranger"])
        alone = cache.fetch(scope, request, page.prepare("alice"), ends_at=deadline_in(10))
        assert alone.body == b"for alice"
        gate.set()
        assert first.result() == b"for stranger"


def test_a_run_that_is_surely_for_all_is_waited_for(
    make_cache: MakeCache,
    scope: Scope,
    make_request: MakeRequest,
    gate: threading.Event,
    until: Until,
) -> None:
    """However slow the page is: pulls alike in all that was ever read are one run."""
    cache, page = make_cache(), Page(gate)
    pulls = [make_request(f"id%3D1%26n%3D{n}", user_id="stranger") for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(fetch, cache, scope, pull, page) for pull in pulls]
        until(lambda: page.ran != [])
        gate.set()
        assert {each.result() for each in waiting} == {b"for stranger"}
    assert page.ran == ["stranger"]


def test_an_attempt_of_others_ends_and_ones_own_goes_on(
    make_cache: MakeCache,
    scope: Scope,
    make_request: MakeRequest,
    gate: threading.Event,
    until: Until,
) -> None:
    """What ends the flight is not for alice, whose attempt runs already: it is not repeated."""
    cache, page, ours = make_cache(), Page(gate), threading.Event()
    scope.deadline_s = 0.01
    stranger, alice = (make_request("id%3D1", user_id=name) for name in ("stranger", "alice"))
    with pytest.raises(Late):
        cache.fetch(scope, stranger, page.prepare("stranger"), ends_at=deadline_in(0.01))
    scope.deadline_s, scope.run_times = 30.0, RunTimes()

    def handle(reads: Reads) -> bytes:
        page.ran.append("alice")
        ours.wait(30)
        return page.prepare("alice")()(reads)

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(cache.fetch, scope, alice, lambda: handle, ends_at=deadline_in(30))
        until(lambda: "alice" in page.ran)
        gate.set()
        until(lambda: cache.find(scope, stranger) is not None)
        ours.set()
        assert waiting.result().body == b"for alice"
    assert page.ran == ["stranger", "alice", "alice"]  # the second is of the same run


@pytest.mark.usefixtures("patient")
def test_a_strangers_lease_does_not_lengthen_a_miss(
    make_cache: MakeCache,
    scope: Scope,
    make_request: MakeRequest,
    gate: threading.Event,
    redis_server: "RedisServer",
) -> None:
    """The same where his run is in another process."""
    store = RedisStore(
        Secret(redis_server.url),
        namespace="shop",
        release="1",
        format=RedisFormat(Digests(lambda: [b"a key"]), max_bytes=2**20),
        invalidations=Invalidations(),
        logger=LOGGER,
    )
    cache, alice = make_cache(store), make_request("id%3D1", user_id="alice")
    names = [cache._flight_name(answer_key(alice, scope.name, each)) for each in (COARSE, FINE)]
    for name in names:
        assert SharedRun(store, name, scope, alice, Budget(30.0)).lease(60) == (True, None)
    assert fetch(cache, scope, alice, Page(gate)) == b"for alice"


def test_the_slowest_run_is_remembered_for_a_while() -> None:
    """Whatever number of quick ones comes after it, and until slower times are long over."""
    times = RunTimes()
    assert times.slowest_s == 0
    times.add(1.5, now=1000.0)
    for n in range(10_000):
        times.add(0.01, now=1000.0 + n / 100)
    assert times.slowest_s == 1.5
    times.add(0.01, now=1500.0)
    assert times.slowest_s == 1.5
    times.add(0.02, now=2000.0)
    assert times.slowest_s == 0.02
    times.add(0.01, now=9000.0)
    assert times.slowest_s == 0.02
