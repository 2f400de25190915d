"""A pull as a handler sees it. It notes what is read from it."""

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar, Final, NoReturn, Self

from prefetch_kit.cache.read_sets import ALL_OF_EXTRA, ALL_OF_QUERY, TIMESTAMP, USER_ID, Reads
from prefetch_kit.endpoint.parameters import DialectName
from prefetch_kit.endpoint.request import read_page_query
from prefetch_kit.endpoint.users import Request
from prefetch_kit.errors import QueryKeyMissing
from prefetch_kit.fetch_setting import Kind

# Of each of the two texts that repr() shows: a query can have 4,096 characters.
_MAX_SHOWN_CHARS: Final = 200
# What a pull gives without a note: mappings, which note themselves what is read, and its own repr.
_QUERY: Final = "the query"
_EXTRA: Final = "the extra parameters"
_TO_SHOW: Final = "to show"


class _ReadValues(Mapping[str, str]):
    """Values by name, which note what is read of them."""

    # A function and not the values: tools that write down any object find nothing unnoted.
    __slots__ = ("_read",)

    _read: Callable[[str | None], list[str]]
    _name: ClassVar[str]

    @classmethod
    def _of(cls, values: dict[str, list[str]], reads: Reads | None) -> Self:
        made = cls.__new__(cls)
        made._note_in(values, reads)
        return made

    def _note_in(self, values: dict[str, list[str]], reads: Reads | None) -> None:
        whole = self._name

        def read(name: str | None) -> list[str]:
            """The values of one name, or all names for None."""
            if reads is not None:
                reads.note(whole if name is None else f"{whole}={name}")
            return [*values] if name is None else [*values.get(name, ())]

        self._read = read

    def __getitem__(self, name: str) -> str:
        values = self.getlist(name)
        if not values:
            raise QueryKeyMissing(name, of=self._name)
        return values[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read(None))

    def __len__(self) -> int:
        return len(self._read(None))

    def getlist(self, name: str) -> list[str]:
        """All values of a name, in the order they came; empty if there are none."""
        if not isinstance(name, str):
            return []  # absent from every query, so nothing to note
        # An Enum that is a str writes itself otherwise than it is looked up: take the text.
        name = str.__str__(name)
        return self._read(name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"  # its names would have to be noted as read

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __getstate__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} cannot be pickled; read what you need from it")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        self.__getstate__()


class PageQuery(_ReadValues):
    """The query of the page being opened, read-only: the first value of each name.

    `query[name]` for a name that did not come refuses the pull (400) unless the handler catches
    the `KeyError`; `get` and `in` ask without refusing.
    """

    __slots__ = ()

    _name = ALL_OF_QUERY

    def __init__(self, page_query: str) -> None:
        self._note_in(read_page_query(page_query), None)


class ExtraParameters(_ReadValues):
    """The parameters of a pull that have no attribute here, read-only as a `PageQuery` is.

    The platform does not document them, so nothing but their encoding is checked.
    """

    __slots__ = ()

    _name = ALL_OF_EXTRA


class Pull:
    """One pull by WeChat, as a handler sees it.

    `kind` is `"pre_fetch"` or `"period_fetch"`, and `dialect` the platform: `"wechat"`, `"qq"` or
    `"finclip"`. `path`, `scene` and `version` are None where they did not come; `timestamp` is the
    client's claim, an aware datetime in UTC. In a cached handler each thing read here is noted, and
    the answer is kept for pulls alike in it.

    `repr()` is for logs and notes nothing: it shows page and query, and whether a user is proved.
    In a cached handler it shows of those what was read before: more would be another pull's, in an
    answer that repeats it.
    """

    # A function and not the request, as in PageQuery.
    __slots__ = ("_appid", "_extra", "_query", "_read", "kind")

    kind: Kind

    def __init__(self, request: Request, *, kind: Kind, reads: Reads | None) -> None:
        self.kind = kind
        self._appid = request.asked.appid
        self._query: PageQuery | None = None
        self._extra: ExtraParameters | None = None

        def read(name: str) -> Any:
            if name is _TO_SHOW:
                return _shown(request, kind, reads)
            if name is _QUERY:
                return PageQuery._of(request.asked.values, reads)
            if name is _EXTRA:
                return ExtraParameters._of(request.asked.extra, reads)
            if reads is not None:
                reads.note(name)
            return _READERS[name](request)

        self._read: Callable[[str], Any] = read

    @property
    def appid(self) -> str:
        return self._appid  # part of every key, so not noted

    @property
    def query(self) -> PageQuery:
        if self._query is None:
            self._query = self._read(_QUERY)
        return self._query

    @property
    def extra(self) -> ExtraParameters:
        """What else came: parameters that the platform does not document."""
        if self._extra is None:
            self._extra = self._read(_EXTRA)
        return self._extra

    @property
    def dialect(self) -> DialectName:
        dialect: DialectName = self._read("dialect")
        return dialect

    @property
    def path(self) -> str | None:
        path: str | None = self._read("path")
        return path

    @property
    def scene(self) -> int | None:
        scene: int | None = self._read("scene")
        return scene

    @property
    def version(self) -> str | None:
        version: str | None = self._read("version")
        return version

    @property
    def timestamp(self) -> datetime:
        timestamp: datetime = self._read(TIMESTAMP)
        return timestamp

    @property
    def user_id(self) -> str | None:
        """The user whose identity was proved; None where nothing proves one."""
        user_id: str | None = self._read(USER_ID)
        return user_id

    def __repr__(self) -> str:
        shown: str = self._read(_TO_SHOW)
        return shown

    def __str__(self) -> str:
        return f"<Pull {self.kind} {self.appid}>"  # the same for all that share an answer

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __getstate__(self) -> NoReturn:
        raise TypeError("a Pull cannot be pickled; read what you need from it")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        self.__getstate__()


_READERS: Final[Mapping[str, Callable[[Request], object]]] = {
    "dialect": lambda request: request.asked.dialect,
    "path": lambda request: request.asked.path,
    "scene": lambda request: request.asked.others.get("scene"),
    "version": lambda request: request.asked.others.get("version"),
    ALL_OF_QUERY: lambda request: request.asked.page_query,
    TIMESTAMP: lambda request: _time(request.inputs.timestamp),
    USER_ID: lambda request: request.user_id(),
}


def _time(digits: str) -> datetime:
    return datetime.fromtimestamp(int(digits) / (1 if len(digits) == 10 else 1000), UTC)


def _shown(request: Request, kind: Kind, reads: Reads | None) -> str:
    asked, noted = request.asked, None if reads is None else reads.names()
    page = query = user = "…"
    if noted is None or "path" in noted:
        page = repr(asked.path and asked.path[:_MAX_SHOWN_CHARS])
    if noted is None or ALL_OF_QUERY in noted:
        query = repr(asked.page_query[:_MAX_SHOWN_CHARS])
    if noted is None or USER_ID in noted:
        is_proved = request.is_user_proved()
        user = "not asked" if is_proved is None else "proved" if is_proved else "none"
    return f"<Pull {kind} {asked.appid} page={page} query={query} user={user}>"
