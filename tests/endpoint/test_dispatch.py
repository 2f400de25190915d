"""The way of a pull: the order of its refusals, and what a failing handler costs."""

import re
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest
from blinker import NamedSignal
from flask import Flask, abort, got_request_exception
from werkzeug.wrappers import Response

from prefetch_kit import NO_DATA, Prefetch, Pull, pull_refused, pull_served

CANARY = "canary-body"
App = Callable[..., Flask]
Ask = Callable[..., Response]
Logged = Callable[[], list[str]]


class Unprintable(Exception):
    def __str__(self) -> NoReturn:
        raise RuntimeError("no text")

    __repr__ = __str__


class Strange(BaseException):
    """Neither an Exception nor one that Python itself raises."""


def recurse(pull: Pull) -> object:
    return recurse(pull)


def divide(_pull: Pull) -> object:
    return 1 / 0


def call_abort(_pull: Pull) -> object:
    abort(503, CANARY)


def raising(error: BaseException) -> Callable[[Pull], object]:
    def handler(_pull: Pull) -> NoReturn:
        raise error

    return handler


def returning(junk: object) -> Callable[[Pull], object]:
    return lambda _pull: junk


RAISING = [
    raising(ValueError(CANARY)),
    raising(KeyError(CANARY)),
    raising(SystemExit(CANARY)),
    raising(SystemExit(0)),
    raising(GeneratorExit(CANARY)),
    raising(MemoryError(CANARY)),
    raising(StopIteration(CANARY)),
    raising(AssertionError()),
    raising(TimeoutError(CANARY)),
    raising(Strange(CANARY)),
    raising(Unprintable(CANARY)),
    raising(ExceptionGroup(CANARY, [ValueError(CANARY)])),
    raising(BaseExceptionGroup(CANARY, [SystemExit(1)])),
    raising(UnicodeDecodeError("utf-8", CANARY.encode(), 0, 1, CANARY)),
    recurse,
    divide,
    call_abort,
]
RETURNING = [
    returning(None),
    returning({CANARY}),
    returning([CANARY, {1}]),
    returning([CANARY, float("nan")]),
    returning(iter(CANARY)),
    returning([CANARY, "\ud800"]),
    returning(f"{CANARY}\ud800"),
    returning(object()),
    returning(({"news": CANARY}, 201)),
]


@pytest.mark.parametrize("handler", RAISING + RETURNING)
def test_failing_handler_is_refused_with_an_incident(
    make_app: App,
    prefetch: Prefetch,
    ask: Ask,
    logged: Logged,
    handler: Callable[[Pull], object],
) -> None:
    """500 without a body; header and log share the incident; the log has the traceback."""
    prefetch.pre_fetch("pages/index/index")(handler)
    app, errors = make_app(prefetch), list[object]()
    with got_request_exception.connected_to(lambda _, exception: errors.append(exception), app):
        reply = ask(app)
    assert (reply.status_code, reply.data) == (500, b"")
    shown = re.fullmatch("failed; incident=([0-9a-f]{12})", reply.headers["X-Prefetch-Refused"])
    assert shown
    assert CANARY not in str(reply.headers)
    (line,) = logged()
    first = f"ERROR pre_fetch of page 'pages/index/index' failed (incident {shown[1]})\n"
    assert line.startswith(first)
    assert "Traceback (most recent call last)" in line
    assert len(errors) == 1


def test_coroutine_is_refused(make_app: App, prefetch: Prefetch, ask: Ask) -> None:
    """A plain function that returns a coroutine slips past decoration, and fails."""

    async def load() -> None: ...

    coroutine = load()
    prefetch.pre_fetch()(returning(coroutine))
    assert (reply := ask(make_app(prefetch))).status_code == 500
    assert reply.data == b""
    coroutine.close()


@pytest.mark.parametrize("size", [2, 1_000_000])
def test_too_large_answer_is_refused(
    make_app: App, prefetch: Prefetch, ask: Ask, logged: Logged, size: int
) -> None:
    """What a phone would not keep has its own reason, and the log names both sizes."""
    prefetch.pre_fetch()(returning("x" * size))
    reply = ask(make_app(prefetch, PREFETCH_MAX_BYTES=1))
    assert (reply.status_code, reply.data) == (500, b"")
    assert reply.headers["X-Prefetch-Refused"].startswith("too-large; incident=")
    assert f"the answer is {size} bytes, the limit 1" in logged()[0]


@pytest.mark.parametrize(("size", "lines"), [(100, 0), (101, 1)])
def test_large_answer_is_warned_of(
    make_app: App, prefetch: Prefetch, ask: Ask, logged: Logged, size: int, lines: int
) -> None:
    """Above PREFETCH_WARN_BYTES the answer goes out and the log says so."""
    prefetch.pre_fetch()(returning("x" * size))
    reply = ask(make_app(prefetch, PREFETCH_WARN_BYTES=100))
    assert len(reply.data) == size
    assert [f"answered {size} bytes" in line for line in logged()] == [True] * lines


def test_keyboard_interrupt_is_let_through(make_app: App, prefetch: Prefetch) -> None:
    """Ctrl-C at a development server ends it."""
    prefetch.pre_fetch()(raising(KeyboardInterrupt()))
    query = {"appid": "wx1", "timestamp": "1700000000"}
    with pytest.raises(KeyboardInterrupt):
        make_app(prefetch).test_client().get("/prefetch/pre_fetch", query_string=query)


@pytest.mark.parametrize(
    ("config", "raised"),
    [
        ({"TESTING": True}, True),
        ({"PROPAGATE_EXCEPTIONS": True}, True),
        ({"TESTING": True, "PROPAGATE_EXCEPTIONS": False}, False),
        ({}, False),
    ],
)
@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_failure_is_raised_on_where_the_app_asks_for_it(
    make_app: App,
    prefetch: Prefetch,
    config: dict[str, object],
    raised: bool,
    error: type[BaseException],
) -> None:
    """Under TESTING and PROPAGATE_EXCEPTIONS a test sees its own exception, as from any view."""
    prefetch.pre_fetch()(raising(error(CANARY)))
    app = make_app(prefetch, **config)
    client, query = app.test_client(), {"appid": "wx1", "timestamp": "1700000000"}
    if raised:
        with pytest.raises(error, match=CANARY):
            client.get("/prefetch/pre_fetch", query_string=query)
    else:
        assert client.get("/prefetch/pre_fetch", query_string=query).status_code == 500


def test_abort_in_a_handler_is_raised_on_as_a_mistake(make_app: App, prefetch: Prefetch) -> None:
    """As it is, Flask would answer with a page for people, which no pull ever gets."""
    prefetch.pre_fetch()(call_abort)
    query = {"appid": "wx1", "timestamp": "1700000000"}
    with pytest.raises(RuntimeError, match="a handler raised <ServiceUnavailable"):
        make_app(prefetch, TESTING=True).test_client().get(
            "/prefetch/pre_fetch", query_string=query
        )


@pytest.mark.parametrize("testing", [True, False])
def test_error_trackers_hear_of_a_failure_once(
    make_app: App, prefetch: Prefetch, testing: bool
) -> None:
    """Raised on, it is reported by Flask; kept inside, by the kit."""
    prefetch.pre_fetch()(divide)
    app, heard = make_app(prefetch, TESTING=testing), list[object]()
    query = {"appid": "wx1", "timestamp": "1700000000"}
    with got_request_exception.connected_to(lambda _, exception: heard.append(exception), app):
        try:
            app.test_client().get("/prefetch/pre_fetch", query_string=query)
        except ZeroDivisionError:
            assert testing
    assert [type(error) for error in heard] == [ZeroDivisionError]


def test_a_tracker_may_look_at_the_exception_that_is_handled(
    make_app: App, prefetch: Prefetch, ask: Ask
) -> None:
    """Some do, and not at the signal's argument."""
    prefetch.pre_fetch()(divide)
    app, heard = make_app(prefetch), list[object]()
    with got_request_exception.connected_to(lambda *_, **__: heard.append(sys.exc_info()[0]), app):
        ask(app)
    assert heard == [ZeroDivisionError]


def test_traceback_shows_no_credential(make_app: App, prefetch: Prefetch, ask: Ask) -> None:
    """Trackers print the local variables of every frame: none of ours holds what came."""
    prefetch.pre_fetch()(lambda pull: [pull.user_id, divide(pull)])
    prefetch.token_verifier(lambda _appid, _token: "alice")
    app, heard = make_app(prefetch), list[str]()

    def track(_: object, exception: Exception) -> None:
        trace = traceback.TracebackException.from_exception(exception, capture_locals=True)
        heard.append("".join(trace.format()))

    with got_request_exception.connected_to(track, app):
        ask(app, token="canary-token", query="name=x")
        ask(app, code="canary-code")
    assert all("ZeroDivisionError" in text for text in heard)
    assert len(heard) == 2
    assert not [text for text in heard if "canary" in text]


@pytest.mark.parametrize("cache", [None, 60])
def test_traceback_begins_close_to_the_handler(
    make_app: App,
    prefetch: Prefetch,
    ask: Ask,
    caplog: pytest.LogCaptureFixture,
    cache: float | None,
) -> None:
    """In the log and for a tracker, at most four frames of the kit's own come before it."""
    prefetch.pre_fetch(cache=cache)(divide)
    app, seen = make_app(prefetch), list[traceback.StackSummary]()

    def track(_: object, exception: Exception) -> None:
        seen.append(traceback.extract_tb(exception.__traceback__))

    with got_request_exception.connected_to(track, app):
        ask(app)
    seen += [traceback.extract_tb(each.exc_info[2]) for each in caplog.records if each.exc_info]
    assert len(seen) == 2
    assert max([frame.name for frame in frames].index("divide") for frames in seen) <= 4


@pytest.mark.parametrize(
    ("signal", "handler", "answer"),
    [
        (pull_served, returning({}), (200, b"{}")),
        (pull_refused, divide, (500, b"")),
        (got_request_exception, divide, (500, b"")),
    ],
)
def test_failing_receiver_costs_nothing(
    make_app: App,
    prefetch: Prefetch,
    ask: Ask,
    logged: Logged,
    signal: NamedSignal,
    handler: Callable[[Pull], object],
    answer: tuple[int, bytes],
) -> None:
    """A signal receiver that raises is logged; the answer is the one it would have been."""
    prefetch.pre_fetch()(handler)
    app = make_app(prefetch)

    def fail(_: object, **_facts: object) -> NoReturn:
        raise RuntimeError("receiver")

    with signal.connected_to(fail, app):
        reply = ask(app)
    assert (reply.status_code, reply.data) == answer
    assert f"a receiver of the signal {signal.name} failed" in "\n".join(logged())


@pytest.fixture
def facts() -> Iterator[list[dict[str, object]]]:
    """What the receivers of both signals were told."""
    told: list[dict[str, object]] = []

    def served(_: object, **given: object) -> None:
        told.append({"signal": "served"} | given)

    def refused(_: object, **given: object) -> None:
        told.append({"signal": "refused"} | given)

    with pull_served.connected_to(served), pull_refused.connected_to(refused):
        yield told


def test_signals_tell_facts_and_no_secrets(
    make_app: App, prefetch: Prefetch, ask: Ask, facts: list[dict[str, object]]
) -> None:
    """Everything a counter wants, nothing a log must not hold."""
    prefetch.pre_fetch("pages/index/index")(returning("four"))
    app = make_app(prefetch)
    ask(app, token="canary", query="a=canary", new="canary")
    ask(app, path="pages/canary", code="canary")
    ask(app, scene="canary")
    ask(app, appid="anything-a-stranger-likes")
    seconds = [fact.pop("seconds") for fact in facts]
    assert all(isinstance(each, float) and each >= 0 for each in seconds)
    ours = {"kind": "pre_fetch", "appid": "wx1", "unknown_parameters": 0, "cache": None}
    no = ours | {"signal": "refused", "page": None, "incident": None}
    assert facts == [
        ours
        | {"signal": "served", "page": "pages/index/index", "bytes": 4, "unknown_parameters": 1},
        no | {"status": 404, "reason": "page"},
        no | {"status": 400, "reason": "scene", "appid": None},
        no | {"status": 403, "reason": "foreign-appid", "appid": None},
    ]


def test_incident_is_told_to_receivers(
    make_app: App, prefetch: Prefetch, ask: Ask, facts: list[dict[str, object]]
) -> None:
    """A tracker can tie its event to the header that came out."""
    prefetch.pre_fetch()(divide)
    reply = ask(make_app(prefetch))
    header = reply.headers["X-Prefetch-Refused"]
    assert header == f"{facts[0]['reason']}; incident={facts[0]['incident']}"


@pytest.mark.parametrize(
    ("parameters", "refused"),
    [
        ({"appid": "stranger", "path": "pages/no", "scene": "x"}, (400, "scene")),
        ({"appid": "stranger", "path": "pages/no", "query": "%00"}, (400, "encoding")),
        ({"appid": "stranger", "path": "pages/no"}, (403, "foreign-appid")),
        ({"path": "pages/no"}, (404, "page")),
        ({"token": "none"}, (401, "login")),
        ({}, (401, "login")),
    ],
)
def test_first_thing_wrong_decides(
    make_app: App,
    prefetch: Prefetch,
    ask: Ask,
    parameters: dict[str, str],
    refused: tuple[int, str],
) -> None:
    """Parsing, then the appid, then the page, then the user; and the handler never runs."""
    ran: list[Pull] = []
    prefetch.pre_fetch("pages/index/index", login_required=True)(ran.append)
    reply = ask(make_app(prefetch), **parameters)
    assert (reply.status_code, reply.headers["X-Prefetch-Refused"]) == refused
    assert (reply.data, ran) == (b"", [])


def test_appids_may_be_a_function(make_app: App, prefetch: Prefetch, ask: Ask) -> None:
    """A platform with thousands of mini programs asks its own table."""
    prefetch.pre_fetch()(returning("x"))
    app = make_app(prefetch, PREFETCH_APPIDS=lambda appid: appid.startswith("wxa"))
    assert [ask(app, appid=a).status_code for a in ("wxa1", "wxa2", "wxb1")] == [200, 200, 403]


def test_failing_appids_function_is_refused(make_app: App, prefetch: Prefetch, ask: Ask) -> None:
    """The app's own check may fail like a handler; signals name no appid that is not admitted."""
    prefetch.pre_fetch()(returning("x"))
    app, facts = make_app(prefetch, PREFETCH_APPIDS=lambda _: 1 / 0), []
    with pull_refused.connected_to(lambda _, **given: facts.append(given), sender=app):
        reply = ask(app)
    assert (reply.status_code, reply.data) == (500, b"")
    assert [each["appid"] for each in facts] == [None]


@pytest.mark.parametrize("path", ["pages/新/页", "pages/a-b/c", "9/lives", "'; --"])
def test_debug_log_shows_a_handler_to_paste(
    make_app: App, prefetch: Prefetch, ask: Ask, logged: Logged, path: str
) -> None:
    """In debug the log line of a page without a handler ends with one that works."""
    assert ask(make_app(prefetch, DEBUG=True), path=path).status_code == 404
    code = logged()[0].partition("to add one:\n\n")[2]
    mended = Prefetch("prefetch", __name__, url_prefix="/prefetch")
    exec(code, {"prefetch": mended, "Pull": Pull, "NO_DATA": NO_DATA})  # noqa: S102
    assert ask(make_app(mended), path=path).status_code == 200


def test_unknown_page_is_one_short_line_outside_debug(
    make_app: App, prefetch: Prefetch, ask: Ask, logged: Logged
) -> None:
    """In production the line names the page and offers nothing."""
    ask(make_app(prefetch), path="pages/a")
    assert logged() == ["INFO pre_fetch refused (404 page): no handler for page 'pages/a'"]


def test_kinds_have_handlers_of_their_own(make_app: App, prefetch: Prefetch, ask: Ask) -> None:
    """A pre-fetch fallback answers no periodic pull, nor the other way round."""
    one = Prefetch("one", __name__, url_prefix="/one")
    one.pre_fetch()(returning("pre"))
    assert ask(make_app(one), "/one/period_fetch").status_code == 404
    prefetch.pre_fetch()(returning("pre"))
    prefetch.period_fetch()(returning("periodic"))
    app = make_app(prefetch)
    assert [ask(app, f"/prefetch/{k}").data for k in ("pre_fetch", "period_fetch")] == [
        b"pre",
        b"periodic",
    ]
