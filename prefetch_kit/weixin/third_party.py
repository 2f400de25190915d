"""A third-party platform (第三方平台): its ticket, its token and its merchants, put together."""

from typing import Protocol

from prefetch_kit.secret import Secret
from prefetch_kit.weixin import stores
from prefetch_kit.weixin.authorizers import Authorizers
from prefetch_kit.weixin.component import ComponentCalls, ComponentToken, Tickets
from prefetch_kit.weixin.grants import GRANT_CODEC
from prefetch_kit.weixin.token_store import LOCK_WAIT_S, TOKEN_CODEC
from prefetch_kit.weixin.transport import Transport


class ThirdParty:
    """One third-party platform. Whoever opens the same stores shares all of it.

    `tickets` takes what WeChat pushes, `token` gives the platform's own token, `calls` makes its
    calls, `authorizers` has the merchants and the tokens of their mini programs.
    """

    def __init__(
        self, transport: Transport, appid: str, secret: Secret, kept: stores.Stores
    ) -> None:
        self.appid = appid
        self.tickets = Tickets(kept.open(appid, "ticket", TOKEN_CODEC))
        store = kept.open(appid, "component_token", TOKEN_CODEC)
        self.token = ComponentToken(transport, appid, secret, self.tickets, store)
        self.calls = ComponentCalls(transport, appid, self.token)
        self.authorizers = Authorizers(
            self.calls, lambda merchant: kept.open(merchant, f"granted-to-{appid}", GRANT_CODEC)
        )


class Settings(stores.Settings, Protocol):
    """What an app says about the third-party platform that it belongs to, if it does."""

    @property
    def component_appid(self) -> str | None: ...
    @property
    def component_secret(self) -> Secret | None: ...


def third_party_of(
    settings: Settings, transport: Transport, *, lock_wait_s: float = LOCK_WAIT_S
) -> ThirdParty | None:
    """The platform of PREFETCH_COMPONENT_APPID; None where there is none."""
    appid, secret = settings.component_appid, settings.component_secret
    if appid is None or secret is None:
        return None
    kept = stores.stores_of(settings, lock_wait_s=lock_wait_s)
    return ThirdParty(transport, appid, secret, kept)
