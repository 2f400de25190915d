"""Forgetting makes kept answers unreachable at once: those named, and no others."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count, product
from threading import Event

import pytest
from flask import Blueprint, Flask
from werkzeug.wrappers import Response

from prefetch_kit import CachePolicy, Prefetch, Pull
from prefetch_kit.cache.entry import Entry
from prefetch_kit.cache.invalidation import Invalidations

App = Callable[..., Flask]
Ask = Callable[..., Response]
Until = Callable[[Callable[[], bool]], None]
Target = tuple[str, str | None, str]

PAGES = ("pages/a", "pages/b")
USERS = ("alice", "bob", None)
APPIDS = ("wx1", "wx2")
TARGETS: list[Target] = list(product(PAGES, USERS, APPIDS))


def forget(app: Flask, prefetch: Prefetch, **what: str | None) -> None:
    with app.app_context():
        prefetch.forget(what.get("page"), user_id=what.get("user_id"), appid=what.get("appid"))


@pytest.fixture
def shop(make_app: App, prefetch: Prefetch) -> Flask:
    """Two pages for each user, a fallback, one for all users, and the periodic pull."""
    ran = count(1)
    for page in (*PAGES, None):
        prefetch.pre_fetch(page, cache=600)(lambda pull: [pull.user_id, next(ran)])
    prefetch.pre_fetch("pages/all", cache=600)(lambda _: next(ran))
    prefetch.period_fetch(cache=600)(lambda pull: [pull.user_id, next(ran)])
    prefetch.token_verifier(lambda _appid, token: token)
    return make_app(prefetch, PREFETCH_APPIDS=["wx1", "wx2"])


@pytest.mark.slow
@pytest.mark.parametrize("page", [None, *PAGES])
@pytest.mark.parametrize("user", [None, "alice", "bob", "carol"])
@pytest.mark.parametrize("appid", [None, "wx1"])
def test_what_is_named_is_forgotten_and_nothing_else(
    shop: Flask, prefetch: Prefetch, ask: Ask, page: str | None, user: str | None, appid: str | None
) -> None:
    """Each of the three narrows what is forgotten."""

    def answers() -> dict[Target, bytes]:
        return {p: ask(shop, path=p[0], token=p[1], appid=p[2]).data for p in TARGETS}

    before = answers()
    assert answers() == before
    forget(shop, prefetch, page=page, user_id=user, appid=appid)
    after = answers()
    named = {
        p
        for p in TARGETS
        if page in (None, p[0]) and user in (None, p[1]) and appid in (None, p[2])
    }
    assert {p for p in TARGETS if after[p] != before[p]} == named
    assert answers() == after


@pytest.mark.parametrize(
    ("what", "kept"),
    [
        ({}, [False, False, False]),
        ({"user_id": "alice"}, [False, True, False]),
        ({"appid": "wx1"}, [False, False, False]),
        ({"page": "pages/a"}, [True, True, True]),
        ({"page": "pages/all"}, [True, False, True]),
        ({"page": "pages/all", "user_id": "alice"}, [True, True, True]),
    ],
)
def test_pages_without_a_user_or_a_page(
    shop: Flask, prefetch: Prefetch, ask: Ask, what: dict[str, str], kept: list[bool]
) -> None:
    """Naming a user reaches only what depends on one; naming a page, only that page."""
    pulls: list[tuple[str, str | None]] = [
        ("pre_fetch", "pages/elsewhere"),
        ("pre_fetch", "pages/all"),
        ("period_fetch", None),
    ]

    def answers() -> list[bytes]:
        return [ask(shop, f"/prefetch/{at}", path=path, token="alice").data for at, path in pulls]

    before = answers()
    forget(shop, prefetch, **what)
    assert [old == new for old, new in zip(before, answers(), strict=True)] == kept


@pytest.mark.parametrize("page", ["pages/elsewhere", "", "/pages/a", "pages/a "])
def test_page_without_its_own_handler_is_an_error(
    shop: Flask, prefetch: Prefetch, page: str
) -> None:
    """A misspelt page would otherwise stay as it was, unseen."""
    with pytest.raises(ValueError, match="has no handler of its own"):
        forget(shop, prefetch, page=page)


def test_forgetting_needs_an_app(prefetch: Prefetch) -> None:
    """A blueprint may be part of several."""
    with pytest.raises(RuntimeError, match="application context"):
        prefetch.forget()


def test_all_registrations_are_forgotten_and_no_other_instance(
    make_app: App, prefetch: Prefetch, ask: Ask
) -> None:
    """One instance, wherever it was registered in this app."""
    ran = count(1)
    other, nested = Prefetch("other", __name__), Blueprint("nested", __name__)
    for each in (prefetch, other):
        each.pre_fetch("pages/index/index", cache=600)(lambda _: next(ran))
    app, elsewhere = make_app(prefetch), make_app(prefetch)
    app.register_blueprint(prefetch, name="again", url_prefix="/again")
    app.register_blueprint(other, url_prefix="/other")
    nested.register_blueprint(prefetch, url_prefix="/inside")
    app.register_blueprint(nested, url_prefix="/nested")
    prefixes = [
        (app, "/prefetch"),
        (app, "/again"),
        (app, "/nested/inside"),
        (app, "/other"),
        (elsewhere, "/prefetch"),
    ]

    def answers() -> list[object]:
        return [ask(each, f"{prefix}/pre_fetch").json for each, prefix in prefixes]

    assert answers() == [1, 2, 3, 4, 5]
    forget(app, prefetch, page="pages/index/index")
    assert answers() == [6, 7, 8, 4, 5]


def test_forgetting_within_a_request(make_app: App, prefetch: Prefetch, ask: Ask) -> None:
    """A view that sells something forgets what its buyer saw."""
    ran = count(1)
    prefetch.pre_fetch(cache=600)(lambda _: next(ran))
    app = make_app(prefetch)

    @app.get("/buy")
    def buy() -> str:
        prefetch.forget()
        return "sold"

    assert [ask(app).json, ask(app).json] == [1, 1]
    ask(app, "/buy")
    assert [ask(app).json, ask(app).json] == [2, 2]


class Slow:
    """A handler that answers with the version it saw first, in runs that can be held up."""

    def __init__(self, gate: Event) -> None:
        self.version = 1
        self.held_from = 1
        self.runs = 0
        self.inside, self.is_done = Event(), False
        self._gate = gate

    def __call__(self, _: Pull) -> int:
        self.runs += 1
        version, is_held = self.version, self.runs == self.held_from
        if is_held:
            self.inside.set()
            self._gate.wait()
            self.is_done = True
        return version


def test_run_that_began_before_is_not_waited_for(
    make_app: App, prefetch: Prefetch, ask: Ask, gate: Event
) -> None:
    """It may hold what was forgotten: only pulls that came before get its answer."""
    slow = Slow(gate)
    prefetch.pre_fetch(cache=600, deadline=60)(slow)
    app = make_app(prefetch)
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(ask, app)
        assert slow.inside.wait(30)
        slow.version = 2
        forget(app, prefetch)
        assert ask(app).json == 2
        gate.set()
        assert early.result().json == 1
    assert {ask(app).json for _ in range(5)} == {2}


def test_refresh_that_began_before_is_not_kept(
    make_app: App, prefetch: Prefetch, ask: Ask, gate: Event, until: Until
) -> None:
    """Nor is what it was to replace ever served again."""
    slow = Slow(gate)
    slow.held_from = 2
    prefetch.pre_fetch(cache=CachePolicy(fresh=1e-6), deadline=60)(slow)
    app = make_app(prefetch)
    assert [ask(app).json, ask(app).json] == [1, 1]
    assert slow.inside.wait(30)
    slow.version = 2
    forget(app, prefetch)
    assert ask(app).json == 2
    gate.set()
    until(lambda: slow.is_done)
    assert {ask(app).json for _ in range(50)} == {2}


def test_run_that_began_later_wins(
    make_app: App, prefetch: Prefetch, ask: Ask, gate: Event
) -> None:
    """However late the one before it ends: what it read may be old by then."""
    slow = Slow(gate)
    prefetch.pre_fetch(cache=600, deadline=60)(slow)
    app = make_app(prefetch)
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(ask, app)
        assert slow.inside.wait(30)
        slow.version = 2
        forget(app, prefetch, user_id="nobody")
        assert ask(app).json == 2
        gate.set()
        assert early.result().json == 1
    assert {ask(app).json for _ in range(5)} == {2}


def test_answers_of_one_user_under_way_are_not_shared_after_a_ban(
    make_app: App, prefetch: Prefetch, ask: Ask, gate: Event
) -> None:
    """Naming what to forget holds for runs under way as well."""
    slow = Slow(gate)
    prefetch.pre_fetch("pages/a", cache=600, deadline=60)(lambda pull: [pull.user_id, slow(pull)])
    prefetch.token_verifier(lambda _appid, token: token)
    app = make_app(prefetch)
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(ask, app, path="pages/a", token="alice")
        assert slow.inside.wait(30)
        slow.version = 2
        forget(app, prefetch, page="pages/a", user_id="alice", appid="wx1")
        assert ask(app, path="pages/a", token="alice").json == ["alice", 2]
        gate.set()
        assert early.result().json == ["alice", 1]
    assert ask(app, path="pages/a", token="alice").json == ["alice", 2]


def test_more_marks_than_are_kept_forget_more_not_less(
    shop: Flask, prefetch: Prefetch, ask: Ask
) -> None:
    """What was forgotten stays so; what else is that old goes too; what is new is kept."""

    def answers() -> list[bytes]:
        return [ask(shop, path="pages/a", token=user).data for user in ("alice", "bob")]

    old = answers()
    forget(shop, prefetch, user_id="alice")
    with shop.app_context():
        for i in range(10_001):
            prefetch.forget(user_id=f"user{i}")
    new = answers()
    assert not set(new) & set(old)
    assert answers() == new
    forget(shop, prefetch, user_id="bob")
    assert [a == b for a, b in zip(answers(), new, strict=True)] == [True, False]


def test_same_mark_again_and_again_costs_the_others_nothing(
    shop: Flask, prefetch: Prefetch, ask: Ask
) -> None:
    """One busy buyer must not empty the cache for everybody."""
    kept = ask(shop, path="pages/a", token="bob").data
    with shop.app_context():
        for _ in range(10_001):
            prefetch.forget(user_id="alice")
    assert ask(shop, path="pages/a", token="bob").data == kept


@pytest.mark.slow
def test_what_is_forgotten_again_is_never_back() -> None:
    """Asked while the same mark is added again and again, without a lock in common."""
    log, mark = Invalidations(), ("prefetch", None, "alice", None)
    entry = Entry(b"x", 0, 0, 9, 9, log.last, "prefetch", "pages/a", "wx1", "alice")
    log.add([mark])
    is_expired = Event()

    def again() -> None:
        while not is_expired.is_set():
            log.add([mark])

    with ThreadPoolExecutor(1) as other:
        other.submit(again)
        found = [log.has_invalidated(entry) for _ in range(100_000)]
        is_expired.set()
    assert all(found)
