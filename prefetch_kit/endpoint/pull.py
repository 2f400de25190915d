"""A pull as a handler sees it, which notes what is read from it."""

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Final, NoReturn, Self

from prefetch_kit.endpoint.parse import Inputs, read_page_query
from prefetch_kit.errors import PullRefused, QueryKeyMissing
from prefetch_kit.fetch_setting import Kind

# The names of what a handler read, sorted. A key of the page's query is "query=" and its name.
ReadSet = tuple[str, ...]

TIMESTAMP: Final = "timestamp"
USER_ID: Final = "user_id"
_ALL_OF_QUERY: Final = "query"
_SHARABLE: Final = frozenset({"path", "scene", "version", USER_ID, _ALL_OF_QUERY})
_MAX_NAMES: Final = 32
_ALL_BUT_WHO: Final[ReadSet] = ("path", _ALL_OF_QUERY, "scene", "version")
_KEY_BYTES: Final = 24
# Twice as many as a page's handler has read sets to look up; none that are long.
_MAX_HEADS: Final = 16
_MAX_HEAD_CHARS: Final = 256


class Reads:
    """Notes which inputs of its pull a handler reads while it runs."""

    __slots__ = ("_names",)

    def __init__(self) -> None:
        self._names: dict[str, None] = {}

    def note(self, name: str) -> None:
        self._names[name] = None

    def names(self) -> ReadSet:
        """What was read so far; reading all of the query, or very much of it, is one name."""
        names = set(self._names)
        if _ALL_OF_QUERY in names or len(names) > _MAX_NAMES:
            names = {n for n in names if not n.startswith("query=")} | {_ALL_OF_QUERY}
        return tuple(sorted(names))


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
            self._reads.note(_ALL_OF_QUERY)

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

    __slots__ = ("_inputs", "_proof", "_prove", "_query", "_reads", "kind")

    kind: Kind

    def __init__(
        self, inputs: Inputs, *, kind: Kind, prove: Callable[[Inputs], str | None]
    ) -> None:
        self.kind = kind
        self._inputs = inputs
        self._prove = prove
        self._proof: list[str | None] = []
        self._query: PageQuery | None = None
        self._reads: Reads | None = None

    @property
    def appid(self) -> str:
        return self._inputs.asked.appid  # part of every key, so not noted

    @property
    def query(self) -> PageQuery:
        if self._query is None:
            query = object.__new__(PageQuery)
            query._values, query._reads = self._inputs.asked.values, self._reads
            self._query = query
        return self._query

    @property
    def path(self) -> str | None:
        self._note("path")
        return self._inputs.asked.path

    @property
    def scene(self) -> int | None:
        self._note("scene")
        return self._inputs.asked.scene

    @property
    def version(self) -> str | None:
        self._note("version")
        return self._inputs.asked.version

    @property
    def timestamp(self) -> datetime:
        self._note(TIMESTAMP)
        digits = self._inputs.timestamp
        return datetime.fromtimestamp(int(digits) / (1 if len(digits) == 10 else 1000), UTC)

    @property
    def user_id(self) -> str | None:
        """The user whose identity was proved; None where nothing proves one."""
        if self._reads is not None:
            self._reads.note(USER_ID)
        try:
            return self._proved()
        except PullRefused as refusal:
            if refusal.reason != "weixin":
                raise
            return None  # WeChat could not be asked; only login_required pages insist

    def _proved(self) -> str | None:
        """What was proved when it was first asked: a token may expire while a handler runs."""
        if not self._proof:
            self._proof.append(self._prove(self._inputs))
        return self._proof[0]

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


def noting(pull: Pull, reads: Reads) -> Pull:
    """The same pull, which notes in `reads` what is read from it."""
    noted = Pull(pull._inputs, kind=pull.kind, prove=pull._prove)
    noted._proof, noted._reads = pull._proof, reads
    return noted


def demand_user(pull: Pull) -> None:
    """Raise `PullRefused` where no user is proved (401) or WeChat cannot be asked (503)."""
    if pull._proved() is None:
        raise PullRefused(401, "login", "the page needs a user and nothing proves one")


def is_read_set(names: object) -> bool:
    """Whether this can be what a run read, or is something foreign."""
    return (
        isinstance(names, list)
        and len(names) <= _MAX_NAMES
        and all(isinstance(n, str) and (n in _SHARABLE or n.startswith("query=")) for n in names)
    )


def key(pull: Pull, place: bytes, names: ReadSet) -> bytes:
    """Where an answer is kept that depends on these inputs of the pull, and on no other.

    Every part says its type and length, so no two sets of inputs are written alike. Proves the
    user if `names` has the user id, which comes last: all the rest is worked out once for all
    pulls that ask for the same.
    """
    heads = pull._inputs.asked.heads
    head = heads.get(names)
    if head is None:
        parts = [written(name) for name in names]
        parts += [_value(pull, name) for name in names if name != USER_ID]
        head = _digest(place, written(pull.appid), *parts)
        if sum(map(len, names)) <= _MAX_HEAD_CHARS:
            if len(heads) >= _MAX_HEADS:
                heads.clear()
            heads[names] = head
    return head + _user(pull) if USER_ID in names else head


def likeness(pull: Pull, place: bytes) -> bytes:
    """A name that the pull shares with those that carry the same, but for the timestamp."""
    claims = (pull._inputs.token, pull._inputs.code)
    parts = [written(None if claim is None else claim.reveal()) for claim in claims]
    return _digest(key(pull, place, _ALL_BUT_WHO), *parts)


def _digest(*parts: bytes) -> bytes:
    return blake2b(b"".join(parts), digest_size=_KEY_BYTES).digest()


def _user(pull: Pull) -> bytes:
    user_id = pull.user_id
    # Without its length, since nothing comes after it.
    return b"-" if user_id is None else b"s" + user_id.encode(errors="surrogatepass")


def _value(pull: Pull, name: str) -> bytes:
    asked = pull._inputs.asked
    if name.startswith("query="):
        values = asked.values.get(name[6:])
        return written(None) if values is None else _written_list(values)
    if name == _ALL_OF_QUERY:
        return written(asked.page_query)
    value: str | int | None = getattr(pull, name)
    return written(value)


def written(value: str | int | None) -> bytes:
    """A value as bytes that say its type and length."""
    if value is None:
        return b"-"
    raw = str(value).encode(errors="surrogatepass")  # a verifier's user id may hold anything
    return b"%c%d:%b" % (b"i" if isinstance(value, int) else b"s", len(raw), raw)


def _written_list(values: list[str]) -> bytes:
    return b"l%d:%b" % (len(values), b"".join(map(written, values)))
