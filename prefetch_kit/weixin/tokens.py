"""Access tokens: what gives them, and how a rejected one is renewed."""

import logging
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, Final, Generic, Protocol, TypeVar

from prefetch_kit.errors import OutcomeUnknown, TokenRejected, TokenSourceError
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.answers import promised
from prefetch_kit.weixin.token_stores.records import Store, StoredToken, TokenStore, decode_secret
from prefetch_kit.weixin.transport import Transport

# /doc/offiaccount getStableAccessToken: expires_in is 300 to 7200; getComponentAccessToken and
# getAuthorizerAccessToken say 7200.
LONGEST_S: Final = 7200
# Assumed where expires_in cannot be read, as it is the shortest of these: one that ends later is
# renewed too early, one that ended before is rejected and then renewed at once.
_ASSUMED_S: Final = 300

_T = TypeVar("_T")
_logger = logging.getLogger(__name__)


class TokenSource(Protocol):
    """Gives access tokens of one account."""

    def get(self) -> Secret:
        """A token that should be valid. Raises TokenSourceError or WeixinError."""

    def renew(self, failed: Secret) -> Secret:
        """A token in place of `failed`, which WeChat rejected.

        If the token at hand is already another one, that is it and nothing is renewed. A
        source with nothing better hands `failed` back. Raises as `get` does.
        """


class StaticToken:
    """One fixed token, from the environment for instance; it cannot be renewed."""

    def __init__(self, value: Secret) -> None:
        self._value = value

    def get(self) -> Secret:
        return self._value

    def renew(self, failed: Secret) -> Secret:  # noqa: ARG002 (part of TokenSource)
        return self._value


class HasToken(Protocol):
    """A record that may hold an access token."""

    @property
    def access(self) -> StoredToken | None: ...


_R = TypeVar("_R", bound=HasToken)


class SharedToken(ABC, Generic[_R]):
    """A token in a store that all processes share: many need one, one asks WeChat.

    Only the holder of the store's lock asks. A token is replaced only if it is about to end or
    is the very one that failed, and stays until the new one is there. `clock` is wall time.
    """

    _action: ClassVar[str]

    def __init__(self, store: Store[_R], *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock

    def get(self) -> Secret:
        access = self._good(self._store.load())
        return self.renew(None) if access is None else access.value

    def renew(self, failed: Secret | None) -> Secret:
        with self._store.lock():
            # Look again: the holder of the lock before us has probably renewed it.
            kept = self._store.load()
            access, issued = self._good(kept), None
            if access is None or access.value == failed:
                issued = self._issued(kept)
                kept = self._store.save(issued)
                access = kept.access
        if issued is not None and kept != issued:
            self._came_late(issued)
        if issued is not None and issued.access is None:
            problem = "the answer holds no access token that can be used; the rest of it is kept"
            raise OutcomeUnknown(self._action, problem, sent=True, remedy="Try again")
        if access is None:
            problem = "what it held was taken away meanwhile"
            raise TokenSourceError("the store", problem, remedy="Try again")
        return access.value

    @abstractmethod
    def _issued(self, kept: _R | None) -> _R:
        """Ask WeChat for a token; `kept` is what the store holds. Called under its lock."""

    def _came_late(self, issued: _R) -> None:
        """The lock was lost, and what was issued is not kept: a newer record was saved."""

    def _good(self, kept: _R | None) -> StoredToken | None:
        access, now = kept.access if kept is not None else None, self._clock()
        if access is None or access.ends_soon(now):
            return None
        # With longer than WeChat gives, the clock was set back: when it ends is not known.
        return access if access.expires_at <= now + LONGEST_S else None


class SecretToken(SharedToken[StoredToken]):
    """A token that WeChat gives for the secret of an account."""

    _name: ClassVar[str] = "access_token"

    def __init__(
        self,
        transport: Transport,
        appid: str,
        secret: Secret,
        store: TokenStore,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(store, clock=clock)
        self._transport = transport
        self._appid = appid
        self._secret = secret

    @abstractmethod
    def _answer(self) -> dict[str, object]:
        """What WeChat answers to the call `_action`; the token in it is called `_name`."""

    def _issued(self, kept: StoredToken | None) -> StoredToken:  # noqa: ARG002 (nothing of it is needed)
        asked_at = self._clock()
        token = read_token(self._answer(), asked_at, name=self._name)
        return promised(self._action, token, what=self._name)


class StableToken(SecretToken):
    """The token of `POST /cgi-bin/stable_token`.

    `force_refresh` is always false: WeChat then gives everyone the same token, so no process
    ends another's.
    """

    _action = "stable_token"

    def _answer(self) -> dict[str, object]:
        return self._transport.call(
            self._action,
            "POST",
            "/cgi-bin/stable_token",
            query={},
            body={
                "grant_type": "client_credential",
                "appid": self._appid,
                "secret": self._secret,
                "force_refresh": False,
            },
        )


class PlainToken(SecretToken):
    """The token of `GET /cgi-bin/token`; the warning that it logs says why to avoid it.

    developers.weixin.qq.com: the getAccessToken page. It shares nothing with `stable_token`, so
    it is for an app whose other programs use this call too, and then through one store.
    """

    _action = "token"

    def _answer(self) -> dict[str, object]:
        _logger.warning(
            "%s: a new token of /cgi-bin/token ends the one that any other program of this app "
            "holds, five minutes from now; PREFETCH_TOKEN_CALL = stable_token does not",
            self._appid,
        )
        return self._transport.call(
            self._action,
            "GET",
            "/cgi-bin/token",
            query={
                "grant_type": "client_credential",
                "appid": self._appid,
                "secret": self._secret,
            },
        )


def with_token(tokens: TokenSource, call: Callable[[Secret], _T]) -> _T:
    """Make a call with a token; if WeChat rejects that, once more with a renewed one."""
    token = tokens.get()
    try:
        return call(token)
    except TokenRejected:
        renewed = tokens.renew(token)
        if renewed == token:
            raise
    return call(renewed)


def read_token(answer: Mapping[str, object], asked_at: float, *, name: str) -> StoredToken | None:
    """The token under this name in an answer, with its end; None where there is none."""
    value = decode_secret(answer.get(name))
    if value is None:
        return None
    return StoredToken(value, asked_at + _lasts_s(answer.get("expires_in")))


def _lasts_s(expires_in: object) -> float:
    """The seconds that an answer gives a token, or those that are assumed."""
    if isinstance(expires_in, str) and re.fullmatch("[0-9]{1,9}", expires_in):
        expires_in = int(expires_in)
    if isinstance(expires_in, int | float) and not isinstance(expires_in, bool):
        return min(expires_in, LONGEST_S) if expires_in >= 1 else _ASSUMED_S
    return _ASSUMED_S
