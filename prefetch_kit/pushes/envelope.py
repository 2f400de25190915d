"""The envelope of a push: its signature, and what is encrypted in it.

developers.weixin.qq.com: the Technical_Plan and Message_encryption_and_decryption pages, known
from the class WXBizMsgCrypt of WeChat's samples.
"""

import binascii
import hashlib
import hmac
import re
from base64 import b64decode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from prefetch_kit.pushes.xml import read_members
from prefetch_kit.secret import Secret

_BLOCK: Final = 16
_MAX_PADDING: Final = 32  # PKCS#7, but with blocks of 32 bytes
_HEAD: Final = 20  # 16 random bytes, 4 of length
_SHAPES: Final = {
    # The signature is of all parts in a row: it does not say where one ends and the next begins.
    # So narrow, what is encrypted cannot lose whole blocks to these: 64 characters of it are three.
    "timestamp": re.compile(r"[0-9]{1,10}\Z"),
    "nonce": re.compile(r"[A-Za-z0-9_-]{1,64}\Z"),
    "msg_signature": re.compile(r"[0-9a-f]{40}\Z"),
}


class NotAcceptedError(Exception):
    """This is not a push of WeChat; answered with `status`. `reason` quotes nothing of it."""

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Keys:
    """The secrets that verify and decrypt a push to the platform of this appid.

    Once they were changed on the platform, pushes may come that were made with the previous ones.
    """

    appid: str
    message_token: Secret
    aes_key: Secret
    previous_message_token: Secret | None = None
    previous_aes_key: Secret | None = None


def opened(keys: Keys, query: Mapping[str, str], body: bytes) -> dict[str, str]:
    """The members of the event in a push. Raises NotAcceptedError."""
    members = read_members(body)
    sealed = None if members is None else members.get("Encrypt")
    if not sealed:
        raise NotAcceptedError(400, "the body is not XML with an Encrypt in it")
    # First: nothing below is worth doing for a stranger, and a stranger who could have bytes of
    # his own decrypted would learn from how that fails.
    if not _is_signed(keys, query, sealed):
        raise NotAcceptedError(403, "the signature is wrong: check the message token")
    tried = (
        _decrypted(keys.appid, key, sealed) for key in _given(keys.aes_key, keys.previous_aes_key)
    )
    message = next(filter(None, tried), None)
    if message is None:
        raise NotAcceptedError(400, "it cannot be decrypted: check the AES key and the appid")
    event = read_members(message)
    if event is None or event.get("AppId") != keys.appid:
        raise NotAcceptedError(400, "what was encrypted is no event of this platform")
    return event


def _is_signed(keys: Keys, query: Mapping[str, str], sealed: str) -> bool:
    if not all(shape.match(query.get(name, "")) for name, shape in _SHAPES.items()):
        return False
    return any(
        hmac.compare_digest(_signature(token, query, sealed), query["msg_signature"])
        for token in _given(keys.message_token, keys.previous_message_token)
    )


def _signature(message_token: Secret, query: Mapping[str, str], sealed: str) -> str:
    parts = sorted((message_token.reveal(), query["timestamp"], query["nonce"], sealed))
    return hashlib.sha1("".join(parts).encode(errors="replace")).hexdigest()  # noqa: S324 (theirs)


def _given(*secrets: Secret | None) -> Iterator[Secret]:
    return (secret for secret in secrets if secret is not None)


def _decrypted(appid: str, aes_key: Secret, sealed: str) -> bytes | None:
    # Imported with the first push: an app without pushes does not need [crypto].
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    try:
        content = b64decode(sealed, validate=True)
    except (binascii.Error, ValueError):
        return None
    if not content or len(content) % _BLOCK:
        return None
    # 43 characters are 258 bits; the two too many may be anything.
    key = b64decode(aes_key.reveal() + "=")
    aes = Cipher(algorithms.AES(key), modes.CBC(key[:_BLOCK])).decryptor()
    plain = aes.update(content) + aes.finalize()
    padding = plain[-1]
    if not 1 <= padding <= _MAX_PADDING or plain[-padding:] != bytes([padding]) * padding:
        return None
    whole = plain[:-padding]
    end = _HEAD + int.from_bytes(whole[16:_HEAD])
    if len(whole) < end or not hmac.compare_digest(whole[end:], appid.encode()):
        return None
    return whole[_HEAD:end]
