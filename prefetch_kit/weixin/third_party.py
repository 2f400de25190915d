"""A third-party platform (第三方平台): its ticket, its token and its merchants, put together."""

from typing import TYPE_CHECKING

from prefetch_kit.secret import Secret
from prefetch_kit.weixin.authorizations import AUTHORIZATION_CODEC
from prefetch_kit.weixin.authorizers import Authorizers
from prefetch_kit.weixin.component import ComponentCalls, ComponentToken, Tickets
from prefetch_kit.weixin.token_stores.records import LOCK_WAIT_S, TOKEN_CODEC, Stores
from prefetch_kit.weixin.token_stores.settings import stores_of
from prefetch_kit.weixin.transport import Transport

if TYPE_CHECKING:
    from prefetch_kit.weixin.token_sources import Settings


class ThirdParty:
    """One third-party platform. All that open the same stores share all of it.

    `tickets` takes what WeChat pushes, `token` gives the platform's own token, `calls` makes its
    calls, `authorizers` has the merchants and the tokens of their mini programs.
    """

    def __init__(self, transport: Transport, appid: str, secret: Secret, stores: Stores) -> None:
        self.appid = appid
        self.transport = transport
        self.tickets = Tickets(stores.open(appid, "ticket", TOKEN_CODEC))
        store = stores.open(appid, "component_token", TOKEN_CODEC)
        self.token = ComponentToken(transport, appid, secret, self.tickets, store)
        self.calls = ComponentCalls(transport, appid, self.token)
        self.authorizers = Authorizers(
            self.calls,
            lambda merchant: stores.open(merchant, record_name(appid), AUTHORIZATION_CODEC),
        )


def record_name(component_appid: str) -> str:
    """What a merchant's authorization of this platform is called in a store."""
    return f"granted-to-{component_appid}"


def third_party_of(
    settings: "Settings",
    transport: Transport,
    *,
    stores: Stores | None = None,
    lock_wait_s: float = LOCK_WAIT_S,
) -> ThirdParty | None:
    """The platform of PREFETCH_COMPONENT_APPID, by default with stores of its own."""
    appid, secret = settings.component_appid, settings.component_secret
    if appid is None or secret is None:
        return None
    if stores is None:
        stores = stores_of(settings, lock_wait_s=lock_wait_s)
    return ThirdParty(transport, appid, secret, stores)
