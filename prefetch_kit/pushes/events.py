"""What each event does.

developers.weixin.qq.com: the component_verify_ticket and authorize_event pages.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from logging import Logger
from typing import Final

from prefetch_kit.errors import PrefetchKitError, Refused
from prefetch_kit.pushes.envelope import Keys, NotAcceptedError, opened
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.authorizations import APPID_SHAPE
from prefetch_kit.weixin.authorizers import SPENT_CODE
from prefetch_kit.weixin.third_party import ThirdParty
from prefetch_kit.weixin.token_stores.records import TOKEN_SHAPE

_SECONDS: Final = re.compile(r"[0-9]{1,12}\Z")


@dataclass(frozen=True, slots=True)
class Receiver:
    """Processes pushes; `authorized` is called with each appid whose tokens were just stored.

    WeChat repeats an event that was not answered in time; `authorized` is then called again.
    """

    keys: Keys
    platform: ThirdParty
    authorized: Callable[[str], None]
    logger: Logger

    def receive(self, query: Mapping[str, str], body: bytes) -> int:
        """The status to answer with; 200 is for `success`. Errors are logged."""
        try:
            self._take(opened(self.keys, query, body))
        except NotAcceptedError as error:
            self.logger.warning("a push was not accepted: %s", error.reason)
            return error.status
        except PrefetchKitError as error:
            problem = str(error)
        else:
            return 200
        self.logger.error("a push could not be dealt with yet: %s", problem)
        return 503  # so that WeChat may push it again

    def _take(self, event: Mapping[str, str]) -> None:
        match event.get("InfoType"):
            case "component_verify_ticket":
                ticket = Secret(_member(event, "ComponentVerifyTicket", TOKEN_SHAPE))
                self.platform.tickets.keep(ticket, pushed_at=_created(event))
            case "authorized" | "updateauthorized":
                self._accept(event)
            case "unauthorized":
                appid = _member(event, "AuthorizerAppid", APPID_SHAPE)
                if self.platform.authorizers.drop(appid, since=_created(event)):
                    self.logger.warning("%s took its authorization back", appid)

    def _accept(self, event: Mapping[str, str]) -> None:
        appid = _member(event, "AuthorizerAppid", APPID_SHAPE)
        code = Secret(_member(event, "AuthorizationCode", TOKEN_SHAPE))
        since = _created(event)
        merchants = self.platform.authorizers
        merchants.note(appid, code, since=since)
        try:
            appid = merchants.accept(code, since=since, merchant=appid)
        except Refused as refused:
            if refused.errcode not in SPENT_CODE:
                raise
            if not merchants.holds(appid, since=since):
                # The answer to an earlier push was lost, but WeChat shows the token.
                merchants.token(appid).get()
        self.logger.info("%s has authorized the platform", appid)
        self.authorized(appid)


def _created(event: Mapping[str, str]) -> float:
    return float(_member(event, "CreateTime", _SECONDS))


def _member(event: Mapping[str, str], name: str, shape: re.Pattern[str]) -> str:
    if not shape.match(event.get(name, "")):
        raise NotAcceptedError(400, f"the event has no {name}")
    return event[name]
