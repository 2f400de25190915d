"""Made-up login codes cannot burn WeChat's quota, and a WeChat that fails is left alone."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from logging import getLogger
from secrets import token_hex
from types import SimpleNamespace

import pytest
from flask import Flask
from werkzeug.wrappers import Response

from prefetch_kit import Prefetch
from prefetch_kit.endpoint import login_limits
from prefetch_kit.endpoint.app_state import process_of
from prefetch_kit.endpoint.login_limits import (
    BURST,
    BURST_OF_ALL,
    DAY_PAUSE_S,
    PER_S,
    PER_S_OF_ALL,
    LoginLimits,
)
from prefetch_kit.errors import ConfigError, NotAsked, OutcomeUnknown, QuotaReached, WeixinError
from prefetch_kit.logs import SafeLogger
from prefetch_kit.sandbox import Fault, Sandbox
from prefetch_kit.secret import Secret

pytestmark = pytest.mark.slow

SECRET = "canary-app-secret"
LOGIN = "/sns/jscode2session"
App = Callable[..., Flask]
Ask = Callable[..., Response]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The budget's clock, as a list whose one item is the time."""
    now = [1000.0]
    monkeypatch.setattr(login_limits, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


@pytest.fixture
def wx() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        sandbox.add_app("wx1", secret=SECRET)
        for n in range(10):
            sandbox.add_user("wx1", f"user{n}")
        yield sandbox


@pytest.fixture
def shop(make_app: App, prefetch: Prefetch, wx: Sandbox, clock: list[float]) -> Flask:
    """An app with a page that demands a user and one that does without."""
    prefetch.pre_fetch("pages/reads")(lambda pull: f"user {pull.user_id}")
    prefetch.pre_fetch("pages/demands", login_required=True)(lambda pull: pull.user_id)
    prefetch.code_user(lambda _appid, openid, _unionid: openid)
    return make_app(prefetch, PREFETCH_APP_SECRET=SECRET, PREFETCH_API_BASE_URL=wx.base_url)


@pytest.fixture
def allowance(clock: list[float]) -> LoginLimits:
    return LoginLimits([f"wx{n}" for n in range(10)], logger=SafeLogger(getLogger("shop")))


def find(shop: Flask, code: str) -> str | type[WeixinError] | None:
    """What a pull's code proves: an openid, nobody, or the class of the error."""
    try:
        login = process_of(shop).logins().find("wx1", Secret(code))
    except WeixinError as error:
        return type(error)
    return login.openid if login else None


def ask(allowance: LoginLimits, answer: object = None, *, appid: str = "wx1") -> object:
    """Ask about one code, bad if nothing is said; the answer, or the class of the error."""

    def exchange() -> object:
        if isinstance(answer, BaseException):
            raise answer
        return answer

    try:
        return allowance.ask(appid, exchange)
    except BaseException as error:  # noqa: BLE001 (SystemExit is among them)
        return type(error)


def silence() -> OutcomeUnknown:
    return OutcomeUnknown("jscode2session", "no answer: canary", sent=True, remedy="Wait")


def test_ten_thousand_made_up_codes_stay_within_the_budget(shop: Flask, wx: Sandbox) -> None:
    """However many come, at once or one by one, WeChat is asked about the burst only."""
    with ThreadPoolExecutor(8) as pool:
        found = Counter(pool.map(lambda _: find(shop, token_hex(16)), range(5000)))
    found.update(find(shop, token_hex(16)) for _ in range(5000))
    asked = wx.count(path=LOGIN)
    print(f"10,000 made-up codes: WeChat was asked {asked} times")
    assert asked == BURST
    assert found == {None: BURST, NotAsked: 10_000 - BURST}


def test_budget_comes_back_steadily(allowance: LoginLimits, clock: list[float]) -> None:
    """10,000 bad codes in 100 seconds are the burst and a hundred seconds' refill, no more."""
    asked = 0
    for _ in range(10_000):
        asked += ask(allowance) is None
        clock[0] += 0.01
    assert BURST + 100 * PER_S - 1 <= asked <= BURST + 100 * PER_S
    clock[0] += 86_400
    assert [ask(allowance) for _ in range(BURST + 1)] == [None] * BURST + [NotAsked]


def test_a_flood_of_codes_leaves_honest_pulls_alone(
    shop: Flask, ask: Ask, prefetch: Prefetch, wx: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    """Over HTTP, among 400 made-up codes: tokens and remembered codes prove their users."""
    codes = [wx.login_code("wx1", f"user{n}") for n in range(10)]
    assert [find(shop, code) for code in codes] == [f"user{n}" for n in range(10)]
    with shop.app_context():
        tokens = [prefetch.issue_token(f"user{n}", appid="wx1") for n in range(10)]

    def pulls(n: int) -> list[tuple[int, bytes]]:
        strangers = [ask(shop, path="pages/reads", code=token_hex(16)) for _ in range(4)]
        ours = [ask(shop, path="pages/demands", code=codes[n % 10])]
        ours += [ask(shop, path="pages/demands", token=tokens[n % 10])]
        assert {reply.data for reply in strangers} == {b"user None"}
        return [(reply.status_code, reply.data) for reply in ours]

    with ThreadPoolExecutor(8) as pool:
        honest = list(pool.map(pulls, range(100)))
    assert honest == [[(200, b"user%d" % (n % 10))] * 2 for n in range(100)]
    asked = wx.count(path=LOGIN)
    print(f"200 honest pulls good; 400 made-up codes: WeChat was asked {asked - 10} times")
    assert asked <= len(codes) + BURST
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert warning.getMessage().startswith("login codes of wx1 prove no user: ")


def test_good_codes_cost_nothing(shop: Flask, wx: Sandbox) -> None:
    """Any number of honest users come through without time going by."""
    codes = [wx.login_code("wx1", f"user{n % 10}") for n in range(3 * BURST)]
    assert [find(shop, code) for code in codes] == [f"user{n % 10}" for n in range(3 * BURST)]


def test_code_that_was_turned_away_is_not_spent(
    shop: Flask, ask: Ask, prefetch: Prefetch, wx: Sandbox, clock: list[float]
) -> None:
    """Its user is refused for now, can log in by the app's own route, and comes through later."""
    for _ in range(BURST):
        find(shop, token_hex(16))
    pulled, posted = (wx.login_code("wx1", f"user{n}") for n in range(2))
    assert ask(shop, path="pages/demands", code=pulled).status_code == 503
    with shop.app_context():
        assert prefetch.exchange_code(posted, appid="wx1") is not None
    clock[0] += 1 / PER_S
    assert ask(shop, path="pages/demands", code=pulled).data == b"user0"


def test_one_apps_flood_is_not_anothers(allowance: LoginLimits) -> None:
    """Each mini program has its own budget."""
    asked = [ask(allowance, appid="wx1") for _ in range(2 * BURST)]
    assert asked.count(None) == BURST
    assert ask(allowance, appid="wx2") is None


def test_token_given_back_does_not_overfill(allowance: LoginLimits, clock: list[float]) -> None:
    """What time has filled up meanwhile is not filled up twice."""

    def slow_good_answer() -> object:
        clock[0] += 86_400
        return ask(allowance, "somebody")

    assert allowance.ask("wx1", slow_good_answer) == "somebody"
    assert [ask(allowance) for _ in range(2 * BURST)].count(None) == BURST


def test_budget_of_all_bounds_many_apps(allowance: LoginLimits, clock: list[float]) -> None:
    """Ten mini programs flooded at once do not cost ten times as much, and none pays for all."""
    asked = Counter(n % 10 for n in range(10_000) if ask(allowance, appid=f"wx{n % 10}") is None)
    assert asked.total() == BURST_OF_ALL
    assert max(asked.values()) <= BURST
    clock[0] += 1 / PER_S_OF_ALL
    assert ask(allowance, appid="wx9") is None


def test_unknown_appids_share_one_budget(allowance: LoginLimits) -> None:
    """Where the app lets any appid in, making one up brings no budget and takes no memory."""
    asked = [ask(allowance, appid=f"stranger{n}") for n in range(1000)]
    assert asked.count(None) == BURST


def test_what_never_reached_wechat_costs_nothing(allowance: LoginLimits) -> None:
    """An app without its secret is told so each time."""
    missing = ConfigError("PREFETCH_APP_SECRETS", "lacks wx1", remedy="Add the AppSecret")
    assert {ask(allowance, missing) for _ in range(2 * BURST)} == {ConfigError}
    assert ask(allowance) is None


@pytest.mark.parametrize(
    "code", ["c" * 15, "c" * 129, "c" * 31 + "\n", "a code with spaces in it", "码" * 32, "\0" * 32]
)
def test_what_can_be_no_code_is_nobodys(shop: Flask, wx: Sandbox, code: str) -> None:
    """WeChat is not asked, and it costs nothing."""
    assert {find(shop, code) for _ in range(2 * BURST)} == {None}
    assert wx.count(path=LOGIN) == 0


@pytest.mark.parametrize(
    "code", ["c" * 16, "c" * 128, "0a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P", "!~" * 16]
)
def test_whatever_may_be_a_code_is_asked_about(shop: Flask, wx: Sandbox, code: str) -> None:
    """No page of WeChat's says how a code looks, so this check is not strict."""
    assert find(shop, code) is None
    assert wx.count(path=LOGIN) == 1


def test_daily_quota_used_up_stops_asking(
    shop: Flask, ask: Ask, wx: Sandbox, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    """One 45009 is enough, for ten minutes; pulls without a need for the user go on."""
    wx.inject(Fault(kind="errcode", path=LOGIN, errcode=45009))
    code = wx.login_code("wx1", "user1")
    assert ask(shop, path="pages/demands", code=code).status_code == 503
    caplog.clear()
    clock[0] += DAY_PAUSE_S - 1
    assert {ask(shop, path="pages/reads", code=code).data for _ in range(20)} == {b"user None"}
    assert ask(shop, path="pages/demands", code=code).status_code == 503
    assert wx.count(path=LOGIN) == 1
    assert "WeChat said 45009, the daily quota is used up; the next try is in 1 s" in caplog.text
    clock[0] += 1
    assert ask(shop, path="pages/demands", code=code).data == b"user1"
    assert find(shop, wx.login_code("wx1", "user2")) == "user2"


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (Fault(kind="errcode", path=LOGIN, errcode=-1, times=5), "WeChat said -1"),
        (Fault(kind="errcode", path=LOGIN, errcode=45011, times=5), "WeChat said 45011"),
        (Fault(kind="raw", path=LOGIN, status=502, times=5), "502"),
        (Fault(kind="close", path=LOGIN, times=5), "the connection broke"),
    ],
)
def test_breaker_opens_and_closes(
    shop: Flask,
    wx: Sandbox,
    clock: list[float],
    caplog: pytest.LogCaptureFixture,
    fault: Fault,
    cause: str,
) -> None:
    """Three failures in a row open it for 2 s, then 4 s, then 8 s; one good try closes it."""
    wx.inject(fault)
    asked = []
    code = wx.login_code("wx1", "user1")
    for wait_s in (0, 0, 0, 1.5, 0.5, 3.5, 0.5, 7.5, 0.5):
        clock[0] += wait_s
        found = [find(shop, code) for _ in range(5 if wait_s else 1)]
        asked.append(wx.count(path=LOGIN))
    assert asked == [1, 2, 3, 3, 4, 4, 5, 5, 6]
    assert found == ["user1"] * 5
    (warning,) = [record.getMessage() for record in caplog.records]
    assert cause in warning
    assert warning.endswith("; the next try is in 2 s")
    wx.inject(Fault(kind="close", path=LOGIN, times=2))
    others = [wx.login_code("wx1", f"user{n}") for n in (7, 8, 9)]
    assert [find(shop, other) for other in others] == [OutcomeUnknown, OutcomeUnknown, "user9"]


def test_a_try_that_fails_opens_the_breaker_again(
    shop: Flask, wx: Sandbox, clock: list[float]
) -> None:
    """One failure is enough then, whatever it was that opened it."""
    wx.inject(Fault(kind="errcode", path=LOGIN, errcode=45009))
    wx.inject(Fault(kind="close", path=LOGIN))
    code = wx.login_code("wx1", "user1")
    assert find(shop, code) is QuotaReached
    clock[0] += DAY_PAUSE_S
    assert [find(shop, code) for _ in range(2)] == [OutcomeUnknown, NotAsked]
    clock[0] += 2
    assert find(shop, code) == "user1"


@pytest.mark.parametrize("answer", [None, "somebody"])
def test_only_failures_in_a_row_open_the_breaker(allowance: LoginLimits, answer: object) -> None:
    """Where WeChat answers between, if only that a code is bad, it can be asked."""
    for _ in range(5):
        assert ask(allowance, silence()) is OutcomeUnknown
        assert ask(allowance, silence()) is OutcomeUnknown
        assert ask(allowance, answer) == answer


def test_pause_grows_to_a_minute(allowance: LoginLimits, clock: list[float]) -> None:
    """However long WeChat is away, it is tried about once a minute, from its return on."""
    tried = []
    for _ in range(600):
        if ask(allowance, silence()) is OutcomeUnknown:
            tried.append(int(clock[0]) - 1000)
        clock[0] += 1
    assert tried == [0, 1, 2, 4, 8, 16, 32, 64, *range(128, 600, 64)]


def test_one_apps_breaker_is_not_anothers(allowance: LoginLimits) -> None:
    """A quota belongs to a mini program."""
    assert [ask(allowance, silence()) for _ in range(4)] == [OutcomeUnknown] * 3 + [NotAsked]
    assert ask(allowance, appid="wx2") is None


def test_one_ask_at_a_time_tries(allowance: LoginLimits, clock: list[float]) -> None:
    """While it is under way the others are turned away, and its own error ends it too."""
    for _ in range(3):
        ask(allowance, silence())
    clock[0] += 2
    assert allowance.ask("wx1", lambda: ask(allowance, "somebody")) is NotAsked
    for _ in range(3):
        ask(allowance, silence())
    clock[0] += 2
    assert ask(allowance, SystemExit()) is SystemExit
    assert ask(allowance, silence()) is OutcomeUnknown
    assert ask(allowance, "somebody") is NotAsked


@pytest.mark.parametrize("late", ["somebody", silence()])
def test_outcome_of_an_older_ask_says_nothing(
    allowance: LoginLimits, clock: list[float], late: object
) -> None:
    """Asked before the breaker opened, answered after: it neither closes it nor pauses longer."""
    gate, begun = threading.Event(), threading.Event()

    def exchange() -> object:
        begun.set()
        assert gate.wait(30)
        if isinstance(late, BaseException):
            raise late
        return late

    with ThreadPoolExecutor(1) as pool:
        older = pool.submit(allowance.ask, "wx1", exchange)
        assert begun.wait(30)
        assert [ask(allowance, silence()) for _ in range(3)] == [OutcomeUnknown] * 3
        gate.set()
        older.exception(timeout=30)
    assert ask(allowance, "somebody") is NotAsked
    clock[0] += 2
    assert ask(allowance, "somebody") == "somebody"


def test_refusal_names_no_code(shop: Flask) -> None:
    """What is raised says what to do, and nothing of the pull but its appid."""
    for _ in range(BURST):
        find(shop, token_hex(16))
    with pytest.raises(NotAsked) as refusal:
        process_of(shop).logins().find("wx1", Secret("canary" * 5))
    assert str(refusal.value) == (
        "jscode2session: not asked: too many codes of wx1 are being asked about. "
        "Let the mini program set its background token: pulls with one need no code."
    )
    assert not refusal.value.sent
