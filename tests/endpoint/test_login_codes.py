"""A login code proves a user where the app maps it, is asked about once, and is kept nowhere."""

import gc
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import FunctionType, ModuleType
from typing import Any

import pytest
from flask import Flask
from werkzeug.wrappers import Response

from prefetch_kit import ForeignAppid, Prefetch
from prefetch_kit.errors import SystemBusy
from prefetch_kit.sandbox import Fault, Sandbox

pytestmark = pytest.mark.slow

SECRET = "canary-app-secret"
LOGIN = "/sns/jscode2session"
MADE_UP = "a-code-that-wechat-never-made-up"
App = Callable[..., Flask]
Ask = Callable[..., Response]


@pytest.fixture
def wx() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        sandbox.add_app("wx1", secret=SECRET)
        sandbox.add_user("wx1", "o-alice", unionid="u-alice")
        sandbox.add_user("wx1", "o-bob", blocked=True)
        yield sandbox


@pytest.fixture
def shop(make_app: App, prefetch: Prefetch, wx: Sandbox) -> Flask:
    """An app with a page for everybody, one that reads the user, and one that demands a user."""
    prefetch.pre_fetch("pages/free")(lambda _: "x")
    prefetch.pre_fetch("pages/reads")(lambda pull: f"user {pull.user_id} {pull.user_id}")
    prefetch.pre_fetch("pages/demands", login_required=True)(lambda pull: pull.user_id)
    prefetch.code_user(lambda appid, openid, unionid: f"{appid}/{openid}/{unionid}")
    return make_app(prefetch, PREFETCH_APP_SECRET=SECRET, PREFETCH_API_BASE_URL=wx.base_url)


def outcome(reply: Response) -> tuple[int, str, str]:
    refused = reply.headers.get("X-Prefetch-Refused", "").partition(";")[0]
    return reply.status_code, refused, reply.data.decode()


def test_code_proves_the_user_it_belongs_to(shop: Flask, ask: Ask, wx: Sandbox) -> None:
    """The app's own mapping turns openid and unionid into its user."""
    code = wx.login_code("wx1", "o-alice")
    assert outcome(ask(shop, path="pages/demands", code=code)) == (200, "", "wx1/o-alice/u-alice")


def test_code_is_exchanged_once(shop: Flask, ask: Ask, wx: Sandbox) -> None:
    """It works once, so twenty pulls at the same time and one later ask WeChat once."""
    code = wx.login_code("wx1", "o-alice")
    wx.inject(Fault(kind="delay", path=LOGIN, delay_s=0.2))
    with ThreadPoolExecutor(20) as pool:
        pulls = [pool.submit(ask, shop, path="pages/demands", code=code) for _ in range(20)]
        assert {outcome(pull.result())[0] for pull in pulls} == {200}
    assert ask(shop, path="pages/demands", code=code).status_code == 200
    assert wx.count(path=LOGIN) == 1


def test_code_is_exchanged_only_if_asked_for(shop: Flask, ask: Ask, wx: Sandbox) -> None:
    """A page that reads no user spends neither the quota nor the user's code."""
    code = wx.login_code("wx1", "o-alice")
    assert ask(shop, path="pages/free", code=code).status_code == 200
    assert wx.count() == 0
    user = "wx1/o-alice/u-alice"
    assert outcome(ask(shop, path="pages/reads", code=code)) == (200, "", f"user {user} {user}")
    assert wx.count(path=LOGIN) == 1


def test_code_is_never_exchanged_without_code_user(
    make_app: App, prefetch: Prefetch, ask: Ask, wx: Sandbox
) -> None:
    """Exchanging may end the user's session key, so the app must ask for it."""
    prefetch.pre_fetch("pages/reads")(lambda pull: f"user {pull.user_id}")
    prefetch.pre_fetch("pages/demands", login_required=True)(lambda _: "x")
    app = make_app(prefetch, PREFETCH_APP_SECRET=SECRET, PREFETCH_API_BASE_URL=wx.base_url)
    code = wx.login_code("wx1", "o-alice")
    assert outcome(ask(app, path="pages/reads", code=code)) == (200, "", "user None")
    assert outcome(ask(app, path="pages/demands", code=code)) == (401, "login", "")
    assert wx.count() == 0


@pytest.mark.parametrize("spoiled", ["made-up", "used", "expired", "blocked"])
def test_bad_code_is_no_identity(shop: Flask, ask: Ask, wx: Sandbox, spoiled: str) -> None:
    """What WeChat calls bad proves nobody: None, or 401 where a user is demanded."""
    code = wx.login_code("wx1", "o-bob" if spoiled == "blocked" else "o-alice")
    if spoiled == "used":
        wx.inject(Fault(kind="errcode", path=LOGIN, errcode=40163, errmsg="code been used"))
    if spoiled == "expired":
        wx.advance(301)
    if spoiled == "made-up":
        code = MADE_UP
    assert outcome(ask(shop, path="pages/demands", code=code)) == (401, "login", "")
    assert outcome(ask(shop, path="pages/reads", code=code)) == (200, "", "user None None")
    assert wx.count(path=LOGIN) == 1


FAULTS: list[Mapping[str, Any]] = [
    {"kind": "errcode", "errcode": -1},
    {"kind": "errcode", "errcode": 45011},
    {"kind": "errcode", "errcode": 40125},
    {"kind": "raw", "status": 502, "body": "<html>bad gateway canary</html>"},
    {"kind": "raw", "body": "{}"},
    {"kind": "reset"},
    {"kind": "close"},
]


@pytest.mark.parametrize("fault", FAULTS)
def test_wechat_that_cannot_be_asked_is_503(
    shop: Flask, ask: Ask, wx: Sandbox, caplog: pytest.LogCaptureFixture, fault: Mapping[str, Any]
) -> None:
    """Where a user is demanded the pull is refused for now; elsewhere there is just no user."""
    wx.inject(Fault(path=LOGIN, times=2, **fault))
    codes = [wx.login_code("wx1", "o-alice") for _ in range(2)]
    reply = ask(shop, path="pages/demands", code=codes[0])
    assert outcome(reply) == (503, "weixin", "")
    incident = reply.headers["X-Prefetch-Refused"].partition("incident=")[2]
    assert f"(503 weixin, incident {incident})" in caplog.text
    assert outcome(ask(shop, path="pages/reads", code=codes[1])) == (200, "", "user None None")


def test_page_that_does_without_the_user_warns(
    shop: Flask, ask: Ask, wx: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    """It answers as for a stranger, and the log says that WeChat cannot be asked."""
    wx.inject(Fault(kind="errcode", path=LOGIN, errcode=-1))
    assert outcome(ask(shop, path="pages/reads", code=MADE_UP)) == (200, "", "user None None")
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "a login code could not be exchanged" in warning.getMessage()


def test_silent_wechat_leaves_time_for_the_page(shop: Flask, ask: Ask, wx: Sandbox) -> None:
    """A WeChat that hangs is given up, and asked once a pull however often the user is read."""
    wx.inject(Fault(kind="hang", path=LOGIN, times=None))
    reply = ask(shop, path="pages/reads", code=wx.login_code("wx1", "o-alice"))
    assert outcome(reply) == (200, "", "user None None")
    assert wx.count(path=LOGIN) == 1


def test_failed_exchange_is_tried_again_on_the_next_pull(
    shop: Flask, ask: Ask, wx: Sandbox
) -> None:
    """A failure is not remembered as an answer."""
    code = wx.login_code("wx1", "o-alice")
    wx.inject(Fault(kind="errcode", path=LOGIN, errcode=-1))
    assert ask(shop, path="pages/demands", code=code).status_code == 503
    assert ask(shop, path="pages/demands", code=code).status_code == 200


def test_code_user_may_know_nobody(
    make_app: App, prefetch: Prefetch, ask: Ask, wx: Sandbox
) -> None:
    """Somebody WeChat knows need not be a user of the app."""
    prefetch.pre_fetch(login_required=True)(lambda _: "x")
    prefetch.code_user(lambda _appid, _openid, _unionid: None)
    app = make_app(prefetch, PREFETCH_APP_SECRET=SECRET, PREFETCH_API_BASE_URL=wx.base_url)
    assert ask(app, code=wx.login_code("wx1", "o-alice")).status_code == 401


def test_appid_without_its_secret_is_503(
    make_app: App, prefetch: Prefetch, ask: Ask, wx: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    """Where a function decides about appids, a missing secret shows at the pull, named."""
    prefetch.pre_fetch(login_required=True)(lambda _: "x")
    prefetch.code_user(lambda _appid, openid, _unionid: openid)
    secrets = {"wx1": SECRET}
    app = make_app(
        prefetch,
        PREFETCH_APPIDS=lambda _: True,
        PREFETCH_APP_SECRETS=secrets,
        PREFETCH_API_BASE_URL=wx.base_url,
    )
    assert ask(app, appid="wx2", code=MADE_UP).status_code == 503
    assert "PREFETCH_APP_SECRETS lacks wx2" in caplog.text
    assert ask(app, code=wx.login_code("wx1", "o-alice")).status_code == 200


def test_wrong_ca_file_is_503(
    make_app: App, prefetch: Prefetch, ask: Ask, wx: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    """A setting that only fails when it is used is named in the log."""
    prefetch.pre_fetch(login_required=True)(lambda _: "x")
    prefetch.code_user(lambda _appid, openid, _unionid: openid)
    app = make_app(prefetch, PREFETCH_APP_SECRET=SECRET, PREFETCH_CA_FILE="/no/such/file")
    assert ask(app, code=MADE_UP).status_code == 503
    assert "PREFETCH_CA_FILE" in caplog.text


def test_login_route_takes_a_code_once(shop: Flask, prefetch: Prefetch, wx: Sandbox) -> None:
    """A code that was copied does not log in a second time, unlike a pull that comes again."""
    code = wx.login_code("wx1", "o-alice")
    with shop.app_context():
        who = prefetch.exchange_code(code, appid="wx1")
        assert prefetch.exchange_code(code, appid="wx1") is None
    assert who is not None
    assert (who.openid, who.unionid) == ("o-alice", "u-alice")
    assert wx.count(path=LOGIN) == 2


@pytest.mark.parametrize("code", [MADE_UP, "made-up", "", "c" * 129, None, 7, [MADE_UP]])
def test_login_route_is_told_of_a_bad_code(
    shop: Flask, prefetch: Prefetch, wx: Sandbox, code: Any
) -> None:
    """None is a user's fault; what can be no code is not even sent."""
    with shop.app_context():
        assert prefetch.exchange_code(code, appid="wx1") is None
    assert wx.count(path=LOGIN) == (code == MADE_UP)


def test_login_route_is_told_of_other_failures(
    shop: Flask, prefetch: Prefetch, wx: Sandbox
) -> None:
    """A WeChat that is down, and an app whose secret is missing, raise."""
    wx.inject(Fault(kind="errcode", path=LOGIN, errcode=-1))
    with shop.app_context():
        with pytest.raises(SystemBusy):
            prefetch.exchange_code(MADE_UP, appid="wx1")
        with pytest.raises(ForeignAppid, match="wx2 is not in PREFETCH_APPIDS"):
            prefetch.exchange_code(MADE_UP, appid="wx2")


@pytest.mark.parametrize("fails", [True, False])
def test_code_is_kept_nowhere(
    shop: Flask, ask: Ask, wx: Sandbox, caplog: pytest.LogCaptureFixture, fails: bool
) -> None:
    """Neither the app's objects nor the log hold it, nor the session key or secret beside it."""
    caplog.set_level("DEBUG")
    code = wx.login_code("wx1", "o-alice")
    if fails:
        wx.inject(Fault(kind="errcode", path=LOGIN, errcode=40125, errmsg=f"no {code} {SECRET}"))
    assert ask(shop, path="pages/demands", code=code).status_code == (503 if fails else 200)
    texts = [repr(item) for item in held_by(shop.extensions) if isinstance(item, (str, bytes))]
    assert any("o-alice" in text for text in texts) != fails
    assert not [text for text in texts if code in text or "session_key" in text]
    assert code not in caplog.text
    assert SECRET not in caplog.text


def held_by(root: object) -> list[object]:
    """Everything reachable from an object, closures included, short of modules and classes."""
    found, todo = {id(root): root}, [root]
    while todo:
        item = todo.pop()
        inner = item.__closure__ if isinstance(item, FunctionType) else gc.get_referents(item)
        for each in inner or ():
            if id(each) not in found and not isinstance(each, (type, ModuleType)):
                found[id(each)] = each
                todo.append(each)
    return list(found.values())
