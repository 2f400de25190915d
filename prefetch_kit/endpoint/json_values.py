"""What a handler returned, as JSON: what orjson writes by itself, and what else apps have."""

import json
import math
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from io import IOBase
from ipaddress import IPv4Address, IPv6Address
from numbers import Number
from pathlib import PurePath
from typing import Any, Final
from uuid import UUID

import orjson
from werkzeug.sansio.response import Response

# Number.MAX_SAFE_INTEGER: JavaScript rounds larger ones.
MAX_SAFE_INTEGER: Final = 2**53 - 1
_MAX_DEPTH: Final = 250  # orjson's is 254
_MAX_INTEGER_BITS: Final = 4096  # Python makes no text of more than 4,300 digits
# A key that is shown in an error. A longer one might be somebody's token.
_PLAIN_KEY: Final = re.compile(r"[^\W\d]\w{0,19}")

_DICT: Final = "write a dict of what the page needs, give the handler a schema, or teach app.json"
_REMEDIES: Final[tuple[tuple[Any, str], ...]] = (
    ((bytes, bytearray, memoryview), "decode them to a str"),
    (Response, "return the response itself, or put what it holds here"),
    ((set, frozenset), "write sorted(…) or list(…)"),
    (type, "make an instance of it"),
    (Awaitable, "wait for it in the handler, with asyncio.run(…)"),
    (IOBase, "read it in the handler, and close it"),
    ((PurePath, Number, IPv4Address, IPv6Address), "write str(…)"),
    (Iterable, "write list(…)"),
    (Callable, "call it"),
)


class NotJsonError(Exception):
    """A value that JSON cannot say: what is wrong with it, and what to write instead."""

    def __init__(self, problem: str, remedy: str) -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{problem}; {remedy}")


class JsonWriter:
    """Writes values as compact UTF-8 JSON.

    `app_dumps` is the app's own `app.json.dumps`; it is asked about types that are not known
    here. Integers that JavaScript would round are written as text where `big_integers_as_text`.
    """

    def __init__(self, *, app_dumps: Callable[[object], str], big_integers_as_text: bool) -> None:
        self._app_dumps = app_dumps
        self.big_integers_as_text = big_integers_as_text

    def write(self, value: object) -> tuple[bytes, str | None]:
        """The JSON of a value, and where in it the first integer is that JavaScript would round.

        Raises `NotJsonError`, and what reading the value raises.
        """
        converted: list[object] = []

        def default(item: object) -> object:
            plain = self._convert(item, "")
            converted.append(plain)
            return plain

        try:
            body = orjson.dumps(value, default, orjson.OPT_STRICT_INTEGER)
        except TypeError:
            # Something that orjson does not write, or what reading the value raised, which comes
            # out of orjson as another error. A walk in Python says what it is and where.
            body = None
        # orjson writes NaN and infinity as null. Looking for them costs a walk, so walk only
        # where a null came out. From the right, because rfind is twice as fast as `in`.
        if body is None or (
            body.rfind(b"null") >= 0 and any(map(_has_nonfinite, (value, *converted)))
        ):
            return self._write_slowly(value)
        return body, None

    def _write_slowly(self, value: object) -> tuple[bytes, str | None]:
        walk = _Walk(self)
        plain = walk.plain(value, "", 0)
        try:
            return orjson.dumps(plain, option=orjson.OPT_NON_STR_KEYS), walk.big_integer
        except TypeError as error:
            problem = str(error)
        raise NotJsonError(f"what JSON cannot say: {problem}", _DICT)

    def _convert(self, value: Any, where: str) -> object:
        """What a value that orjson does not write is made of."""
        kind = type(value)
        match value:
            case Decimal():
                if not value.is_finite():
                    raise _nonfinite(value, where)
                return str(value)
            case float():  # a subclass, as numpy has one
                return float(value)
            case date() | time():  # as orjson writes them; also a time with a zone, and subclasses
                return value.isoformat()
            case UUID():
                return str(value)
            case timedelta():  # as marshmallow has it
                seconds = value.total_seconds()
                return int(seconds) if seconds.is_integer() else seconds
            case Mapping():
                return dict(value)
        # Without importing any of these packages.
        if hasattr(kind, "model_dump"):  # pydantic
            return value.model_dump(mode="json")
        if hasattr(kind, "__fields__") and hasattr(kind, "dict"):  # pydantic 1
            return value.dict()
        if hasattr(kind, "_asdict"):  # a namedtuple, a row of SQLAlchemy's
            return value._asdict()
        if hasattr(kind, "__attrs_attrs__"):
            return _attributes(value, (each.name for each in kind.__attrs_attrs__))
        if hasattr(kind, "__mapper__"):  # an object of SQLAlchemy's
            return _attributes(value, (each.key for each in kind.__mapper__.column_attrs))
        return self._ask_app(value, where)

    def _ask_app(self, value: object, where: str) -> object:
        try:
            text = self._app_dumps(value)
        except TypeError as error:
            cause = error
        else:
            return json.loads(text)
        remedy = next((says for kinds, says in _REMEDIES if isinstance(value, kinds)), _DICT)
        if hasattr(type(value), "keys") and hasattr(type(value), "__getitem__"):  # sqlite3.Row
            remedy = "write dict(…)"
        what = f"the class {value.__name__}" if isinstance(value, type) else _a(type(value))
        problem = f"{what}{where}, which JSON cannot say"
        raise NotJsonError(problem, remedy) from cause


class _Walk:
    """Makes plain data of a value, and knows where it is in it."""

    def __init__(self, writer: JsonWriter) -> None:
        self._writer = writer
        self.big_integer: str | None = None

    def plain(self, value: Any, at: str, depth: int) -> object:
        if depth > _MAX_DEPTH:
            raise NotJsonError(
                f"data more than {_MAX_DEPTH} levels deep", "see whether it holds itself"
            )
        match value:
            case Enum():
                return self.plain(value.value, at, depth + 1)
            case None | bool():
                return value
            case str():
                if not value.isascii():
                    _demand_utf8(value, at)
                return value
            case int():
                return self._integer(int(value), at)
            case float():
                if not math.isfinite(value):
                    raise _nonfinite(value, _where(at))
                return float(value)
            case Mapping():
                return self._mapping(value, at, depth)
            case list():
                return [self.plain(each, f"{at}[{n}]", depth + 1) for n, each in enumerate(value)]
        if type(value) is tuple:
            return self.plain([*value], at, depth)
        if is_dataclass(value) and not isinstance(value, type):
            return self._mapping(dict(_dataclass_items(value)), at, depth)
        return self.plain(self._writer._convert(value, _where(at)), at, depth + 1)

    def _mapping(self, value: Mapping[object, object], at: str, depth: int) -> object:
        plain: dict[object, object] = {}
        # As orjson reads a dict: a MultiDict's own items() gives one value of each key.
        items = dict.items(value) if isinstance(value, dict) else value.items()
        for key, item in items:
            said = _key(key, at)
            if said in plain:
                raise NotJsonError(
                    f"a dict{_where(at)} with two keys that are the same text",
                    "let all of its keys be strings",
                )
            step = f"[{key!r}]" if type(key) is int or _is_plain(key) else "[…]"
            plain[said] = self.plain(item, at + step, depth + 1)
        return plain

    def _integer(self, value: int, at: str) -> object:
        if abs(value) <= MAX_SAFE_INTEGER:
            return value
        if value.bit_length() > _MAX_INTEGER_BITS:
            raise NotJsonError(f"a huge int{_where(at)}", "write it as text")
        if self._writer.big_integers_as_text:
            return str(value)
        self.big_integer = self.big_integer or _where(at).strip() or "as the whole answer"
        return orjson.Fragment(str(value))  # orjson has 64 bits, JSON has no limit


def _key(key: object, at: str) -> object:
    """A key as orjson can write it."""
    if isinstance(key, Enum):
        return _key(key.value, at)
    if isinstance(key, str):
        _demand_utf8(key, at)
        return str.__str__(key)
    if type(key) is int:
        return str(key)
    if isinstance(key, float) and not math.isfinite(key):
        raise _nonfinite(key, _where(at))
    if isinstance(key, (date, time)):
        return key.isoformat()
    if isinstance(key, UUID):
        return str(key)
    if key is None or isinstance(key, (bool, float)):
        return key
    raise NotJsonError(
        f"a dict{_where(at)} with a key that is {_a(type(key))}",
        "let all of its keys be strings",
    )


def _demand_utf8(text: str, at: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        pass
    else:
        return
    # Outside of the except block: the foreign error holds the text.
    raise NotJsonError(
        f"a str{_where(at)} with half a surrogate pair, which is no text",
        "decode what it comes from as UTF-16, or leave it out",
    )


def _nonfinite(value: object, where: str) -> NotJsonError:
    problem = f"{_a(type(value))}{where} that is NaN or infinity"
    return NotJsonError(f"{problem}, which JSON cannot say", "write None, or leave it out")


def _is_plain(key: object) -> bool:
    return isinstance(key, str) and _PLAIN_KEY.fullmatch(key) is not None


def _where(at: str) -> str:
    return f" at {at}" if at else ""


def _a(kind: type) -> str:
    name = kind.__qualname__
    return f"an {name}" if name[:1] in "aeiouAEIOU" else f"a {name}"


def _attributes(value: object, names: Iterable[str]) -> dict[str, object]:
    # As with a dataclass: no name that begins with "_".
    return {name: getattr(value, name) for name in names if not name.startswith("_")}


def _has_nonfinite(value: object) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, Mapping):
        return any(_has_nonfinite(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return any(_has_nonfinite(item) for item in value)
    if isinstance(value, Enum):
        return _has_nonfinite(value.value)
    return any(_has_nonfinite(item) for _, item in _dataclass_items(value))


def _dataclass_items(value: object) -> Iterator[tuple[str, object]]:
    # What orjson writes: attributes set beside the fields too, no name that begins with "_".
    if is_dataclass(value):
        names = dict.fromkeys([*(each.name for each in fields(value)), *_own_attributes(value)])
        for name in names:
            if not name.startswith("_") and hasattr(value, name):
                yield name, getattr(value, name)


def _own_attributes(value: object) -> Iterable[str]:
    return getattr(value, "__dict__", {}).keys()
