"""A scope, requests and answers, as the endpoint hands them to the cache."""

import time
from collections.abc import Callable

import pytest

from prefetch_kit.cache.entry import Entry
from prefetch_kit.cache.policy import CachePolicy
from prefetch_kit.cache.scope import Scope
from prefetch_kit.endpoint.request import PullParser
from prefetch_kit.endpoint.users import Request


@pytest.fixture
def make_scope() -> Callable[[str], Scope]:
    def make_scope(name: str) -> Scope:
        return Scope(
            name=name.encode(),
            instance="prefetch",
            page="pages/a",
            policy=CachePolicy(600),
            deadline_s=2.0,
            handler_name=f"shop.{name}",
            share=f"page {name}",
        )

    return make_scope


@pytest.fixture
def make_request() -> Callable[..., Request]:
    """`make_request("id%3D1", user_id="alice")`: a pull with this page query, of this user."""
    parser = PullParser()

    def make_request(page_query: str = "", *, user_id: str | None = None) -> Request:
        query_string = f"appid=wx1&path=pages/a&query={page_query}&timestamp=1700000000"
        return Request(parser.parse(query_string.encode()), lambda _: user_id)

    return make_request


@pytest.fixture
def make_entry() -> Callable[..., Entry]:
    """`make_entry(b"…", began_ago_s=5.0)`: an answer that was made just now, fresh for long."""

    def make_entry(
        body: bytes = b"data",
        *,
        began_ago_s: float = 0.0,
        position: tuple[int, int] = (0, 0),
        page: str | None = "pages/a",
        user_id: str | None = None,
        appid: str = "wx1",
    ) -> Entry:
        return Entry(
            body=body,
            made_at=time.monotonic(),
            took_s=began_ago_s,
            fresh_s=600.0,
            stale_s=3600.0,
            position=position,
            instance="prefetch",
            page=page,
            appid=appid,
            user_id=user_id,
        )

    return make_entry
