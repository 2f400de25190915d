"""The one pull that every entrant is sent, and how it is called without a server."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

import orjson

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

APPID: Final = "wx5e0f00d5ca1ab1e0"
PAGE: Final = "pages/product/list"
URL: Final = "/prefetch/pre_fetch"
USER: Final = "openid-alice"
SECRET_KEY: Final = "for benchmarks only"
# As long as one that the kit mints, for entrants that do not verify it.
SOME_TOKEN: Final = "x" * 70
KB: Final = 1024


@dataclass(frozen=True)
class Entrant:
    """A WSGI app, the size of its data, its token, and whether it refuses a malformed pull."""

    app: "WSGIApplication"
    data_bytes: int
    token: str = SOME_TOKEN
    validates: bool = True


def data(size_bytes: int) -> dict[str, Any]:
    """An answer: products with Chinese names, of about this length as compact JSON."""
    product = {"name": "明前龙井茶礼盒装", "price": "68.00", "stock": 40, "tags": ["新品", "包邮"]}
    length = len(orjson.dumps(product | {"id": 100}))
    products = [product | {"id": number} for number in range(size_bytes // (length + 1))]
    return {"user": USER, "products": products}


def ready(size_bytes: int) -> bytes:
    return orjson.dumps(data(size_bytes))


def query_string(token: str, **others: str) -> str:
    """The seven parameters of a pull with a token."""
    parameters = {
        "appid": APPID,
        "timestamp": str(int(time.time())),
        "token": token,
        "path": PAGE,
        "query": "id=1",
        "scene": "1001",
        "customMiniprogramVersion": "1.2.3",
    }
    return urlencode(parameters | others)


def environment(query: str) -> "WSGIEnvironment":
    """The WSGI environment of a pull."""
    return {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": URL,
        "QUERY_STRING": query,
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "127.0.0.1:8000",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": BytesIO(),
        "wsgi.errors": None,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }


def caller(
    app: "WSGIApplication", next_query: Callable[[], str], statuses: list[str] | None = None
) -> Callable[[], bytes]:
    """A function that sends one pull to an app and takes its answer, as a WSGI server does."""
    pattern = environment("")

    def start_response(status: str, *_: object) -> Callable[[bytes], object]:
        if statuses is not None:
            statuses.append(status)
        return BytesIO().write

    def call() -> bytes:
        environ = pattern.copy()
        environ["QUERY_STRING"] = next_query()
        answer = app(environ, start_response)
        body = b"".join(answer)
        if hasattr(answer, "close"):
            answer.close()
        return body

    return call


def check(entrant: Entrant) -> None:
    """Raise `RuntimeError` unless an entrant answers correctly."""
    statuses: list[str] = []
    good, bad = query_string(entrant.token), query_string(entrant.token, timestamp="soon")
    body = caller(entrant.app, lambda: good, statuses)()
    caller(entrant.app, lambda: bad, statuses)()
    is_refused = statuses[1].startswith("4")
    if not statuses[0].startswith("200") or json.loads(body) != data(entrant.data_bytes):
        raise RuntimeError(f"an answer of {len(body)} bytes with status {statuses[0]}")
    if is_refused is not entrant.validates:
        raise RuntimeError(f"a malformed pull was answered with {statuses[1]}")
