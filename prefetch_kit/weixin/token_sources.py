"""Where the access tokens of a mini program come from: one list of sources, in order.

A new source is a function in `_SOURCES`, a member of `Settings`, and the key that sets it.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Final, Protocol

from prefetch_kit.errors import ConfigError, TokenSourceError
from prefetch_kit.secret import Secret
from prefetch_kit.weixin import third_party
from prefetch_kit.weixin.command_token import CommandToken
from prefetch_kit.weixin.third_party import ThirdParty, third_party_of
from prefetch_kit.weixin.token_stores.records import TOKEN_CODEC, TOKEN_SHAPE, Stores
from prefetch_kit.weixin.token_stores.settings import stores_of
from prefetch_kit.weixin.tokens import PlainToken, StableToken, StaticToken, TokenSource
from prefetch_kit.weixin.transport import Transport


class Settings(third_party.Settings, Protocol):
    """What a deployment says about where access tokens come from."""

    @property
    def access_token(self) -> Secret | None: ...
    @property
    def token_command(self) -> tuple[str, ...] | None: ...
    @property
    def token_call(self) -> str: ...
    @property
    def app_secrets(self) -> Mapping[str, Secret]: ...


class TokenSources:
    """The token sources of a deployment, which share a store and a transport."""

    def __init__(self, settings: Settings, transport: Transport) -> None:
        self.settings = settings
        self.transport = transport

    @cached_property
    def platform(self) -> ThirdParty | None:
        """The third-party platform, if there is one."""
        return third_party_of(self.settings, self.transport, stores=self.stores)

    @cached_property
    def stores(self) -> Stores:
        return stores_of(self.settings)

    def of(self, appid: str) -> TokenSource:
        """Where one mini program's tokens come from. Raises ConfigError where nothing says so."""
        for source in _SOURCES:
            if (make := source(self.settings, appid)) is not None:
                return make(self)
        raise _no_source()

    def are_of_platform(self, appid: str) -> bool:
        """Whether one mini program's tokens come through the third-party platform."""
        named = (source for source in _SOURCES if source(self.settings, appid) is not None)
        return next(named, None) is _third_party


def has_source(settings: Settings, appid: str) -> bool:
    """Whether the settings say where one mini program's tokens come from."""
    return any(source(settings, appid) is not None for source in _SOURCES)


_Make = Callable[[TokenSources], TokenSource]


def _access_token(settings: Settings, _: str) -> _Make | None:
    token = settings.access_token
    return None if token is None else lambda _: StaticToken(token)


def _token_command(settings: Settings, appid: str) -> _Make | None:
    words = settings.token_command
    if words is None:
        return None
    return lambda _: CommandToken([word.replace("{appid}", appid) for word in words])


def _app_secret(settings: Settings, appid: str) -> _Make | None:
    secret = settings.app_secrets.get(appid)
    if secret is None:
        return None
    token, name = _APP_TOKENS[settings.token_call]
    return lambda sources: token(
        sources.transport, appid, secret, sources.stores.open(appid, name, TOKEN_CODEC)
    )


def _third_party(settings: Settings, appid: str) -> _Make | None:
    def make(sources: TokenSources) -> TokenSource:
        if sources.platform is None:
            raise _no_source()
        return sources.platform.authorizers.token(appid)

    return make if third_party.is_named(settings) else None


# The first that the settings name for a mini program is its source.
_SOURCES: Final = (_access_token, _token_command, _app_secret, _third_party)

# PREFETCH_TOKEN_CALL: the source, and the name of its record.
_APP_TOKENS: Final = {
    "stable_token": (StableToken, "access_token"),
    "token": (PlainToken, "plain_access_token"),
}


def _no_source() -> ConfigError:
    return ConfigError(
        "PREFETCH_APP_SECRET",
        # Not the appid: a fleet counts by cause.
        "is missing for this mini program, so no access token can be had",
        remedy="Set it, or PREFETCH_TOKEN_COMMAND, PREFETCH_ACCESS_TOKEN, or, for a "
        "third-party platform, PREFETCH_COMPONENT_APPID; in prefetch.toml see [tokens]",
    )


class TokenFunction:
    """The token that a function gives: a program's own token service, for instance.

    It is called each time, and once more where WeChat rejects what it gave. Of what it raises
    only the class is told, since the text may hold a secret. Raises TokenSourceError.
    """

    def __init__(self, ask: Callable[[], str]) -> None:
        self._ask = ask

    def get(self) -> Secret:
        outcome = self._asked()
        if isinstance(outcome, Secret):
            return outcome
        raise TokenSourceError("the given function", outcome, remedy="Call it by hand to see why")

    def renew(self, failed: Secret) -> Secret:  # noqa: ARG002 (only the function knows better)
        return self.get()

    def _asked(self) -> Secret | str:
        """The token, or what is wrong as a text: an error raised here would show the token."""
        try:
            token: object = self._ask()
        except Exception as error:  # noqa: BLE001 (it is the caller's own, and can be any)
            return f"it raised {type(error).__name__}"
        if not isinstance(token, str) or not TOKEN_SHAPE.match(token):
            return "what it gave is no access token"
        return Secret(token)


def token_source_of(given: TokenSource | Callable[[], str]) -> TokenSource:
    """A token source: the given one, or one that calls the given function. Raises ConfigError."""
    if callable(given):
        return TokenFunction(given)
    if not hasattr(given, "renew"):  # it may be a token, and is not shown
        problem = "is neither a token source nor a function that gives a token"
        raise ConfigError("tokens", problem, remedy="Pass one of the two")
    return given
