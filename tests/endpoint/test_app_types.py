"""What Flask apps have at hand goes out as it is: models, rows, responses, the app's own types."""

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from fractions import Fraction
from io import StringIO
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import attrs
import pydantic
import pydantic.v1
import pytest
from flask import Flask, Response, jsonify, make_response
from flask.json.provider import DefaultJSONProvider
from marshmallow import Schema, fields
from sqlalchemy import ForeignKey, Row, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship
from werkzeug.datastructures import MultiDict

from prefetch_kit import NO_DATA, Prefetch, Pull

App = Callable[..., Flask]
Ask = Callable[..., Any]
Logged = Callable[[], list[str]]
Serve = Callable[..., Any]


class Tag(pydantic.BaseModel):
    name: str


class OldTag(pydantic.v1.BaseModel):
    name: str
    price: Decimal


class Tea(pydantic.BaseModel):
    name: str
    price: Decimal
    picked: date
    tags: list[Tag] = []
    stars: float = 5.0
    supplier_key: pydantic.SecretStr = pydantic.SecretStr("canary")


class Teas(pydantic.RootModel[list[Tag]]):
    pass


@pydantic.dataclasses.dataclass
class Leaf:
    name: str
    tag: Tag


@attrs.define
class Cup:
    size: int
    tags: list[Tag]
    _cost: Decimal = Decimal(1)


class Moment(datetime):
    """As those of pandas and pendulum are."""


class Key(UUID):
    pass


class Point(NamedTuple):
    x: int
    y: Decimal


class Base(DeclarativeBase):
    pass


class Shop(Base):
    __tablename__ = "shops"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Product(Base):
    __tablename__ = "products"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    price: Mapped[Decimal]
    shop_id: Mapped[int] = mapped_column(ForeignKey("shops.id"))
    shop: Mapped[Shop] = relationship()


@dataclass(frozen=True)
class Money:
    cents: int


class Weight:
    """A type that the kit knows nothing of."""

    def __init__(self, grams: Any) -> None:
        self.grams = grams


class Provider(DefaultJSONProvider):
    @staticmethod
    def default(value: Any) -> Any:
        if isinstance(value, Weight):
            return {"grams": value.grams + 0, "names": {1: "克"}}
        return DefaultJSONProvider.default(value)


class Html:
    def __html__(self) -> str:
        return "<b>茶</b>"


@pytest.fixture
def serve(make_app: App, prefetch: Prefetch, ask: Ask) -> Serve:
    """`serve(make, …)`: the reply to a pull whose handler returns what `make()` gives."""

    def serve(make: Callable[[], object], **config: object) -> Any:
        @prefetch.pre_fetch("pages/index/index", cache=30)
        def index(_: Pull) -> object:
            return make()

        app = make_app(prefetch, **config)
        app.json = Provider(app)
        return ask(app)

    return serve


@pytest.fixture
def db() -> Iterator[Session]:
    """Two products of a shop, in a real SQLite."""
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        shop = Shop(id=1, name="茶馆")
        session.add_all([Product(id=n, name=f"p{n}", price=Decimal(n), shop=shop) for n in (1, 2)])
        session.commit()
        yield session
    engine.dispose()


TEA = Tea(name="龙井茶", price=Decimal("68.00"), picked=date(2024, 4, 5), tags=[Tag(name="绿")])
TEA_JSON = (
    '{"name":"龙井茶","price":"68.00","picked":"2024-04-05","tags":[{"name":"绿"}],"stars":5.0,'
    '"supplier_key":"**********"}'
)


@pytest.mark.parametrize(
    ("value", "body"),
    [
        (TEA, TEA_JSON),
        ({"teas": [TEA]}, f'{{"teas":[{TEA_JSON}]}}'),
        (Teas([Tag(name="a")]), '[{"name":"a"}]'),
        ([OldTag(name="a", price=Decimal("2.50"))], '[{"name":"a","price":"2.50"}]'),
        ([Leaf("a", Tag(name="b"))], '[{"name":"a","tag":{"name":"b"}}]'),
        (Cup(3, [Tag(name="b")]), '{"size":3,"tags":[{"name":"b"}]}'),
        (Point(1, Decimal("2.5")), '{"x":1,"y":"2.5"}'),
        ([Moment(2026, 1, 2, 3, 4)], '["2026-01-02T03:04:00"]'),
        ([Moment(2026, 1, 2), 2**60], f'["2026-01-02T00:00:00",{2**60}]'),
        ({date(2026, 1, 2): Key(int=1), 1: 2**60}, f'{{"2026-01-02":"{Key(int=1)}","1":{2**60}}}'),
        ([time(3, 4, tzinfo=UTC), Key(int=2)], f'["03:04:00+00:00","{Key(int=2)}"]'),
        ([Money(5)], '[{"cents":5}]'),
        ({1: Weight(2)}, '{"1":{"grams":2,"names":{"1":"克"}}}'),
        ([Html()], '["<b>茶</b>"]'),
        (MultiDict([("a", "1"), ("a", "2")]), '{"a":["1","2"]}'),
        ({1: MultiDict([("a", "1"), ("a", "2")])}, '{"1":{"a":["1","2"]}}'),
    ],
)
def test_what_apps_have_at_hand_is_data(serve: Serve, value: object, body: str) -> None:
    """Also deep inside other data, and as compact UTF-8."""
    assert serve(lambda: value).data.decode() == body


def test_rows_and_objects_of_sqlalchemy_are_data(serve: Serve, db: Session) -> None:
    """A row by its columns, an object by those of its table; what it refers to stays out."""
    rows: list[Row[Any]] = [*db.execute(select(Product.id, Product.price).order_by(Product.id))]
    product = db.get_one(Product, 1)
    first = '{"id":1,"name":"p1","price":"1.0000000000","shop_id":1}'
    body = serve(lambda: {"rows": rows, "row": rows[0]._mapping, "product": product}).data.decode()
    rows_json = '[{"id":1,"price":"1.0000000000"},{"id":2,"price":"2.0000000000"}]'
    assert body == f'{{"rows":{rows_json},"row":{rows_json[1:32]},"product":{first}}}'


def test_a_row_alone_is_data(serve: Serve, db: Session) -> None:
    """Though it is a tuple: its names say what is in it."""
    row = db.execute(select(Product.id).limit(1)).one()
    assert serve(lambda: row).data == b'{"id":1}'


@pytest.mark.parametrize(
    ("make", "body"),
    [
        (lambda: jsonify(name="茶", n=2**53 - 1), '{"n":9007199254740991,"name":"茶"}'),
        (lambda: jsonify([1.5, None]), "[1.5,null]"),
        (lambda: make_response({"a": 1}), '{"a":1}'),
        (lambda: make_response({"a": 1}, 201, {"X-Other": "x"}), '{"a":1}'),
        (
            lambda: Response('{ "a" : "\\u8336" }', mimetype="application/problem+json"),
            '{"a":"茶"}',
        ),
        (lambda: Response(status=204), ""),
        (lambda: jsonify(NO_DATA.value), '"NO_DATA"'),
    ],
)
def test_the_json_of_a_response_is_data(
    serve: Serve, make: Callable[[], object], body: str
) -> None:
    """Written anew: `jsonify` escapes what is not ASCII, and would fill the limit sooner."""
    reply = serve(make)
    assert (reply.status_code, reply.data.decode()) == (200, body)
    assert "X-Other" not in reply.headers


def test_a_file_that_is_sent_is_read_and_closed(serve: Serve, tmp_path: Path) -> None:
    """A response leaves that to the server, which never gets this one."""
    (tmp_path / "teas.json").write_text('{ "name": "茶" }')
    file = (tmp_path / "teas.json").open("rb")
    response = Response(file, mimetype="application/json", direct_passthrough=True)
    assert serve(lambda: response).data.decode() == '{"name":"茶"}'
    assert file.closed


def sqlite_row() -> object:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.row_factory = sqlite3.Row
        return connection.execute("select 1 as id").fetchone()


def nested(value: object) -> object:
    return {"items": [1, {"value": value}]}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: {"tags": {1}}, "a set at ['tags'], which JSON cannot say. Write sorted(…) or "),
        (lambda: nested(float("nan")), "a float at ['items'][1]['value'] that is NaN or infinity"),
        (lambda: nested(Decimal("Infinity")), "a Decimal at ['items'][1]['value'] that is NaN"),
        (lambda: [TEA.model_copy(update={"stars": float("inf")})], "[0]['stars'] that is NaN"),
        (lambda: [object()], "an object at [0], which JSON cannot say. Write a dict of what"),
        (lambda: (n for n in "ab"), "a generator, which JSON cannot say. Write list(…)."),
        (lambda: map(str, "ab"), "a map, which JSON cannot say. Write list(…)."),
        (lambda: nested(b"x"), "a bytes at ['items'][1]['value'], which JSON cannot say. Decode"),
        (lambda: {"now": datetime.now}, "at ['now'], which JSON cannot say. Call it."),
        (lambda: Tea, "the class Tea, which JSON cannot say. Make an instance of it."),
        (lambda: [Path("a")], "Path at [0], which JSON cannot say. Write str(…)."),
        (lambda: ip_address("10.0.0.1"), "an IPv4Address, which JSON cannot say. Write str(…)."),
        (lambda: Fraction(1, 3), "a Fraction, which JSON cannot say. Write str(…)."),
        (lambda: StringIO("a"), "a StringIO, which JSON cannot say. Read it in the handler"),
        (sqlite_row, "a Row, which JSON cannot say. Write dict(…)."),
        (lambda: [jsonify(a=1)], "a Response at [0], which JSON cannot say. Return the response"),
        (lambda: {("a",): 1}, "a dict with a key that is a tuple. Let all of its keys be strings"),
        (lambda: {"a" * 21: {1}}, "a set at […], which JSON cannot say"),
        (lambda: ({"a": 1}, 201), "a tuple; a pull's answer has no status and no headers. Return"),
        (lambda: None, "None. Return NO_DATA where there is nothing."),
        (lambda: Response("<p>"), "a response that is text/html, not JSON. Return data"),
        (lambda: Response("{", mimetype="application/json"), "whose JSON cannot be read"),
        (lambda: Response(status=302), "a response of 302 FOUND. Return data, or call abort(404)"),
        (lambda: Response(status=500), "a response of 500 INTERNAL SERVER ERROR. Return data"),
    ],
)
def test_a_refused_value_is_named(
    serve: Serve, logged: Logged, make: Callable[[], object], says: str
) -> None:
    """The log has the handler, the type, where it is, and what to write instead."""
    assert serve(make).status_code == 500
    handler = f"{__name__}.serve.<locals>.serve.<locals>.index returned "
    (last,) = [line for line in logged()[-1].splitlines() if "NotAnAnswer: " in line]
    assert handler in last
    assert says in last.partition(handler)[2]


def test_a_mistake_in_the_apps_provider_is_shown(serve: Serve, logged: Logged) -> None:
    """As the cause of the kit's own sentence."""
    assert serve(lambda: [Weight(None)]).status_code == 500
    assert "TypeError: unsupported operand" in logged()[-1]


@pytest.mark.parametrize(
    ("config", "body"),
    [
        ({}, b'{"id":9007199254740993,"n":9007199254740991,"ids":[-18446744073709551617]}'),
        (
            {"PREFETCH_BIG_INTEGERS": "text"},
            b'{"id":"9007199254740993","n":9007199254740991,"ids":["-18446744073709551617"]}',
        ),
    ],
)
def test_integers_that_javascript_would_round(
    make_app: App,
    prefetch: Prefetch,
    ask: Ask,
    logged: Logged,
    config: dict[str, object],
    body: bytes,
) -> None:
    """They go out as numbers, which is warned of once a handler; or as text, by setting."""
    prefetch.pre_fetch()(lambda _: {"id": 2**53 + 1, "n": 2**53 - 1, "ids": [-(2**64) - 1]})
    app = make_app(prefetch, **config)
    assert [ask(app).data for _ in range(3)] == [body] * 3
    warnings = [line for line in logged() if line.startswith("WARNING")]
    assert len(warnings) == (0 if config else 1)
    assert all("integer beyond 2**53 at ['id'], which JavaScript rounds" in w for w in warnings)


@pytest.mark.parametrize(
    ("text", "tells"),
    [
        ("hello", "throws a SyntaxError (line 1, column 1)"),
        (b'{"a": 1,}', "throws a SyntaxError"),
        ("NaN", "throws a SyntaxError"),
        ("", "gets nothing: it is no data"),
        ('{"a": 1}', None),
        ("12", None),
        (b'"text"', None),
    ],
)
@pytest.mark.parametrize("debug", [True, False])
def test_text_that_is_no_json_is_told_of_in_debug(
    make_app: App,
    prefetch: Prefetch,
    ask: Ask,
    logged: Logged,
    text: str | bytes,
    tells: str | None,
    debug: bool,
) -> None:
    """It goes out as it is: the page may read it otherwise."""
    prefetch.pre_fetch()(lambda _: text)
    raw = text if isinstance(text, bytes) else text.encode()
    assert ask(make_app(prefetch, DEBUG=debug)).data == raw
    told = [line for line in logged() if "text that is no JSON" in line]
    assert len(told) == (1 if tells and debug else 0)
    assert all(f"in the mini program {tells}" in line for line in told)


def test_lazy_data_refuses_as_eager_data_does(
    make_app: App, prefetch: Prefetch, ask: Ask, logged: Logged
) -> None:
    """A query key that did not come is a 400, whenever it is read."""

    class Late(Mapping[str, object]):
        def __init__(self, pull: Pull) -> None:
            self._pull = pull

        def __iter__(self) -> Iterator[str]:
            return iter(["id"])

        def __len__(self) -> int:
            return 1

        def __getitem__(self, name: str) -> str:
            return self._pull.query[name]

    prefetch.pre_fetch("late")(Late)
    prefetch.pre_fetch("deep")(lambda pull: {"a": [{1: Late(pull)}]})
    prefetch.pre_fetch("cached", cache=30)(lambda pull: [Late(pull)])
    app = make_app(prefetch)
    for page in ("late", "deep", "cached"):
        reply = ask(app, path=page)
        assert (reply.status_code, reply.headers["X-Prefetch-Refused"]) == (400, "query")
        assert ask(app, path=page, query="id=7").status_code == 200
    assert not [line for line in logged() if line.startswith("ERROR")]


def test_schemas_dump_what_a_response_holds(make_app: App, prefetch: Prefetch, ask: Ask) -> None:
    """As they dump any other data."""
    schema = Schema.from_dict({"name": fields.String()})()
    prefetch.pre_fetch(schema=schema)(lambda _: jsonify(name="a", cost=1))
    assert ask(make_app(prefetch)).data == b'{"name":"a"}'
