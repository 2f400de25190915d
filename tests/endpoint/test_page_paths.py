"""Paths as clients write them lead to the page that they mean."""

import logging
from collections.abc import Callable

import pytest
from flask import Flask
from werkzeug.wrappers import Response

from prefetch_kit import NO_DATA, ConfigError, Prefetch, Pull

Ask = Callable[..., Response]
PAGE = "pages/index/index"


def told(pull: Pull) -> dict[str, object]:
    return {"path": pull.path, "query": {n: pull.query.getlist(n) for n in pull.query}}


@pytest.mark.parametrize(
    ("path", "query", "page", "values"),
    [
        (PAGE, "id=1", PAGE, {"id": ["1"]}),
        (f"/{PAGE}", "id=1", PAGE, {"id": ["1"]}),
        (f"{PAGE}.html", "id=1", PAGE, {"id": ["1"]}),
        (f"/{PAGE}.html", None, PAGE, {}),
        (f"{PAGE}?id=1&id=2", None, PAGE, {"id": ["1", "2"]}),
        (f"/{PAGE}.html?id=%E8%8C%B6", None, PAGE, {"id": ["茶"]}),
        (f"{PAGE}?id=1", "id=2", PAGE, {"id": ["2"]}),
        (f"{PAGE}?", None, PAGE, {}),
        ("odd.html", None, "odd.html", {}),  # exact first
        ("/odd.html?x=1", None, "odd.html", {"x": ["1"]}),
    ],
)
def test_path_finds_its_page(
    make_app: Callable[..., Flask],
    prefetch: Prefetch,
    ask: Ask,
    path: str,
    query: str | None,
    page: str,
    values: dict[str, list[str]],
) -> None:
    """Its handler sees the page as it was registered; an attached query counts if no other came."""
    prefetch.pre_fetch(PAGE)(told)
    prefetch.pre_fetch("odd.html")(told)
    app = make_app(prefetch)
    assert ask(app, path=path, query=query).json == {"path": page, "query": values}


@pytest.mark.parametrize(
    "path", [f"//{PAGE}", f"{PAGE}.html.html", f"{PAGE}/", f"{PAGE}#x", "?id=1", "/", f"{PAGE}.htm"]
)
def test_every_other_spelling_is_another_page(
    make_app: Callable[..., Flask], prefetch: Prefetch, ask: Ask, path: str
) -> None:
    """Nothing else is guessed; a handler of all other pages sees what came."""
    prefetch.pre_fetch(PAGE)(lambda _: "the page")
    other = Prefetch("other", __name__, url_prefix="/other")
    other.pre_fetch(PAGE)(lambda _: "the page")
    other.pre_fetch()(told)
    app = make_app(prefetch)
    app.register_blueprint(other)
    assert ask(app, path=path).headers["X-Prefetch-Refused"] == "page"
    assert ask(app, "/other/pre_fetch", path=path).json == {"path": path, "query": {}}


def test_malformed_attached_query_is_refused(
    make_app: Callable[..., Flask], prefetch: Prefetch, ask: Ask
) -> None:
    """It is checked as a query that came by itself, and not read where that one came."""
    prefetch.pre_fetch(PAGE)(told)
    app = make_app(prefetch)
    reply = ask(app, path=f"{PAGE}?id=%FF")
    assert (reply.status_code, reply.headers["X-Prefetch-Refused"]) == (400, "encoding")
    assert ask(app, path=f"{PAGE}?id=%FF", query="id=1").status_code == 200


@pytest.mark.parametrize("path", [None, "", "/", "?id=1", "/?id=1"])
def test_entry_page(
    make_app: Callable[..., Flask], prefetch: Prefetch, ask: Ask, path: str | None
) -> None:
    """A pull without a page is for the one that PREFETCH_ENTRY_PAGE names."""
    prefetch.pre_fetch(PAGE)(told)
    prefetch.pre_fetch()(lambda _: "any other page")
    prefetch.period_fetch()(lambda pull: pull.path or NO_DATA)
    app = make_app(prefetch, PREFETCH_ENTRY_PAGE=PAGE)
    values = {"id": ["1"]} if path and "?" in path else {}
    assert ask(app, path=path).json == {"path": PAGE, "query": values}
    assert ask(app, "/prefetch/period_fetch", path=None).data == b""


def test_spellings_of_a_page_share_an_answer(
    make_app: Callable[..., Flask], prefetch: Prefetch, ask: Ask
) -> None:
    """They are alike in all that the handler reads."""
    runs: list[object] = []

    @prefetch.pre_fetch(PAGE, cache=60)
    def kept(pull: Pull) -> object:
        runs.append(told(pull))
        return runs[-1]

    app = make_app(prefetch, PREFETCH_ENTRY_PAGE=PAGE)
    for path in (PAGE, f"/{PAGE}", f"{PAGE}.html", f"{PAGE}.html?", None):
        assert ask(app, path=path).status_code == 200
    assert ask(app, path=f"{PAGE}?id=1").status_code == 200
    assert ask(app, path=PAGE, query="id=1").status_code == 200
    assert len(runs) == 2


def test_entry_page_without_a_handler_is_warned_of(
    make_app: Callable[..., Flask], prefetch: Prefetch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the app starts, and not with the first pull that misses it."""
    prefetch.pre_fetch("pages/other")(told)
    with caplog.at_level(logging.WARNING):
        make_app(prefetch, PREFETCH_ENTRY_PAGE=PAGE)
    assert f"PREFETCH_ENTRY_PAGE is '{PAGE}', for which 'prefetch' has no handler" in caplog.text


@pytest.mark.parametrize("page", [f"/{PAGE}", f"{PAGE}?id=1", "", 5])
def test_entry_page_is_a_page(
    make_app: Callable[..., Flask], prefetch: Prefetch, page: object
) -> None:
    """It is written as in app.json."""
    with pytest.raises(ConfigError, match="PREFETCH_ENTRY_PAGE"):
        make_app(prefetch, PREFETCH_ENTRY_PAGE=page)
