"""Cached answers under any run of pulls: each is what this very pull would have been told.

Handlers answer with all they read. The same functions, given the sent values in werkzeug's own
multi-dict, say what has to come back: nothing of the kit's parsing, noting and keys is in that.
"""

import json
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache, partial
from itertools import chain
from typing import Any, ClassVar, cast
from urllib.parse import urlencode

import pytest
from cachetools import TTLCache
from flask import Flask
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from hypothesis.stateful import (
    RuleBasedStateMachine,
    precondition,
    rule,
    run_state_machine_as_test,
)
from werkzeug.datastructures import MultiDict
from werkzeug.test import TestResponse

from prefetch_kit import NO_DATA, CachePolicy, Prefetch, Pull, fast_path
from prefetch_kit.cache import answers, entry, key, redis_format, runner, single_flight
from prefetch_kit.cache import redis as redis_store
from prefetch_kit.cache.answers import AnswerCache
from prefetch_kit.cache.digests import Digests
from prefetch_kit.cache.entry import Entry
from prefetch_kit.cache.invalidation import Invalidations
from prefetch_kit.cache.read_sets import Reads
from prefetch_kit.cache.redis import SharedRun
from prefetch_kit.cache.redis_format import RedisFormat
from prefetch_kit.cache.redis_invalidation import RedisInvalidations
from prefetch_kit.cache.runner import Handle, Runner
from prefetch_kit.cache.scope import Scope
from prefetch_kit.cache.single_flight import Attempt, Flight, Outcome
from prefetch_kit.concurrency import executor, redis_client
from prefetch_kit.endpoint import handlers, request
from prefetch_kit.endpoint.app_state import process_of
from prefetch_kit.endpoint.handlers import HandlerFunction
from prefetch_kit.endpoint.parameters import DialectName
from prefetch_kit.endpoint.request import Asked as AskedFor
from prefetch_kit.endpoint.users import Request
from prefetch_kit.fetch_setting import Kind

MakeApp = Callable[[Sequence[Prefetch]], Flask]
Weaken = Callable[[pytest.MonkeyPatch], None]
Query = tuple[tuple[str, str], ...]
Said = dict[str, str | None]

APPIDS = ("wx1", "wx11")
USERS = ("u1", "u11")
INSTANCES = ("a", "b")
NAMES = ("a", "ab", "a=b")
# Beside "1" and nothing: what is like it as soon as a key is written with less care.
VALUES = ("", "11", "1s1", "s1:1", "1&b=1")
# Every age is a multiple of 400, so the 10 % by which ends of freshness differ decide nothing;
# nor do the real seconds by which entries in Redis grow older meanwhile.
POLICY = CachePolicy(fresh=1000, stale=2000)
OVER_S = 3100
PATIENCE_S = 60
# More of them make the searches longer.
SEARCHES = int(os.environ.get("PREFETCH_KIT_SEARCHES", "1"))


class Failed(Exception):
    """What a handler raises that fails."""


class WrongAnswer(AssertionError):
    """What was served is not this pull's answer, or is no answer any more."""


def nothing_for_some(pull: Pull) -> object:
    return NO_DATA if pull.query["id"] == "1" else [pull.query["id"]]


def failing_for_some(pull: Pull) -> object:
    if pull.query.get("id") == "1":
        raise Failed
    return [pull.query.get("id")]


def user_for_some(pull: Pull) -> object:
    some = pull.query.get("id")
    return [some, pull.user_id if some == "1" else "unread"]


def adaptive(pull: Pull) -> object:
    a = pull.query.get("a")
    return [a, pull.query.get("b") if a == "1" else "unread"]


def crossing(pull: Pull) -> object:
    b = pull.query.get("b")
    return [b, pull.query.get("a" if b == "1" else "c")]


def crossing_back(pull: Pull) -> object:
    a = pull.query.get("a")
    return [a, pull.query.get("c" if a == "1" else "b")]


def over_32_names(pull: Pull) -> object:
    return [pull.query.get(name) for name in [*map(str, range(40)), "a", "b"]]


def elsewhere(pull: Pull) -> object:
    return [pull.path, pull.user_id if pull.path else "unread"]


@dataclass(frozen=True)
class Page:
    """A page, what its handler reads, and the names worth sending to it."""

    path: str | None
    read: HandlerFunction
    names: Sequence[str] = "a"
    login_required: bool = False
    kind: Kind = "pre_fetch"


# In groups that read alike, and so are most easily taken for each other.
GROUPS = [
    [
        Page("names", lambda pull: [pull.query.get(name) for name in NAMES], NAMES),
        Page("lists", lambda pull: [pull.query.getlist(name) for name in "ab"], "ab"),
    ],
    [
        Page("adaptive", adaptive, "ab"),
        Page("crossing", crossing, "abc"),
        Page("crossing back", crossing_back, "abc"),
    ],
    [
        Page("all", lambda pull: list(pull.query.items()), "ab"),
        Page("wide", over_32_names, "ab"),
    ],
    [Page(None, elsewhere), Page(None, elsewhere, kind="period_fetch")],
    [
        Page("no-data", nothing_for_some, ("id",)),
        Page("failing", failing_for_some, ("id",)),
        Page("users", user_for_some, ("id",)),
    ],
    [
        Page("client", lambda pull: [pull.scene, pull.version]),
        Page("timestamp", lambda pull: [pull.timestamp.timestamp()]),
    ],
    [
        Page("extra", lambda pull: [pull.extra.get("lang")]),
        Page("all extra", lambda pull: list(pull.extra.items())),
        Page("dialect", lambda pull: [pull.dialect]),
    ],
    [
        Page("nothing", lambda _: []),
        Page("login", lambda _: [], login_required=True),
        Page("user", lambda pull: [pull.user_id]),
    ],
]
PAGES = list(chain(*GROUPS))


@dataclass(frozen=True)
class Asked:
    """A pull as it is sent; `who` is a user, nobody, or a claim that proves nobody.

    `process` says which one of those that share answers it comes to.
    """

    page: Page
    instance: str
    appid: str
    who: str | None
    other_path: str | None
    query: Query
    scene: int | None
    version: str | None
    timestamp: int
    lang: str | None = None
    dialect: DialectName = "wechat"
    process: int = 0

    @property
    def path(self) -> str | None:
        return self.page.path or self.other_path


class Told:
    """What a handler may read of a pull, as it was meant, and whether it read the user."""

    def __init__(self, asked: Asked) -> None:
        self.path, self.query = asked.path, MultiDict(asked.query)
        self.scene, self.version = asked.scene, asked.version
        self.extra = MultiDict({} if asked.lang is None else {"lang": asked.lang})
        self.dialect = asked.dialect
        self.timestamp = datetime.fromtimestamp(asked.timestamp, UTC)
        self.proved = asked.who if asked.who in USERS else None
        self.has_read_user = False

    @property
    def user_id(self) -> str | None:
        self.has_read_user = True
        return self.proved


@dataclass(frozen=True)
class Due:
    """What has to come back: a status and what was read, of this version or a later one."""

    status: int
    read: object = NO_DATA
    since: int = 0


@dataclass
class Gate:
    """Runs are held here, so that other things happen while they are under way."""

    is_shut: bool = False
    held: list[threading.Event] = field(default_factory=list)

    def pass_through(self) -> None:
        if self.is_shut:
            opened = threading.Event()
            self.held.append(opened)
            assert opened.wait(PATIENCE_S)


@dataclass
class Clock:
    """The cache's clock, which only a test moves, and what is waited for by it.

    That is a run of the same process, or the lease of a run that another process has.
    """

    now: int = 0
    waited_for: list[Flight] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    alone: list[object] = field(default_factory=list)
    leases: list[bytes] = field(default_factory=list)
    waits: threading.local = field(default_factory=threading.local)

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def sleep(self, _: float) -> None:
        """Between two looks at a lease; not while it looks, which may be the last time."""
        self.leases.append(self.waits.lease)
        try:
            time.sleep(0.003)
        finally:
            self.leases.remove(self.waits.lease)


@dataclass
class Store:
    """Where answers are kept: in each app's memory, and in Redis if there is one."""

    make_apps: Sequence[MakeApp]
    redis: Any = None

    def empty(self) -> None:
        if self.redis:
            self.redis.flushall()

    def pass_time(self, seconds: int) -> None:
        """Redis has its own clock, which cannot be moved: all that ends ends sooner."""
        for name in self.redis.keys() if self.redis else ():
            if (left_ms := self.redis.pttl(name)) > 0:
                self.redis.pexpire(name, left_ms - 1000 * seconds)

    def mix_up(self) -> None:
        """Under each key is what was kept under another, for as long as it was kept there."""
        keys = sorted(self.redis.keys("*:answer:*"))
        kept = [(self.redis.get(key), self.redis.pttl(key)) for key in keys]
        for name, (value, left_ms) in zip(keys, kept[1:] + kept[:1], strict=True):
            if value is not None and left_ms > 0:
                self.redis.set(name, value, px=left_ms)

    def has_all(self, leases: Sequence[bytes]) -> bool:
        # One that was given back is empty for a moment, and then gone.
        return all(self.redis.get(lease) for lease in set(leases))


# Which pulls are asked: each is one of four, but for one thing, or nothing would ever meet.

VALUE = st.just("1") | st.shared(st.sampled_from(VALUES), key="value")
INSTANCE, APPID = st.sampled_from(INSTANCES), st.sampled_from(APPIDS)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "instance": INSTANCE,
    "appid": APPID,
    "who": st.sampled_from([*USERS, None, "forged", "foreign"]),
    "other_path": st.sampled_from(["x", "x1", None]),
    "scene": st.sampled_from([None, 1, 11]),
    "version": st.sampled_from([None, "1", "11"]),
    "timestamp": st.sampled_from([1_700_000_000, 1_700_000_001]),
    "lang": st.sampled_from([None, "1", "11"]),
    "dialect": st.sampled_from(["wechat", "finclip"]),
}


def queries(page: Page, *, at_least: int) -> st.SearchStrategy[Query]:
    """Up to two values for each name."""
    pairs = [st.tuples(st.just(name), VALUE) for name in (*page.names, "unread")]
    lists = [st.lists(pair, min_size=at_least, max_size=2) for pair in pairs]
    return st.tuples(*lists).map(lambda lists: tuple(chain(*lists)))


def shifted(query: Query, at: int) -> Query:
    """The same query with the value at this position moved to the front."""
    names, values = [name for name, _ in query], [value for _, value in query]
    values.insert(0, values.pop(at % len(values)))
    return tuple(zip(names, values, strict=True))


def pulls_of(page: Page) -> st.SearchStrategy[Asked]:
    return st.builds(Asked, page=st.just(page), query=queries(page, at_least=1), **FIELDS)


@cache  # or each example would make them anew
def four_bases(tried: tuple[Page, ...]) -> st.SearchStrategy[list[Asked]]:
    """A pull of each of four pages; the first page is one of those to try, if there are any."""
    free = 4 if not tried else 3
    others = st.lists(
        st.one_of([pulls_of(page) for page in PAGES if page not in tried]),
        min_size=free,
        max_size=free,
        unique_by=lambda asked: id(asked.page),
    )
    if not tried:
        return others
    first = st.one_of([pulls_of(page) for page in tried])
    return st.tuples(first, others).map(lambda drawn: [drawn[0], *drawn[1]])


BASES = st.shared(st.runner().flatmap(lambda machine: four_bases(machine.tried)), key="bases")
GROUP = {page: st.sampled_from(group) for group in GROUPS for page in group}
QUERY = {page: queries(page, at_least=0) for page in PAGES}
PROCESS = st.integers(0, 1)
DIFFERENCE = st.sampled_from([*FIELDS, "page", *["query", "shifted"] * 3])


@st.composite
def pulls(draw: st.DrawFn) -> Asked:
    asked: Asked = draw(BASES)[draw(st.integers(0, 3))]
    asked = replace(asked, process=draw(PROCESS))
    match draw(DIFFERENCE):
        case "page":
            return replace(asked, page=draw(GROUP[asked.page]))
        case "query":
            return replace(asked, query=draw(QUERY[asked.page]))
        case "shifted":
            return replace(asked, query=shifted(asked.query, draw(st.integers(1, 3))))
        case name:
            return replace(asked, **{name: draw(FIELDS[name])})


SEVERAL = st.lists(pulls(), min_size=2, max_size=4)
NAMED_PAGES = [page.path for page in PAGES if page.path]
FORGET = st.fixed_dictionaries(
    {},
    optional={
        "page": st.sampled_from(NAMED_PAGES),
        "user_id": st.sampled_from(USERS),
        "appid": APPID,
    },
)


class Pulls(RuleBasedStateMachine):
    """Pulls of all kinds, one after another and overlapping, while everything changes."""

    store: ClassVar[Store]
    clock: ClassVar[Clock]
    tried: ClassVar[tuple[Page, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        self.version, self.is_failing, self.gate = 0, False, Gate()
        self.forgotten: list[tuple[str, Said, int]] = []
        self.clock.now = 0
        self.store.empty()
        self.start()

    @rule(several=SEVERAL)
    def ask(self, several: list[Asked]) -> None:
        for asked in several:
            due, reply = self.deadline_in(asked), self.send(asked)
            self.settle()
            self.check(asked, due, reply)
        self.asked += len(several)

    @rule(first=pulls(), second=pulls())
    def overlap(self, first: Asked, second: Asked) -> None:
        self.ask_at_once(first, second)

    @rule(asked=pulls(), said=FORGET, newest_first=st.booleans())
    def forget_meanwhile(self, asked: Asked, said: Said, newest_first: bool) -> None:
        self.ask_at_once(asked, asked, said, newest_first=newest_first)

    @rule(instance=INSTANCE, said=FORGET, then=SEVERAL)
    def forget_between(self, instance: str, said: Said, then: list[Asked]) -> None:
        self.forget(instance, said)
        self.ask(then)

    @rule(seconds=st.sampled_from([400, 800, 1200, 3200]), then=SEVERAL)
    def pass_time(self, seconds: int, then: list[Asked]) -> None:
        self.clock.now += seconds
        self.store.pass_time(seconds)
        self.ask(then)

    @rule(meanwhile=SEVERAL)
    def fail(self, meanwhile: list[Asked]) -> None:
        self.is_failing = True
        self.ask(meanwhile)
        self.is_failing = False

    @precondition(lambda self: self.asked >= 40)  # or there would be little to lose
    @rule(first=pulls(), second=pulls())
    def restart(self, first: Asked, second: Asked) -> None:
        self.start()
        self.ask_at_once(first, second)

    @precondition(lambda self: self.store.redis and self.asked >= 20)
    @rule(then=SEVERAL)
    def mix_up(self, then: list[Asked]) -> None:
        self.store.mix_up()
        self.ask(then)

    def start(self) -> None:
        self.asked = 0
        self.blueprints = {name: self.blueprint(name) for name in INSTANCES}
        self.apps = [make(list(self.blueprints.values())) for make in self.store.make_apps]

    def blueprint(self, name: str) -> Prefetch:
        blueprint = Prefetch(name, __name__, url_prefix=f"/{name}")
        for page in PAGES:
            said: dict[str, Any] = {"cache": POLICY, "login_required": page.login_required}
            if page.kind == "pre_fetch":
                blueprint.pre_fetch(page.path, **said)(self.handler(page, name))
            else:
                blueprint.period_fetch(**said)(self.handler(page, name))
        return blueprint

    def handler(self, page: Page, instance: str) -> HandlerFunction:
        def handle(pull: Pull) -> object:
            made = {"version": self.version, "made_at": self.clock.now}
            self.gate.pass_through()
            if self.is_failing:
                raise Failed
            read = page.read(pull)
            of = [instance, pull.kind, page.path, pull.appid]
            return read if read is NO_DATA else {"of": of, "read": read, **made}

        return handle

    def ask_at_once(
        self, first: Asked, second: Asked, said: Said | None = None, *, newest_first: bool = False
    ) -> None:
        """The second pull comes while the run of the first is on, after a forget if one is said."""
        self.gate.is_shut = True
        with ThreadPoolExecutor(2) as threads:
            dues, replies = [self.deadline_in(first)], [threads.submit(self.send, first)]
            self.settle(replies)
            if said is not None:
                self.forget(first.instance, said)
            dues.append(self.deadline_in(second))
            replies.append(threads.submit(self.send, second))
            self.settle(replies)
            while self.gate.held:
                self.gate.held.pop(-1 if newest_first else 0).set()
                self.settle(replies)
        self.gate.is_shut = False
        for asked, due, reply in zip((first, second), dues, replies, strict=True):
            self.check(asked, due, reply.result())
        self.ask([first, second])

    def forget(self, instance: str, said: Said) -> None:
        """The data changes, and what was made from it before is forgotten."""
        self.version += 1
        self.forgotten.append((instance, said, self.version))
        with self.apps[self.version % len(self.apps)].app_context():
            self.blueprints[instance].forget(**said)
        for app in self.apps if self.store.redis else ():
            store = process_of(app).cache._redis
            assert store is not None
            store.listen()  # which it does by itself five times a second

    def send(self, asked: Asked) -> TestResponse:
        given = {
            "appid": asked.appid,
            "timestamp": asked.timestamp,
            "path": asked.path,
            "query": urlencode(asked.query),
            "scene": asked.scene,
            "customMiniprogramVersion": asked.version,
            "token": self.token(asked),
            "lang": asked.lang,
        }
        if asked.dialect == "finclip":
            given = {"appId": given.pop("appid"), "timeStamp": given.pop("timestamp"), **given}
        sent = urlencode({name: value for name, value in given.items() if value is not None})
        client = self.apps[asked.process % len(self.apps)].test_client(use_cookies=False)
        return client.get(f"/{asked.instance}/{asked.page.kind}?{sent}")

    def token(self, asked: Asked) -> str | None:
        if asked.who is None or asked.who == "forged":
            return asked.who
        user_id, appid = asked.who, asked.appid
        if asked.who == "foreign":
            user_id, appid = USERS[0], APPIDS[appid == APPIDS[0]]
        with self.apps[0].app_context():
            return self.blueprints["a"].issue_token(user_id, appid=appid)

    def deadline_in(self, asked: Asked) -> Due:
        """What would come back now if nothing were cached."""
        told = Told(asked)
        if asked.page.login_required and told.proved is None:
            return Due(401)
        try:
            read = asked.page.read(cast(Pull, told))
        except KeyError:
            return Due(400)
        except Failed:
            return Due(500)
        user_id = told.proved if told.has_read_user else None
        of = {"page": asked.page.path, "appid": asked.appid, "user_id": user_id}
        since = [
            version
            for instance, said, version in self.forgotten
            if instance == asked.instance and all(said[name] == of[name] for name in said)
        ]
        return Due(200, read, max(since, default=0))

    def check(self, asked: Asked, due: Due, reply: TestResponse) -> None:
        if self.is_failing and reply.status_code == 500:
            return
        if reply.status_code != due.status:
            raise WrongAnswer(f"{asked} got {reply.status}, not {due}")
        if due.read is NO_DATA:
            if reply.data:
                raise WrongAnswer(f"{asked} got {reply.data!r}, not {due}")
            return
        got, of = reply.json, [asked.instance, asked.page.kind, asked.page.path, asked.appid]
        assert got is not None
        if got["of"] != of or got["read"] != json.loads(json.dumps(due.read)):
            raise WrongAnswer(f"{asked} got another's {got}, not {due}")
        if got["version"] < due.since:
            raise WrongAnswer(f"{asked} got {got}, which was forgotten before {due}")
        if self.clock.now - got["made_at"] > OVER_S:
            raise WrongAnswer(f"{asked} got {got} as late as {self.clock}")

    def settle(self, replies: Sequence[Future[TestResponse]] = ()) -> None:
        """Wait until all runs have ended or are held, and all pulls wait for those."""
        processes = [process_of(app) for app in self.apps]

        def are_held() -> bool:
            busy = 0
            for process in processes:
                with process.handler_executor._lock:
                    busy += process.handler_executor._threads - process.handler_executor._free
            leases = list(self.clock.leases)
            return busy == len(self.gate.held) + len(leases) and self.store.has_all(leases)

        def are_waited_for() -> bool:
            unanswered = sum(not reply.done() for reply in replies)
            under_way: list[Flight] = []
            for process in processes:
                with process.cache._flights._lock:
                    under_way += process.cache._flights._flights.values()
            waiting = sum(each in under_way for each in list(self.clock.waited_for))
            waiting += sum(not each.future.done() for each in list(self.clock.attempts))
            return unanswered == waiting + len(self.clock.alone)

        ends_at = time.monotonic() + PATIENCE_S
        # The first twice: a run that ended or began meanwhile changes who waits.
        while not (are_held() and are_waited_for() and are_held()):
            assert time.monotonic() < ends_at
            time.sleep(0.0002)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock, wait, wait_for_other = Clock(), Flight.wait, SharedRun.wait
    wait_for_attempt, run_alone = Attempt.wait, AnswerCache._run_alone

    def noted_wait(flight: Flight, until: float) -> bool:
        clock.waited_for.append(flight)
        try:
            return wait(flight, until)
        finally:
            clock.waited_for.remove(flight)

    def noted_wait_for_attempt(attempt: Attempt, until: float) -> bool:
        clock.attempts.append(attempt)
        try:
            return wait_for_attempt(attempt, until)
        finally:
            clock.attempts.remove(attempt)

    def noted_run_alone(cache: AnswerCache, miss: Any) -> Any:
        clock.alone.append(miss)
        try:
            return run_alone(cache, miss)
        finally:
            clock.alone.pop()

    def noted_wait_for_other(run: SharedRun, until: float) -> Any:
        clock.waits.lease = run._lease_key
        return wait_for_other(run, until)

    monkeypatch.setattr(Flight, "wait", noted_wait)
    monkeypatch.setattr(Attempt, "wait", noted_wait_for_attempt)
    monkeypatch.setattr(AnswerCache, "_run_alone", noted_run_alone)
    monkeypatch.setattr(SharedRun, "wait", noted_wait_for_other)
    # The client of Redis too: it hands times to the executor, and each call would be late.
    here = (answers, entry, runner, single_flight)
    for module in (*here, redis_format, redis_store, executor, redis_client):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(answers, "TTLCache", partial(TTLCache, timer=clock.monotonic))
    monkeypatch.setattr(executor, "_IDLE_S", 0.2)  # or the threads of hundreds of apps pile up
    return clock


def in_memory(blueprints: Sequence[Prefetch], **config: object) -> Flask:
    app = Flask("cache_machine")
    app.logger.disabled = True  # handlers fail all the time
    app.config |= {"SECRET_KEY": "a key of the shop", "PREFETCH_APPIDS": APPIDS}
    app.config |= {"PREFETCH_DEADLINE": PATIENCE_S} | config
    for blueprint in blueprints:
        app.register_blueprint(blueprint)
    return app


def in_memory_fast(blueprints: Sequence[Prefetch], **config: object) -> Flask:
    app = in_memory(blueprints, **config)
    app.wsgi_app = fast_path(app)  # type: ignore[method-assign]
    return app


@pytest.fixture
def over_redis(redis_server: Any, redis: Any, patient: None) -> Store:
    """Two processes that share answers, and keep them in memory too."""
    makers = [partial(make, PREFETCH_CACHE_URL=redis_server.url) for make in IN_MEMORY.values()]
    return Store(makers, redis)


@pytest.fixture
def in_redis_alone(redis_server: Any, redis: Any, patient: None) -> Store:
    """Two processes that share answers, and have nothing but what is shared."""
    alone = partial(in_memory, PREFETCH_CACHE_URL=redis_server.url, PREFETCH_CACHE_BYTES=0)
    return Store([alone, alone], redis)


IN_MEMORY = {"memory": in_memory, "memory, fast path": in_memory_fast}


def search(
    store: Store, clock: Clock, *, times: int, tried: tuple[Page, ...] = (), **given: Any
) -> None:
    """Run the machine; raises `WrongAnswer` where it finds one."""
    machine = type("Pulls", (Pulls,), {"store": store, "clock": clock, "tried": tried})
    chosen = settings(
        # After ten examples Hypothesis turns to variations of them; new ones find more here.
        max_examples=10,
        stateful_step_count=40,
        deadline=None,
        database=None,
        derandomize=False,
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        **given,
    )
    for _ in range(times):
        run_state_machine_as_test(machine, settings=chosen)


def wrong_answer(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch, paths: Sequence[str | None] = ()
) -> str:
    """What a long search finds, always with one of the pages of these paths among the four."""
    check, found = Pulls.check, []

    def noting_check(*said: Any) -> None:
        try:
            check(*said)
        except WrongAnswer as error:
            found.append(str(error))
            raise

    monkeypatch.setattr(Pulls, "check", noting_check)
    tried = tuple(page for page in PAGES if page.path in paths)
    try:
        search(store, clock, times=100, tried=tried, phases=[Phase.generate])
    except (WrongAnswer, Flaky):  # threads and Redis may not let it find the same a second time
        if not found:
            raise
    return found[0] if found else ""


@pytest.mark.slow
@pytest.mark.parametrize("make_app", IN_MEMORY.values(), ids=list(IN_MEMORY))
def test_each_answer_is_the_pulls_own(make_app: MakeApp, clock: Clock) -> None:
    """Whatever came before: no other's answer, none that was forgotten, none that is too old."""
    search(Store([make_app]), clock, times=3 * SEARCHES)


def test_each_answer_is_the_pulls_own_over_redis(over_redis: Store, clock: Clock) -> None:
    """The same where two processes share, through restarts, and with keys mixed up."""
    search(over_redis, clock, times=2 * SEARCHES)


def test_each_answer_is_the_pulls_own_in_redis_alone(in_redis_alone: Store, clock: Clock) -> None:
    """The same where each answer that was not just made has to come out of Redis."""
    search(in_redis_alone, clock, times=SEARCHES)


def written_as(weak: Callable[[Any], Any]) -> Weaken:
    encoded = key.encoded
    return lambda patch: patch.setattr(key, "encoded", lambda value: encoded(weak(value)))


def scoped_as(weak: Callable[[str], str]) -> Weaken:
    encoded = key.encoded
    return lambda patch: patch.setattr(
        handlers, "encoded", lambda value: encoded(value and weak(value))
    )


def valued_as(weak: Callable[[bytes], bytes]) -> Weaken:
    encoded = AskedFor.encoded
    return lambda patch: patch.setattr(AskedFor, "encoded", lambda *args: weak(encoded(*args)))


def without_length(patch: pytest.MonkeyPatch) -> None:
    for module in (key, request):
        patch.setattr(
            module, "encoded", lambda value: b"-" if value is None else f"s{value}".encode()
        )


def with_first_value(patch: pytest.MonkeyPatch) -> None:
    encoded_list = key.encoded_list
    patch.setattr(request, "encoded_list", lambda values: encoded_list(values[:1]))


def with_32_names(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Reads, "names", lambda reads: tuple(sorted(reads._names))[:32])


def unnoted(missed: str) -> Weaken:
    note = Reads.note

    def note_others(reads: Reads, name: str) -> None:
        if name != missed:
            note(reads, name)

    return lambda patch: patch.setattr(Reads, "note", note_others)


def never(owner: type, name: str) -> Weaken:
    return lambda patch: patch.setattr(owner, name, lambda *_: False)


def joining_any_run(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Outcome, "answers", lambda outcome, *_: outcome.key is not None)


def joining_forgotten_runs(patch: pytest.MonkeyPatch) -> None:
    # What comes first in a flight's name says which forgets came before it.
    name = AnswerCache._flight_name
    patch.setattr(AnswerCache, "_flight_name", lambda *args: name(*args)[-24:])


def begun_when_ended(patch: pytest.MonkeyPatch) -> None:
    run = Runner.run

    def run_before(runner: Runner, scope: Scope, asked: Request, handle: Handle) -> Outcome:
        noted, body = Reads(), Future[bytes]()
        try:
            body.set_result(handle(noted))
        except Exception as error:  # noqa: BLE001 (raised again where errors of runs are handled)
            body.set_exception(error)

        def read_again(reads: Reads) -> bytes:
            for name in noted.names():
                reads.note(name)
            return body.result()

        return run(runner, scope, asked, read_again)

    patch.setattr(Runner, "run", run_before)


WEAKENED: dict[str, Weaken] = {
    "appid": written_as(lambda value: None if value in APPIDS else value),
    "user": lambda patch: patch.setattr(key, "_user", lambda _: b""),
    "which user": lambda patch: patch.setattr(
        key, "_user", lambda user_id: b"-" if user_id is None else b"s"
    ),
    "name": written_as(lambda value: "" if str(value).startswith("query=") else value),
    "presence": valued_as(lambda value: b"l1:s0:" if value == b"-" else value),
    "length": without_length,
    "all but the first value": with_first_value,
    "all but 32 names": with_32_names,
    "instance": scoped_as(lambda name: name.rpartition(".")[2]),
    "kind": scoped_as(lambda name: name.partition(".")[0]),
    "page": scoped_as(lambda name: name if "." in name else ""),
    "forget": never(Invalidations, "has_invalidated"),
    "forget before a run joined": joining_forgotten_runs,
    "forget during a run": begun_when_ended,
    "end of staleness": never(Entry, "is_expired"),
    "whom a run is for": joining_any_run,
} | {
    f"note of {name}": unnoted(name)
    for name in (
        *("user_id", "path", "scene", "version", "timestamp", "query", "query=b"),
        *("extra", "extra=lang", "dialect"),
    )
}


# The pages whose answers show a weakness, where only some do.
SHOWN_BY: dict[str, Sequence[str | None]] = {
    "user": ["user"],
    "which user": ["user"],
    "name": ["crossing", "crossing back"],
    "presence": ["names", "lists"],
    "length": ["names", "lists"],
    "all but the first value": ["lists", "all"],
    "all but 32 names": ["wide"],
    "kind": [None],
    "page": ["names", "lists"],
    "whom a run is for": ["user", "users"],
    "note of user_id": ["user"],
    "note of path": [None],
    "note of scene": ["client"],
    "note of version": ["client"],
    "note of timestamp": ["timestamp"],
    "note of query": ["all"],
    "note of extra": ["all extra"],
    "note of extra=lang": ["extra"],
    "note of dialect": ["dialect"],
    "note of query=b": ["lists", "adaptive", "crossing"],
    "user it is for": ["user"],
}


@pytest.mark.weakened
@pytest.mark.parametrize("name", WEAKENED)
def test_weakened_keys_are_caught(name: str, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one part of the care left out, the same machine finds a wrong answer."""
    WEAKENED[name](monkeypatch)
    assert wrong_answer(Store([in_memory]), clock, monkeypatch, SHOWN_BY.get(name, ()))


# These two are seen to within a process, whatever it shares.
IN_REDIS = [name for name in WEAKENED if name not in ("end of staleness", "whom a run is for")]


@pytest.mark.weakened
@pytest.mark.parametrize("name", IN_REDIS)
def test_weakened_keys_are_caught_in_redis(
    name: str, in_redis_alone: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same where nothing is kept elsewhere."""
    WEAKENED[name](monkeypatch)
    assert wrong_answer(in_redis_alone, clock, monkeypatch, SHOWN_BY.get(name, ()))


def taken_as(weak: Callable[[Entry], Entry]) -> Weaken:
    read = RedisFormat.read_entry

    def read_less(*args: Any, **said: Any) -> Entry | None:
        entry = read(*args, **said)
        return entry and weak(entry)

    return lambda patch: patch.setattr(RedisFormat, "read_entry", read_less)


def checked_without_name(patch: pytest.MonkeyPatch) -> None:
    sign, verify = Digests.sign, Digests.verify
    patch.setattr(Digests, "sign", lambda self, *parts: sign(self, parts[-1]))
    patch.setattr(Digests, "verify", lambda self, digest, *p: verify(self, digest, p[-1]))


WEAKENED_SHARING: dict[str, Weaken] = {
    "name under which it was kept": checked_without_name,
    "age": taken_as(lambda entry: replace(entry, made_at=math.inf)),
    "user it is for": taken_as(lambda entry: replace(entry, user_id=None)),
    "when its run began": taken_as(lambda entry: replace(entry, position=(2**64, 0))),
    "what others forgot": never(RedisInvalidations, "_take"),
}


@pytest.mark.weakened
@pytest.mark.parametrize("name", WEAKENED_SHARING)
def test_weakened_sharing_is_caught(
    name: str, over_redis: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What only answers out of Redis need is left out."""
    WEAKENED_SHARING[name](monkeypatch)
    assert wrong_answer(over_redis, clock, monkeypatch, SHOWN_BY.get(name, ()))
