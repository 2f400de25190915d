"""A late, hanging or failing handler costs its own pull, at its deadline, and nothing else."""

import math
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from logging import LogRecord
from pathlib import Path
from random import Random
from statistics import quantiles
from threading import Event

import pytest
from flask import Flask, g, got_request_exception, request
from werkzeug.wrappers import Response

from prefetch_kit import CachePolicy, Prefetch, Pull
from prefetch_kit.endpoint.app_state import process_of

pytestmark = pytest.mark.slow

App = Callable[..., Flask]
Ask = Callable[..., Response]
Logged = Callable[[], list[str]]
Until = Callable[[Callable[[], bool]], None]


def outcome(reply: Response) -> tuple[int, str, bytes]:
    refused = reply.headers.get("X-Prefetch-Refused", "").partition("; incident=")[0]
    return reply.status_code, refused, reply.data


LATE, BUSY = (503, "late", b""), (503, "busy", b"")


@pytest.fixture
def hang(gate: Event) -> Callable[[Pull], str]:
    """A handler that comes back when the gate opens."""

    def hang(_: Pull) -> str:
        gate.wait()
        return "hung"

    return hang


Hang = Callable[[Pull], str]


def test_late_handler_is_refused_and_the_next_pull_is_not(
    make_app: App, prefetch: Prefetch, ask: Ask, hang: Hang, logged: Logged
) -> None:
    """It is left behind in its thread; the log line shares the incident with the header."""
    prefetch.pre_fetch("pages/slow", deadline=0.3)(hang)
    prefetch.pre_fetch("pages/next", deadline=60)(lambda _: "next")
    app, started = make_app(prefetch), time.monotonic()
    late = ask(app, path="pages/slow")
    assert 0.3 <= time.monotonic() - started < 4
    assert outcome(late) == LATE
    assert outcome(ask(app, path="pages/next")) == (200, "", b"next")
    (line,) = logged()
    assert line.startswith("WARNING pre_fetch refused (503 late, incident ")
    assert late.headers["X-Prefetch-Refused"].removeprefix("late; incident=") in line


def test_deadline_of_the_app_holds_where_a_page_has_none(
    make_app: App, prefetch: Prefetch, ask: Ask, hang: Hang
) -> None:
    """For both kinds of pull."""
    prefetch.pre_fetch()(hang)
    prefetch.period_fetch(cache=30)(hang)
    app = make_app(prefetch, PREFETCH_DEADLINE=0.05)
    for at in ("/prefetch/pre_fetch", "/prefetch/period_fetch"):
        assert outcome(ask(app, at)) == LATE


def test_late_answer_of_a_cached_handler_is_kept(
    make_app: App, prefetch: Prefetch, ask: Ask, gate: Event, until: Until
) -> None:
    """Pulls that waited are refused at their deadline; later ones find it."""
    ran = count(1)

    def handler(_: Pull) -> int:
        gate.wait()
        return next(ran)

    prefetch.pre_fetch(cache=30, deadline=0.05)(handler)
    app = make_app(prefetch, PREFETCH_THREADS=1)
    assert [outcome(ask(app)) for _ in range(3)] == [LATE] * 3
    gate.set()
    until(lambda: ask(app).data == b"1")
    assert next(ran) == 2


def test_run_that_hangs_is_given_up_at_its_deadline(
    make_app: App, prefetch: Prefetch, ask: Ask, gate: Event, until: Until
) -> None:
    """The next run answers those that come later, and those that wait with time left."""
    ran: list[int] = []
    is_refused = Event()  # or the next run could answer the first pull at the last moment

    def handler(_: Pull) -> str:
        ran.append(len(ran))
        (gate if len(ran) == 1 else is_refused).wait(30)
        return f"run {len(ran)}"

    prefetch.pre_fetch(cache=30, deadline=2)(handler)
    app = make_app(prefetch)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, app)
        until(lambda: ran != [])
        time.sleep(1.5)
        waiting = pool.submit(ask, app)
        assert outcome(first.result()) == LATE
        is_refused.set()
        assert outcome(waiting.result()) == outcome(ask(app)) == (200, "", b"run 2")


def test_attempts_that_hang_leave_threads(
    make_app: App, prefetch: Prefetch, ask: Ask, hang: Hang
) -> None:
    """However often a page is tried anew, half of the threads are for other pages."""
    threads: list[int] = []

    def handler(pull: Pull) -> str:
        threads.append(threading.get_ident())
        return hang(pull)

    prefetch.pre_fetch("pages/hangs", cache=30, deadline=0.05)(handler)
    prefetch.pre_fetch("pages/other", deadline=60)(lambda _: "other")
    app = make_app(prefetch, PREFETCH_THREADS=12)
    assert [outcome(ask(app, path="pages/hangs")) for _ in range(8)] == [LATE] * 8
    assert len(threads) == 3
    assert outcome(ask(app, path="pages/other")) == (200, "", b"other")


@pytest.mark.parametrize("ids", ["12", "21"])
def test_slow_attempt_answers_pulls_that_wait_for_a_newer_one(
    make_app: App, prefetch: Prefetch, ask: Ask, gate: Event, until: Until, ids: str
) -> None:
    """Those that its answer is for; whoever began the newer one goes on waiting for that."""
    ran: list[str] = []
    slow = Event()

    def handler(pull: Pull) -> str:
        ran.append(name := pull.query["id"])
        if len(ran) < 3:
            (slow if len(ran) == 1 else gate).wait(30)
        return name

    prefetch.pre_fetch(cache=30, deadline=2)(handler)
    app = make_app(prefetch)
    assert outcome(ask(app, query="id=1")) == LATE
    with ThreadPoolExecutor(2) as pool:
        began = pool.submit(ask, app, query=f"id={ids[0]}")
        until(lambda: len(ran) == 2)
        joined = pool.submit(ask, app, query=f"id={ids[1]}")
        slow.set()
        if ids[0] == "1":
            assert began.result().data == b"1"
        else:
            assert joined.result().data == b"1"
        gate.set()
        answers = [began.result().data.decode(), joined.result().data.decode()]
    assert (answers, ran) == ([*ids], ["1", "1", "2"] if ids == "12" else ["1", "2"])


def test_hanging_refresh_costs_nobody_anything(
    make_app: App, prefetch: Prefetch, ask: Ask, gate: Event
) -> None:
    """Stale answers go out meanwhile, and one thread is all that hangs."""
    ran = count(1)

    def handler(_: Pull) -> int:
        if (run := next(ran)) > 1:
            gate.wait()
        return run

    prefetch.pre_fetch(cache=CachePolicy(fresh=1e-6), deadline=60)(handler)
    app = make_app(prefetch)
    assert [ask(app).data for _ in range(50)] == [b"1"] * 50
    assert next(ran) == 3


def test_hanging_handlers_fill_the_pool_which_then_refuses_at_once(
    make_app: App, prefetch: Prefetch, ask: Ask, hang: Hang, gate: Event, until: Until
) -> None:
    """Nothing is queued behind them, what is kept is served, and all is well afterwards."""
    prefetch.pre_fetch("pages/hangs", deadline=0.05)(hang)
    prefetch.pre_fetch("pages/plain", deadline=math.inf)(lambda _: "plain")
    prefetch.pre_fetch("pages/kept", cache=30, deadline=600)(lambda _: "kept")
    prefetch.pre_fetch("pages/stale", cache=CachePolicy(fresh=1e-6))(lambda _: "stale")
    prefetch.pre_fetch("pages/other", deadline=600)(lambda _: "other")
    prefetch.pre_fetch("pages/cold", cache=30, deadline=600)(lambda _: "cold")
    prefetch.pre_fetch("pages/hangs-too", deadline=0.05)(hang)
    app = make_app(prefetch, PREFETCH_THREADS=3)
    for page in ("kept", "stale"):
        assert ask(app, path=f"pages/{page}").data == page.encode()
    assert [outcome(ask(app, path="pages/hangs")) for _ in range(3)] == [LATE] * 2 + [BUSY]
    assert outcome(ask(app, path="pages/hangs-too")) == LATE
    for page in ("pages/other", "pages/cold"):
        assert outcome(ask(app, path=page)) == BUSY
    for page in ("plain", "kept", "stale"):
        assert outcome(ask(app, path=f"pages/{page}")) == (200, "", page.encode())
    gate.set()
    for page in ("other", "cold", "hangs"):
        until(lambda: ask(app, path=f"pages/{page}").status_code == 200)  # noqa: B023


def test_threads_of_hanging_handlers_are_bounded(
    make_app: App, prefetch: Prefetch, ask: Ask, gate: Event
) -> None:
    """However many pulls come at the same time, a page alone has half of them."""
    threads: list[int] = []

    def handler(_: Pull) -> None:
        threads.append(threading.get_ident())
        gate.wait()

    prefetch.pre_fetch(deadline=0.2)(handler)
    app = make_app(prefetch, PREFETCH_THREADS=8)
    with ThreadPoolExecutor(30) as pool:
        outcomes = list(pool.map(lambda _: outcome(ask(app)), range(30)))
    assert len(threads) == len(set(threads)) == outcomes.count(LATE) == 4
    assert outcomes.count(BUSY) == 26


def test_handlers_of_any_length_hold_nobody_up(
    make_app: App, prefetch: Prefetch, ask: Ask, gate: Event, until: Until
) -> None:
    """From nothing to a minute: a pull is answered, or refused at its deadline, then all again."""
    dice, took_s = Random(8), list[float]()

    def handler(_: Pull) -> str:
        gate.wait(dice.choice([0, dice.uniform(0, 60)]))
        return "made"

    prefetch.pre_fetch(deadline=0.2)(handler)
    app = make_app(prefetch, PREFETCH_THREADS=100)

    def pull(_: int) -> tuple[int, str, bytes]:
        started = time.monotonic()
        reply = outcome(ask(app))
        took_s.append(time.monotonic() - started)
        return reply

    with ThreadPoolExecutor(10) as pool:
        outcomes = Counter(pool.map(pull, range(200)))
    gate.set()
    started = time.monotonic()
    until(lambda: ask(app).data == b"made")
    print(f"p99 {quantiles(took_s, n=100)[98]:.3f} s, worst {max(took_s):.3f} s, {dict(outcomes)}")
    print(f"good again after {time.monotonic() - started:.3f} s")
    assert outcomes.keys() <= {(200, "", b"made"), LATE, BUSY}
    assert outcomes[LATE] > 0
    assert max(took_s) < 30  # most of those that were left were to take longer


@pytest.mark.parametrize("cache", [None, 30])
def test_no_thread_left_in_the_system_is_busy(
    make_app: App, prefetch: Prefetch, monkeypatch: pytest.MonkeyPatch, cache: float | None
) -> None:
    """`can't start new thread` is no failure of the handler, and soon over."""

    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    prefetch.pre_fetch(cache=cache)(lambda _: "data")
    pull = make_app(prefetch).test_client().get
    target = "/prefetch/pre_fetch?appid=wx1&timestamp=1700000000"
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        assert outcome(pull(target)) == BUSY
    assert outcome(pull(target)) == (200, "", b"data")


def test_threads_serve_again(make_app: App, prefetch: Prefetch, ask: Ask) -> None:
    """A pull finds the thread that the one before it has left."""
    prefetch.pre_fetch(deadline=60)(lambda _: threading.get_ident())
    app = make_app(prefetch, PREFETCH_THREADS=1)
    assert len({ask(app).data for _ in range(50)}) == 1


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_few_threads_still_refresh(
    make_app: App, prefetch: Prefetch, ask: Ask, until: Until, threads: int
) -> None:
    """Even one thread is enough to make anew what is stale."""
    ran = count(1)
    prefetch.pre_fetch(cache=CachePolicy(fresh=1e-6), deadline=60)(lambda _: next(ran))
    app = make_app(prefetch, PREFETCH_THREADS=threads)
    assert ask(app).json == 1
    until(lambda: ask(app).json != 1)


def test_hanging_refreshes_leave_threads_for_others(
    make_app: App, prefetch: Prefetch, ask: Ask, gate: Event
) -> None:
    """Pulls that have nothing to show meanwhile go first."""
    ran: list[str] = []

    def handler(pull: Pull) -> str:
        ran.append(name := pull.query["id"])
        if ran.count(name) > 1:
            gate.wait()
        return name

    prefetch.pre_fetch("pages/stale", cache=CachePolicy(fresh=1e-6), deadline=60)(handler)
    prefetch.pre_fetch("pages/other", deadline=60)(lambda _: "other")
    app = make_app(prefetch, PREFETCH_THREADS=4)
    for _ in range(3):
        for i in range(8):
            assert ask(app, path="pages/stale", query=f"id={i}").data == str(i).encode()
    assert ask(app, path="pages/other").data == b"other"


@pytest.mark.parametrize("cache", [None, 30])
def test_without_a_deadline_a_handler_is_waited_for(
    make_app: App, prefetch: Prefetch, ask: Ask, cache: float | None
) -> None:
    """Uncached it runs in the very thread that took the pull; cached it may have to go on."""
    took: list[int] = []

    def handler(_: Pull) -> int:
        time.sleep(0.05)
        return threading.get_ident()

    prefetch.pre_fetch(deadline=math.inf, cache=cache)(handler)
    app = make_app(prefetch, PREFETCH_DEADLINE=0.01)

    @app.before_request
    def take() -> None:
        took.append(threading.get_ident())

    assert ([ask(app).json] == took) is (cache is None)


@pytest.mark.parametrize("deadline", [0, -1, math.nan, -math.inf])
@pytest.mark.parametrize("kind", ["pre_fetch", "period_fetch"])
def test_impossible_deadline_is_refused(prefetch: Prefetch, kind: str, deadline: float) -> None:
    """At the decorator, where the developer looks."""
    with pytest.raises(ValueError, match="a deadline is more than 0 seconds"):
        getattr(prefetch, kind)(deadline=deadline)


@pytest.mark.parametrize("cache", [None, 30])
def test_failure_after_the_deadline_is_told(
    make_app: App,
    prefetch: Prefetch,
    ask: Ask,
    gate: Event,
    until: Until,
    logged: Logged,
    cache: float | None,
) -> None:
    """Nobody waits for it any more, so the log and error trackers have to hear of it."""
    errors: list[object] = []

    def handler(_: Pull) -> None:
        gate.wait()
        raise ValueError("too late")

    prefetch.pre_fetch(deadline=0.05, cache=cache)(handler)
    app = make_app(prefetch)
    with got_request_exception.connected_to(lambda _, exception: errors.append(exception), app):
        assert outcome(ask(app)) == LATE
        assert errors == []
        gate.set()
        until(lambda: len(logged()) > 1)  # which comes after the signal
    assert [str(error) for error in errors] == ["too late"]
    _refused, line = logged()
    assert line.startswith("ERROR a run that no pull waited for failed\nTraceback")
    assert line.endswith("ValueError: too late")
    assert line.partition("in handler")[0].count('File "') <= 5  # four of the kit's, and its own


def test_refusal_after_the_deadline_is_no_failure(
    make_app: App, prefetch: Prefetch, ask: Ask, gate: Event, logged: Logged
) -> None:
    """A pull without a key that a slow page needs sets off no alarm."""
    is_expired = Event()

    def handler(pull: Pull) -> str:
        gate.wait()
        try:
            return pull.query["id"]
        finally:
            is_expired.set()

    prefetch.pre_fetch(deadline=0.05)(handler)
    prefetch.pre_fetch("pages/next", deadline=60)(lambda _: "next")
    app = make_app(prefetch, PREFETCH_THREADS=1)
    assert outcome(ask(app)) == LATE
    gate.set()
    assert is_expired.wait(30)
    while outcome(ask(app, path="pages/next")) == BUSY:
        pass
    assert not [line for line in logged() if line.startswith("ERROR")]


def test_failure_that_only_others_wait_for_is_told(
    make_app: App, prefetch: Prefetch, ask: Ask, gate: Event, until: Until, logged: Logged
) -> None:
    """Whose run it was is gone, and those who hoped for its answer run for themselves."""

    def handler(pull: Pull) -> str:
        if pull.user_id == "alice":
            gate.wait()
            raise ValueError("too late")
        return f"for {pull.user_id}"

    prefetch.pre_fetch(cache=30, deadline=1)(handler)
    prefetch.token_verifier(lambda _appid, token: token)
    app = make_app(prefetch)
    with ThreadPoolExecutor(2) as pool:
        alice = pool.submit(ask, app, token="alice")
        time.sleep(0.5)
        bob = pool.submit(ask, app, token="bob")
        assert outcome(alice.result()) == LATE
        gate.set()
        assert bob.result().data in (b"for bob", b"")
    until(lambda: "ValueError: too late" in "".join(logged()))


def run_script(path: Path, script: str) -> str:
    """What a separate program prints; it has to end within a minute."""
    path.write_text(PREAMBLE + script)
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


PREAMBLE = """
import logging, os, sys, threading
from flask import Flask
from prefetch_kit import Prefetch, fast_path
prefetch = Prefetch("prefetch", "shop", url_prefix="/prefetch")
parent, gate, inside = os.getpid(), threading.Event(), threading.Event()

@prefetch.pre_fetch("kept", cache=600)
def kept(pull):
    return "kept"

@prefetch.pre_fetch("plain", deadline=30)
def plain(pull):
    return "plain"

@prefetch.pre_fetch("hangs", deadline=0.05)
@prefetch.pre_fetch("hangs-cached", cache=600, deadline=0.05)
def hangs(pull):
    inside.set()
    gate.wait()

@prefetch.pre_fetch("hangs-in-parent", cache=600, deadline=30)
def hangs_in_parent(pull):
    inside.set()
    if os.getpid() == parent:
        gate.wait()
    return "child"

logging.disable()
app = Flask("shop")
app.config.update(SECRET_KEY="k", PREFETCH_APPIDS=["wx1"])
app.register_blueprint(prefetch)
app.wsgi_app = fast_path(app)
woken = []
app.before_request(lambda: woken.append(1))

def pull(path):
    query = {"appid": "wx1", "timestamp": "1700000000", "path": path}
    return app.test_client().get("/prefetch/pre_fetch", query_string=query)

def in_child(*paths):
    sys.stdout.flush()
    if os.fork() == 0:
        woken.clear()
        print(*[pull(path).text for path in paths], len(woken), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


@pytest.mark.parametrize("page", ["hangs", "hangs-cached"])
def test_hanging_handler_does_not_keep_its_process(tmp_path: Path, page: str) -> None:
    """A deployment must be able to end its workers."""
    script = f"print(pull('{page}').status_code, inside.wait(30))"
    assert run_script(tmp_path / "shop.py", script) == "503 True\n"


def test_child_of_a_process_that_answered_answers_too(tmp_path: Path) -> None:
    """Threads and what they hold stay behind at a fork; the fast path goes by what is new."""
    script = "print(pull('kept').text, pull('plain').text)\nin_child('plain', 'kept', 'kept')"
    assert run_script(tmp_path / "shop.py", script) == "kept plain\nplain kept kept 2\n"


def test_child_does_not_wait_for_its_parents_run(tmp_path: Path) -> None:
    """A run that was under way at the fork goes on in the parent only."""
    script = """
threading.Thread(target=pull, args=["hangs-in-parent"], daemon=True).start()
inside.wait(30)
in_child("hangs-in-parent", "kept", "hangs-in-parent")
"""
    child = "child kept child 2\n"
    assert run_script(tmp_path / "shop.py", script) == child


def test_child_asks_about_a_code_that_its_parent_asks_about(tmp_path: Path) -> None:
    """The parent's question has no answer yet at the fork, and never will have one in the child."""
    script = """
from prefetch_kit.sandbox import Fault, Sandbox
users = Prefetch("users", "shop", url_prefix="/users")
users.pre_fetch(login_required=True)(lambda pull: pull.user_id)
users.code_user(lambda appid, openid, unionid: openid)
wx = Sandbox().__enter__()
wx.add_app("wx1", secret="any")
wx.add_user("wx1", "o-alice")
wx.inject(Fault(kind="hang", path="/sns/jscode2session"))
code = wx.login_code("wx1", "o-alice")
app = Flask("users")
app.config.update(PREFETCH_APPIDS=["wx1"], PREFETCH_APP_SECRET="any")
app.config.update(PREFETCH_API_BASE_URL=wx.base_url)
app.register_blueprint(users)

def pull(code):
    query = {"appid": "wx1", "timestamp": "1700000000", "path": "any", "code": code}
    return app.test_client().get("/users/pre_fetch", query_string=query)

asking = threading.Thread(target=pull, args=[code])
asking.start()
while not wx.count():
    pass
in_child(code)
asking.join()
wx.__exit__(None, None, None)
"""
    assert run_script(tmp_path / "shop.py", script) == "o-alice 0\n"


DAY_S = 86_400


@pytest.mark.parametrize("step_s", [DAY_S, -DAY_S])
def test_step_of_the_wall_clock_costs_no_answer(
    make_app: App,
    prefetch: Prefetch,
    ask: Ask,
    monkeypatch: pytest.MonkeyPatch,
    step_s: float,
) -> None:
    """It may end or revive a token; ages and deadlines do not see it."""
    ran = count(1)
    prefetch.pre_fetch("pages/kept", cache=30)(lambda _: next(ran))
    prefetch.pre_fetch("pages/user")(lambda pull: {"user": pull.user_id})
    prefetch.pre_fetch("pages/cached", cache=30)(lambda pull: {"user": pull.user_id})
    app, now = make_app(prefetch), time.time
    with app.app_context():
        token = prefetch.issue_token("alice", appid="wx1")
    pages, good = ["pages/kept", "pages/user", "pages/cached"], 0
    with ThreadPoolExecutor(4) as pool:
        for step in (0.0, step_s, 0.0, step_s, -step_s, 0.0):
            monkeypatch.setattr(time, "time", lambda step=step: now() + step)
            replies = list(pool.map(lambda page: ask(app, path=page, token=token), pages * 4))
            assert {reply.status_code for reply in replies} == {200}
            good += len(replies)
            assert {reply.data for reply in replies[::3]} == {b"1"}
            assert {reply.data for reply in replies[1::3] + replies[2::3]} <= {
                b'{"user":"alice"}',
                b'{"user":null}',
            }
    print(f"clock steps by {step_s / 3600:+.0f} h and back: {good} of {good} pulls good")


def demand_request(_: LogRecord) -> bool:
    """A filter as apps write it, which works wherever there is a request."""
    return bool(request.path)


@pytest.mark.parametrize("cache", [None, 60])
def test_a_late_failure_that_cannot_be_told_costs_no_thread(
    make_app: App,
    prefetch: Prefetch,
    ask: Ask,
    hang: Hang,
    gate: Event,
    until: Until,
    cache: float | None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither a log's filter nor a teardown of the app's ends the threads that handlers need."""
    prefetch.pre_fetch("pages/fails", deadline=0.05, cache=cache)(
        lambda pull: hang(pull) and 1 // 0
    )
    prefetch.pre_fetch("pages/next", deadline=60)(lambda _: "next")
    app = make_app(prefetch, PREFETCH_THREADS=2)
    monkeypatch.setattr(app.logger, "filters", [demand_request])
    app.teardown_appcontext(lambda _: g.opened.close())
    for _ in range(2):
        ask(app, path="pages/fails", query=f"id={_}")
    gate.set()
    pool = process_of(app).handler_executor
    until(lambda: pool._free == pool._threads)
    monkeypatch.undo()
    app.teardown_appcontext_funcs.clear()
    assert [ask(app, path="pages/next").data for _ in range(4)] == [b"next"] * 4
    assert "outside of request context" in capsys.readouterr().err
