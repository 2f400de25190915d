"""Where the access tokens of a mini program come from: `_named` is the list, in order."""

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from prefetch_kit.errors import ConfigError, TokenSourceError
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.command_token import CommandToken
from prefetch_kit.weixin.third_party import ThirdParty, third_party_of
from prefetch_kit.weixin.token_stores.records import TOKEN_CODEC, Stores, decode_secret
from prefetch_kit.weixin.token_stores.settings import stores_of
from prefetch_kit.weixin.tokens import PlainToken, StableToken, StaticToken, TokenSource
from prefetch_kit.weixin.transport import Reaches, Transport

Source = Literal["access_token", "token_command", "app_secret", "platform"]

# PREFETCH_TOKEN_CALL: the source, and the name of its record.
_APP_TOKENS: Final = {
    "stable_token": (StableToken, "access_token"),
    "token": (PlainToken, "plain_access_token"),
}


class Settings(Reaches, Protocol):
    """What a deployment says about WeChat, its access tokens, and where to keep records."""

    @property
    def state_dir(self) -> Path: ...
    @property
    def token_store_url(self) -> Secret | None: ...
    @property
    def cache_namespace(self) -> str: ...
    @property
    def access_token(self) -> Secret | None: ...
    @property
    def token_command(self) -> tuple[str, ...] | None: ...
    @property
    def token_call(self) -> str: ...
    @property
    def app_secrets(self) -> Mapping[str, Secret]: ...
    @property
    def component_appid(self) -> str | None: ...
    @property
    def component_secret(self) -> Secret | None: ...


class TokenSources:
    """The token sources of a deployment, which share a store and a transport."""

    def __init__(self, settings: Settings, transport: Transport) -> None:
        self._settings = settings
        self._transport = transport

    @cached_property
    def platform(self) -> ThirdParty | None:
        """The third-party platform, if there is one."""
        return third_party_of(self._settings, self._transport, stores=self._stores)

    @cached_property
    def _stores(self) -> Stores:
        return stores_of(self._settings)

    def of(self, appid: str) -> TokenSource:
        """Where one mini program's tokens come from. Raises ConfigError where nothing says so."""
        match _named(self._settings, appid):
            case "access_token", token:
                return StaticToken(token)
            case "token_command", command:
                return CommandToken([word.replace("{appid}", appid) for word in command])
            case "app_secret", secret:
                token, name = _APP_TOKENS[self._settings.token_call]
                store = self._stores.open(appid, name, TOKEN_CODEC)
                return token(self._transport, appid, secret, store)
        if self.platform is not None:
            return self.platform.authorizers.token(appid)
        raise ConfigError(
            "PREFETCH_APP_SECRET",
            # Not the appid: a fleet counts by cause.
            "is missing for this mini program, so no access token can be had",
            remedy="Set it, or PREFETCH_TOKEN_COMMAND, PREFETCH_ACCESS_TOKEN, or, for a "
            "third-party platform, PREFETCH_COMPONENT_APPID; in prefetch.toml see [tokens]",
        )

    def are_of_platform(self, appid: str) -> bool:
        """Whether one mini program's tokens come through the third-party platform."""
        return source_of(self._settings, appid) == "platform"


def source_of(settings: Settings, appid: str) -> Source | None:
    """What gives one mini program's tokens; None where the settings do not say."""
    return _named(settings, appid)[0]


def _named(settings: Settings, appid: str) -> tuple[Source | None, Any]:
    """The first of the sources that the settings name for one mini program, and what they say."""
    said: dict[Source, object] = {
        "access_token": settings.access_token,
        "token_command": settings.token_command,
        "app_secret": settings.app_secrets.get(appid),
        "platform": settings.component_appid if settings.component_secret else None,
    }
    return next((each for each in said.items() if each[1] is not None), (None, None))


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
        return decode_secret(token) or "what it gave is no access token"


def token_source_of(given: TokenSource | Callable[[], str]) -> TokenSource:
    """A token source: the given one, or one that calls the given function. Raises ConfigError."""
    if callable(given):
        return TokenFunction(given)
    if not hasattr(given, "renew"):  # it may be a token, and is not shown
        problem = "is neither a token source nor a function that gives a token"
        raise ConfigError("tokens", problem, remedy="Pass one of the two")
    return given
