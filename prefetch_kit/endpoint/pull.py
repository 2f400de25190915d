"""A pull as a handler sees it. It notes what is read from it."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import NoReturn, Self

from prefetch_kit.cache.read_sets import ALL_OF_QUERY, TIMESTAMP, USER_ID, Reads
from prefetch_kit.endpoint.request import read_page_query
from prefetch_kit.endpoint.users import Request
from prefetch_kit.errors import QueryKeyMissing
from prefetch_kit.fetch_setting import Kind


class PageQuery(Mapping[str, str]):
    """The query of the page being opened, read-only: the first value of each name.

    `query[name]` for a name that did not come refuses the pull (400) unless the handler catches
    the `KeyError`; `get` and `in` ask without refusing.
    """

    __slots__ = ("_reads", "_values")

    def __init__(self, page_query: str) -> None:
        self._values = read_page_query(page_query)
        self._reads: Reads | None = None

    def __getitem__(self, name: str) -> str:
        values = self._read(name)
        if values is None:
            raise QueryKeyMissing(name)
        return values[0]

    def __iter__(self) -> Iterator[str]:
        self._read_all()
        return iter(self._values)

    def __len__(self) -> int:
        self._read_all()
        return len(self._values)

    def getlist(self, name: str) -> list[str]:
        """All values of a name, in the order they came; empty if there are none."""
        return list(self._read(name) or ())

    def _read(self, name: str) -> list[str] | None:
        if not isinstance(name, str):
            return None  # absent from every query, so nothing to note
        # An Enum that is a str writes itself otherwise than it is looked up: take the text.
        name = str.__str__(name)
        if self._reads is not None:
            self._reads.note(f"query={name}")
        return self._values.get(name)

    def _read_all(self) -> None:
        if self._reads is not None:
            self._reads.note(ALL_OF_QUERY)

    def __repr__(self) -> str:
        return "<PageQuery>"  # its names would have to be noted as read

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a PageQuery cannot be pickled; read what you need from it")


class Pull:
    """One pull by WeChat, as a handler sees it.

    `kind` is `"pre_fetch"` or `"period_fetch"`; `path`, `scene` and `version` are None where
    WeChat did not send them; `timestamp` is the client's claim, an aware datetime in UTC. In a
    cached handler each thing read here is noted, and the answer is kept for pulls alike in it.
    """

    __slots__ = ("_query", "_reads", "_request", "kind")

    kind: Kind

    def __init__(self, request: Request, *, kind: Kind, reads: Reads | None) -> None:
        self.kind = kind
        self._request = request
        self._reads = reads
        self._query: PageQuery | None = None

    @property
    def appid(self) -> str:
        return self._request.asked.appid  # part of every key, so not noted

    @property
    def query(self) -> PageQuery:
        if self._query is None:
            query = object.__new__(PageQuery)
            query._values, query._reads = self._request.asked.values, self._reads
            self._query = query
        return self._query

    @property
    def path(self) -> str | None:
        self._note("path")
        return self._request.asked.path

    @property
    def scene(self) -> int | None:
        self._note("scene")
        scene: int | None = self._request.asked.others.get("scene")
        return scene

    @property
    def version(self) -> str | None:
        self._note("version")
        version: str | None = self._request.asked.others.get("version")
        return version

    @property
    def timestamp(self) -> datetime:
        self._note(TIMESTAMP)
        digits = self._request.inputs.timestamp
        return datetime.fromtimestamp(int(digits) / (1 if len(digits) == 10 else 1000), UTC)

    @property
    def user_id(self) -> str | None:
        """The user whose identity was proved; None where nothing proves one."""
        self._note(USER_ID)
        return self._request.user_id()

    def _note(self, name: str) -> None:
        if self._reads is not None:
            self._reads.note(name)

    def __repr__(self) -> str:
        return f"<Pull {self.kind} {self.appid}>"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Pull cannot be pickled; read what you need from it")
