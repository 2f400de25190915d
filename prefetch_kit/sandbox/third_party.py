"""A third-party platform (第三方平台): its tickets, codes and authorizations.

Pages: developers.weixin.qq.com/doc/oplatform/openApi/ticket-token/ and
/doc/oplatform/Third-party_Platforms/2.0/api/Before_Develop/.
"""

import secrets
from dataclasses import dataclass, field
from typing import Final

from prefetch_kit.sandbox.domains import PlatformDomains
from prefetch_kit.sandbox.errors import ApiError

TICKET_LIFETIME_S: Final = 12 * 3600
CODE_LIFETIME_S: Final = 3600
PRE_AUTH_CODE_LIFETIME_S: Final = 1800
# 小程序开发与数据分析: the permission set that fetchdatasetting needs.
FETCH_PERMISSION: Final = 18


@dataclass
class Authorization:
    """An authorization by a merchant. `earlier` has the end of each replaced refresh token."""

    permissions: tuple[int, ...]
    authorized_at: float
    refresh_token: str = field(repr=False)
    earlier: dict[str, float] = field(default_factory=dict, repr=False)
    # Seen by service providers: the list shows no refresh token before api_query_auth was called.
    was_queried: bool = False
    options: dict[str, str] = field(default_factory=dict)

    def renew(self, given: str, *, now: float, rotates: bool, grace_s: float) -> str:
        """The refresh token to use from now on; raises 61023 for an invalid one."""
        if given != self.refresh_token and now >= self.earlier.get(given, now):
            raise ApiError(61023)
        if rotates:
            self.earlier[self.refresh_token] = now + grace_s
            self.refresh_token = new_refresh_token()
        return self.refresh_token


@dataclass
class AuthorizationCode:
    appid: str
    expires_at: float
    used: bool = False

    def use(self, *, now: float) -> None:
        """Use the code; raises 61010 the second time and when it is too old."""
        if self.used or now >= self.expires_at:
            raise ApiError(61010)
        self.used = True


@dataclass
class Component:
    """One third-party platform; `receive_url` is where WeChat pushes what happens."""

    appid: str
    secret: str = field(repr=False)
    token: str = field(repr=False)
    aes_key: str = field(repr=False)
    receive_url: str | None
    pushed_at: float
    unanswered: int = 0
    denied: int | None = None
    tickets: dict[str, float] = field(default_factory=dict, repr=False)
    pre_auth_codes: dict[str, float] = field(default_factory=dict, repr=False)
    codes: dict[str, AuthorizationCode] = field(default_factory=dict, repr=False)
    authorizations: dict[str, Authorization] = field(default_factory=dict)
    domains: PlatformDomains = field(default_factory=PlatformDomains)

    def issue_ticket(self, *, now: float) -> str:
        ticket = f"ticket@@@{secrets.token_urlsafe(64)}"
        self.tickets[ticket] = now
        self.pushed_at = now
        return ticket

    def check_ticket(self, ticket: str, *, now: float) -> None:
        """Raises 61006 for a ticket that was never pushed and 61005 for one that is too old."""
        issued_at = self.tickets.get(ticket)
        if issued_at is None:
            raise ApiError(61006)
        if now >= issued_at + TICKET_LIFETIME_S:
            raise ApiError(61005)

    def start_tickets(self) -> None:
        """Push the next ticket at once, also where earlier ones were not answered."""
        self.unanswered = 0
        self.pushed_at = 0.0

    def issue_pre_auth_code(self, *, now: float) -> str:
        code = f"preauthcode@@@{secrets.token_urlsafe(48)}"
        self.pre_auth_codes[code] = now + PRE_AUTH_CODE_LIFETIME_S
        return code

    def admits(self, pre_auth_code: str, *, now: float) -> bool:
        """Whether the code is one of this platform's, and young enough."""
        return now < self.pre_auth_codes.get(pre_auth_code, now)

    def issue_code(self, appid: str, *, now: float) -> str:
        code = f"queryauthcode@@@{secrets.token_urlsafe(48)}"
        self.codes[code] = AuthorizationCode(appid, now + CODE_LIFETIME_S)
        return code

    def find_code(self, code: str) -> AuthorizationCode:
        """The record of a code; raises 61009 for one that was never issued."""
        try:
            return self.codes[code]
        except KeyError:
            raise ApiError(61009) from None

    def find_authorization(self, appid: str) -> Authorization:
        """The authorization of a merchant; raises 61003 if there is none."""
        try:
            return self.authorizations[appid]
        except KeyError:
            raise ApiError(61003) from None


def new_refresh_token() -> str:
    return f"refreshtoken@@@{secrets.token_urlsafe(32)}"
