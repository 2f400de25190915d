"""A page path is a key to look up and never anything else."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial, wraps
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask
from hypothesis import given, settings
from hypothesis import strategies as st
from marshmallow import Schema
from werkzeug.wrappers import Response

from prefetch_kit import Prefetch, Pull
from prefetch_kit.endpoint.handlers import Handler, Pages, Route

PAGE = "pages/index/index"

_TARGETS = [
    "etc/passwd",
    "pages/index/index",
    "config.py",
    "windows/win.ini",
    "127.0.0.1/latest/meta-data",
]
_CLIMBS = [
    "../",
    "../../../../",
    "..\\..\\",
    "....//",
    "..;/",
    "./",
    ".//.//",
    "/",
    "//",
    "///",
    "\\",
    "\\\\",
    "%2e%2e/",
    "%2e%2e%2f",
    "..%2f",
    "%252e%252e%252f",
    "..%5c",
    "%c0%ae%c0%ae/",
    "file:///",
    "file:",
    "http://",
    "https://",
    "ftp://",
    "gopher://",
    "dict://",
    "jar:http://",
    "php://filter/resource=",
    "C:\\",
    "C:/",
    "\\\\evil.example\\share\\",
    "//evil.example/",
    "~/",
    "~root/",
    "$HOME/",
    "`id`",
    "$(id)",
    "| cat ",
    "; cat ",
    "&& cat ",
    "{{7*7}}",
    "${7*7}",
    "%s%n",
]
# What clients really send, and what finds the page.
_MEANT = ("/pages/index/index",)
TRICKS = [
    climb + target for climb in _CLIMBS for target in _TARGETS if climb + target not in _MEANT
] + [
    ".",
    "..",
    "~",
    "CON",
    "NUL",
    "__class__",
    "__init__",
    "constructor",
    "pages/index/index/",
    "pages/index/index.htm",
    "pages/index//index",
    "pages/./index/index",
    "pages/index/../index/index",
    "Pages/index/index",
    "pages/index/index;x=1",
    "pages/index/index#x",
    " pages/index/index",
    "pages/index/index ",
    "pages\u2215index\u2215index",
    "pages/index/index\u200b",
    "pages/ｉndex/index",
    "None",
    "null",
    "p" * 1024,
]

SPY = """
import json, sys
from flask import Flask
from prefetch_kit import Prefetch

prefetch = Prefetch("prefetch", __name__, url_prefix="/prefetch")
prefetch.pre_fetch("pages/index/index")(lambda pull: {})
app = Flask("shop")
app.config["PREFETCH_APPIDS"] = ["wx1"]
app.register_blueprint(prefetch)
client = app.test_client()

def status(path):
    query = f"appid=wx1&timestamp=1700000000&path={path}"
    with client.get("/prefetch/pre_fetch", query_string=query) as reply:
        return reply.status_code

paths = json.load(sys.stdin)
status("pages/index/index"), status("warm")
seen = []
watched = ("open", "os.", "socket.", "subprocess.", "shutil.", "glob.", "ctypes.", "import", "exec")
sys.addaudithook(lambda event, given: seen.append(event) if event.startswith(watched) else None)
statuses = {status(path) for path in paths}
tricked, seen = seen, []
open("/dev/null").close()
json.dump([sorted(statuses), tricked, seen], sys.stdout)
"""


def test_there_are_two_hundred_tricks() -> None:
    """The table is as long as it is said to be, without repeats."""
    assert len(set(TRICKS)) == len(TRICKS) >= 200


def test_odd_path_has_no_handler(
    make_app: Callable[..., Flask], prefetch: Prefetch, ask: Callable[..., Response]
) -> None:
    """Every trick is a 404 with its reason and no body, and the page itself is found."""
    prefetch.pre_fetch(PAGE)(lambda _: {})
    app = make_app(prefetch)
    for path in TRICKS:
        reply = ask(app, path=path)
        assert (reply.status_code, reply.headers["X-Prefetch-Refused"]) == (404, "page"), path
        assert reply.data == b""
    assert ask(app, path=PAGE).data == b"{}"


@pytest.mark.slow
def test_odd_path_opens_nothing() -> None:
    """The interpreter itself sees no file, socket or process touched because of a path."""
    done = subprocess.run(
        [sys.executable, "-c", SPY],
        input=json.dumps([quote(path) for path in TRICKS]).encode(),
        capture_output=True,
        check=True,
    )
    statuses, tricked, control = json.loads(done.stdout)
    assert (statuses, tricked) == ([404], [])
    assert control == ["open"]


def test_fallback_is_given_the_path_as_it_came(
    make_app: Callable[..., Flask], prefetch: Prefetch, ask: Callable[..., Response]
) -> None:
    """The handler of every other page sees the path unresolved and unnormalised."""
    prefetch.pre_fetch()(lambda pull: pull.path)
    app = make_app(prefetch)
    for path in TRICKS[::7]:
        assert ask(app, path=path).data.decode() == path


def handled_by(*pages: str | None) -> Route:
    found = Pages()
    for page in pages:
        found.add(Handler(lambda _: {}, page))
    return Route("prefetch.pre_fetch", "pre_fetch", found, deadline_s=2.0)


@settings(database=None, deadline=None, max_examples=500)
@given(st.text(max_size=30) | st.sampled_from(TRICKS))
def test_only_the_very_same_path_is_found(path: str) -> None:
    """No other spelling of a page leads to its handler."""
    found = handled_by(PAGE).find(path)
    assert (found is not None) == (path == PAGE)


def test_own_handler_goes_before_the_fallback() -> None:
    """A page's own handler answers it; the fallback answers the others and a pull without one."""
    route = handled_by(None, PAGE)
    found = [route.find(path) for path in (PAGE, "pages/other", "", None)]
    assert [each.handler.page if each else "none" for each in found] == [PAGE, None, None, None]


def test_page_registered_twice_is_refused(prefetch: Prefetch) -> None:
    """The second handler of a page is named an error, together with the first."""
    prefetch.pre_fetch(PAGE)(first)
    with pytest.raises(ValueError, match=f"the page '{PAGE}' has a handler already: .*first"):
        prefetch.pre_fetch(PAGE)(lambda _: {})


def first(_pull: Pull) -> object:
    return {}


@pytest.mark.parametrize("kind", ["pre_fetch", "period_fetch"])
def test_second_handler_without_a_page_is_refused(prefetch: Prefetch, kind: str) -> None:
    """There is one fallback and one periodic handler."""
    decorate = getattr(prefetch, kind)
    decorate()(first)
    with pytest.raises(ValueError, match=r"no page of its own has a handler already: .*first"):
        decorate()(lambda _: {})


@pytest.mark.parametrize("page", ["", "/pages/index/index", "pages/index/index?id=1"])
def test_impossible_page_is_refused(prefetch: Prefetch, page: str) -> None:
    """A page that no pull could name is a mistake at decoration."""
    with pytest.raises(ValueError, match=r"write it as in app\.json"):
        prefetch.pre_fetch(page)(first)


async def coroutine(_pull: Pull) -> object:
    return {}


async def generator(_pull: Pull) -> Any:
    yield {}


class Waits:
    async def __call__(self, _pull: Pull) -> object:
        return {}


@pytest.mark.parametrize("function", [coroutine, generator, partial(coroutine), Waits()])
@pytest.mark.parametrize("register", ["pre_fetch", "period_fetch", "token_verifier", "code_user"])
def test_async_function_is_refused(
    prefetch: Prefetch, function: Callable[..., Any], register: str
) -> None:
    """What would return a coroutine is refused where it is written, not when a pull comes."""
    decorate = getattr(prefetch, register)
    with pytest.raises(TypeError, match="is async; the kit calls plain functions only"):
        (decorate() if register.endswith("fetch") else decorate)(function)


@pytest.mark.parametrize("kind", ["pre_fetch", "period_fetch"])
def test_decorator_without_parentheses_is_refused(prefetch: Prefetch, kind: str) -> None:
    """The forgotten call is named in the words of the mistake."""
    with pytest.raises(TypeError, match=rf"write @prefetch\.{kind}\(\), with parentheses"):
        getattr(prefetch, kind)(first)


def yielding(_pull: Pull) -> Any:
    yield {}


class Yields:
    def __call__(self, _pull: Pull) -> Any:
        yield {}


def with_first(function: Callable[..., object], *arguments: object) -> Callable[..., object]:
    @wraps(function)
    def wrapper(pull: Pull) -> object:
        return function(*arguments, pull)

    return wrapper


def of_two(_db: object, pull: Pull) -> object:
    return pull.path


@pytest.mark.parametrize("function", [yielding, partial(yielding), Yields()])
@pytest.mark.parametrize("register", ["pre_fetch", "period_fetch", "token_verifier", "code_user"])
def test_generator_is_refused(
    prefetch: Prefetch, function: Callable[..., Any], register: str
) -> None:
    """It would be run only after its context has gone."""
    decorate = getattr(prefetch, register)
    with pytest.raises(TypeError, match="is a generator; return a list instead"):
        (decorate() if register.endswith("fetch") else decorate)(function)


@pytest.mark.parametrize(
    ("function", "takes"),
    [
        (lambda: "x", r"takes \(\), and is called with \(pull\): too many"),
        (of_two, r"takes \(_db.*\): missing a required argument: 'pull'"),
        (lambda *, pull: pull, r"takes \(\*, pull\), and is called with \(pull\): too many"),
        (
            lambda pull, *, db: [pull, db],
            "missing a required (keyword-only )?argument: 'db'",
        ),
        (
            partial(str.upper, "x"),
            r"takes \(\), and is called with \(pull\): too many positional",
        ),
    ],
)
def test_handler_of_no_or_two_arguments_is_refused(
    prefetch: Prefetch, function: Callable[..., Any], takes: str
) -> None:
    """Where it is written, with what it takes, and not with the first pull."""
    for decorate in (prefetch.pre_fetch(), prefetch.period_fetch()):
        with pytest.raises(TypeError, match=takes):
            decorate(function)


@pytest.mark.parametrize(
    ("register", "takes"),
    [("token_verifier", r"\(appid, token\)"), ("code_user", r"\(appid, openid, unionid\)")],
)
def test_verifier_of_other_arguments_is_refused(
    prefetch: Prefetch, register: str, takes: str
) -> None:
    """Both functions that prove a user are checked alike."""
    with pytest.raises(TypeError, match=f"is called with {takes}: too many positional"):
        getattr(prefetch, register)(lambda _: None)


@pytest.mark.parametrize(
    "function",
    [
        first,
        with_first(of_two, 1),
        partial(of_two, 1),
        partial(first),
        lambda *_: {},
        lambda pull, extra=1: [pull, extra],
        "x".format,
        [].append,
        str,
    ],
)
def test_whatever_takes_a_pull_is_a_handler(
    prefetch: Prefetch, function: Callable[[Pull], object]
) -> None:
    """What a decorator adds to the arguments, or takes away, counts as it is."""
    prefetch.pre_fetch()(function)


@pytest.mark.parametrize("cache", [None, 30])
@pytest.mark.parametrize("function", [partial(of_two, 1), partial(partial(of_two), 1)])
def test_partial_is_named_after_what_it_calls(
    make_app: Callable[..., Flask],
    prefetch: Prefetch,
    ask: Callable[..., Response],
    function: Callable[[Pull], object],
    cache: float | None,
) -> None:
    """In errors and in listings; and it works, cached or not."""
    assert Handler(function, None).name == f"{__name__}.of_two"
    prefetch.pre_fetch(cache=cache)(function)
    assert ask(make_app(prefetch), path=PAGE).data == PAGE.encode()


def test_periodic_handler_takes_no_page(prefetch: Prefetch) -> None:
    """There is no page in a periodic pull."""
    with pytest.raises(TypeError):
        prefetch.period_fetch(PAGE)  # type: ignore[arg-type]


def test_schema_class_is_refused(prefetch: Prefetch) -> None:
    """A schema is given as an instance, and the error shows how."""
    with pytest.raises(TypeError, match=r"such as HomeSchema\(\)"):
        prefetch.pre_fetch(schema=Schema)(first)  # type: ignore[arg-type]


def test_decorated_function_stays_itself(prefetch: Prefetch) -> None:
    """A handler can be called and decorated further as before."""
    assert prefetch.pre_fetch(PAGE)(first) is first
