"""Keyed digests: what others wrote, where strangers may write too, can be told from theirs."""

import hmac
from collections.abc import Callable, Sequence
from typing import Final

DIGEST_BYTES: Final = 32
_PURPOSE: Final = b"prefetch_kit.cache.v1"


class Digests:
    """HMAC-SHA256 under keys that are derived from an app's secret keys.

    `secrets` gives the present ones, the newest first: that one signs, all of them verify. With
    none of them anybody can sign, and a digest only tells what is damaged.
    """

    def __init__(self, secrets: Callable[[], Sequence[bytes]]) -> None:
        self._secrets = secrets
        self._derived: tuple[Sequence[bytes], list[bytes]] = ((), [])

    def sign(self, *parts: bytes) -> bytes:
        return hmac.digest(self._keys()[0], _joined(parts), "sha256")

    def verify(self, digest: bytes, *parts: bytes) -> bool:
        message = _joined(parts)
        return any(
            hmac.compare_digest(hmac.digest(key, message, "sha256"), digest) for key in self._keys()
        )

    def _keys(self) -> list[bytes]:
        secrets = tuple(self._secrets()) or (b"",)
        derived = self._derived
        if derived[0] != secrets:
            keys = [hmac.digest(secret, _PURPOSE, "sha256") for secret in secrets]
            derived = self._derived = secrets, keys
        return derived[1]


def _joined(parts: Sequence[bytes]) -> bytes:
    # Each with its length, so that no two messages are written alike.
    return b"".join(b"%d:%b" % (len(part), part) for part in parts)
