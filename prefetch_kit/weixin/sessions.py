"""Sessions of requests that always verify, follow nothing and ignore the environment."""

import os
import ssl
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from http.cookiejar import DefaultCookiePolicy
from typing import Any, Final
from urllib.parse import urlsplit

import requests
from requests.adapters import DEFAULT_CA_BUNDLE_PATH, HTTPAdapter

from prefetch_kit.errors import ConfigError
from prefetch_kit.quoting import harmless
from prefetch_kit.version import __version__
from prefetch_kit.weixin.connection import PlainPool, TLSPool, tls_socket_class

_USER_AGENT: Final = f"prefetch-kit/{__version__}"


class Sessions:
    """The idle sessions of this process. Those that came with a fork are never used."""

    def __init__(self, ca_file: str | None) -> None:
        self._ca_file = ca_file
        # A wrong file is refused now. The usual certificates are slow to load: on first use.
        self._tls = None if ca_file is None else _tls_context(ca_file)
        self._pid = os.getpid()
        self._idle: deque[requests.Session] = deque()

    @contextmanager
    def borrowed(self, url: str) -> Iterator[requests.Session]:
        """A session for this URL that no other thread or greenlet uses meanwhile."""
        idle = self._own()
        try:
            session = idle.pop()
        except IndexError:
            session = _Session()
        try:
            self._mount_tls(session, url)
            yield session
        finally:
            idle.append(session)

    @contextmanager
    def fresh(self, url: str) -> Iterator[requests.Session]:
        """A session without connections, so that each host is looked up and judged anew."""
        with _Session() as session:
            self._mount_tls(session, url)
            yield session

    def close(self) -> None:
        """Close the idle ones; a later request opens new ones."""
        idle = self._own()
        while idle:
            idle.pop().close()

    def _own(self) -> deque[requests.Session]:
        if self._pid != os.getpid():
            # They share their sockets with the parent, and each would read the other's answers.
            self._idle = deque()
            self._pid = os.getpid()
        return self._idle

    def _mount_tls(self, session: requests.Session, url: str) -> None:
        if urlsplit(url).scheme != "https" or "https://" in session.adapters:
            return
        # gevent may exchange the class after our import. Two threads may both make one: alike.
        if type(self._tls) is not ssl.SSLContext:
            self._tls = _tls_context(self._ca_file)
        session.mount("https://", _TLSAdapter(self._tls))


def prepared(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    data: Iterable[bytes] | None = None,
) -> requests.PreparedRequest:
    """A request for `send` of one of these sessions, with our headers where none are given.

    Not by `Session.request`, which first merges in what these sessions do not have: that shows
    in what a fleet costs.
    """
    headers = {
        "User-Agent": _USER_AGENT,
        "Accept": "application/json",
        "Accept-Encoding": "identity",  # a few compressed bytes can become any size
        **(headers or {}),
    }
    return requests.Request(method, url, headers=headers, data=data).prepare()


class _Session(requests.Session):
    def __init__(self) -> None:
        super().__init__()
        self.trust_env = False  # no proxies, .netrc or CA bundle of the environment
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
        self.adapters.clear()  # what requests mounts itself knows no deadline
        self.mount("http://", _PlainAdapter())

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Never one: to look at the target, requests reads that answer without any limit."""


class _PlainAdapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": PlainPool}


class _TLSAdapter(HTTPAdapter):
    def __init__(self, tls: ssl.SSLContext) -> None:
        self._tls = tls
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._tls, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"https": TLSPool}

    def cert_verify(self, conn: Any, *_: object) -> None:
        """Leave trust to the TLS context; no argument adds to it or turns it off."""
        conn.cert_reqs = "CERT_REQUIRED"


def _tls_context(ca_file: str | None) -> ssl.SSLContext:
    # Not ssl.create_default_context: it writes session keys to the file SSLKEYLOGFILE names.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.sslsocket_class = tls_socket_class(ssl.SSLSocket)
    context.load_verify_locations(DEFAULT_CA_BUNDLE_PATH)
    if ca_file is None:
        return context
    try:
        context.load_verify_locations(ca_file)
    except OSError as error:  # ssl.SSLError is one too
        cause = error.strerror
    else:
        return context
    raise ConfigError(
        "PREFETCH_CA_FILE",
        f"names {harmless(ca_file)}, which cannot be loaded ({cause})",
        remedy="Name a readable file of certificates in PEM form",
    )
