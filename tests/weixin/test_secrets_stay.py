"""Whatever fails, no secret is in anything that can be printed, logged or stored."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus

import pytest

from prefetch_kit.errors import OutcomeUnknown, Refused
from prefetch_kit.fetch_setting import FetchSetting
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.authorizations import Authorization
from prefetch_kit.weixin.authorizers import Authorizers
from prefetch_kit.weixin.component import ComponentCalls, ComponentToken, Tickets
from prefetch_kit.weixin.login import CodeExchange, PlatformCodeExchange
from prefetch_kit.weixin.merchant_list import MerchantList
from prefetch_kit.weixin.settings import SettingsApi
from prefetch_kit.weixin.token_stores.records import MemoryStore, StoredToken
from prefetch_kit.weixin.tokens import PlainToken, StableToken, StaticToken
from prefetch_kit.weixin.transport import Transport

if TYPE_CHECKING:
    from tests.weixin.conftest import Peer, Script, Serve, Watch

pytestmark = pytest.mark.slow

# All characters that percent-encoding, JSON and base64 treat in their own ways.
TOKEN = 'Tq7/z+8=W"ä%41 access-token-0123456789'
FRESH = "Fm3~y+5=fresh-token-of-the-answer-9876543210"
APP_SECRET = 'Sx9/w+2=K"ö%42 app-secret-0123456789'
CODE = "Cv4/u+6=login-code-0123456789"
SESSION_KEY = "Kd5/t+1=session-key-0123456789=="
TICKET = "Kv6/s+3=component-verify-ticket-0123456789"
REFRESH = "Rv8/r+4=refresh-token-0123456789"
NEW_REFRESH = "Nv1/q+7=new-refresh-token-9876543210"
AUTH_CODE = "Av2/p+5=authorization-code-0123456789"
SECRETS = (TOKEN, FRESH, APP_SECRET, CODE, SESSION_KEY, TICKET, REFRESH, NEW_REFRESH, AUTH_CODE)

SERVER_SETTING = FetchSetting(True, "server", "https://shop.example/p")


def raw(body: str, *, status: str = "200 OK", headers: str = "") -> bytes:
    data = body.encode()
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(data)}\r\n{headers}\r\n"
    return head.encode() + data


def refusal(text: str, errcode: int = 48001) -> bytes:
    return raw(json.dumps({"errcode": errcode, "errmsg": text}))


ALL = " ".join(SECRETS)
PACKED = json.dumps(
    {
        "access_token": [FRESH],
        "component_access_token": [FRESH],
        "authorizer_access_token": [FRESH],
        "authorizer_refresh_token": NEW_REFRESH,
        "authorization_info": {"authorizer_refresh_token": NEW_REFRESH, "expires_in": 7200},
        "list": [{"refresh_token": NEW_REFRESH}],
        "session_key": SESSION_KEY,
        "echo": [TOKEN, APP_SECRET, CODE, TICKET, REFRESH, AUTH_CODE],
    }
)

# How WeChat may give back what it was sent.
ECHOES: dict[str, Callable[[str], bytes]] = {
    "whole": lambda secret: refusal(f"bad {secret}"),
    "upper case": lambda secret: refusal(f"bad {secret}".upper()),
    "cut to 12": lambda secret: refusal(f"bad {secret[:12]}"),
    "its tail": lambda secret: refusal(f"bad {secret[9:]}"),
    "percent-encoded": lambda secret: refusal(quote(f"bad {secret}", safe="")),
    "percent-encoded, slashes left": lambda secret: refusal(quote(f"bad {secret}")),
    "as a form, lower case": lambda secret: refusal(quote_plus(f"bad {secret}").lower()),
    "cut off": lambda secret: refusal("x" * 1990 + secret),
    "as a rid": lambda secret: refusal(f"bad rid: {secret[18:]}"),
    "twice": lambda secret: refusal(secret + secret),
    "between control characters": lambda secret: refusal(f"\0{secret}\n{secret}\x7f"),
    "token wrong": lambda secret: refusal(f"invalid credential {secret}", 40001),
    "secret wrong": lambda secret: refusal(f"invalid appsecret {secret}", 40125),
    "domain refused": lambda secret: refusal(f"domain {secret}", 9410016),
    "quota": lambda secret: refusal(f"reach max {secret}", 45009),
}

# What WeChat, or a proxy before it, may answer: with secrets in every part.
UNREADABLE: dict[str, bytes] = {
    "no members": raw(PACKED),
    "not JSON": raw(ALL),
    "cut JSON": raw(PACKED[:-3]),
    "a list": raw(f"[{PACKED}]"),
    "deep": raw("[" * 30000 + PACKED),
    "errcode a text": raw(json.dumps({"errcode": TOKEN, "errmsg": ALL})),
    "500": raw(ALL, status="500 Oops"),
    "reason": raw("", status=f"500 {quote(ALL)}"),
    "redirect": raw("", status="302 Found", headers=f"Location: http://x/?{quote(ALL)}\r\n"),
    "cookie": raw("{", headers=f"Set-Cookie: a={quote(ALL)}\r\n"),
    "status line": f"{ALL}\r\n\r\n".encode(),
    "head": f"HTTP/1.1 200 OK\r\n{ALL}\r\n\r\n".encode(),
    "head without an end": f"HTTP/1.1 200 OK\r\nX-A: {quote(ALL)}".encode(),
    "body in place of the head": f"HTTP/1.1 200 OK\r\n{PACKED}\r\n\r\n".encode(),
    "two lengths": raw(ALL, headers="Content-Length: 1\r\n"),
    "cut body": raw(PACKED)[:-3],
    "chunk size": f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{ALL}\r\n".encode(),
    "nothing": b"",
}


class Caller:
    """Everything that holds a secret, in front of one server."""

    def __init__(self, base_url: str, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self.transport = Transport(base_url=base_url, deadline_s=deadline_s)
        self.exchange = CodeExchange(base_url=base_url, deadline_s=deadline_s)
        self.source = StaticToken(Secret(TOKEN))
        self.api = SettingsApi(self.transport, self.source, sleep=lambda _: None)
        self.store: MemoryStore[StoredToken] = MemoryStore()
        self.stable = StableToken(self.transport, "wx01", Secret(APP_SECRET), self.store)
        self.plain = PlainToken(self.transport, "wx01", Secret(APP_SECRET), MemoryStore())
        self.tickets = Tickets(MemoryStore())
        self.tickets.keep(Secret(TICKET), pushed_at=time.time())
        self.component = ComponentToken(
            self.transport, "wx9", Secret(APP_SECRET), self.tickets, MemoryStore()
        )
        self.calls = ComponentCalls(self.transport, "wx9", self.source)
        self.authorization: MemoryStore[Authorization] = MemoryStore()
        self.authorization.save(Authorization((Secret(REFRESH),), None, 0.0))
        self.merchants = Authorizers(self.calls, lambda _: self.authorization)
        self.platform_exchange = PlatformCodeExchange(self.calls)

    def get(self) -> object:
        return self.api.get()

    def put(self) -> None:
        self.api.put("pre_fetch", SERVER_SETTING)

    def issue(self) -> object:
        return self.stable.get()

    def login(self) -> object:
        return self.exchange.exchange("wx01", Secret(APP_SECRET), Secret(CODE))

    def plainly(self) -> object:
        return self.plain.get()

    def buy(self) -> object:
        return self.component.get()

    def merchant(self) -> object:
        return self.merchants.token("wx01").get()

    def accept(self) -> object:
        return self.merchants.accept(Secret(AUTH_CODE), since=1.0)

    def recover(self) -> object:
        return [*MerchantList(self.calls, sleep=lambda _: None).pages()]

    def log_in(self) -> object:
        return self.platform_exchange.exchange("wx01", Secret(CODE))

    def fetch(self) -> object:
        return self.transport.fetch(
            "https://shop.example/p",
            query={"token": Secret(TOKEN), "code": Secret(CODE)},
            origin=self.transport.base_url,
            deadline_s=self.deadline_s,
            max_bytes=65536,
        )

    def close(self) -> None:
        self.transport.close()
        self.exchange.close()


CHAIN = (Caller.buy, Caller.merchant, Caller.accept, Caller.recover, Caller.log_in)
CALLS = (Caller.get, Caller.put, Caller.issue, Caller.login, Caller.plainly, *CHAIN)
SENT = [
    (Caller.get, TOKEN),
    (Caller.put, TOKEN),
    (Caller.issue, APP_SECRET),
    (Caller.login, APP_SECRET),
    (Caller.login, CODE),
    (Caller.plainly, APP_SECRET),
    (Caller.buy, APP_SECRET),
    (Caller.buy, TICKET),
    (Caller.merchant, REFRESH),
    (Caller.merchant, TOKEN),
    (Caller.accept, AUTH_CODE),
    (Caller.recover, TOKEN),
    (Caller.log_in, CODE),
]


@pytest.fixture
def watch(watch_for: "Callable[..., Watch]") -> "Watch":
    return watch_for(*SECRETS)


@pytest.fixture
def calling() -> Iterator[Callable[..., Caller]]:
    made: list[Caller] = []

    def call(base_url: str, *, deadline_s: float = 5) -> Caller:
        made.append(Caller(base_url, deadline_s))
        return made[-1]

    yield call
    for caller in made:
        caller.close()


@pytest.mark.parametrize(("call", "secret"), SENT)
@pytest.mark.parametrize("name", ECHOES)
def test_refusals_that_echo_a_secret(
    serve: "Serve",
    calling: Callable[..., Caller],
    watch: "Watch",
    name: str,
    call: Callable[[Caller], object],
    secret: str,
) -> None:
    """What was sent comes back in the errmsg, and goes no further."""
    caller = calling(serve(answering(ECHOES[name](secret))).url)
    error = watch.failure(partial(call, caller))
    assert isinstance(error, Refused)
    assert "***" in error.errmsg or name == "cut off"  # beyond what is shown at all


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", UNREADABLE)
def test_answers_that_hold_secrets(
    serve: "Serve",
    calling: Callable[..., Caller],
    watch: "Watch",
    name: str,
    call: Callable[[Caller], object],
) -> None:
    """Echoes and fresh secrets in any part of what is no answer."""
    caller = calling(serve(answering(UNREADABLE[name])).url)
    error = watch.failure(partial(call, caller))
    assert isinstance(error, OutcomeUnknown)
    for each in (caller, *vars(caller).values()):
        watch.nothing_of(each)


def answering(answer: bytes) -> "Script":
    def script(peer: "Peer") -> None:
        peer.request()
        peer.send(answer)

    return script


def silent(peer: "Peer") -> None:
    peer.wait()


def resetting(peer: "Peer") -> None:
    peer.request()
    peer.reset()


def dripping(peer: "Peer") -> None:
    peer.request()
    peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
    peer.drip(PACKED.encode() * 100, every_s=0.01)


def interrupting(peer: "Peer") -> None:
    peer.request()
    chunk = b"%x\r\n%s\r\n" % (len(PACKED.encode()), PACKED.encode())
    peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk)
    time.sleep(0.1)  # so that the chunk is read, and the client waits for the next one
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    peer.wait()


BREAKS = (silent, resetting, dripping, interrupting)


@pytest.mark.parametrize("call", [*CALLS, Caller.fetch])
@pytest.mark.parametrize("script", BREAKS)
def test_connections_that_break(
    serve: "Serve",
    calling: Callable[..., Caller],
    watch: "Watch",
    script: "Script",
    call: Callable[[Caller], object],
) -> None:
    """Late, reset, and interrupted by Ctrl-C in the middle of an answer."""
    caller = calling(serve(script).url, deadline_s=5 if script is interrupting else 0.2)
    error = watch.failure(partial(call, caller))
    assert isinstance(error, KeyboardInterrupt) is (script is interrupting)


@pytest.mark.parametrize("call", [*CALLS, Caller.fetch])
def test_a_connection_that_is_refused(
    serve: "Serve",
    calling: Callable[..., Caller],
    watch: "Watch",
    call: Callable[[Caller], object],
) -> None:
    """requests would quote the URL."""
    far = serve(silent)
    far.close()
    watch.failure(partial(call, calling(far.url)))


def talking(peer: "Peer") -> None:
    peer.send(raw(ALL))
    peer.wait()


@pytest.mark.parametrize("call", CALLS)
def test_a_server_that_speaks_no_tls(
    serve: "Serve",
    calling: Callable[..., Caller],
    watch: "Watch",
    call: Callable[[Caller], object],
) -> None:
    """A failed handshake, with secrets in what came instead."""
    far = serve(talking)
    watch.failure(partial(call, calling(far.url.replace("http:", "https:"))))


def test_there_are_enough_paths() -> None:
    """Each is a different way to fail with a different secret on its way."""
    broken = (len(BREAKS) + 1) * (len(CALLS) + 1) + len(CALLS)
    answered = len(ECHOES) * len(SENT) + len(UNREADABLE) * len(CALLS)
    assert broken + answered >= 400


def test_successes_are_quiet_too(
    serve: "Serve", calling: Callable[..., Caller], watch: "Watch"
) -> None:
    """The log of calls that work, what they return, and all that holds a secret afterwards."""
    tokens = {"authorizer_access_token": FRESH, "authorizer_refresh_token": NEW_REFRESH}
    own = {"access_token": FRESH, "component_access_token": FRESH}
    members = json.loads(PACKED) | {"errcode": 0, "expires_in": 7200, "openid": "o1"} | tokens | own
    members["authorization_info"] |= {"authorizer_appid": "wx01", **tokens}
    members["total_count"] = 1
    members["list"][0]["authorizer_appid"] = "wx01"
    caller = calling(serve.answers(raw(json.dumps(members))).url)

    results: list[object] = []

    def succeed() -> None:
        results.extend(call(caller) for call in CALLS)
        raise EOFError

    assert isinstance(watch.failure(succeed), EOFError)
    assert len(results) == len(CALLS)
    kept = [caller.store.load(), caller.authorization.load()]
    for each in (*results, *kept, *vars(caller).values()):
        watch.nothing_of(each)
