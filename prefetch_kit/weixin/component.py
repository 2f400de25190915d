"""A third-party platform's own credentials: the ticket that WeChat pushes, and its token.

developers.weixin.qq.com: the component_verify_ticket and getComponentAccessToken pages.
"""

import time
from collections.abc import Callable, Mapping
from typing import Final

from prefetch_kit.errors import PlatformUnusable
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.token_stores.records import StoredToken, TokenStore
from prefetch_kit.weixin.tokens import SecretToken, TokenSource, with_token
from prefetch_kit.weixin.transport import Transport

TICKET_LASTS_S: Final = 12 * 3600
_PUSHED_EVERY_S: Final = 600.0
# No two clocks that are set right are further apart.
_AHEAD_S: Final = 300.0


class Tickets:
    """The newest `component_verify_ticket`; others are pushed each ten minutes."""

    def __init__(self, store: TokenStore, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock

    def keep(self, ticket: Secret, *, pushed_at: float) -> None:
        """Keep a pushed ticket, unless a newer one came before. Seconds of WeChat's clock.

        One from the future counts as one that was pushed ten minutes ago, the one before the
        newest: so it shuts out none that comes with the right time, and if it is this machine's
        clock that is wrong, each still replaces the one before it. One that is kept and ends
        later than any can was kept by another clock, and is replaced.
        """
        now = self._clock()
        if pushed_at > now + _AHEAD_S:
            pushed_at = now - _PUSHED_EVERY_S
        fresh = StoredToken(ticket, pushed_at + TICKET_LASTS_S)
        with self._store.lock():
            kept = self._store.load()
            latest = now + _AHEAD_S + TICKET_LASTS_S
            if kept is None or not fresh.expires_at < kept.expires_at <= latest:
                self._store.save(fresh)

    def newest(self) -> Secret:
        """Raises TokenSourceError where none came yet. Whether it is too old, WeChat says."""
        kept = self._store.load()
        if kept is None:
            raise PlatformUnusable(
                "the third-party platform",
                "no component_verify_ticket came yet",
                remedy="WeChat pushes one each ten minutes to the platform's push URL "
                "(授权事件接收URL): serve prefetch_kit.pushes there, then run "
                "`prefetch-kit platform start-push`",
            )
        return kept.value


class ComponentToken(SecretToken):
    """The `component_access_token`, asked for with the ticket; it lasts two hours."""

    _action = "api_component_token"
    _name = "component_access_token"

    def __init__(
        self,
        transport: Transport,
        appid: str,
        secret: Secret,
        tickets: Tickets,
        store: TokenStore,
    ) -> None:
        super().__init__(transport, appid, secret, store)
        self._tickets = tickets

    def _answer(self) -> dict[str, object]:
        return self._transport.call(
            self._action,
            "POST",
            "/cgi-bin/component/api_component_token",
            query={},
            body={
                "component_appid": self._appid,
                "component_appsecret": self._secret,
                "component_verify_ticket": self._tickets.newest(),
            },
        )

    def start_push(self) -> None:
        """Let WeChat push tickets, which it does no more after some that were not answered.

        developers.weixin.qq.com: the startPushTicket page. It needs no token, which could not be
        had without a ticket. Raises Refused and OutcomeUnknown.
        """
        self._transport.call(
            "api_start_push_ticket",
            "POST",
            "/cgi-bin/component/api_start_push_ticket",
            query={},
            body={"component_appid": self._appid, "component_secret": self._secret},
        )


class ComponentCalls:
    """Calls that a third-party platform makes in its own name."""

    def __init__(self, transport: Transport, appid: str, tokens: TokenSource) -> None:
        self._transport = transport
        self._appid = appid
        self._tokens = tokens

    def post(
        self,
        action: str,
        body: Mapping[str, object],
        *,
        on_answer: Callable[[bytes], object] | None = None,
    ) -> dict[str, object]:
        """POST to `/cgi-bin/component/{action}`, with a renewed token if need be.

        `on_answer` is as in `Transport.call`. The token is sent under its old name: newer pages
        call it `access_token`, but every known client sends this one, and nobody knows of WeChat
        refusing it.
        """
        return with_token(
            self._tokens,
            lambda token: self._transport.call(
                action,
                "POST",
                f"/cgi-bin/component/{action}",
                query={"component_access_token": token},
                body={"component_appid": self._appid, **body},
                on_answer=on_answer,
            ),
        )

    def login(self, appid: str, code: Secret) -> dict[str, object]:
        """`/sns/component/jscode2session` for a user of a merchant's mini program."""
        return with_token(
            self._tokens,
            lambda token: self._transport.call(
                "component_jscode2session",
                "GET",
                "/sns/component/jscode2session",
                query={
                    "appid": appid,
                    "js_code": code,
                    "grant_type": "authorization_code",
                    "component_appid": self._appid,
                    "component_access_token": token,
                },
            ),
        )
