"""The state a test author sets up by hand."""

import math

import pytest

from prefetch_kit.sandbox import Sandbox, SandboxError

APPID = "wx01"


def test_clock_moves_forward_only(wx: Sandbox) -> None:
    """Moving it adds to the running time; backward or nowhere is refused."""
    before = wx.now()
    wx.advance(3600)
    assert 3600 <= wx.now() - before < 3700
    for seconds in (-1, math.nan, math.inf):
        with pytest.raises(SandboxError, match="forward"):
            wx.advance(seconds)


def test_unknown_names_say_what_to_add(wx: Sandbox) -> None:
    """An app or user nobody added is named together with the remedy."""
    with pytest.raises(SandboxError, match=r"'wx99'.*add_app"):
        wx.access_token("wx99")
    with pytest.raises(SandboxError, match=r"'o9'.*add_user"):
        wx.login_code(APPID, "o9")


def test_names_are_added_once(wx: Sandbox) -> None:
    """A second app or user of one name would silently replace the first."""
    with pytest.raises(SandboxError, match="appid"):
        wx.add_app(APPID, secret="other")
    with pytest.raises(SandboxError, match="openid"):
        wx.add_user(APPID, "o1")


@pytest.mark.parametrize("host", ["", "shop", "https://shop.example", "shop.example:1", "a/b.c"])
def test_domain_is_a_bare_host(wx: Sandbox, host: str) -> None:
    """Scheme, port and path do not belong to a business domain."""
    with pytest.raises(SandboxError, match="host"):
        wx.add_domain(APPID, host)


def test_denial_is_one_of_those_played(wx: Sandbox) -> None:
    """Codes with a real cause are reached by that cause, not by denial."""
    with pytest.raises(SandboxError, match="48001"):
        wx.deny(APPID, 40001)


def test_reset_forgets_everything(wx: Sandbox) -> None:
    """Afterwards the sandbox is as new, its clock and switches included."""
    before = wx.now()
    wx.advance(10**6)
    wx.switches.pull_retries = 7
    wx.map_origin("shop.example", "http://127.0.0.1:1")
    wx.reset()
    assert wx.now() < before + 10**5
    assert wx.switches.pull_retries == 0
    assert wx.origins() == {}
    wx.add_app(APPID, secret="s")
