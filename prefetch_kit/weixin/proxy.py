"""A tunnel through an HTTP proxy (CONNECT, https://www.rfc-editor.org/rfc/rfc9110#CONNECT).

What goes through it is TLS with WeChat: the proxy sees the name of the host, and nothing else.
"""

import re
import socket
from base64 import b64encode
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import unquote, urlsplit

from prefetch_kit.secret import Secret

_HEAD_BYTES: Final = 16_384
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r]")
_SAYS: Final = {
    403: "it does not allow this host",
    407: "it wants a user name and a password, or others than these",
}


class ProxyError(Exception):
    """The proxy makes no tunnel; the text says why and quotes nothing of what it answered."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"the proxy of PREFETCH_PROXY {problem}")


@dataclass(frozen=True, slots=True)
class Proxy:
    """Where a proxy is; `authorization` is the value of the header with its credentials."""

    host: str
    port: int
    authorization: Secret | None

    @classmethod
    def of(cls, url: Secret) -> Self:
        """The proxy at a URL in which `proxy_url_problem` finds nothing."""
        parts = urlsplit(url.reveal())
        authorization = None
        if parts.username is not None:
            name, password = unquote(parts.username), unquote(parts.password or "")
            packed = b64encode(f"{name}:{password}".encode()).decode()
            authorization = Secret(f"Basic {packed}")
        return cls(parts.hostname or "", parts.port or 80, authorization)

    def open_tunnel(self, sock: socket.socket, host: str, port: int) -> None:
        """Let a connection to the proxy become one to this host. Raises ProxyError and OSError."""
        left = self._request(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        while left:  # not sendall: nothing of the request itself is sent by that
            left = left[sock.send(left) :]
        head, chunk = b"", bytearray(4096)
        while b"\r\n\r\n" not in head:
            read = sock.recv_into(chunk)
            head += chunk[:read]
            if not read or len(head) > _HEAD_BYTES:
                raise ProxyError("gave no answer that can be read")
        found = _STATUS.match(head)
        if found is None:
            raise ProxyError("gave no answer that can be read")
        status = int(found[1])
        if not 200 <= status < 300:
            why = f" ({_SAYS[status]})" if status in _SAYS else ""
            raise ProxyError(f"answered {status}{why}")
        if not head.endswith(b"\r\n\r\n"):  # nobody but the proxy can have said anything yet
            raise ProxyError("says more than that the tunnel is open")

    def _request(self, target: str) -> bytes:
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
        if self.authorization is not None:
            lines.append(f"Proxy-Authorization: {self.authorization.reveal()}")
        return "\r\n".join([*lines, "", ""]).encode()
