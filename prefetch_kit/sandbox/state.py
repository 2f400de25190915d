"""The records of the platform and its phones."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from prefetch_kit.sandbox.credentials import AccessTokens, LoginCodes
from prefetch_kit.sandbox.domains import MerchantDomains
from prefetch_kit.sandbox.faults import FaultScript
from prefetch_kit.sandbox.pushes import Pushed
from prefetch_kit.sandbox.quotas import Quotas
from prefetch_kit.sandbox.settings import Domains
from prefetch_kit.sandbox.third_party import Component

FetchType = Literal["pre", "periodic"]

# A load test against the sandbox must not fill the memory with its log.
MAX_REQUESTS: Final = 10_000
MAX_EARLIER: Final = 100


@dataclass(frozen=True)
class Kept:
    """A pulled answer a phone kept; `kept_at` in seconds."""

    text: str
    kept_at: float
    launch: dict[str, object]


@dataclass
class User:
    openid: str
    unionid: str | None
    blocked: bool
    active_at: float
    background_token: str | None = field(default=None, repr=False)
    kept: dict[FetchType, Kept] = field(default_factory=dict)


class Earlier(NamedTuple):
    """What was stored until a `set`."""

    until: float
    settings: dict[str, object]


@dataclass
class App:
    appid: str
    secret: str = field(repr=False)
    kind: str
    denied: int | None = None
    settings: dict[str, object] = field(default_factory=dict)
    earlier: deque[Earlier] = field(default_factory=lambda: deque(maxlen=MAX_EARLIER))
    domains: Domains = field(default_factory=lambda: Domains(set(), set()))
    """Those that somebody entered by hand."""
    webview: MerchantDomains = field(default_factory=MerchantDomains)
    server_domains: dict[str, list[str]] = field(default_factory=dict)
    users: dict[str, User] = field(default_factory=dict)

    def as_seen_at(self, at: float) -> dict[str, object]:
        """The settings as they were at this time."""
        seen = (each.settings for each in self.earlier if each.until > at)
        return next(seen, self.settings)

    def before_last_set(self) -> dict[str, object]:
        """What was stored before the last `set`, as if it had not been."""
        return self.earlier[-1].settings if self.earlier else self.settings


@dataclass(frozen=True)
class LoggedRequest:
    """One call of api.weixin.qq.com; `errcode` is None where a fault left no readable answer.

    `body` holds the known harmless fields of the JSON object sent.
    """

    method: str
    path: str
    action: str | None
    appid: str | None
    errcode: int | None
    body: dict[str, object] | None
    at: float


class LateEffect(NamedTuple):
    """A call that takes effect after its answer, and when."""

    at: float
    run: Callable[[], None]


@dataclass
class State:
    apps: dict[str, App] = field(default_factory=dict)
    components: dict[str, Component] = field(default_factory=dict)
    tokens: AccessTokens = field(default_factory=AccessTokens)
    codes: LoginCodes = field(default_factory=LoginCodes)
    quotas: Quotas = field(default_factory=Quotas)
    faults: FaultScript = field(default_factory=FaultScript)
    late: list[LateEffect] = field(default_factory=list)
    origins: dict[str, str] = field(default_factory=dict)
    requests: deque[LoggedRequest] = field(default_factory=lambda: deque(maxlen=MAX_REQUESTS))
    pushes: deque[Pushed] = field(default_factory=lambda: deque(maxlen=MAX_REQUESTS))
    ahead_s: float = 0.0
