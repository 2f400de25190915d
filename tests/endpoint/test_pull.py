"""A cached handler's Pull notes all that is read from it: only pulls alike in that share."""

import copy
import html
import inspect
import pickle
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from itertools import product
from operator import itemgetter
from types import MappingProxyType
from typing import Any

import pytest
from flask import Flask, current_app
from marshmallow import Schema, fields
from werkzeug.wrappers import Response

from prefetch_kit import Prefetch, Pull

App = Callable[..., Flask]
Ask = Callable[..., Response]
Read = Callable[[Pull], object]
Serve = Callable[..., Flask]
Parameters = dict[str, str | None]


class Key(str, Enum):  # noqa: UP042 (StrEnum says its text, this one its name)
    """As apps name their parameters; its str() is not the text it is looked up by."""

    A = "a"


class Loud(str):
    """A str that says something else of itself."""

    def __str__(self) -> str:
        return "b"

    def __format__(self, spec: str) -> str:
        return "b"


class Late(Mapping[str, object]):
    """Data that is read from the pull only when it is written as JSON."""

    def __init__(self, pull: Pull) -> None:
        self._pull = pull

    def __getitem__(self, name: str) -> object:
        return getattr(self._pull, name)

    def __iter__(self) -> Iterator[str]:
        return iter(("scene",))

    def __len__(self) -> int:
        return 1


@dataclass
class Card:
    """What orjson writes itself, with something inside that it has to ask about."""

    late: Late


class SceneSchema(Schema):
    scene = fields.Integer()


class LateSchema(Schema):
    scene = fields.Function(lambda pull: pull.scene)
    a = fields.Method("read_a")

    def read_a(self, pull: Pull) -> str | None:
        return pull.query.get("a")


# Read by looking, and so noted.
NOTED = ("appid", "path", "query", "scene", "timestamp", "user_id", "version")


def slots_of(what: object) -> list[tuple[str, object]]:
    """As tools that know no better way read an object."""
    names = [name for each in type(what).__mro__ for name in getattr(each, "__slots__", ())]
    return [(name, getattr(what, name)) for name in names if hasattr(what, name)]


@pytest.fixture
def runs() -> list[Pull]:
    """The pulls the handler was given, one a run."""
    return []


@pytest.fixture
def serve(make_app: App, prefetch: Prefetch, runs: list[Pull]) -> Serve:
    """`serve(read, …)`: an app whose cached handler answers what it reads. A token is its user."""

    def serve(read: Read, **how: Any) -> Flask:
        def handler(pull: Pull) -> object:
            runs.append(pull)
            return read(pull)

        prefetch.pre_fetch(cache=600, **how)(handler)
        prefetch.token_verifier(lambda _appid, token: token)
        return make_app(prefetch)

    return serve


def by_catching(pull: Pull) -> str:
    try:
        return pull.query["a"]
    except KeyError:
        return "none"


def by_matching(pull: Pull) -> object:
    match pull.query:
        case {"a": a, **rest}:
            return [a, rest]
    return "none"


def by_class_pattern(pull: Pull) -> object:
    match pull:
        case Pull(scene=1):
            return "one"
    return "other"


def by_keywords(pull: Pull) -> object:
    return dict(**pull.query)


def by_chaining(pull: Pull) -> object:
    defaults: dict[str, str] = {}
    return ChainMap(defaults, pull.query)["a"]  # type: ignore[arg-type]


def by_odd_names(pull: Pull) -> object:
    odd: list[Any] = [1, None, ("a",), ["a"]]
    return [[pull.query.get(name), name in pull.query] for name in odd]


def in_a_thread(pull: Pull) -> object:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(pull.query.get, "a").result()


def in_many_threads(pull: Pull) -> object:
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(pull.query.get, "abcdefgh"))


def if_b_then_c_else_a(pull: Pull) -> object:
    return pull.query.get("c" if pull.query.get("b") == "1" else "a")


def query(one: str, other: str) -> tuple[Parameters, Parameters]:
    return {"query": one}, {"query": other}


SCENES: tuple[Parameters, Parameters] = ({"scene": "1"}, {"scene": "2"})
A = query("a=1", "a=2")
ORDERS = query("a=1&b=2", "b=2&a=1")

DIFFERENT: dict[str, tuple[Read, tuple[Parameters, Parameters]]] = {
    "path": (lambda p: p.path, ({"path": "pages/a"}, {"path": "pages/b"})),
    "no path": (lambda p: [p.path], ({"path": "pages/a"}, {"path": None})),
    "scene": (lambda p: p.scene, SCENES),
    "no scene": (lambda p: [p.scene], ({"scene": "0"}, {})),
    "getattr": (lambda p: getattr(p, "scene"), SCENES),  # noqa: B009 (another way to read)
    "class pattern": (by_class_pattern, SCENES),
    "version": (
        lambda p: p.version,
        ({"customMiniprogramVersion": "1"}, {"customMiniprogramVersion": "2"}),
    ),
    "user": (lambda p: p.user_id, ({"token": "alice"}, {"token": "bob"})),
    "no user": (lambda p: [p.user_id], ({"token": "alice"}, {})),
    "user named like nobody": (lambda p: [p.user_id], ({"token": "-"}, {})),
    "branch on the user": (lambda p: "in" if p.user_id else "out", ({"token": "alice"}, {})),
    "item": (lambda p: p.query["a"], A),
    "item caught": (by_catching, query("a=1", "b=1")),
    "itemgetter": (lambda p: itemgetter("a")(p.query), A),
    "get": (lambda p: p.query.get("a"), A),
    "get default": (lambda p: p.query.get("a", "none"), query("a=1", "")),
    "in": (lambda p: "a" in p.query, query("a=1", "b=1")),
    "not in": (lambda p: "a" not in p.query, query("a=", "")),
    "getlist": (lambda p: p.query.getlist("a"), query("a=1&a=2", "a=1")),
    "getlist order": (lambda p: p.query.getlist("a"), query("a=1&a=2", "a=2&a=1")),
    "getlist none": (lambda p: p.query.getlist("a"), query("a=", "b=")),
    "len": (lambda p: len(p.query), query("a=1&b=1", "a=1")),
    "bool": (lambda p: bool(p.query), query("a=1", "")),
    "if": (lambda p: "some" if p.query else "none", query("a=1", "")),
    "iter": (lambda p: next(iter(p.query)), query("a=1", "b=1")),
    "order": (lambda p: list(p.query), ORDERS),
    "sorted": (lambda p: sorted(p.query), query("a=1", "b=1")),
    "unpacked": (lambda p: [*p.query], query("a=1", "b=1")),
    "keys": (lambda p: list(p.query.keys()), query("a=1", "b=1")),
    "in keys": (lambda p: "a" in p.query.keys(), query("a=1", "b=1")),  # noqa: SIM118
    "keys as a set": (lambda p: len(p.query.keys() & {"a"}), query("a=1", "b=1")),
    "keys disjoint": (lambda p: p.query.keys().isdisjoint({"a"}), query("a=1", "b=1")),
    "items": (lambda p: list(p.query.items()), A),
    "in items": (lambda p: ("a", "1") in p.query.items(), A),
    "values": (lambda p: list(p.query.values()), A),
    "in values": (lambda p: "1" in p.query.values(), A),
    "equal": (lambda p: p.query == {"a": "1"}, A),
    "unequal": (lambda p: p.query != {"a": "1"}, A),
    "equal from the right": (lambda p: {"a": "1"} == p.query, A),  # noqa: SIM300
    "dict": (lambda p: dict(p.query), A),
    "spread": (lambda p: {**p.query}, A),
    "keywords": (by_keywords, A),
    "update": (lambda p: {"b": "2"} | dict(p.query.items()), A),
    "proxy": (lambda p: MappingProxyType(p.query)["a"], A),
    "chain": (by_chaining, A),
    "match": (by_matching, A),
    "copy": (lambda p: copy.copy(p).scene, SCENES),
    "deepcopy": (lambda p: copy.deepcopy(p).query["a"], A),
    "deepcopy around": (lambda p: copy.deepcopy({"pull": p})["pull"].scene, SCENES),
    "copy of the query": (lambda p: copy.copy(p.query)["a"], A),
    "deepcopy of the query": (lambda p: copy.deepcopy(p.query).get("a"), A),
    "enum": (lambda p: p.query[Key.A], A),
    "enum get": (lambda p: p.query.get(Key.A), A),
    "enum in": (lambda p: Key.A in p.query, query("a=1", "")),
    "enum getlist": (lambda p: p.query.getlist(Key.A), A),
    "str of another mind": (lambda p: p.query[Loud("a")], A),
    "thread": (in_a_thread, A),
    "threads": (in_many_threads, query("h=1", "h=2")),
    "returned query": (lambda p: p.query, A),
    "query inside": (lambda p: {"page": [p.query]}, A),
    "late mapping": (Late, SCENES),
    "late in a dataclass": (lambda p: [Card(Late(p))], SCENES),
    "second branch": (if_b_then_c_else_a, query("b=1&c=2", "a=1&b=2")),
    "second branch's own": (if_b_then_c_else_a, query("b=1&c=2", "b=1&c=3")),
    "name with =": (lambda p: p.query.get("a=b"), query("a%3Db=1", "a%3Db=2")),
    "name of an attribute": (lambda p: p.query.get("scene"), query("scene=1", "scene=2")),
    "empty name": (lambda p: p.query.get(""), query("=1", "=2")),
    "name beyond ASCII": (lambda p: p.query.get("茶"), query("%E8%8C%B6=1", "%E8%8C%B6=2")),
}


@pytest.mark.parametrize("case", DIFFERENT.values(), ids=DIFFERENT)
def test_pulls_that_differ_in_what_is_read_do_not_share(
    serve: Serve, ask: Ask, runs: list[Pull], case: tuple[Read, tuple[Parameters, Parameters]]
) -> None:
    """Each has its own run and answer, which it gets again."""
    read, (one, other) = case
    app = serve(read)
    replies = [ask(app, **parameters) for parameters in (one, other, one, other)]
    assert {reply.status_code for reply in replies} == {200}
    first, second, *again = [reply.data for reply in replies]
    assert (len(runs), again) == (2, [first, second])
    assert first != second


SAME: dict[str, tuple[Read, tuple[Parameters, Parameters]]] = {
    "nothing read": (
        lambda p: [p.kind, p.appid],
        ({"path": "a", "scene": "1", "token": "t"}, {"path": "b", "query": "a=1", "code": "c"}),
    ),
    "path": (lambda p: p.scene or 0, ({"path": "pages/a"}, {"path": None})),
    "scene": (lambda p: p.path, SCENES),
    "version": (lambda p: p.path, ({"customMiniprogramVersion": "1"}, {})),
    "timestamp": (lambda p: p.path, ({"timestamp": "1700000000"}, {"timestamp": "1700000001"})),
    "user": (lambda p: p.path, ({"token": "alice"}, {"token": "bob"})),
    "code": (lambda p: p.path, ({"code": "one"}, {"code": "two"})),
    "both nobody": (lambda p: [p.user_id], ({"code": "one"}, {"code": "two"})),
    "query": (lambda p: p.path, A),
    "unknown parameter": (lambda p: [*p.query], ({"new": "1"}, {"newer": "2"})),
    "other names": (lambda p: p.query["a"], query("a=1&b=2", "b=3&a=1&c=4")),
    "same writing": (lambda p: p.query["a"], query("a=%31", "%61=1")),
    "same scene": (lambda p: p.scene, ({"scene": "1"}, {"scene": "0001"})),
    "both absent": (lambda p: "a" in p.query, query("", "b=1")),
    "both empty": (lambda p: [p.query["a"]], query("a", "a=")),
    "names that are no text": (by_odd_names, query("1=1", "None=1")),
    "query not looked into": (lambda p: p.query is not None, A),
    "str of the pull": (lambda p: [str(p), f"{p}"], ({**A[0], **SCENES[0]}, A[1])),
    "str of the query": (lambda p: [repr(p.query), str(p.query), f"{p.query}"], A),
    "str of its views": (lambda p: [repr(p.query.keys()), repr(p.query.items())], A),
}


@pytest.mark.parametrize("case", SAME.values(), ids=SAME)
def test_pulls_that_differ_in_what_is_not_read_share(
    serve: Serve,
    prefetch: Prefetch,
    ask: Ask,
    runs: list[Pull],
    case: tuple[Read, tuple[Parameters, Parameters]],
) -> None:
    """One run answers both, and a run for the other would have answered the same."""
    read, (one, other) = case
    app = serve(read)
    first, second = ask(app, **one), ask(app, **other)
    assert (first.status_code, first.data, len(runs)) == (200, second.data, 1)
    with app.app_context():
        prefetch.forget()
    assert (ask(app, **other).data, len(runs)) == (first.data, 2)


def test_absent_empty_and_given_are_three_things(serve: Serve, ask: Ask, runs: list[Pull]) -> None:
    """A default that stands for "absent" is not what "empty" gets, whatever it looks like."""
    app = serve(lambda p: ["a" in p.query, p.query.get("a", "none")])
    queries = ["", "b=1", "a", "a=", "a=none", "a=-", "a=1"] * 2
    answers = [ask(app, query=each).json for each in queries]
    wanted = (
        [[False, "none"]] * 2 + [[True, ""]] * 2 + [[True, each] for each in ("none", "-", "1")]
    )
    assert answers == wanted * 2
    assert len(runs) == 5


# None is absent. Some look like the bytes of a key: type, length, colon, text.
ODD_VALUES = (None, "", "-", "1", "11", "s1:1", "l1:s1:1", "1s7:query=bl1:s1:1", "1s:query=bl1:s:1")


def test_no_value_can_pass_for_a_neighbour(serve: Serve, ask: Ask, runs: list[Pull]) -> None:
    """Whatever two values hold, each pair of them has its own answer."""
    app = serve(lambda p: [p.query.get("a"), p.query.get("b")])
    pairs = list(product(ODD_VALUES, repeat=2))
    for a, b in pairs * 2:
        given = "&".join(
            f"{name}={value}" for name, value in (("a", a), ("b", b)) if value is not None
        )
        assert ask(app, query=given).json == [a, b]
    assert len(runs) == len(pairs)


def test_all_values_of_a_name_count(serve: Serve, ask: Ask, runs: list[Pull]) -> None:
    """How often a name came, and in which order, is part of what `getlist` reads."""
    app = serve(lambda p: p.query.getlist("a"))
    lists = [[], [""], ["1"], ["1", ""], ["", "1"], ["1", "1"], ["11"], ["1s1:1"], ["1", "1", "1"]]
    for values in lists * 2:
        assert ask(app, query="&".join(f"a={value}" for value in values)).json == values
    assert len(runs) == len(lists)


def test_names_are_told_apart(serve: Serve, ask: Ask, runs: list[Pull]) -> None:
    """Two runs that read the same values of other names are kept apart."""
    app = serve(
        lambda p: ["c", p.query.get("c")] if p.query.get("b") == "1" else ["a", p.query.get("a")]
    )
    pulls = {
        "b=1&c=2": ["c", "2"],
        "a=1&b=2": ["a", "1"],
        "b=1&c=1": ["c", "1"],
        "b=2": ["a", None],
    }
    for page_query, answer in [*pulls.items()] * 2:
        assert ask(app, query=page_query).json == answer
    assert len(runs) == len(pulls)


@pytest.mark.parametrize("schema", [SceneSchema(), LateSchema()])
def test_what_a_schema_reads_is_noted(
    serve: Serve, ask: Ask, runs: list[Pull], schema: Schema
) -> None:
    """The handler may hand its pull to the schema, which reads it after the handler is done."""
    app = serve(lambda p: p, schema=schema)
    scenes = [ask(app, scene=each).json["scene"] for each in "1212"]  # type: ignore[index]
    assert (scenes, len(runs)) == ([1, 2, 1, 2], 2)


def test_what_a_schema_reads_of_the_query_is_noted(
    serve: Serve, ask: Ask, runs: list[Pull]
) -> None:
    """A field looked for in the query is read there, and one that did not come is absent."""
    app = serve(lambda p: p.query, schema=Schema.from_dict({"a": fields.String()})())
    queries = ["a=1", "a=2&b=1", "b=1", "a=1&b=1", "b=2"]
    assert [ask(app, query=each).json for each in queries] == [
        {"a": "1"},
        {"a": "2"},
        {},
        {"a": "1"},
        {},
    ]
    assert len(runs) == 3


@pytest.mark.parametrize(("names", "made"), [(32, 1), (33, 2)])
def test_very_many_names_are_all_of_the_query(
    serve: Serve, ask: Ask, runs: list[Pull], names: int, made: int
) -> None:
    """Above 32 names a run counts as having read everything, so that keys stay small."""
    app = serve(lambda p: [p.query.get(f"n{i}") for i in range(names)])
    first, second = ask(app, query="n0=1&other=1"), ask(app, query="n0=1&other=2")
    assert first.data == second.data
    assert ask(app, query="n0=2&other=2").json == ["2"] + [None] * (names - 1)
    assert len(runs) == made + 1


def test_very_many_names_hide_no_attribute(serve: Serve, ask: Ask, runs: list[Pull]) -> None:
    """What was read beside the query stays noted."""
    app = serve(lambda p: [p.user_id, [p.query.get(f"n{i}") for i in range(40)]])
    users = [ask(app, token=user).json[0] for user in ("alice", "bob", "alice")]  # type: ignore[index]
    assert (users, len(runs)) == (["alice", "bob", "alice"], 2)


def test_two_users_never_share(serve: Serve, ask: Ask, runs: list[Pull]) -> None:
    """Even if their ids look like each other, like nobody, or like the bytes of a key."""
    app = serve(lambda p: {"user": p.user_id, "a": p.query.get("a")})
    users = (None, "alice", "alice2", "-", "s5:alice", "alice&a=1", "None", "1", "茶")
    pulls = [(user, a) for user in users for a in (None, "1", "-")]
    for user, a in pulls * 2:
        given = "" if a is None else f"a={a}"
        assert ask(app, token=user, query=given).json == {"user": user, "a": a}
    assert len(runs) == len(pulls)


def test_reading_after_the_answer_changes_nothing(serve: Serve, ask: Ask, runs: list[Pull]) -> None:
    """What is kept was made from what had been read until then."""
    app = serve(lambda p: p.scene)
    ask(app, scene="1", query="a=1")
    assert (dict(runs[0].query), runs[0].user_id) == ({"a": "1"}, None)
    assert ask(app, scene="1", query="a=2").json == 1
    assert len(runs) == 1


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pull_cannot_be_pickled(serve: Serve, ask: Ask, runs: list[Pull], protocol: int) -> None:
    """A pickle would hold what nobody noted."""
    ask(serve(lambda _: "x"))
    for what in (runs[0], runs[0].query, {"pull": runs[0]}):
        with pytest.raises(TypeError, match="cannot be pickled; read what you need"):
            pickle.dumps(what, protocol)


def test_pull_has_no_other_way_in(serve: Serve, ask: Ask, runs: list[Pull]) -> None:
    """Neither a hash of the query, nor a dictionary of its attributes."""
    ask(serve(lambda _: "x"))
    with pytest.raises(TypeError, match="unhashable"):
        hash(runs[0].query)
    for what in (runs[0], runs[0].query):
        with pytest.raises(TypeError, match="__dict__"):
            vars(what)
        with pytest.raises(TypeError, match="cannot be pickled"):
            what.__getstate__()  # what dumpers of any object ask for


@pytest.mark.parametrize("members", [inspect.getmembers, slots_of])
def test_nothing_unnoted_is_found_by_looking_at_all_members(
    serve: Serve, ask: Ask, members: Callable[[object], Iterable[tuple[str, object]]]
) -> None:
    """What tools that write down any object get hold of, three levels deep, shows nothing."""
    seen: list[str] = []

    def walk(what: object, depth: int) -> None:
        for name, member in members(what):
            if not name.startswith("__") and name not in NOTED:
                seen.append(f"{name} {member}")
                if depth:
                    walk(member, depth - 1)

    def read(pull: Pull) -> object:
        walk(pull, 3)
        walk(pull.query, 3)
        return "x"

    given = {"path": "canary", "query": "canary=canary", "customMiniprogramVersion": "canary"}
    ask(serve(read), token="canary", **given)
    assert seen
    assert not [each for each in seen if "canary" in each]


def test_repr_is_for_logs(serve: Serve, ask: Ask, runs: list[Pull]) -> None:
    """In a cached handler it shows what was read, and so nothing has to be noted for it."""
    shown: list[str] = []

    def read(pull: Pull) -> str:
        shown.append(repr(pull))
        if pull.path == "pages/b":
            str(dict(pull.query))
            shown.append(repr(pull))
        return "x"

    app = serve(read)
    for path, query in (("pages/a", "a=1"), ("pages/a", "a=2"), ("pages/b", "a=1")):
        ask(app, path=path, query=query, token="canary")
    assert shown == [
        "<Pull pre_fetch wx1 page=… query=… user=…>",
        "<Pull pre_fetch wx1 page=… query=… user=…>",
        "<Pull pre_fetch wx1 page='pages/b' query='a=1' user=…>",
    ]


@pytest.mark.parametrize(
    "told",
    [
        *(str.upper, str.split, len, html.escape, lambda text: text[1:-1]),
        *(lambda text: "user=proved" in text, lambda text: text.partition("query=")[2]),
    ],
)
def test_what_an_answer_makes_of_repr_is_for_every_pull(
    serve: Serve, ask: Ask, told: Callable[[str], object]
) -> None:
    """Whatever form it has in there, nothing of one pull reaches another."""
    app = serve(lambda pull: [told(repr(pull))])
    first = ask(app, path="pages/a", query="address=street", token="alice").data
    assert ask(app, path="pages/other", query="x=1").data == first


def test_repr_shows_all_without_a_cache(make_app: App, prefetch: Prefetch, ask: Ask) -> None:
    """A verifier of the app's is not asked just to show something."""
    shown: list[str] = []

    @prefetch.pre_fetch()
    def read(pull: Pull) -> str:
        shown.append(repr(pull))
        return "x"

    prefetch.token_verifier(lambda *_: "alice")
    ask(make_app(prefetch), path="pages/a", query="a=1", token="canary")
    assert shown == ["<Pull pre_fetch wx1 page='pages/a' query='a=1' user=not asked>"]


def test_repr_says_whether_a_user_is_proved(
    make_app: App, prefetch: Prefetch, ask: Ask, logged: Callable[[], list[str]]
) -> None:
    """A token of the kit's own is checked for it; the user stays out."""
    app = make_app(prefetch_that_logs(prefetch))
    with app.app_context():
        token = prefetch.issue_token("alice", appid="wx1")
    for given in (token, "forged", None):
        ask(app, token=given)
    text = "".join(logged())
    assert [each.partition(">")[0] for each in text.split("user=")[1:]] == [
        "proved",
        "none",
        "none",
    ]
    assert "alice" not in text
    assert token not in text


def prefetch_that_logs(prefetch: Prefetch) -> Prefetch:
    @prefetch.pre_fetch()
    def handler(pull: Pull) -> str:
        current_app.logger.info("%r", pull)
        return "x"

    return prefetch
