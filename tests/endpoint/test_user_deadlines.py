"""An app that is slow to say who the user is costs its own pull, at the page's deadline."""

import math
import threading
import time
from collections.abc import Callable
from threading import Event

import pytest
from flask import Flask, got_request_exception
from flask import Response as FlaskResponse
from werkzeug.wrappers import Response

from prefetch_kit import Prefetch, Pull
from prefetch_kit.endpoint.app_state import process_of
from prefetch_kit.sandbox import Sandbox

pytestmark = pytest.mark.slow

App = Callable[..., Flask]
Ask = Callable[..., Response]
Until = Callable[[Callable[[], bool]], None]

DEMANDS, KEPT, FREE = "pages/demands", "pages/kept", "pages/free"


def outcome(reply: Response) -> tuple[int, str, bytes]:
    refused = reply.headers.get("X-Prefetch-Refused", "").partition("; incident=")[0]
    return reply.status_code, refused, reply.data


LATE, BUSY = (503, "late", b""), (503, "busy", b"")


@pytest.fixture
def shop(prefetch: Prefetch) -> Prefetch:
    """A page that demands a user, one whose answers are kept by user, and one for everybody."""
    prefetch.pre_fetch(DEMANDS, login_required=True, deadline=1.5)(lambda pull: pull.user_id)
    prefetch.pre_fetch(KEPT, cache=600, deadline=1.5)(lambda pull: f"for {pull.user_id}")
    prefetch.pre_fetch(FREE, cache=600, deadline=60)(lambda _: "free")
    return prefetch


@pytest.fixture
def hanging(shop: Prefetch, gate: Event) -> Prefetch:
    """The same, where the token of somebody called slow is verified when the gate opens."""

    def verify(_appid: str, token: str) -> str:
        if token == "slow":
            gate.wait(30)
        return token

    shop.token_verifier(verify)
    return shop


def threads_for_users(app: Flask) -> int:
    process = process_of(app)
    return process._user_executor._threads + process._stranger_executor._threads


@pytest.mark.parametrize("page", [DEMANDS, KEPT])
def test_verifier_that_hangs_is_left_at_the_deadline(
    make_app: App, hanging: Prefetch, ask: Ask, gate: Event, page: str
) -> None:
    """Before the handler, and where an answer is looked up; nobody's answer does not stand in."""
    app = make_app(hanging)
    assert ask(app, path=KEPT).data == b"for None"
    assert ask(app, path=KEPT, token="fast").data == b"for fast"  # so that users are looked up
    started = time.monotonic()
    assert outcome(ask(app, path=page, token="slow")) == LATE
    assert time.monotonic() - started >= 1.5
    assert ask(app, path=page, token="fast").status_code == 200
    gate.set()
    assert b"slow" in ask(app, path=page, token="slow").data


def test_code_user_that_hangs_is_left_at_the_deadline(
    make_app: App, shop: Prefetch, ask: Ask, gate: Event
) -> None:
    """What WeChat says is in time, what the app makes of it is not."""
    shop.code_user(lambda *_: str(gate.wait()))
    with Sandbox() as wx:
        wx.add_app("wx1", secret="any")
        wx.add_user("wx1", "o-alice")
        app = make_app(shop, PREFETCH_APP_SECRET="any", PREFETCH_API_BASE_URL=wx.base_url)
        code = wx.login_code("wx1", "o-alice")
        assert outcome(ask(app, path=DEMANDS, code=code)) == LATE
        gate.set()
        assert ask(app, path=DEMANDS, code=code).data == b"True"


def test_verifiers_that_hang_leave_handlers_their_threads(
    make_app: App, hanging: Prefetch, ask: Ask
) -> None:
    """They fill threads of their own, and then only what needs one of those is refused."""
    app = make_app(hanging, PREFETCH_THREADS=4)
    slow = [outcome(ask(app, path=DEMANDS, token="slow")) for _ in range(3)]
    assert slow == [LATE, LATE, BUSY]
    assert ask(app, path=FREE, token="slow").data == b"free"


def test_handlers_that_hang_leave_verifiers_their_threads(
    make_app: App, hanging: Prefetch, ask: Ask, gate: Event
) -> None:
    """What is kept for a user is served on."""
    hanging.pre_fetch("pages/hangs", deadline=0.05)(lambda _: gate.wait())
    app = make_app(hanging, PREFETCH_THREADS=1)
    assert ask(app, path=KEPT, token="fast").data == b"for fast"
    assert outcome(ask(app, path="pages/hangs")) == LATE
    assert ask(app, path=KEPT, token="fast").data == b"for fast"


def test_failure_of_a_verifier_after_the_deadline_is_told(
    make_app: App, shop: Prefetch, ask: Ask, gate: Event, until: Until
) -> None:
    """The pull was refused as late, so nobody else would hear of it."""
    errors: list[object] = []

    @shop.token_verifier
    def verify(_appid: str, _token: str) -> str:
        gate.wait()
        raise ValueError("too late")

    app = make_app(shop)
    with got_request_exception.connected_to(lambda _, exception: errors.append(exception), app):
        assert outcome(ask(app, path=DEMANDS, token="t")) == LATE
        gate.set()
        until(lambda: [str(error) for error in errors] == ["too late"])


def test_kits_own_tokens_cost_no_other_thread(make_app: App, shop: Prefetch, ask: Ask) -> None:
    """They are checked where the pull came in."""
    app = make_app(shop)
    with app.app_context():
        token = shop.issue_token("alice", appid="wx1")
    for page in (DEMANDS, KEPT, KEPT):
        assert b"alice" in ask(app, path=page, token=token).data
    assert threads_for_users(app) == 0


def test_without_a_deadline_a_verifier_is_waited_for(
    make_app: App, shop: Prefetch, ask: Ask
) -> None:
    """In the very thread that took the pull."""
    took: list[int] = []
    shop.token_verifier(lambda *_: str(threading.get_ident()))
    shop.pre_fetch("pages/who", login_required=True, deadline=math.inf)(lambda pull: pull.user_id)
    app = make_app(shop, PREFETCH_DEADLINE=0.01)
    app.before_request(lambda: took.append(threading.get_ident()))
    assert [int(ask(app, path="pages/who", token="t").data)] == took


def test_pull_that_a_handler_keeps_is_readable_without_an_end(
    make_app: App, prefetch: Prefetch, ask: Ask
) -> None:
    """When it is answered its deadline is over, and a later reader asks for itself."""
    kept: list[Pull] = []
    read: list[str | None] = []
    prefetch.pre_fetch(deadline=60)(kept.append)
    prefetch.token_verifier(lambda _appid, token: token)
    app = make_app(prefetch)

    @app.after_request
    def look(response: FlaskResponse) -> FlaskResponse:
        read.append(kept[0].user_id)
        return response

    ask(app, token="alice")
    assert (read, threads_for_users(app)) == (["alice"], 0)
