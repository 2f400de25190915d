"""Which token source the settings of a deployment mean for one mini program."""

from collections.abc import Mapping
from functools import cached_property
from typing import Protocol

from prefetch_kit.errors import ConfigError
from prefetch_kit.secret import Secret
from prefetch_kit.weixin import third_party
from prefetch_kit.weixin.command_token import CommandToken
from prefetch_kit.weixin.stores import Stores, stores_of
from prefetch_kit.weixin.third_party import ThirdParty
from prefetch_kit.weixin.token_store import TOKEN_CODEC
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
    """The token sources of a deployment, which share what they keep tokens in."""

    def __init__(self, settings: Settings, transport: Transport) -> None:
        self._settings = settings
        self._transport = transport

    @cached_property
    def platform(self) -> ThirdParty | None:
        """The third-party platform, if there is one."""
        return third_party.third_party_of(self._settings, self._transport)

    def of(self, appid: str) -> TokenSource:
        """Where one mini program's tokens come from. Raises ConfigError where nothing says so."""
        settings = self._settings
        if settings.access_token is not None:
            return StaticToken(settings.access_token)
        if settings.token_command is not None:
            return CommandToken([word.replace("{appid}", appid) for word in settings.token_command])
        if (secret := settings.app_secrets.get(appid)) is not None:
            return self._own(appid, secret)
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
        settings = self._settings
        own = settings.access_token or settings.token_command or settings.app_secrets.get(appid)
        return own is None and self.platform is not None

    def _own(self, appid: str, secret: Secret) -> TokenSource:
        if self._settings.token_call == "token":  # noqa: S105 - the name of a call
            store = self._stores.open(appid, "plain_access_token", TOKEN_CODEC)
            return PlainToken(self._transport, appid, secret, store)
        store = self._stores.open(appid, "access_token", TOKEN_CODEC)
        return StableToken(self._transport, appid, secret, store)

    @cached_property
    def _stores(self) -> Stores:
        return stores_of(self._settings)
