"""Login codes of a merchant's mini program, exchanged in the platform's name."""

from collections.abc import Callable

import pytest

from prefetch_kit.errors import OutcomeUnknown, Refused
from prefetch_kit.sandbox import Fault, Sandbox
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.login import Login, PlatformCodeExchange
from prefetch_kit.weixin.third_party import ThirdParty

APPID, COMPONENT = "wx01", "wxplatform"
PATH = "/sns/component/jscode2session"


def exchanged(wx: Sandbox, platform: ThirdParty) -> Login:
    code = Secret(wx.login_code(APPID, "o1"))
    return PlatformCodeExchange(platform.calls).exchange(APPID, code)


def test_a_code_is_exchanged_without_the_merchants_secret(
    wx: Sandbox, provider: ThirdParty, authorize: Callable[..., str]
) -> None:
    """The platform's token proves who asks."""
    authorize()
    assert exchanged(wx, provider) == Login("o1", "u1")
    assert wx.count(path="/sns/jscode2session") == 0


def test_an_ended_platform_token_is_renewed_on_the_way(
    wx: Sandbox, provider: ThirdParty, authorize: Callable[..., str], calls: Callable[[str], int]
) -> None:
    """WeChat rejects it before it looks at the code, which is still good."""
    authorize()
    wx.expire_tokens(COMPONENT)
    assert exchanged(wx, provider) == Login("o1", "u1")
    assert calls("api_component_token") == 2


def test_a_merchant_who_has_not_authorized(wx: Sandbox, provider: ThirdParty) -> None:
    """WeChat refuses, and the remedy is the merchant's."""
    with pytest.raises(Refused, match="61003") as caught:
        exchanged(wx, provider)
    assert caught.value.remedy.startswith("Let the merchant authorize the platform")


def test_a_platform_without_a_ticket(wx: Sandbox, started: ThirdParty) -> None:
    """The code was not sent, so it can be used again; the remedy names the pushes."""
    with pytest.raises(OutcomeUnknown, match="no component_verify_ticket came yet") as caught:
        exchanged(wx, started)
    assert (caught.value.sent, caught.value.__context__) == (False, None)


def test_an_answer_without_an_openid(
    wx: Sandbox, provider: ThirdParty, authorize: Callable[..., str]
) -> None:
    """It proves nobody."""
    authorize()
    wx.inject(Fault(kind="raw", path=PATH, body='{"session_key": "x"}'))
    with pytest.raises(OutcomeUnknown, match="no openid"):
        exchanged(wx, provider)
