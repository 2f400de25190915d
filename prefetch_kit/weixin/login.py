"""A login code of a mini program's user, exchanged for the user's openid.

developers.weixin.qq.com: the code2Session page.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from marshmallow import fields, validate

from prefetch_kit.errors import OutcomeUnknown, TokenSourceError
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.answers import answer_schema, promised, read
from prefetch_kit.weixin.component import ComponentCalls
from prefetch_kit.weixin.third_party import third_party_of
from prefetch_kit.weixin.transport import Transport, transport_of

if TYPE_CHECKING:
    from prefetch_kit.weixin.token_sources import Settings

_PLATFORM_LOGIN: Final = "component_jscode2session"
_LOGIN: Final = answer_schema(
    openid=fields.String(required=True, validate=validate.Regexp(r"[!-~]{1,128}\Z")),
    unionid=fields.String(load_default=None, validate=validate.Regexp(r"[!-~]{0,128}\Z")),
)


@dataclass(frozen=True, slots=True)
class Login:
    """The user of a code. `unionid` is None where the app is bound to no open platform."""

    openid: str
    unionid: str | None


class CodeExchange:
    """Exchanges login codes. The session key that comes with the answer is dropped at once."""

    def __init__(
        self,
        *,
        base_url: str = "https://api.weixin.qq.com",
        ca_file: str | None = None,
        proxy: Secret | None = None,
        deadline_s: float = 2.0,
    ) -> None:
        self._transport = Transport(
            base_url=base_url, ca_file=ca_file, proxy=proxy, deadline_s=deadline_s
        )

    def close(self) -> None:
        self._transport.close()

    def exchange(self, appid: str, secret: Secret, code: Secret) -> Login:
        """Ask WeChat whose code this is; it works once.

        Raises Refused (40029 and 40163: the code is no good; 40226: the user is blocked; 45011
        and -1: later) or OutcomeUnknown, after which the code may be used up.
        """
        login = _read(
            self._transport.call(
                "jscode2session",
                "GET",
                "/sns/jscode2session",
                query={
                    "appid": appid,
                    "secret": secret,
                    "js_code": code,
                    "grant_type": "authorization_code",
                },
            )
        )
        if login is None:
            raise OutcomeUnknown(
                "jscode2session",
                "the answer holds no openid",
                sent=True,
                remedy="The code may be used up: let the user log in again",
            )
        return login


class PlatformCodeExchange:
    """Exchanges codes of merchants' mini programs, which a third-party platform serves.

    developers.weixin.qq.com: the thirdpartyCode2Session page. It needs no AppSecret of theirs.
    """

    def __init__(self, calls: ComponentCalls) -> None:
        self._calls = calls

    def exchange(self, appid: str, code: Secret) -> Login:
        """Ask WeChat whose code this is; it works once.

        Raises as CodeExchange does; 61003 means that the merchant has not authorized the platform.
        """
        try:
            return promised(_PLATFORM_LOGIN, _read(self._calls.login(appid, code)), what="openid")
        except TokenSourceError as error:
            problem = OutcomeUnknown(
                _PLATFORM_LOGIN, error.problem, sent=False, remedy=error.remedy
            )
        raise problem


def platform_exchange(settings: "Settings", *, deadline_s: float) -> PlatformCodeExchange | None:
    """The exchange of the platform in these settings, if there is one.

    The platform's own token may have to be renewed first: `deadline_s` is for each call, and
    for the wait while another process does that.
    """
    transport = transport_of(settings, deadline_s=deadline_s)
    platform = third_party_of(settings, transport, lock_wait_s=deadline_s)
    return None if platform is None else PlatformCodeExchange(platform.calls)


def _read(answer: Mapping[str, object]) -> Login | None:
    login = read(_LOGIN, answer)
    return None if login is None else Login(login["openid"], login["unionid"] or None)
