"""Which handler answers which page."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from marshmallow import Schema

from prefetch_kit.cache.key import encoded
from prefetch_kit.cache.policy import CachePolicy
from prefetch_kit.cache.scope import Scope
from prefetch_kit.endpoint.pull import Pull
from prefetch_kit.endpoint.request import PullParser
from prefetch_kit.fetch_setting import Kind

HandlerFunction = Callable[[Pull], object]


@dataclass(frozen=True, slots=True)
class Handler:
    """A handler and its options. `page` is None for the fallback and the periodic handler.

    `deadline_s` is None for the app's deadline, and infinite for no deadline.
    """

    function: HandlerFunction
    page: str | None
    login_required: bool = False
    schema: Schema | None = None
    cache: CachePolicy | None = None
    deadline_s: float | None = None

    @property
    def name(self) -> str:
        # A partial, or an object that can be called, is named after its class.
        named = self.function if hasattr(self.function, "__qualname__") else type(self.function)
        return f"{named.__module__}.{named.__qualname__}"


@dataclass(frozen=True, slots=True)
class Registration:
    """A handler as one app registered it. `deadline_s` bounds an answer, in seconds.

    `name` says which page it is, in the log and where threads are shared out. `scope` is that of
    its answers; None where it is not cached.
    """

    name: str
    handler: Handler
    deadline_s: float
    scope: Scope | None


class Pages:
    """The handlers of one kind of pull, by page path.

    A path is only ever a key to look up: nothing is opened, joined or normalised.
    """

    def __init__(self) -> None:
        self._by_page: Final[dict[str | None, Handler]] = {}

    def add(self, handler: Handler) -> None:
        """Take a handler. Raises `ValueError` for a page that has one, or an impossible page."""
        refuse_async(handler.function)
        page = handler.page
        if page is not None and (not page or page.startswith("/") or "?" in page):
            raise ValueError(
                f"{page!r} is not a page path: write it as in app.json, such as 'pages/index/index'"
            )
        if page in self._by_page:
            which = f"the page {page!r}" if page else "what has no page of its own"
            raise ValueError(f"{which} has a handler already: {self._by_page[page].function!r}")
        if handler.schema is not None and not isinstance(handler.schema, Schema):
            raise TypeError("schema must be a marshmallow Schema instance, such as HomeSchema()")
        self._by_page[page] = handler

    def __contains__(self, page: object) -> bool:
        return page in self._by_page

    def __iter__(self) -> Iterator[Handler]:
        return iter(self._by_page.values())

    def __len__(self) -> int:
        return len(self._by_page)


class Route:
    """One registered endpoint of one kind, and the handlers behind it."""

    def __init__(self, endpoint: str, kind: Kind, pages: Pages, *, deadline_s: float) -> None:
        self.endpoint = endpoint
        self.kind: Final = kind
        self.pages: Final = pages
        self.parser: Final = PullParser()
        self._deadline_s = deadline_s
        self._by_page = {handler.page: self._register(handler) for handler in pages}

    @property
    def blueprint(self) -> str:
        """The name the blueprint was registered under."""
        return self.endpoint.rpartition(".")[0]

    def __iter__(self) -> Iterator[Registration]:
        return iter(self._by_page.values())

    def find(self, path: str | None) -> Registration | None:
        """The page's own handler, else the fallback, else None."""
        if self.kind == "period_fetch":
            path = None
        return self._by_page.get(path) or self._by_page.get(None)

    def _register(self, handler: Handler) -> Registration:
        deadline_s = self._deadline_s if handler.deadline_s is None else handler.deadline_s
        if self.kind == "period_fetch":
            name = self.endpoint
        else:
            page = "any other page" if handler.page is None else f"page {handler.page!r}"
            name = f"{page} of {self.endpoint}"
        if handler.cache is None:
            return Registration(name, handler, deadline_s, scope=None)
        scope = Scope(
            name=encoded(self.endpoint) + encoded(handler.page),
            instance=self.blueprint,
            page=handler.page,
            policy=handler.cache,
            deadline_s=deadline_s,
            handler_name=handler.name,
            share=name,
        )
        return Registration(name, handler, deadline_s, scope)


def refuse_async(function: Callable[..., object]) -> None:
    """Raise `TypeError` for `async def`: a pull is answered in the thread that took it."""
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{function!r} is async; the kit calls plain functions only")
