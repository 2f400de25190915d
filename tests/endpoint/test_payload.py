"""What a handler returned goes out as JSON within the limit, or not at all."""

import json
import math
import random
from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from types import MappingProxyType
from typing import Any, ClassVar
from uuid import UUID

import pytest
from flask import Flask
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup
from marshmallow import Schema, fields

from prefetch_kit import NO_DATA
from prefetch_kit.endpoint.payload import Encoder, NotAnAnswer, TooLarge
from prefetch_kit.logs import SafeLogger

LIMIT = 262_144
NAN, INF = math.nan, math.inf


def encoded(value: object, *, schema: Schema | None = None, max_bytes: int = LIMIT) -> bytes:
    app = Flask("shop")
    encoder = Encoder(
        max_bytes=max_bytes,
        big_integers_as_text=False,
        app_dumps=app.json.dumps,
        logger=SafeLogger(app.logger),
        debug=False,
    )
    return encoder.encode(value, schema=schema, handler="shop.index")


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    LOW = 1


class Name(StrEnum):
    ALICE = "alice"


class Number(Enum):
    UNKNOWN = NAN
    NONE = None


@dataclass
class Item:
    name: str
    price: object = Decimal("12.50")


@dataclass(slots=True)
class Slotted:
    value: object
    empty: None = None


@dataclass
class Plain:
    value: object = 1
    empty: None = None
    _hidden: float = NAN
    shared: ClassVar[float] = NAN


@dataclass
class Node:
    next: object = field(default=None)


Point = namedtuple("Point", "x y")  # noqa: PYI024 (an untyped one is what apps have)


@pytest.mark.parametrize(
    ("value", "body"),
    [
        ({}, b"{}"),
        ([], b"[]"),
        (0, b"0"),
        (False, b"false"),
        (1.5, b"1.5"),
        ("", b""),
        ("plain text, not JSON", b"plain text, not JSON"),
        ("中文", "中文".encode()),
        (b"\xff raw", b"\xff raw"),
        (Markup("<b>"), b"<b>"),
        (Name.ALICE, b"alice"),
        (NO_DATA, b""),
        ({"名": "茶", "n": None}, '{"名":"茶","n":null}'.encode()),
        ([Decimal("1.10"), Decimal(7)], b'["1.10","7"]'),
        (Item("tea"), b'{"name":"tea","price":"12.50"}'),
        (OrderedDict(b=1, a=2), b'{"b":1,"a":2}'),
        (MappingProxyType({"a": UserDict(b=1)}), b'{"a":{"b":1}}'),
        ([1, (2,)], b"[1,[2]]"),
        ([Colour.RED, Level.LOW], b'["red",1]'),
        (datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC), b'"2024-01-02T03:04:05+00:00"'),
        ({"day": date(2024, 1, 2)}, b'{"day":"2024-01-02"}'),
        (UUID(int=7), b'"00000000-0000-0000-0000-000000000007"'),
        (2**63, b"9223372036854775808"),
        ([-(2**70)], b"[-1180591620717411303424]"),
        ({1: "a", -2: {3: None}}, b'{"1":"a","-2":{"3":null}}'),
        ({Level.LOW: 1, Colour.RED: 2, None: 4}, b'{"1":1,"red":2,"null":4}'),
        (Point(1, [Point(2, 3)]), b'{"x":1,"y":[{"x":2,"y":3}]}'),
        ([timedelta(minutes=1), timedelta(milliseconds=1500)], b"[60,1.5]"),
        (["\x00\x1f\u2028", "😀"], '["\\u0000\\u001f\u2028","😀"]'.encode()),
    ],
)
def test_data_is_compact_utf8(value: object, body: bytes) -> None:
    """Everything JSON can say; text and bytes as they are."""
    assert encoded(value) == body


def circular() -> object:
    loop: list[object] = []
    loop.append(loop)
    return loop


def circular_mapping() -> object:
    loop: dict[str, object] = {}
    loop["self"] = MappingProxyType(loop)
    return loop


def circular_dataclass() -> object:
    node = Node()
    node.next = node
    return node


def deep() -> object:
    value: object = 1
    for _ in range(100_000):
        value = [value]
    return value


JUNK: list[Callable[[], object]] = [
    lambda: None,
    lambda: {1, 2},
    lambda: (n for n in "ab"),
    lambda: iter([1]),
    lambda: range(3),
    lambda: {"a": {1}},
    lambda: {1: "a", "1": "b"},
    lambda: {INF: "a"},
    lambda: {("a",): 1},
    lambda: [object()],
    lambda: object,
    lambda: print,
    lambda: 1j,
    lambda: 10**5000,
    lambda: (1, 2),
    lambda: [ValueError],
    lambda: {"tags": [frozenset("a")]},
    lambda: bytearray(b"x"),
    lambda: memoryview(b"x"),
    lambda: [b"bytes inside"],
    lambda: "lone \ud800",
    lambda: ["lone \udfff"],
    lambda: {"lone \ud800": 1},
    lambda: NAN,
    lambda: INF,
    lambda: Decimal("NaN"),
    lambda: Decimal("sNaN"),
    lambda: [Decimal("-Infinity")],
    lambda: ValueError("an exception returned"),
    lambda: [NO_DATA, {1}],
    circular,
    circular_mapping,
    circular_dataclass,
    deep,
]


@pytest.mark.parametrize("make", JUNK)
def test_junk_is_a_failure(make: Callable[[], object]) -> None:
    """What JSON cannot say never becomes a body."""
    with pytest.raises(NotAnAnswer, match=r"^shop\.index returned .+\. [A-Z].+\.$") as caught:
        encoded(make())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [NAN, INF, -INF])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda n: {"a": n},
        lambda n: [[n]],
        lambda n: [(None, n)],
        lambda n: {"a": {"b": [None, {"c": n}]}},
        lambda n: MappingProxyType({"a": n}),
        lambda n: UserDict(a=[n]),
        lambda n: Item("tea", n),
        lambda n: [Item("tea", [n])],
        lambda n: Slotted(n),
        lambda n: Slotted({"a": Slotted(n)}),
        lambda n: Plain(value=n),
    ],
)
def test_nested_nonfinite_number_is_a_failure(
    wrap: Callable[[float], object], number: float
) -> None:
    """It would reach the page as null, which is a different answer."""
    with pytest.raises(NotAnAnswer, match="is NaN or infinity"):
        encoded(wrap(number))
    assert encoded(wrap(1.5))


def test_nonfinite_number_set_beside_the_fields_is_a_failure() -> None:
    """An attribute added to a dataclass goes out too, and is looked at."""
    item = Plain()
    item.rating = NAN  # type: ignore[attr-defined]
    with pytest.raises(NotAnAnswer, match="is NaN or infinity"):
        encoded(item)


@pytest.mark.parametrize("value", [Number.UNKNOWN, [Number.UNKNOWN]])
def test_nonfinite_enum_is_a_failure(value: object) -> None:
    """An enum goes out as its value."""
    with pytest.raises(NotAnAnswer, match="is NaN or infinity"):
        encoded(value)


def test_what_does_not_go_out_is_not_looked_at() -> None:
    """Private and class attributes of a dataclass may hold anything."""
    assert encoded(Plain()) == b'{"value":1,"empty":null}'


_trees = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5) | st.floats(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)


@settings(database=None, deadline=None, max_examples=500)
@given(_trees.filter(lambda tree: tree is not None and not isinstance(tree, str)))
def test_exactly_the_nonfinite_trees_fail(tree: object) -> None:
    """The standard library's strict encoder judges, and reads back what went out."""
    try:
        strict = json.dumps(tree, allow_nan=False)
    except ValueError:
        with pytest.raises(NotAnAnswer, match="is NaN or infinity"):
            encoded(tree)
    else:
        assert json.loads(encoded(tree)) == json.loads(strict)


@pytest.mark.parametrize("character", ["a", "é", "中", "😀"])
@pytest.mark.parametrize(
    ("wrap", "around"), [(str, 0), (str.encode, 0), (lambda text: [text], 4), (Item, 27)]
)
def test_limit_counts_bytes(character: str, wrap: Callable[[str], object], around: int) -> None:
    """The last byte that fits goes out; one more character of any width does not."""
    for max_bytes in (LIMIT, 1000, 1001, 1002, 1003):
        room, odd = divmod(max_bytes - around, len(character.encode()))
        full = character * room + "x" * odd
        assert len(encoded(wrap(full), max_bytes=max_bytes)) == max_bytes
        with pytest.raises(TooLarge) as caught:
            encoded(wrap(full + "x"), max_bytes=max_bytes)
        assert (caught.value.size_bytes, caught.value.max_bytes) == (max_bytes + 1, max_bytes)


@pytest.mark.slow
def test_no_answer_of_a_hundred_thousand_exceeds_the_limit() -> None:
    """An object is refused as too large exactly if its compact UTF-8 is over the limit."""
    chance, refused = random.Random(20240501), 0
    for _ in range(100_000):
        value, limit = grow(chance, depth=3), chance.randrange(1, 60)
        plain = value if isinstance(value, str) else compact(value)
        try:
            body = encoded(value, max_bytes=limit)
        except TooLarge:
            refused += 1
            assert len(plain.encode()) > limit
        else:
            assert len(body) <= limit
            assert body == plain.encode()
    assert 20_000 < refused < 80_000


def compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def grow(chance: random.Random, *, depth: int) -> object:
    kind = chance.randrange(3 + 2 * (depth > 0))
    if kind == 0:
        return chance.randrange(-9999, 9999)
    if kind <= 2:
        return "".join(chance.choices("aé中😀", k=chance.randrange(16)))
    inner = [grow(chance, depth=depth - 1) for _ in range(chance.randrange(5))]
    return inner if kind == 3 else {str(n): each for n, each in enumerate(inner)}


class ItemSchema(Schema):
    name = fields.String()
    price = fields.Decimal(as_string=True)


class NullSchema(Schema):
    value = fields.Float(allow_nan=True)


@pytest.mark.parametrize(
    ("value", "schema", "body"),
    [
        (Item("茶"), ItemSchema(), '{"name":"茶","price":"12.50"}'),
        (
            [Item("a"), Item("b")],
            ItemSchema(many=True, only=["name"]),
            '[{"name":"a"},{"name":"b"}]',
        ),
        ({"name": "a", "secret": "canary"}, ItemSchema(), '{"name":"a"}'),
        (NO_DATA, ItemSchema(), ""),
    ],
)
def test_schema_dumps_first(value: object, schema: Schema, body: str) -> None:
    """Only what the schema names goes out."""
    assert encoded(value, schema=schema).decode() == body


@pytest.mark.parametrize(
    ("value", "schema"), [(None, ItemSchema()), ({"value": NAN}, NullSchema())]
)
def test_schema_does_not_hide_junk(value: object, schema: Schema) -> None:
    """Nothing and NaN are failures with a schema too."""
    with pytest.raises(NotAnAnswer, match=r"returned None|is NaN"):
        encoded(value, schema=schema)


def test_mapping_is_walked_like_a_dict() -> None:
    """A lazy mapping of the app's own is data."""

    class Lazy(Mapping[str, Any]):
        def __getitem__(self, key: str) -> object:
            return {"a": [1], "b": None}[key]

        def __iter__(self) -> Any:
            return iter("ab")

        def __len__(self) -> int:
            return 2

    assert encoded({"lazy": Lazy()}) == b'{"lazy":{"a":[1],"b":null}}'
