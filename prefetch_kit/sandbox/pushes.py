"""Pushes to a third-party platform: encrypted XML, and the answers to it.

Page: developers.weixin.qq.com/doc/oplatform/Third-party_Platforms/2.0/api/Before_Develop/
Technical_Plan.html.
"""

import base64
import hashlib
import http.client
import secrets
import struct
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlencode, urlsplit

from prefetch_kit.sandbox.http_get import NO_ANSWER, cut_at, ingress_headers
from prefetch_kit.sandbox.third_party import Component

_BLOCK: Final = 32
_MAX_ANSWER_BYTES: Final = 1024


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """One push. `accepted` means that `success` came back; if not, `reason` says what did."""

    platform: str
    info_type: str
    appid: str | None
    at: float
    attempts: int = 0
    status: int | None = None
    accepted: bool = False
    reason: str = ""


def event(component: Component, info_type: str, *, now: float, **members: object) -> str:
    """The XML of an event, before it is encrypted."""
    head = {"AppId": component.appid, "CreateTime": int(now), "InfoType": info_type}
    return _xml(head | members)


def _xml(members: Mapping[str, object]) -> str:
    inner = "".join(f"<{name}>{_cdata(value)}</{name}>" for name, value in members.items())
    return f"<xml>{inner}</xml>"


def _cdata(value: object) -> str:
    return str(value) if isinstance(value, int) else f"<![CDATA[{value}]]>"


@dataclass(frozen=True)
class Envelope:
    """What is sent: the query with the signatures, and the body."""

    query: Mapping[str, str]
    body: bytes


def seal(component: Component, xml: str, *, now: float) -> Envelope:
    """Encrypt and sign an event the way WeChat does."""
    encrypted = _encrypt(component, xml.encode())
    timestamp, nonce = str(int(now)), str(secrets.randbelow(2**31))
    query = {
        "signature": _signature(component.token, timestamp, nonce),
        "timestamp": timestamp,
        "nonce": nonce,
        "encrypt_type": "aes",
        "msg_signature": _signature(component.token, timestamp, nonce, encrypted),
    }
    body = (
        f"<xml><AppId>{_cdata(component.appid)}</AppId><Encrypt>{_cdata(encrypted)}</Encrypt></xml>"
    )
    return Envelope(query, body.encode())


def _signature(*parts: str) -> str:
    return hashlib.sha1("".join(sorted(parts)).encode()).hexdigest()  # noqa: S324 (as WeChat has it)


def _encrypt(component: Component, message: bytes) -> str:
    # Imported on use: only third-party platforms need it.
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    key = base64.b64decode(component.aes_key + "=")
    framed = secrets.token_bytes(16) + struct.pack(">I", len(message)) + message
    framed += component.appid.encode()
    padding = _BLOCK - len(framed) % _BLOCK
    cipher = Cipher(algorithms.AES(key), modes.CBC(key[:16])).encryptor()
    sealed = cipher.update(framed + bytes([padding]) * padding) + cipher.finalize()
    return base64.b64encode(sealed).decode()


def post(url: str, envelope: Envelope, *, origin: str, deadline_s: float) -> tuple[int | None, str]:
    """POST to the loopback origin of a registered URL: the status, and any problem."""
    until = time.monotonic() + deadline_s
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(urlsplit(origin).netloc, timeout=deadline_s)
    headers = {"Content-Type": "text/xml", "Connection": "close"}
    headers |= ingress_headers(parts.netloc)
    target = f"{parts.path or '/'}?{urlencode(envelope.query)}"
    try:
        with closing(connection):
            connection.connect()
            with cut_at(until, connection.sock) as late:
                connection.request("POST", target, envelope.body, headers)
                with connection.getresponse() as response:
                    answer = response.read(_MAX_ANSWER_BYTES)
    except (OSError, http.client.HTTPException):
        return None, NO_ANSWER
    if late.is_set():
        return None, NO_ANSWER
    if response.status != 200:
        return response.status, f"the status was {response.status}"
    return 200, "" if answer == b"success" else "the answer was not: success"
