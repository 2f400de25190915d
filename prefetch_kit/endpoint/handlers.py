"""Which handler answers which page."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

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
    name: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        named: Any = self.function
        while isinstance(named, partial):
            named = named.func
        if not hasattr(named, "__qualname__"):  # an object that can be called
            named = type(named)
        module = getattr(named, "__module__", None)  # what is written in C may have none
        name = f"{module}.{named.__qualname__}" if module else named.__qualname__
        object.__setattr__(self, "name", name)


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

    A path is only ever a key to look up: nothing is opened or joined.
    """

    def __init__(self) -> None:
        self._by_page: Final[dict[str | None, Handler]] = {}

    def add(self, handler: Handler) -> None:
        """Take a handler. Raises `ValueError` for a page that has one, or an impossible page."""
        refuse_unfit(handler.function, "pull")
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

    def __init__(
        self,
        endpoint: str,
        kind: Kind,
        pages: Pages,
        *,
        deadline_s: float,
        entry_page: str | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.kind: Final = kind
        self.pages: Final = pages
        self.parser: Final = PullParser(self._locate) if kind == "pre_fetch" else PullParser()
        self._deadline_s = deadline_s
        self._entry_page = entry_page
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

    def _locate(self, path: str | None) -> tuple[str | None, str]:
        """The page that a path means, and the query attached to it; else the path as it came.

        Share cards open `pages/x.html`, QQ attaches the query, and some clients write a leading
        slash. A client that opens the entry page may send no path.
        """
        if path in self._by_page and path is not None:
            return path, ""
        page, _, query = (path or "").partition("?")
        page = page.removeprefix("/") or self._entry_page or ""
        for found in (page, page.removesuffix(".html")):
            if found and (found in self._by_page or found == self._entry_page):
                return found, query
        return path, ""

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


def refuse_unfit(function: Callable[..., object], *arguments: str) -> None:
    """Raise `TypeError` for what the kit cannot call with these arguments and have an answer."""
    if not callable(function):
        raise TypeError(f"{function!r} is no function")
    # An object that can be called says of itself neither that it is async nor a generator.
    for each in (function, type(function).__call__):
        if inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each):
            raise TypeError(f"{function!r} is async; the kit calls plain functions only")
        if inspect.isgeneratorfunction(each):
            raise TypeError(f"{function!r} is a generator; return a list instead of yielding")
    try:
        # A decorator may add arguments, so what it wraps does not count.
        signature = inspect.signature(function, follow_wrapped=False)
    except ValueError:  # some functions written in C have none
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        takes = f"takes {signature}, and is called with ({', '.join(arguments)}): {error}"
        raise TypeError(f"{function!r} {takes}") from None
