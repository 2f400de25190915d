"""A handler that aborts with 4xx refuses the pull on purpose: no error, and no stale answer."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from flask import Flask, abort, got_request_exception, jsonify, make_response
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.routing import RequestRedirect
from werkzeug.wrappers import Response

from prefetch_kit import CachePolicy, Prefetch, Pull, fast_path, pull_refused

App = Callable[..., Flask]
Ask = Callable[..., Response]
Logged = Callable[[], list[str]]
Until = Callable[[Callable[[], bool]], None]
ALWAYS_STALE = CachePolicy(fresh=1e-6)


class Base(DeclarativeBase):
    pass


class Product(Base):
    __tablename__ = "products"
    id: Mapped[int] = mapped_column(primary_key=True)


def by_abort(_: Pull) -> object:
    abort(404)


def by_raising(_: Pull) -> object:
    raise NotFound("canary")


class Lazy(Mapping[str, object]):
    """Data that is looked for only when it is written as JSON."""

    def __iter__(self) -> Iterator[str]:
        return iter("a")

    def __len__(self) -> int:
        return 1

    def __getitem__(self, _: str) -> object:
        abort(404)


def by_lazy_data(_: Pull) -> object:
    return [Lazy()]


def by_response(_: Pull) -> object:
    abort(make_response("canary", 404))


def by_returning(_: Pull) -> object:
    return make_response(jsonify(error="canary"), 404)


@pytest.fixture
def errors() -> Iterator[list[BaseException]]:
    """What error trackers heard of."""
    heard: list[BaseException] = []

    def hear(_: Flask, exception: BaseException) -> None:
        heard.append(exception)

    with got_request_exception.connected_to(hear):
        yield heard


@pytest.mark.parametrize("cache", [None, 30])
@pytest.mark.parametrize("wrap", [lambda app: app.wsgi_app, fast_path])
@pytest.mark.parametrize("handler", [by_abort, by_raising, by_lazy_data, by_response, by_returning])
def test_an_abort_is_a_refusal(
    make_app: App,
    prefetch: Prefetch,
    ask: Ask,
    logged: Logged,
    errors: list[BaseException],
    cache: float | None,
    wrap: Callable[[Flask], Any],
    handler: Callable[[Pull], object],
) -> None:
    """An empty body, a reason, one line at INFO; no error for the log or for a tracker."""
    prefetch.pre_fetch(cache=cache)(handler)
    app, facts = make_app(prefetch), list[dict[str, object]]()
    app.wsgi_app = wrap(app)  # type: ignore[method-assign]
    with pull_refused.connected_to(lambda _, **given: facts.append(given), sender=app):
        reply = ask(app)
    assert (reply.status_code, reply.data) == (404, b"")
    assert reply.headers["X-Prefetch-Refused"] == "aborted"
    assert [(fact["status"], fact["reason"], fact["incident"]) for fact in facts] == [
        (404, "aborted", None)
    ]
    (line,) = logged()
    assert line.startswith("INFO pre_fetch refused (404 aborted): ")
    assert errors == []


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 418, 422, 429, 451])
@pytest.mark.parametrize("testing", [True, False])
def test_the_status_is_that_of_the_abort(
    make_app: App, prefetch: Prefetch, status: int, testing: bool
) -> None:
    """For every 4xx, and under TESTING too: it is no mistake."""
    prefetch.pre_fetch()(lambda _: abort(status))
    client = make_app(prefetch, TESTING=testing).test_client()
    reply = client.get("/prefetch/pre_fetch?appid=wx1&timestamp=1700000000")
    assert (reply.status_code, reply.data) == (status, b"")
    assert reply.headers["X-Prefetch-Refused"] == "aborted"


def missing_key(_: Pull) -> object:
    return MultiDict[str, str]()["quantity"]


def redirect(_: Pull) -> object:
    raise RequestRedirect("/elsewhere")


def respond_302(_: Pull) -> object:
    abort(make_response("", 302))


def without_status(_: Pull) -> object:
    raise HTTPException


@pytest.mark.parametrize(
    "handler", [lambda _: abort(500), lambda _: abort(503), redirect, respond_302, without_status]
)
def test_other_http_errors_are_failures(
    make_app: App, prefetch: Prefetch, ask: Ask, errors: list[BaseException], handler: Any
) -> None:
    """A page that moved or a server that fails is nothing a pull could be refused for."""
    prefetch.pre_fetch()(handler)
    reply = ask(make_app(prefetch))
    assert (reply.status_code, len(errors)) == (500, 1)
    assert reply.headers["X-Prefetch-Refused"].startswith("failed; incident=")


def test_a_missing_key_of_a_form_is_a_failure(
    make_app: App, prefetch: Prefetch, ask: Ask, errors: list[BaseException]
) -> None:
    """Werkzeug makes a 400 of it, for views; in a handler nothing came that could lack it."""
    prefetch.pre_fetch()(missing_key)
    assert ask(make_app(prefetch)).status_code == 500
    assert [isinstance(error, KeyError) for error in errors] == [True]


def test_get_or_404(make_app: App, prefetch: Prefetch, ask: Ask) -> None:
    """As Flask-SQLAlchemy has it."""
    db = SQLAlchemy(model_class=Base)
    prefetch.pre_fetch(cache=30)(lambda p: db.get_or_404(Product, int(p.query["id"])))
    app = make_app(prefetch, SQLALCHEMY_DATABASE_URI="sqlite://")
    db.init_app(app)
    with app.app_context():
        db.create_all()
        db.session.add(Product(id=1))
        db.session.commit()
    replies = [ask(app, query=f"id={n}") for n in (1, 2, 1, 2)]
    assert [reply.status_code for reply in replies] == [200, 404, 200, 404]
    assert replies[0].data == replies[2].data == b'{"id":1}'
    with app.app_context():
        db.engine.dispose()


def test_the_apps_own_sentence_is_in_the_log(
    make_app: App, prefetch: Prefetch, ask: Ask, logged: Logged
) -> None:
    """And not Werkzeug's, which is for people at a browser."""
    prefetch.pre_fetch("own")(lambda _: abort(410, "sold out\nsince May"))
    prefetch.pre_fetch("none")(lambda _: abort(410))
    app = make_app(prefetch)
    ask(app, path="own"), ask(app, path="none")
    assert logged() == [
        "INFO pre_fetch refused (410 aborted): the app aborted it: 'sold out\\nsince May'",
        "INFO pre_fetch refused (410 aborted): the app aborted it",
    ]


@pytest.mark.parametrize("login_required", [True, False])
def test_a_verifier_may_abort(
    make_app: App, prefetch: Prefetch, ask: Ask, errors: list[BaseException], login_required: bool
) -> None:
    """Wherever it is asked, by the handler or before it."""
    prefetch.token_verifier(lambda _appid, _token: abort(403))
    prefetch.pre_fetch(login_required=login_required)(lambda pull: [pull.user_id])
    reply = ask(make_app(prefetch), token="t")
    assert (reply.status_code, reply.headers["X-Prefetch-Refused"]) == (403, "aborted")
    assert errors == []


def test_a_refusal_is_not_kept(make_app: App, prefetch: Prefetch, ask: Ask) -> None:
    """The next pull asks the handler again."""
    there: list[str] = []
    prefetch.pre_fetch(cache=30)(lambda _: there or abort(404))
    app = make_app(prefetch)
    assert [ask(app).status_code for _ in range(2)] == [404, 404]
    there.append("x")
    assert ask(app).data == b'["x"]'


def test_the_stale_answer_goes(
    make_app: App, prefetch: Prefetch, ask: Ask, until: Until, errors: list[BaseException]
) -> None:
    """What was taken away is served no more, though a failing handler's last answer is."""
    state, runs = ["x"], list[None]()

    @prefetch.pre_fetch(cache=ALWAYS_STALE)
    def handler(_: Pull) -> object:
        runs.append(None)
        return {"x": "x", "gone": None}[state[0]] or abort(404)

    app = make_app(prefetch)
    assert ask(app).status_code == 200
    state[0] = "gone"
    until(lambda: ask(app).status_code == 404)
    assert [ask(app).status_code for _ in range(3)] == [404] * 3
    assert errors == []


@pytest.mark.parametrize(
    "read", [lambda _: None, lambda pull: pull.scene, lambda pull: pull.timestamp]
)
def test_all_stale_answers_go_at_once(
    make_app: App,
    prefetch: Prefetch,
    ask: Ask,
    until: Until,
    logged: Logged,
    read: Callable[[Pull], object],
) -> None:
    """Also those of runs that read something else, and whatever the run that aborts reads."""
    state = ["id"]

    @prefetch.pre_fetch(cache=ALWAYS_STALE)
    def handler(pull: Pull) -> object:
        if state[0] == "gone":
            abort(404, str(read(pull)))
        return pull.query.get(state[0])

    app = make_app(prefetch)
    ask(app, query="id=1")
    state[0] = "a"
    ask(app, query="id=2&a=1")
    state[0] = "gone"
    assert ask(app, query="id=1&a=1").status_code == 200
    until(lambda: any("no pull waited for was refused (404" in line for line in logged()))
    assert ask(app, query="id=1&a=1").status_code == 404


def test_a_failure_keeps_the_stale_answer(make_app: App, prefetch: Prefetch, ask: Ask) -> None:
    """Only an abort on purpose takes it away."""
    state = [200]

    @prefetch.pre_fetch(cache=ALWAYS_STALE)
    def handler(_: Pull) -> object:
        return "x" if state[0] == 200 else abort(state[0])

    app = make_app(prefetch)
    ask(app)
    state[0] = 503
    assert {ask(app).status_code for _ in range(20)} == {200}


@pytest.mark.usefixtures("patient")
def test_the_stale_answer_goes_in_redis_too(
    prefetch: Prefetch,
    ask: Ask,
    until: Until,
    process: Callable[..., Flask],
    redis: Any,
    settled: Callable[[], None],
) -> None:
    """A process that comes later finds nothing of it there."""
    state = ["x"]

    @prefetch.pre_fetch(cache=ALWAYS_STALE)
    def handler(pull: Pull) -> object:
        if state[0] == "gone":
            abort(404)
        return [state[0], pull.query.get("id")]

    one = process(prefetch)
    assert ask(one, query="id=1").status_code == 200
    until(lambda: bool(redis.keys("*:answer:*")))
    state[0] = "gone"
    until(lambda: ask(one, query="id=1").status_code == 404)
    until(lambda: not redis.keys("*:answer:*"))
    settled()
    assert ask(process(prefetch), query="id=1").status_code == 404
