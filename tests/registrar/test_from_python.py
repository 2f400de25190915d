"""The registrar as a Python library: a token source of one's own, no app, no command."""

import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefetch_kit.errors import (
    ConfigError,
    GuardRefused,
    OutcomeUnknown,
    SourceRefused,
    TokenSourceError,
)
from prefetch_kit.registrar import (
    Change,
    FetchSetting,
    OffIfFrom,
    Plan,
    Registrar,
    Secret,
    StaticToken,
    Transport,
)
from prefetch_kit.sandbox import Sandbox

APPID = "wx01"
URL = "https://shop.example/prefetch/pre_fetch"
FUNCTION = FetchSetting.cloud_function("test-pfyol", "login")
IN_CLOUD = {
    "is_pre_fetch_open": True,
    "pre_fetch_type": 1,
    "pre_env": "test-pfyol",
    "pre_function_name": "login",
}


@pytest.mark.parametrize("as_source", [True, False])
def test_read_plan_apply_and_roll_back(wx: Sandbox, root: Path, as_source: bool) -> None:
    """With a `TokenSource` or a function; nothing is asked for, and nothing probed."""
    token = wx.access_token(APPID)
    tokens = StaticToken(Secret(token)) if as_source else lambda: token
    transport = Transport(base_url=wx.base_url)
    with Registrar(APPID, tokens=tokens, state_dir=root, transport=transport) as registrar:
        assert registrar.read().pre_fetch == FetchSetting()
        (change,) = registrar.plan({"pre_fetch": FUNCTION}).changes
        assert (change.kind, change.after, change.guards) == ("pre_fetch", FUNCTION, ())
        assert wx.settings(APPID) == {}
        registrar.apply({"pre_fetch": FUNCTION})
        assert wx.settings(APPID) == IN_CLOUD
        assert registrar.plan({"pre_fetch": FUNCTION}).changes == ()
        registrar.rollback()
        assert wx.settings(APPID) == IN_CLOUD | {"is_pre_fetch_open": False}


def test_a_plan_is_carried_out_later(wx: Sandbox, registrar: Registrar) -> None:
    """Its changes alone, as long as WeChat holds what they were planned on."""
    plan = registrar.plan({"pre_fetch": FUNCTION})
    assert registrar.apply_changes(plan.changes).changes == plan.changes
    assert wx.settings(APPID) == IN_CLOUD


def test_what_is_left_out_is_left_alone(wx: Sandbox, registrar: Registrar) -> None:
    """The other kind of pull stays as somebody made it."""
    wx.put_settings(APPID, IN_CLOUD)
    registrar.apply({"period_fetch": FetchSetting.server(URL)})
    assert wx.settings(APPID).items() > IN_CLOUD.items()


def test_off_keeps_the_source(wx: Sandbox, registrar: Registrar) -> None:
    """It needs its guard, is done once, and what was never configured is off already."""
    wx.put_settings(APPID, IN_CLOUD)
    off = FetchSetting.off()
    with pytest.raises(GuardRefused, match="--allow-disable"):
        registrar.apply({"pre_fetch": off})
    registrar.apply({"pre_fetch": off, "period_fetch": off}, allow={"disable"})
    assert wx.settings(APPID) == IN_CLOUD | {"is_pre_fetch_open": False}
    assert registrar.plan({"pre_fetch": off, "period_fetch": off}).changes == ()


def test_on_without_a_source_is_not_believed(wx: Sandbox, registrar: Registrar) -> None:
    """WeChat cannot pull from nowhere."""
    wx.put_settings(APPID, {"is_pre_fetch_open": True})
    with pytest.raises(OutcomeUnknown, match="not what the API promises"):
        registrar.plan({"pre_fetch": FetchSetting.off()})


def test_from_a_url_to_a_function_and_back(wx: Sandbox, registrar: Registrar) -> None:
    """Either way the source that is replaced is not of the new one's kind: a takeover."""
    server = FetchSetting.server(URL)
    registrar.apply({"pre_fetch": server})
    for wanted in (FUNCTION, server):
        with pytest.raises(GuardRefused, match="--allow-takeover"):
            registrar.apply({"pre_fetch": wanted}, allow={"disable"})
        registrar.apply({"pre_fetch": wanted}, allow={"takeover"})
        assert registrar.read().pre_fetch == wanted


@pytest.mark.parametrize(
    "wrong",
    [
        FetchSetting(open=True),
        FetchSetting(open=True, source="cloud_function", env="e"),
        FetchSetting(open=True, source="server", url=URL, env="e"),
        OffIfFrom(FetchSetting(open=True, source="server", url="http://a.example/")),
        OffIfFrom(FetchSetting.off()),
        "off",
        None,
    ],
)
def test_what_wechat_cannot_be_told_is_refused_first(
    wx: Sandbox, registrar: Registrar, wrong: FetchSetting | OffIfFrom
) -> None:
    """Before anything is sent, a read too, and the kind of pull is named."""
    for method in (registrar.plan, registrar.apply):
        with pytest.raises(SourceRefused, match=r"^period_fetch "):
            method({"period_fetch": wrong})
    assert wx.requests() == []


def test_a_kind_that_is_none(wx: Sandbox, registrar: Registrar) -> None:
    """A misspelt one must not be taken for the other."""
    misspelt: Any = {"prefetch": FUNCTION}
    with pytest.raises(SourceRefused, match="'prefetch' is no kind of pull"):
        registrar.apply(misspelt)
    with pytest.raises(KeyError):
        registrar.read().for_kind("prefetch")  # type: ignore[arg-type]
    assert wx.count(action="get") == wx.count(path="/wxa/fetchdatasetting")


@pytest.mark.parametrize(
    ("after", "error", "says"),
    [
        (FUNCTION, GuardRefused, "--allow-takeover"),
        (FetchSetting(open=True, source="server", url="http://a.example/"), SourceRefused, "https"),
        (FetchSetting(open=True, source="cloud_function", env="e"), SourceRefused, "whole source"),
    ],
)
def test_changes_of_ones_own_are_judged(
    wx: Sandbox,
    registrar: Registrar,
    state_dir: Path,
    after: FetchSetting,
    error: type[Exception],
    says: str,
) -> None:
    """Whatever guards they claim to need, and before the journal begins a run."""
    held = {"is_pre_fetch_open": True, "pre_fetch_type": 0, "pre_fetch_url": "https://x.example/"}
    wx.put_settings(APPID, held)
    change = Change("pre_fetch", registrar.read().pre_fetch, after)
    with pytest.raises(error, match=says):
        registrar.apply_changes([change])
    with pytest.raises(SourceRefused, match="The plan has one kind of pull twice"):
        registrar.apply_changes([replace(change, after=FUNCTION)] * 2)
    assert wx.settings(APPID) == held
    assert not (state_dir / "journal.sqlite3").exists()


def test_a_password_in_a_url_is_not_told() -> None:
    """Nor is it where the URL cannot be one."""
    for url in ("https://u:canary@shop.example/", "https://u:canary@[broken", "https://a/?canary"):
        with pytest.raises(SourceRefused) as caught:
            FetchSetting.server(url)
        assert "canary" not in str(caught.value) + repr(vars(caught.value))


def test_a_token_instead_of_its_source(root: Path) -> None:
    """It is not shown."""
    token: Any = "canary-token"
    with pytest.raises(ConfigError, match="tokens is neither") as caught:
        Registrar(APPID, tokens=token, state_dir=root)
    assert "canary" not in str(caught.value)


def test_approval_stops_it_by_raising(wx: Sandbox, registrar: Registrar) -> None:
    """It sees the plan before anything is sent."""

    def refuse(plan: Plan) -> None:
        raise LookupError(plan.changes[0].kind)

    with pytest.raises(LookupError, match="pre_fetch"):
        registrar.apply({"pre_fetch": FUNCTION}, approve=refuse)
    assert wx.settings(APPID) == {}


def test_probing(wx: Sandbox, registrar: Registrar, origin: object) -> None:
    """A URL is pulled as WeChat would; of a function the verdict says that it cannot be."""
    assert registrar.probe(FetchSetting.server(URL), page="pages/index/index").status == 200
    probed = registrar.probe(FUNCTION, kind="pre_fetch")
    assert (probed.status, probed.problems) == (None, ())
    assert "comes from cloud function login" in probed.verdicts[0].says


def raising() -> str:
    raise RuntimeError("canary-token of the central server")


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        (raising, "it raised RuntimeError"),
        (lambda: "canary token", "what it gave is no access token"),
        (lambda: None, "what it gave is no access token"),
    ],
)
def test_a_function_that_gives_no_token(
    wx: Sandbox, transport: Transport, root: Path, tokens: Callable[[], str], says: str
) -> None:
    """What it raised or gave may hold a secret: neither is shown."""
    registrar = Registrar(APPID, tokens=tokens, state_dir=root, transport=transport)
    with pytest.raises(TokenSourceError, match=says) as caught:
        registrar.read()
    assert "canary" not in "".join(traceback.format_exception(caught.value))
    assert wx.requests() == []


def test_a_function_is_asked_again_for_a_rejected_token(
    wx: Sandbox, transport: Transport, root: Path
) -> None:
    """Once; with the same token again it is refused."""
    wx.put_settings(APPID, {"is_pre_fetch_open": False})
    given = iter(["x" * 64, wx.access_token(APPID), "y" * 64, "y" * 64])
    registrar = Registrar(APPID, tokens=lambda: next(given), state_dir=root, transport=transport)
    assert registrar.read().pre_fetch == FetchSetting.off()
    with pytest.raises(Exception, match="40001"):
        registrar.read()
    assert next(given, None) is None


def test_an_appid_that_is_none(root: Path) -> None:
    """It would name a directory."""
    with pytest.raises(ConfigError, match="appid is not an appid"):
        Registrar("../wx01", tokens=lambda: "token", state_dir=root)
