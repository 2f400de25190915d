"""Which handler answers which page, and what is known of it."""

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from marshmallow import Schema

from prefetch_kit.endpoint.parse import PullParser
from prefetch_kit.endpoint.pull import USER_ID, Pull, ReadSet, written
from prefetch_kit.fetch_setting import Kind

HandlerFunction = Callable[[Pull], object]

_MAX_READ_SETS: Final = 8
# So many of them were found useful; only another useful one takes such a place.
_PROVED: Final = 4


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """How long an answer is served: `fresh` seconds as it is, then `stale` seconds more.

    While it is stale it is served at once and made anew in the background. Without `stale` that
    is one hour. Raises `TypeError` for what is no number and `ValueError` for an impossible one.
    """

    fresh: float
    stale: float = 3600.0

    def __post_init__(self) -> None:
        demand_seconds("fresh", self.fresh)
        demand_seconds("stale", self.stale)
        if not 0 < self.fresh < math.inf or not 0 <= self.stale < math.inf:
            raise ValueError("cache takes seconds: more than 0 fresh, and 0 or more stale")


@dataclass(frozen=True, slots=True)
class Handler:
    """A handler and what was said of it; `page` is None for the fallback and the periodic one.

    `deadline_s` is None where the app's own holds, and infinite for none.
    """

    function: HandlerFunction
    page: str | None
    login_required: bool = False
    schema: Schema | None = None
    cache: CachePolicy | None = None
    deadline_s: float | None = None

    @property
    def name(self) -> str:
        return f"{self.function.__module__}.{self.function.__qualname__}"


class ReadSets:
    """What a handler's runs were seen to read: the up to 8 most recently useful sets of names.

    `useful` is the one that an answer was found by last. Changed without a lock, by replacing it
    whole: a set lost to another thread is found anew.
    """

    def __init__(self) -> None:
        self._order: tuple[ReadSet, ...] = ()
        self._seen: ReadSet | None = None
        self.for_lookup: tuple[ReadSet, ...] = ()
        self.useful: ReadSet | None = None

    @property
    def likeliest(self) -> ReadSet | None:
        """What the next run will read, as far as one can tell."""
        return self._seen if self.useful is None else self.useful

    def saw(self, names: ReadSet) -> None:
        """Note what a run read, whatever came of it."""
        self._seen = names

    def add(self, names: ReadSet) -> None:
        """Note a set that an answer was kept by; behind those that were useful already."""
        self._seen = names
        if names not in self._order:
            self._set((*self._order[:_PROVED], names, *self._order[_PROVED:]))

    def proved_useful(self, names: ReadSet) -> None:
        """Note that an answer was found by this set."""
        self.useful = names
        order = self._order
        if names not in order[:_PROVED]:
            self._set((names, *(other for other in order if other != names)))

    def _set(self, order: tuple[ReadSet, ...]) -> None:
        self._order = order[:_MAX_READ_SETS]
        # A user is not proved, which may mean asking WeChat, where an answer does without.
        self.for_lookup = tuple(sorted(self._order, key=lambda names: USER_ID in names))


@dataclass(slots=True, eq=False)
class Registered:
    """A handler as one app has it: under which name, and what its runs were seen to read.

    `instance` is the blueprint's registered name, `name` what every key of its answers begins
    with. `landed` counts its shared runs that ended.
    """

    handler: Handler
    instance: str
    name: bytes
    read_sets: ReadSets = field(default_factory=ReadSets)
    landed: int = 0
    warned: bool = False


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
                f"{page!r} is no page path: write it as in app.json, such as 'pages/index/index'"
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
    """One registered endpoint of one kind: where it is, and which handlers stand behind it."""

    def __init__(self, endpoint: str, kind: Kind, pages: Pages) -> None:
        self.endpoint = endpoint
        self.kind: Final = kind
        self.pages: Final = pages
        self.parser: Final = PullParser()
        self._by_page = {handler.page: self._registered(handler) for handler in pages}

    @property
    def blueprint(self) -> str:
        """The name the blueprint was registered under."""
        return self.endpoint.rpartition(".")[0]

    def __iter__(self) -> Iterator[Registered]:
        return iter(self._by_page.values())

    def find(self, path: str | None) -> Registered | None:
        """The page's own handler, else the fallback, else None."""
        return self._by_page.get(path) or self._by_page.get(None)

    def _registered(self, handler: Handler) -> Registered:
        return Registered(handler, self.blueprint, written(self.endpoint) + written(handler.page))


def demand_seconds(name: str, value: object, *, or_else: str = "") -> None:
    """Raise `TypeError` for what is no number of seconds, as `True` and `"30"` are none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} takes a number of seconds, such as 30{or_else}, not {value!r}")


def refuse_async(function: Callable[..., object]) -> None:
    """Raise `TypeError` for `async def`: a pull is answered in the thread that took it."""
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{function!r} is async; the kit calls plain functions only")
