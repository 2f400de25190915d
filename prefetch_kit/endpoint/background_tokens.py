"""Background tokens: what `wx.setBackgroundFetchToken` takes, minted and verified."""

import hashlib
import hmac
import re
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from typing import Final

from itsdangerous import Signer, want_bytes

from prefetch_kit.errors import ConfigError, UserIdError

MAX_MINTED_CHARS: Final = 200
# Machines of one deployment may disagree about the time by a little; five minutes is a lot.
LEEWAY_S: Final = 300
# Some 18 MB, or 28 with the longest user ids.
VERIFIED_KEPT: Final = 50_000
APPIDS_KEPT: Final = 10_000

_ISSUED_AT_BYTES: Final = 5
_SIGNATURE_CHARS: Final = 43  # unpadded base64 of 32 bytes
_MAX_PAYLOAD_CHARS: Final = MAX_MINTED_CHARS - _SIGNATURE_CHARS - len(".")
_MAX_USER_ID_BYTES: Final = _MAX_PAYLOAD_CHARS * 3 // 4 - _ISSUED_AT_BYTES
_SHAPE: Final = re.compile(
    rf"[A-Za-z0-9_-]{{1,{_MAX_PAYLOAD_CHARS}}}\.[A-Za-z0-9_-]{{{_SIGNATURE_CHARS}}}"
)


class BackgroundTokens:
    """Mints and checks the tokens a mini program gives to `wx.setBackgroundFetchToken`.

    `keys` are secret keys, oldest first: the last one signs, all of them verify. A token is
    bound to one appid and to this one purpose, so neither another app's token nor anything else
    signed with the same keys proves a user here. What was verified is remembered until it
    expires: beside the keys that could mint it, a token gives nothing more away.
    """

    def __init__(self, keys: Sequence[str | bytes], *, max_age_s: int) -> None:
        self._keys = [want_bytes(key) for key in keys]
        self._max_age_s = max_age_s
        self._derived: dict[str, list[bytes]] = {}
        self._verified: dict[str, tuple[str, str, float]] = {}

    def issue(self, user_id: str, *, appid: str) -> str:
        """Mint a token of at most 200 characters. Raises `UserIdError` for an impossible id."""
        raw = int(time.time()).to_bytes(_ISSUED_AT_BYTES) + _user_bytes(user_id)
        payload = _b64encode(raw)
        return (payload + b"." + _signature(self._keys_for(appid)[0], payload)).decode()

    def verify(self, token: str, *, appid: str) -> str | None:
        """The user id of a genuine, unexpired token minted for `appid`; otherwise None."""
        known = self._verified.get(token)
        if known is None:
            if len(token) > MAX_MINTED_CHARS or (known := self._read(token, appid)) is None:
                return None
            if len(self._verified) >= VERIFIED_KEPT:
                self._verified.clear()  # simpler than choosing; each costs one signature again
            self._verified[token] = known
        minted_for, user_id, ends_at = known
        return user_id if minted_for == appid and time.time() <= ends_at else None

    def _read(self, token: str, appid: str) -> tuple[str, str, float] | None:
        """For whom a genuine token was minted, and when it ends in seconds of wall time."""
        if not _SHAPE.fullmatch(token):
            return None
        payload, _, signature = token.encode().rpartition(b".")
        # All that was minted is signed as text, so no other spelling of it passes.
        if not any(
            hmac.compare_digest(_signature(key, payload), signature)
            for key in self._keys_for(appid)
        ):
            return None
        try:
            raw = urlsafe_b64decode(payload + b"=" * (-len(payload) % 4))
            user_id = raw[_ISSUED_AT_BYTES:].decode()
        except ValueError:  # nothing we minted, though under our key
            return None
        issued_at = int.from_bytes(raw[:_ISSUED_AT_BYTES])
        if not user_id or issued_at > time.time() + LEEWAY_S:
            return None
        return appid, user_id, issued_at + self._max_age_s + LEEWAY_S

    def _keys_for(self, appid: str) -> list[bytes]:
        """What signs this appid's tokens and nothing else, the key that mints first."""
        derived = self._derived.get(appid)
        if derived is None:
            signer = Signer(
                self._keys,
                salt=f"prefetch_kit.background-token.v1:{appid}",
                key_derivation="hmac",
                digest_method=hashlib.sha256,
            )
            derived = [signer.derive_key(key) for key in reversed(self._keys)]
            if len(self._derived) >= APPIDS_KEPT:
                self._derived.clear()
            self._derived[appid] = derived
        return derived


def _signature(key: bytes, payload: bytes) -> bytes:
    return _b64encode(hmac.digest(key, payload, "sha256"))


def _user_bytes(user_id: object) -> bytes:
    if not isinstance(user_id, str) or not user_id:
        raise UserIdError("A user id is a non-empty str. Use the user's own key as text.")
    try:
        raw = user_id.encode()
    except UnicodeEncodeError:
        raise UserIdError(
            "A user id holds a lone surrogate, which UTF-8 cannot say. Decode it properly first."
        ) from None
    if len(raw) > _MAX_USER_ID_BYTES:
        raise UserIdError(
            f"A user id is at most {_MAX_USER_ID_BYTES} bytes of UTF-8, this one has "
            f"{len(raw)}. Mint the token from a shorter key."
        )
    return raw


def _b64encode(raw: bytes) -> bytes:
    return urlsafe_b64encode(raw).rstrip(b"=")


def background_tokens(settings: Mapping[str, object], *, max_age_s: int) -> BackgroundTokens:
    """The tokens of an app's `SECRET_KEY` and `SECRET_KEY_FALLBACKS`. Raises `ConfigError`."""
    keys = secret_keys(settings)
    if not keys:
        raise ConfigError("SECRET_KEY", "is missing, and signs the tokens", remedy="Set it")
    return BackgroundTokens(keys, max_age_s=max_age_s)


def secret_keys(settings: Mapping[str, object]) -> list[str | bytes]:
    """The fallbacks and then the present key of an app; none where it has no present one.

    Raises `ConfigError`.
    """
    key, fallbacks = settings.get("SECRET_KEY"), settings.get("SECRET_KEY_FALLBACKS") or ()
    if not key:
        return []
    if not isinstance(fallbacks, (list, tuple)):
        # Taken for a list, each character of a string would be a key, and anyone could sign.
        raise ConfigError(
            "SECRET_KEY_FALLBACKS", "is not a list", remedy="Write a list of the earlier keys"
        )
    keys = [_usable("SECRET_KEY_FALLBACKS", each) for each in fallbacks]
    return [*keys, _usable("SECRET_KEY", key)]


def _usable(setting: str, key: object) -> str | bytes:
    if not isinstance(key, (str, bytes)) or not key:
        # With an empty key anyone could sign.
        raise ConfigError(
            setting, "holds a key that is empty or no text", remedy="Write long random strings"
        )
    return key
