"""Answers, leases and invalidations in a real Redis, as one store sees them."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from prefetch_kit.cache.digests import Digests
from prefetch_kit.cache.entry import Entry
from prefetch_kit.cache.invalidation import Invalidations, Mark
from prefetch_kit.cache.redis import RedisStore, SharedAnswer, SharedRun
from prefetch_kit.cache.redis_format import RedisFormat
from prefetch_kit.cache.scope import Scope
from prefetch_kit.concurrency.redis_client import Budget
from prefetch_kit.endpoint.users import Request
from prefetch_kit.logs import SafeLogger
from prefetch_kit.secret import Secret

if TYPE_CHECKING:
    from tests.conftest import RedisServer

MakeEntry = Callable[..., Entry]
MakeRun = Callable[[], SharedRun]
OTHERS: Mark = ("prefetch", None, "nobody", None)

pytestmark = pytest.mark.usefixtures("patient")


@pytest.fixture
def make_store(redis_server: "RedisServer") -> Callable[[], RedisStore]:
    """`make_store()`: what one process of the deployment has; it listens only when told to."""

    def make_store() -> RedisStore:
        return RedisStore(
            Secret(redis_server.url),
            namespace="shop",
            release="1",
            format=RedisFormat(Digests(lambda: [b"a key"]), max_bytes=2**20),
            invalidations=Invalidations(),
            logger=SafeLogger(logging.getLogger("shop")),
        )

    return make_store


@pytest.fixture
def store(make_store: Callable[[], RedisStore]) -> RedisStore:
    return make_store()


@pytest.fixture
def make_run(
    store: RedisStore,
    make_scope: Callable[[str], Scope],
    make_request: Callable[..., Request],
) -> MakeRun:
    """`make_run()`: a run of a handler that reads nothing."""
    scope = make_scope("page")
    scope.read_sets.add(())
    return lambda: SharedRun(store, b"run", scope, make_request(), Budget(30.0))


def share(run: SharedRun, entry: Entry) -> bytes:
    """Share an answer to the request of a run; its key."""
    [(key, _)] = run._keys
    run.publish(SharedAnswer((), key, entry))
    return key


def found(run: SharedRun) -> bytes | None:
    answer = run.find()
    return answer and answer.entry.body


def test_no_data_of_an_older_run_drops_nothing(
    store: RedisStore, make_run: MakeRun, make_entry: MakeEntry
) -> None:
    """What it did not find may have been made since."""
    key = share(make_run(), make_entry(b"new", began_ago_s=100.0))
    store.drop([key], began_at=time.monotonic() - 200)
    assert found(make_run()) == b"new"
    store.drop([key], began_at=time.monotonic() - 50)
    assert found(make_run()) is None


def test_an_answer_of_an_older_run_replaces_nothing(
    make_run: MakeRun, make_entry: MakeEntry
) -> None:
    """It is only found where no later one is."""
    share(make_run(), make_entry(b"old", began_ago_s=200.0))
    share(make_run(), make_entry(b"new", began_ago_s=100.0))
    share(make_run(), make_entry(b"old", began_ago_s=200.0))
    assert found(make_run()) == b"new"


@pytest.mark.parametrize(("other", "stays"), [("older", "ours"), ("later", "later")])
def test_an_answer_that_another_process_keeps_meanwhile(
    store: RedisStore, make_run: MakeRun, make_entry: MakeEntry, redis: Any, other: str, stays: str
) -> None:
    """It is looked at once more, and only one of a later run stays."""
    ago_s = {"older": 200.0, "ours": 100.0, "later": 50.0}
    entries = {name: make_entry(name.encode(), began_ago_s=ago) for name, ago in ago_s.items()}
    [(key, at)] = make_run()._keys
    written = {name: store.format.write_entry(at, key, each) for name, each in entries.items()}
    now, looks = time.monotonic(), list[object]()
    left_ms = {
        name: int(1000 * (each.fresh_s + each.stale_s + each.made_at - now))
        for name, each in entries.items()
    }

    def ask(pipe: Any) -> None:
        """Comes right after the look at the present one."""
        if not looks:
            pipe.set(at, written[other], px=left_ms[other])
        looks.append(pipe)

    ours, began_at = written["ours"], entries["ours"].began_at
    assert store.replace(at, key, ours, left_ms=left_ms["ours"], began_at=began_at, ask=ask)
    assert found(make_run()) == stays.encode()
    assert len(looks) == 2


def test_a_lease_is_for_one_run_at_a_time(make_run: MakeRun) -> None:
    """It ends with its run, and no other run can end it."""
    first, second = make_run(), make_run()
    assert first.lease(60) == (True, None)
    assert second.lease(60) == (False, None)
    second.publish(None)
    assert second.lease(60) == (False, None)
    first.publish(None)
    assert second.lease(60) == (True, None)


def test_an_answer_shared_a_moment_before_comes_with_the_lease(
    make_run: MakeRun, make_entry: MakeEntry
) -> None:
    """The run that made it ended between the search and the lease."""
    first, second = make_run(), make_run()
    assert (found(second), first.lease(60)) == (None, (True, None))
    share(first, make_entry(b"made"))
    is_ours, answer = second.lease(60)
    assert is_ours
    assert answer is not None
    assert answer.entry.body == b"made"


def test_a_run_spends_one_budget(make_run: MakeRun, redis: Any) -> None:
    """What the search used up is missing to the lease, which everybody then has."""
    run = make_run()
    run._budget.left_s = 0.0
    assert run.find() is None
    assert run.lease(60) == (True, None)
    assert redis.keys("*:run:*") == []


def test_what_redis_refuses_is_sent_again(
    make_store: Callable[[], RedisStore],
    make_entry: MakeEntry,
    redis: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Out of memory, it answers each record with an error, as often as it is tried."""
    store, other = make_store(), make_store()
    store.listen()
    redis.config_set("maxmemory", 1)
    store.invalidate([("prefetch", None, None, None)])
    assert "Redis refused an invalidation" in caplog.text
    store.listen()
    other.listen()
    assert store.invalidations.has_invalidated(make_entry())
    assert not other.invalidations.has_invalidated(make_entry())
    redis.config_set("maxmemory", 0)
    store.listen()
    other.listen()
    assert other.invalidations.has_invalidated(make_entry())


def test_threads_that_send_take_nothing_from_each_other(
    make_store: Callable[[], RedisStore], make_entry: MakeEntry, redis: Any
) -> None:
    """Each invalidation that waited for Redis is sent, and no thread fails."""
    store, other = make_store(), make_store()
    store.listen()
    redis.config_set("maxmemory", 1)
    for n in range(100):
        store.invalidate([("prefetch", None, f"user {n}", None)])
    redis.config_set("maxmemory", 0)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: store.listen(), range(8)))
    other.listen()
    assert all(
        other.invalidations.has_invalidated(make_entry(user_id=f"user {n}")) for n in range(100)
    )
    assert not other.invalidations.has_invalidated(make_entry(user_id="nobody"))


def test_what_was_read_once_is_not_read_again(
    make_store: Callable[[], RedisStore], make_entry: MakeEntry
) -> None:
    """A new answer stays, whatever was invalidated before it."""
    store, other = make_store(), make_store()
    store.listen()
    store.invalidate([("prefetch", None, None, None)])
    other.listen()
    position = other.invalidations.last
    for _ in range(3):
        store.invalidate([OTHERS])
        other.listen()
    assert other.invalidations.last > position
    assert not other.invalidations.has_invalidated(make_entry(position=position))
