"""A callable PREFETCH_APPIDS is asked under the page's deadline, and may be remembered."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from flask import Flask, abort, current_app, has_request_context, url_for
from werkzeug.wrappers import Response

from prefetch_kit import ConfigError, Prefetch, Pull, fast_path, pull_refused
from prefetch_kit.endpoint import admission

PAGE, HASTY = "pages/index/index", "pages/hasty/hasty"
Ask = Callable[..., Response]
MakeApp = Callable[..., Flask]


@pytest.fixture
def hanging() -> Iterator[threading.Event]:
    """What a function of the app waits for, for as long as the test takes."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def pages(prefetch: Prefetch) -> Prefetch:
    prefetch.pre_fetch(PAGE)(lambda _: "home")
    prefetch.pre_fetch(HASTY, deadline=0.1)(lambda _: "home")
    return prefetch


def reason(reply: Response) -> str | None:
    return reply.headers.get("X-Prefetch-Refused", "").partition(";")[0] or None


def test_slow_function_is_left_at_the_deadline(
    make_app: MakeApp, pages: Prefetch, ask: Ask, hanging: threading.Event
) -> None:
    """The pull is late, and its thread free again."""
    app = make_app(pages, PREFETCH_APPIDS=lambda _: hanging.wait(), PREFETCH_DEADLINE=0.05)
    for path in (HASTY, PAGE, "no/page"):
        reply = ask(app, path=path)
        assert (reply.status_code, reason(reply)) == (503, "late")


def test_slow_functions_take_a_share_of_the_threads(
    make_app: MakeApp, pages: Prefetch, ask: Ask, hanging: threading.Event
) -> None:
    """Others find threads; those beyond the share hear when to come back."""
    app = make_app(
        pages, PREFETCH_APPIDS=lambda a: a == "wx2" or hanging.wait(), PREFETCH_THREADS=2
    )
    assert reason(ask(app, path="no/page", appid="wx2")) == "page"
    assert reason(ask(app, path=HASTY)) == "late"
    busy = ask(app, path=HASTY)
    assert (busy.status_code, reason(busy), busy.headers["Retry-After"]) == (503, "busy", "1")
    assert reason(ask(app, path="no/page", appid="wx2")) == "page"


def test_invented_appids_take_no_thread_from_one_that_is_known(
    make_app: MakeApp,
    pages: Prefetch,
    ask: Ask,
    hanging: threading.Event,
    until: Callable[..., None],
) -> None:
    """However many are asked about, and without a memory."""
    app = make_app(
        pages, PREFETCH_APPIDS=lambda a: a == "wx1" or hanging.wait(), PREFETCH_THREADS=8
    )
    until(lambda: ask(app, path=HASTY, appid="wx1").status_code == 200)
    reasons = [reason(ask(app, path=HASTY, appid=f"odd{n}")) for n in range(6)]
    assert reasons == ["late"] * 4 + ["busy"] * 2
    until(lambda: ask(app, path=HASTY, appid="wx1").status_code == 200)


def test_it_runs_in_the_app_and_outside_of_the_request(
    make_app: MakeApp, pages: Prefetch, ask: Ask
) -> None:
    """As verifiers do, so that a late one holds nothing of a request that is over."""
    seen: list[object] = []

    def ours(appid: str) -> bool:
        urls = url_for("prefetch.pre_fetch", _external=True)
        seen.append((appid, current_app.name, has_request_context(), urls))
        return True

    app = make_app(pages, PREFETCH_APPIDS=ours, PREFETCH_BASE_URL="https://shop.example")
    assert ask(app, path=PAGE, appid="wx1").status_code == 200
    assert seen == [("wx1", app.name, False, "https://shop.example/prefetch/pre_fetch")]


def test_failure_of_the_function(make_app: MakeApp, pages: Prefetch, ask: Ask) -> None:
    """An exception is the app's failure, abort(403) a refusal."""
    answers: dict[str, Callable[[], object]] = {"wx1": lambda: 1 / 0, "wx2": lambda: abort(403)}
    app = make_app(pages, PREFETCH_APPIDS=lambda appid: answers[appid]())
    replies = [ask(app, path=PAGE, appid=appid) for appid in answers]
    assert [(r.status_code, reason(r)) for r in replies] == [(500, "failed"), (403, "aborted")]


def test_answers_are_remembered_for_as_long_as_the_app_says(
    make_app: MakeApp, pages: Prefetch, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both answers, and no second longer."""
    asked: list[str] = []
    ours = {"wx1"}

    def decide(appid: str) -> bool:
        asked.append(appid)
        return appid in ours

    now = [1000.0]
    monkeypatch.setattr(admission, "time", type("Clock", (), {"monotonic": lambda: now[0]}))
    app = make_app(pages, PREFETCH_APPIDS=decide, PREFETCH_APPIDS_MAX_AGE=30)

    def statuses() -> list[int]:
        return [ask(app, path=PAGE, appid=appid).status_code for appid in ("wx1", "wx2")]

    assert statuses() == statuses() == [200, 403]
    assert asked == ["wx1", "wx2"]
    ours.symmetric_difference_update({"wx1", "wx2"})
    now[0] += 29.9
    assert statuses() == [200, 403]
    now[0] += 0.2
    assert statuses() == [403, 200]
    assert asked == ["wx1", "wx2"] * 2


def test_every_pull_asks_unless_the_app_says_otherwise(
    make_app: MakeApp, pages: Prefetch, ask: Ask
) -> None:
    """A merchant who left is shut out with the next pull."""
    answers = iter([True, False])
    app = make_app(pages, PREFETCH_APPIDS=lambda _: next(answers))
    assert [ask(app, path=PAGE).status_code for _ in range(2)] == [200, 403]


def test_late_answer_is_remembered(
    make_app: MakeApp, pages: Prefetch, ask: Ask, until: Callable[..., None]
) -> None:
    """A function that is always slower than the deadline still lets pulls in."""

    def slow(_appid: str) -> bool:
        time.sleep(0.3)
        return True

    app = make_app(pages, PREFETCH_APPIDS=slow, PREFETCH_APPIDS_MAX_AGE=600)
    assert reason(ask(app, path=HASTY)) == "late"
    until(lambda: ask(app, path=HASTY).status_code == 200)


def test_invented_appids_push_out_no_real_one(
    make_app: MakeApp, pages: Prefetch, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What strangers are told is remembered apart, and not without end."""
    asked: list[str] = []
    monkeypatch.setattr(admission, "MAX_REMEMBERED", 10)

    def decide(appid: str) -> bool:
        asked.append(appid)
        return appid == "wx1"

    app = make_app(pages, PREFETCH_APPIDS=decide, PREFETCH_APPIDS_MAX_AGE=600)
    for n in range(50):
        assert ask(app, path=PAGE, appid=f"odd{n}").status_code == 403
        assert ask(app, path=PAGE, appid="wx1").status_code == 200
    assert asked.count("wx1") == 1
    assert ask(app, path=PAGE, appid="odd0").status_code == 403
    assert asked.count("odd0") == 2


def test_remembered_appids_take_the_fast_path(
    make_app: MakeApp, prefetch: Prefetch, ask: Ask
) -> None:
    """A platform with thousands of mini programs has no list, and hits all the same."""
    prefetch.pre_fetch(PAGE, cache=60)(lambda _: "home")
    app = make_app(prefetch, PREFETCH_APPIDS=lambda a: a == "wx1", PREFETCH_APPIDS_MAX_AGE=600)
    slow: list[object] = []
    app.before_request(lambda: slow.append(1))
    app.wsgi_app = fast_path(app)  # type: ignore[method-assign]
    assert [ask(app, path=PAGE).data for _ in range(3)] == [b"home"] * 3
    assert len(slow) == 1
    assert [ask(app, path=PAGE, appid="wx2").status_code for _ in range(2)] == [403, 403]


def test_appid_that_nobody_admitted_is_no_fact(
    make_app: MakeApp, pages: Prefetch, ask: Ask
) -> None:
    """Strangers' appids would make any number of rows in a counter."""
    app = make_app(pages, PREFETCH_APPIDS=lambda _: False)
    facts: list[object] = []

    def receive(_app: Flask, appid: str | None, page: str | None, **_: object) -> None:
        facts.append((appid, page))

    with pull_refused.connected_to(receive, app):
        for path in (PAGE, "no/page"):
            ask(app, path=path)
    assert facts == [(None, None)] * 2


async def later(_appid: str) -> bool:
    return True


@pytest.mark.parametrize("function", [later, lambda: True, "wx1".replace])
def test_function_that_cannot_answer_is_refused(
    make_app: MakeApp, pages: Prefetch, function: object
) -> None:
    """A coroutine is true, and would admit everybody."""
    with pytest.raises(ConfigError, match="PREFETCH_APPIDS cannot be called"):
        make_app(pages, PREFETCH_APPIDS=function)


def test_what_is_neither_yes_nor_no_admits_nobody(
    make_app: MakeApp, prefetch: Prefetch, ask: Ask, logged: Callable[[], list[str]]
) -> None:
    """An iterator and a coroutine are true whatever is in them; the log says what to return."""
    ran: list[Pull] = []
    prefetch.pre_fetch(PAGE)(ran.append)
    answers: dict[str, object] = {"wx1": None, "wx2": False, "wx3": "no", "wx4": iter([]), "wx5": 1}
    app = make_app(prefetch, PREFETCH_APPIDS=answers.get)
    statuses = [ask(app, path=PAGE, appid=appid).status_code for appid in answers]
    assert statuses == [403, 403, 500, 500, 500]
    assert ran == []
    assert "of PREFETCH_APPIDS gave a str; return True or False" in "".join(logged())
