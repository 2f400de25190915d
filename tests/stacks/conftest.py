"""A shop with a kit that is served over HTTP, and the page that tells what to add to it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import HTTPRedirectHandler, Request, build_opener

import pytest
from flask import Flask
from werkzeug.datastructures import Headers

from prefetch_kit import Prefetch

PAGE = (Path(__file__).parents[2] / "docs" / "with-your-stack.md").read_text()
APPID = "wx5e0f00d5ca1ab1e0"


class Reply(NamedTuple):
    status: int
    headers: Headers
    body: bytes

    @property
    def refused(self) -> str | None:
        return self.headers.get("X-Prefetch-Refused")


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """WeChat is not known to follow any."""


def ask(
    origin: str,
    at: str = "/prefetch/pre_fetch",
    *,
    path: str = "pages/index/index",
    token: str = "",
    **headers: str,
) -> Reply:
    """A pull of this page, or a GET of another URL than the kit's."""
    if at.endswith("_fetch"):
        pull = {"appid": APPID, "timestamp": "1700000000", "path": path}
        at += f"?{urlencode(pull | ({'token': token} if token else {}))}"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with build_opener(_NoRedirect).open(Request(origin + at, headers=named), timeout=60) as got:
            return Reply(got.status, Headers(got.headers.items()), got.read())
    except HTTPError as error:
        with error:
            return Reply(error.code, Headers(error.headers.items()), error.read())


@pytest.fixture(scope="session", name="ask")
def ask_of_this_module() -> Callable[..., Reply]:
    return ask


@pytest.fixture(scope="session")
def added() -> Callable[[str], str]:
    """`added(package)`: the code in the last column of its row on the page."""

    def added(package: str) -> str:
        row = re.search(rf"^\| `?{package}`? \|.*\|(.*)\|$", PAGE, re.MULTILINE)
        assert row is not None
        code = re.search("`(.+)`", row[1])
        return code[1] if code else ""

    return added


@pytest.fixture
def prefetch() -> Prefetch:
    return Prefetch("prefetch", __name__, url_prefix="/prefetch")


@pytest.fixture
def app() -> Flask:
    """A shop in which the kit is not registered yet."""
    app = Flask("shop")
    app.config.update(
        SECRET_KEY="a key for this test",
        PREFETCH_APPIDS=[APPID],
        PREFETCH_BASE_URL="https://shop.example",
    )
    return app
