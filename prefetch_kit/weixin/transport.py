"""The one module that sends anything to WeChat."""

import re
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Protocol, Self
from urllib.parse import urlsplit

import requests

from prefetch_kit.addresses import is_loopback, platform_url_problem, proxy_url_problem, shown
from prefetch_kit.errors import ConfigError, FetchRule, NotFetched, OutcomeUnknown, WeixinError
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.answers import UnreadableError, parse
from prefetch_kit.weixin.connection import OUTGOING, JsonBody, NotPublicError, Outgoing
from prefetch_kit.weixin.errcodes import refusal
from prefetch_kit.weixin.proxy import Proxy, ProxyError
from prefetch_kit.weixin.sessions import Sessions, prepared

DEADLINE_S: Final = 5.0

_NO_QUERY: Mapping[str, str] = MappingProxyType({})
_CALLER = "203.0.113.1"  # nobody's (RFC 5737)
_UNKNOWN = "Whether it took effect is unknown: read back before repeating"
_AGAIN = "Try again"
_ERRCODE = re.compile(r"-?[0-9]{1,10}\Z")
_NOT_SENT = "check the network and the address, then try again"
_NO_SANDBOX = "start `prefetch-kit sandbox`, or correct PREFETCH_API_BASE_URL"


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP answer. `body` may hold secrets, so neither it nor the headers are printed.

    `address` and `certificate_ends`, in seconds since the epoch, are those of a new connection.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    elapsed_s: float
    address: str | None
    certificate_ends: float | None


@dataclass(frozen=True, slots=True)
class _NoReply:
    """Why there is none. `body` is what came of one."""

    cause: str
    sent: bool
    rule: FetchRule
    body: bytes = field(repr=False)


class Transport:
    """Sends requests that end within their deadline and keep their secrets.

    `base_url` is https, or http for a loopback host. `ca_file` names certificates in PEM form
    that are trusted beside the usual ones. `proxy` is the address of an HTTP proxy through which
    https calls go, with its credentials: `http://user:password@host:port`; what is fetched does
    not go through it. `deadline_s` covers a whole call, name lookup, tunnel and handshake
    included; `max_bytes` is the longest answer that is read. Raises ConfigError.

    Safe to share between threads and to use after a fork: each request has a session to
    itself, and a session made by another process is never used. Closing ends idle connections;
    a later call opens new ones.
    """

    def __init__(
        self,
        *,
        base_url: str = "https://api.weixin.qq.com",
        ca_file: str | None = None,
        proxy: Secret | None = None,
        deadline_s: float = DEADLINE_S,
        max_bytes: int = 65536,
    ) -> None:
        if problem := platform_url_problem(base_url):
            raise ConfigError(
                "PREFETCH_API_BASE_URL",
                problem,
                remedy="Leave it out for WeChat itself, or give the sandbox's http://127.0.0.1:PORT",
            )
        if proxy is not None and (wrong := proxy_url_problem(proxy.reveal())):
            raise ConfigError("PREFETCH_PROXY", wrong[0], remedy=wrong[1])
        self.base_url = base_url.rstrip("/")
        # Plain HTTP, a sandbox's, never leaves this machine.
        is_tls = urlsplit(base_url).scheme == "https"
        self._proxy = Proxy.of(proxy) if proxy is not None and is_tls else None
        self._sessions = Sessions(ca_file)
        self._deadline_s = deadline_s
        self._max_bytes = max_bytes

    @property
    def loopback(self) -> bool:
        """Whether this talks to the sandbox on this machine, not to WeChat."""
        return is_loopback(urlsplit(self.base_url).hostname or "")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self._sessions.close()

    def call(
        self,
        action: str,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | Secret],
        body: Mapping[str, object] | None = None,
        on_answer: Callable[[bytes], object] | None = None,
    ) -> dict[str, object]:
        """Make one JSON call and return the answer of a success.

        `action` names the call in errors. Secrets in `query` and in the first level of `body`
        are revealed only on the wire. `on_answer` is given the body of any answer, or as much of
        it as came, before anything in it is judged. Raises Refused or OutcomeUnknown.
        """
        outcome = self._outcome(action, method, path, query, body, on_answer)
        if isinstance(outcome, WeixinError):
            raise outcome
        return outcome

    def fetch(
        self,
        url: str,
        *,
        query: Mapping[str, str | Secret] = _NO_QUERY,
        origin: str | None = None,
        deadline_s: float,
        max_bytes: int,
    ) -> Reply:
        """GET an https URL once, following no redirect, whatever the status.

        Unless this talks to a sandbox, all addresses of the host must be public, and one of
        those that were found to be so is connected to: without the proxy, which would look the
        name up itself, and show what this machine may reach rather than what WeChat does.

        `query` is appended the way WeChat does it: behind a second `?` if the URL holds one.
        With `origin` (`http://127.0.0.1:8000`, loopback only) the request goes there, with the
        Host of `url` and the `X-Forwarded-` headers of what would take the TLS off. A body
        over `max_bytes` comes back cut to `max_bytes` + 1 bytes.
        Raises NotFetched, or ConfigError for a URL that is not allowed.
        """
        host = urlsplit(url).netloc
        headers = {"Host": host, "Accept": "*/*"}
        if origin is not None:
            headers |= {"X-Forwarded-Proto": "https", "X-Forwarded-Host": host}
            headers["X-Forwarded-For"] = _CALLER
        reply = self._exchange(
            Outgoing(query, deadline_s, max_bytes, public_only=not self.loopback),
            "GET",
            _fetch_address(url, origin),
            headers=headers,
        )
        if isinstance(reply, _NoReply):
            raise NotFetched(shown(url), reply.cause, rule=reply.rule, sent=reply.sent)
        return reply

    def _outcome(
        self,
        action: str,
        method: str,
        path: str,
        query: Mapping[str, str | Secret],
        body: Mapping[str, object] | None,
        on_answer: Callable[[bytes], object] | None,
    ) -> dict[str, object] | WeixinError:
        """The answer or the error, as a value: an error raised here would carry these frames."""
        reply = self._exchange(
            Outgoing(query, self._deadline_s, self._max_bytes, proxy=self._proxy),
            method,
            self.base_url + path,
            data=None if body is None else JsonBody(body),
            headers=None if body is None else {"Content-Type": "application/json"},
        )
        if on_answer is not None:
            on_answer(reply.body)
        remedy = _UNKNOWN if action.startswith("set_") else _AGAIN
        if isinstance(reply, _NoReply):
            remedy = remedy if reply.sent else self._not_sent()
            return OutcomeUnknown(action, reply.cause, sent=reply.sent, remedy=remedy)
        try:
            errcode, answer = _read_answer(reply, self._max_bytes)
        except UnreadableError as error:
            return OutcomeUnknown(
                action, str(error), sent=True, remedy=remedy, retry_after_s=_retry_after_s(reply)
            )
        if not errcode:
            return answer
        errmsg = answer.get("errmsg")
        said = errmsg if isinstance(errmsg, str) else ""
        sent = [*query.values(), *(body or {}).values()]
        secrets = [value for value in sent if isinstance(value, Secret)]
        return refusal(action, errcode, said, secrets=secrets)

    def _not_sent(self) -> str:
        parts = urlsplit(self.base_url)
        remedy = _NO_SANDBOX if self.loopback else _NOT_SENT
        if self._proxy is not None:
            remedy = f"check PREFETCH_PROXY; {remedy}"
        return f"Nothing was sent to {parts.scheme}://{parts.netloc}: {remedy}"

    def _exchange(
        self, outgoing: Outgoing, method: str, url: str, **request: Any
    ) -> Reply | _NoReply:
        reset = OUTGOING.set(outgoing)
        try:
            # An idle connection may have been made under other rules.
            is_alone = outgoing.public_only or outgoing.proxy is not self._proxy
            opened = self._sessions.fresh if is_alone else self._sessions.borrowed
            with opened(url) as session:
                response = session.send(
                    prepared(method, url, **request),
                    stream=True,
                    allow_redirects=False,
                    timeout=outgoing.deadline_s,
                    proxies={},
                )
                with response:
                    _read(response, outgoing)
                    return Reply(
                        response.status_code,
                        response.headers,
                        bytes(outgoing.body),
                        outgoing.elapsed_s(),
                        outgoing.address,
                        outgoing.certificate_ends,
                    )
        except Exception as error:  # noqa: BLE001 (whatever it is, its frames hold our secrets)
            cause, rule = _failure(error, outgoing)
            return _NoReply(cause, outgoing.sent, rule, bytes(outgoing.body))
        except BaseException as interrupt:  # noqa: BLE001 (raised on, below)
            # So do the frames of a Ctrl-C or of a greenlet's timeout, which must propagate.
            interrupt.__context__ = None
            raise interrupt.with_traceback(None)  # noqa: B904 (it is the same one)
        finally:
            OUTGOING.reset(reset)


class Reaches(Protocol):
    """What a deployment says of the way to WeChat."""

    @property
    def api_base_url(self) -> str: ...
    @property
    def ca_file(self) -> str | None: ...
    @property
    def proxy(self) -> Secret | None: ...


def transport_of(settings: Reaches, *, deadline_s: float = DEADLINE_S) -> Transport:
    """A transport that goes the way that the settings say."""
    return Transport(
        base_url=settings.api_base_url,
        ca_file=settings.ca_file,
        proxy=settings.proxy,
        deadline_s=deadline_s,
    )


def _fetch_address(url: str, origin: str | None) -> str:
    if platform_url_problem(url.partition("?")[0]) or not url.startswith("https:"):
        raise ConfigError("url", "is not a plain https URL", remedy="Write https://host/path")
    if origin is None:
        return url
    if platform_url_problem(origin) or not origin.startswith("http:"):
        raise ConfigError(
            "origin", "is not on this machine", remedy="Give an http://127.0.0.1:PORT origin"
        )
    return urlsplit(url)._replace(scheme="http", netloc=urlsplit(origin).netloc).geturl()


def _read(response: requests.Response, outgoing: Outgoing) -> None:
    """Take the body as it comes over the wire, up to `max_bytes` + 1.

    In pieces, so that what came stays where the rest does not: it may hold a token.
    """
    while (left := outgoing.max_bytes + 1 - len(outgoing.body)) > 0:
        chunk = response.raw.read1(left, decode_content=False)
        if not chunk:
            return
        outgoing.body += chunk


def _read_answer(reply: Reply, max_bytes: int) -> tuple[int, dict[str, object]]:
    """The errcode and the members of an answer. Raises UnreadableError."""
    if 300 <= reply.status < 400:
        raise UnreadableError(f"a redirect came (HTTP {reply.status}), which is never followed")
    if reply.status != 200:
        raise UnreadableError(f"HTTP status {reply.status} came instead of an answer")
    if reply.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise UnreadableError("the answer is compressed, which was not asked for")
    if len(reply.body) > max_bytes:
        raise UnreadableError(f"the answer is longer than {max_bytes} bytes")
    answer = parse(reply.body)
    errcode = answer.get("errcode", 0)
    if isinstance(errcode, str) and _ERRCODE.match(errcode):  # as login pages of old print it
        errcode = int(errcode)
        answer["errcode"] = errcode
    if not isinstance(errcode, int) or isinstance(errcode, bool) or abs(errcode) >= 2**31:
        raise UnreadableError("the errcode of the answer is not a number of 32 bits")
    return errcode, answer


def _retry_after_s(reply: Reply) -> float | None:
    """The seconds of a `Retry-After` header, for the statuses that it is for (RFC 9110, 10.2.3)."""
    said = reply.headers.get("Retry-After", "").strip()
    # A date would be by a clock that need not be right, here or there.
    is_number = said.isascii() and said.isdigit() and len(said) < 10
    return float(said) if reply.status in (429, 503) and is_number else None


def _failure(error: Exception, outgoing: Outgoing) -> tuple[str, FetchRule]:
    """What went wrong, in our own words: the texts of the errors below quote URLs."""
    late = f"no complete answer within {outgoing.deadline_s:g} s"
    cause = "the request could not be sent"
    if outgoing.sent:
        cause = "the connection broke before the whole answer came"
    cause, rule = _known_failure(error, late) or (cause, "answered")
    return late if outgoing.elapsed_s() >= outgoing.deadline_s else cause, rule


def _known_failure(error: BaseException | None, late: str) -> tuple[str, FetchRule] | None:
    while error is not None:
        match error:
            case UnreadableError():
                return str(error), "answered"
            case ProxyError():
                return str(error), "answered"
            case NotPublicError():
                return f"the host's name leads to {error}, which is not public", "address"
            case TimeoutError():
                return late, "answered"
            case ssl.SSLCertVerificationError():
                return f"TLS problem: {error.verify_message.rstrip('.')}", "tls"
            case ssl.SSLError():
                return f"TLS problem: {error.reason or 'no reason given'}", "tls"
            case socket.gaierror() | UnicodeError():
                return "the host's name cannot be resolved", "address"
            case ConnectionRefusedError():
                return "the connection was refused", "answered"
        error = error.__cause__ or error.__context__
    return None
