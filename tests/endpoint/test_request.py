"""What a pull may carry, and what becomes of everything else."""

import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, parse_qsl, quote, urlencode

import pytest
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from werkzeug.wrappers import Response

from prefetch_kit import PageQuery, Prefetch, Pull, QueryKeyMissing, pull_refused, pull_served
from prefetch_kit.endpoint.parameters import PARAMETERS
from prefetch_kit.endpoint.request import MAX_KNOWN, Inputs, PullParser, parse_any
from prefetch_kit.endpoint.users import Request
from prefetch_kit.errors import PullRefused

VALID = "appid=wx1&timestamp=1700000000"
FULL_WIDTH = "１７００００００００"
Tell = Callable[..., dict[str, Any]]


def show(pull: Pull) -> dict[str, object]:
    return {
        "kind": pull.kind,
        "appid": pull.appid,
        "path": pull.path,
        "query": {name: pull.query.getlist(name) for name in pull.query},
        "scene": pull.scene,
        "version": pull.version,
        "timestamp": pull.timestamp,
        "user_id": pull.user_id,
    }


@pytest.fixture
def app(make_app: Callable[..., Flask], prefetch: Prefetch) -> Flask:
    """An app whose handlers tell what they were given."""
    prefetch.pre_fetch()(show)
    prefetch.period_fetch()(show)
    return make_app(prefetch)


@pytest.fixture
def tell(app: Flask, ask: Callable[..., Response]) -> Tell:
    """What the handler of a pull was given."""

    def tell(at: str = "/prefetch/pre_fetch", **parameters: str | None) -> dict[str, Any]:
        reply = ask(app, at, **parameters)
        assert reply.status_code == 200, reply.headers
        return dict(reply.json or {})

    return tell


MALFORMED = [
    ("", "appid"),
    ("timestamp=1700000000", "appid"),
    ("appid=&timestamp=1700000000", "appid"),
    ("appid&timestamp=1700000000", "appid"),
    ("appid=wx%201&timestamp=1700000000", "appid"),
    ("appid=wx1/&timestamp=1700000000", "appid"),
    ("appid=ｗｘ１&timestamp=1700000000", "appid"),
    (f"appid={'w' * 65}&timestamp=1700000000", "appid"),
    ("appid=wx1", "timestamp"),
    ("appid=wx1&timestamp=", "timestamp"),
    ("appid=wx1&timestamp=170000000", "timestamp"),
    ("appid=wx1&timestamp=17000000000", "timestamp"),
    ("appid=wx1&timestamp=170000000012", "timestamp"),
    ("appid=wx1&timestamp=17000000001234", "timestamp"),
    ("appid=wx1&timestamp=-170000000", "timestamp"),
    ("appid=wx1&timestamp=%2B170000000", "timestamp"),
    ("appid=wx1&timestamp=%2017000000", "timestamp"),
    ("appid=wx1&timestamp=1700000000+", "timestamp"),
    ("appid=wx1&timestamp=1_70000000", "timestamp"),
    ("appid=wx1&timestamp=1700000.00", "timestamp"),
    ("appid=wx1&timestamp=17000000e2", "timestamp"),
    ("appid=wx1&timestamp=0x65530100", "timestamp"),
    (f"appid=wx1&timestamp={FULL_WIDTH}", "timestamp"),
    (f"appid=wx1&timestamp={quote(FULL_WIDTH)}", "timestamp"),
    (f"{VALID}&scene=%2B5", "scene"),
    (f"{VALID}&scene=-5", "scene"),
    (f"{VALID}&scene=+12+", "scene"),
    (f"{VALID}&scene=1_000", "scene"),
    (f"{VALID}&scene=1001.0", "scene"),
    (f"{VALID}&scene=１００１", "scene"),
    (f"{VALID}&scene=1000000", "scene"),
    (f"{VALID}&token={'t' * 1025}", "token"),
    (f"{VALID}&code={'c' * 129}", "code"),
    (f"{VALID}&path={'p' * 1025}", "path"),
    (f"{VALID}&query={'q' * 4097}", "query"),
    (f"{VALID}&customMiniprogramVersion={'1' * 65}", "version"),
    (f"{VALID}&x={'x' * 8158}", "too-long"),
    (f"{VALID}&token=told&code=told", "token-and-code"),
    (f"{VALID}&appid=wx1", "doubled"),
    (f"{VALID}&timestamp=1700000000", "doubled"),
    (f"{VALID}&token=told&token=other", "doubled"),
    (f"{VALID}&token=&token=", "doubled"),
    (f"{VALID}&code=told&code=told", "doubled"),
    (f"{VALID}&path=told&path=told", "doubled"),
    (f"{VALID}&query=told&query=told", "doubled"),
    (f"{VALID}&scene=1001&scene=1001", "doubled"),
    (f"{VALID}&customMiniprogramVersion=1.0&customMiniprogramVersion=1.0", "doubled"),
    (f"{VALID}&%61ppid=wx1", "doubled"),
    (f"{VALID}&path=told&%70%61%74%68=other", "doubled"),
    (f"x=y?{VALID}&appid=wx1", "doubled"),
    (f"{VALID}&path=%FF", "encoding"),
    (f"{VALID}&path=\xff", "encoding"),
    (f"{VALID}&path=%C0%AF", "encoding"),
    (f"{VALID}&path=%ED%A0%80", "encoding"),
    (f"{VALID}&path=%F4%90%80%80", "encoding"),
    (f"{VALID}&path=told%00", "encoding"),
    (f"{VALID}&path=told%0A", "encoding"),
    (f"{VALID}&path=told%0D%0ASet-Cookie:%20told", "encoding"),
    (f"{VALID}&path=%7F", "encoding"),
    (f"{VALID}&path=%C2%85", "encoding"),
    (f"{VALID}&path=%1B%5B31mtold", "encoding"),
    ("appid=wx1%0A&timestamp=1700000000", "encoding"),
    ("appid=wx1&timestamp=1700000000%0A", "encoding"),
    (f"{VALID}&scene=1001%0A", "encoding"),
    (f"{VALID}&unknown=%FF", "encoding"),
    (f"{VALID}&unknown=%00", "encoding"),
    (f"{VALID}&%FF=told", "encoding"),
    (f"{VALID}&path%00=told", "encoding"),
    (f"{VALID}&query=id%3D%2500", "encoding"),
    (f"{VALID}&query=id%3Dtold%250A", "encoding"),
    (f"{VALID}&query=id%3D%25FF", "encoding"),
    (f"{VALID}&query=%25FF%3Dtold", "encoding"),
]


@pytest.mark.parametrize(("query", "reason"), MALFORMED)
def test_malformed_pull_is_refused(
    make_app: Callable[..., Flask],
    prefetch: Prefetch,
    send: Callable[..., Response],
    logged: Callable[[], list[str]],
    query: str,
    reason: str,
) -> None:
    """400 with its reason and no body; no handler runs; one log line repeats nothing that came."""
    reached: list[Pull] = []
    prefetch.pre_fetch()(reached.append)
    app = make_app(prefetch, PREFETCH_APPIDS=lambda _appid: True)
    raw = query.encode("latin-1" if "\xff" in query else "utf-8")
    reply = send(app, b"/prefetch/pre_fetch?" + raw)
    assert (reply.status_code, reply.headers["X-Prefetch-Refused"]) == (400, reason)
    assert (reply.data, reached) == (b"", [])
    (line,) = logged()
    assert line.startswith(f"INFO pre_fetch refused (400 {reason}): ")
    came = {value for _, value in parse_qsl(query, max_num_fields=99) if len(value) > 3}
    assert not [value for value in came | {"told"} if value in line]


@pytest.mark.parametrize(
    ("timestamp", "moment"),
    [
        ("1700000000", datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)),
        ("1700000000123", datetime(2023, 11, 14, 22, 13, 20, 123000, tzinfo=UTC)),
        ("0000000000", datetime(1970, 1, 1, tzinfo=UTC)),
        ("9999999999000", datetime(2286, 11, 20, 17, 46, 39, tzinfo=UTC)),
    ],
)
def test_timestamp_is_read_in_both_units(tell: Tell, timestamp: str, moment: datetime) -> None:
    """Ten digits are seconds, thirteen are milliseconds."""
    assert datetime.fromisoformat(tell(timestamp=timestamp)["timestamp"]) == moment


def test_every_field_reaches_the_handler(tell: Tell) -> None:
    """A full pre-fetch, as WeChat sends it."""
    told = tell(
        path="pages/product/detail",
        query="id=7&tag=新&tag=a%26b",
        scene="1007",
        customMiniprogramVersion="1.2.3",
    )
    assert told == {
        "kind": "pre_fetch",
        "appid": "wx1",
        "path": "pages/product/detail",
        "query": {"id": ["7"], "tag": ["新", "a&b"]},
        "scene": 1007,
        "version": "1.2.3",
        "timestamp": "2023-11-14T22:13:20+00:00",
        "user_id": None,
    }


def test_pull_without_a_version_is_answered(tell: Tell) -> None:
    """QQ's pull is the same but for customMiniprogramVersion."""
    told = tell(path="pages/index/index", query="id=7", scene="1001", token="foreign")
    assert (told["version"], told["user_id"]) == (None, None)


def test_periodic_pull_carries_no_page(tell: Tell) -> None:
    """Of a periodic pull only appid, timestamp and token come."""
    told = tell("/prefetch/period_fetch", path=None, token="foreign")
    assert (told["kind"], told["path"], told["query"]) == ("period_fetch", None, {})


def test_empty_optional_values_did_not_come(tell: Tell) -> None:
    """An optional parameter without a value says nothing; token and code may both be empty."""
    told = tell(
        path="", query="", scene="", token="", code="", customMiniprogramVersion="", unknown=""
    )
    assert [told[name] for name in ("path", "query", "scene", "version")] == [None, {}, None, None]


@pytest.mark.parametrize(
    ("name", "longest"),
    [
        ("path", 1024),
        ("query", 4096),
        ("token", 1024),
        ("code", 128),
        ("customMiniprogramVersion", 64),
        ("appid", 64),
    ],
)
def test_longest_field_is_taken(
    make_app: Callable[..., Flask],
    prefetch: Prefetch,
    ask: Callable[..., Response],
    name: str,
    longest: int,
) -> None:
    """The last length that passes is the documented one."""
    prefetch.pre_fetch()(show)
    app = make_app(prefetch, PREFETCH_APPIDS=lambda _appid: True)
    assert ask(app, **{name: "x" * longest}).status_code == 200
    assert ask(app, **{name: "x" * (longest + 1)}).headers["X-Prefetch-Refused"] in (
        name,
        "version",
    )


def test_longest_query_string_is_taken(app: Flask, send: Callable[..., Response]) -> None:
    """8,190 bytes pass, one more does not."""
    for size, status in ((8190, 200), (8191, 400)):
        target = f"/prefetch/pre_fetch?{VALID}&x=".ljust(size + len("/prefetch/pre_fetch?"), "x")
        assert send(app, target).status_code == status


@pytest.mark.parametrize("parse", [PullParser().parse, parse_any])
@pytest.mark.parametrize("credential", ["", "&token=t"])
def test_query_string_of_known_parameters_can_be_too_long(
    parse: Callable[[bytes], Inputs], credential: str
) -> None:
    """However short its values are once their escapes are read."""
    text = f"{VALID}&path=pages/a{credential}&query={'%41' * 4096}".encode()
    head = text[: 8190 - (8190 - text.index(b"%")) % 3]
    assert parse(head.ljust(8190, b"A")).asked.page_query.startswith("A" * 2600)
    for too_long in (head.ljust(8191, b"A"), text):
        with pytest.raises(PullRefused) as caught:
            parse(too_long)
        assert (caught.value.status, caught.value.reason) == (400, "too-long")


@pytest.mark.parametrize("registered", ["x=y", "x=y&z", "", "x", "x="])
def test_second_question_mark_is_repaired(
    app: Flask, send: Callable[..., Response], registered: str
) -> None:
    """A registered URL that already has a query gets WeChat's appended with another `?`."""
    reply = send(app, f"/prefetch/pre_fetch?{registered}?{VALID}&path=pages/a")
    assert reply.json is not None
    assert (reply.json["appid"], reply.json["path"]) == ("wx1", "pages/a")


@pytest.mark.parametrize(
    ("query", "unknown"), [("", 0), ("&a=1&b", 2), ("&a=1&a=2&Appid=x&app_id=y", 4), ("&&=&", 1)]
)
def test_unknown_parameters_are_tolerated_and_counted(
    app: Flask, send: Callable[..., Response], query: str, unknown: int
) -> None:
    """WeChat may add parameters at any time; a signal receiver learns how many came."""
    facts: list[dict[str, object]] = []
    with pull_served.connected_to(lambda _, **given: facts.append(given), sender=app):
        assert send(app, f"/prefetch/pre_fetch?{VALID}{query}").status_code == 200
    assert [fact["unknown_parameters"] for fact in facts] == [unknown]


def test_half_a_percent_sign_is_text(tell: Tell, app: Flask, send: Callable[..., Response]) -> None:
    """A broken escape is read as it is written, as browsers and servers do."""
    reply = send(app, f"/prefetch/pre_fetch?{VALID}&path=100%&query=a%3D50%25")
    assert reply.json is not None
    assert (reply.json["path"], reply.json["query"]) == ("100%", {"a": ["50%"]})


_nasty = st.text(st.characters(codec="utf-8"), max_size=60)
_pieces = st.sampled_from(
    f"{VALID} & = ? % %00 %FF %25 + appid timestamp token code path query scene １ \u2028 x".split(
        " "
    )
)


@settings(database=None, deadline=None, max_examples=500)
@given(st.binary(max_size=120) | st.lists(_pieces, max_size=12).map("".join).map(str.encode))
def test_any_bytes_are_read_or_refused(query: bytes) -> None:
    """Parsing gives checked inputs or a 400, whatever the bytes."""
    read = inputs_or_refusal(query)
    if isinstance(read, PullRefused):
        assert (read.status, read.__cause__, read.__context__) == (400, None, None)
    else:
        token = read.token.reveal() if read.token else ""
        texts = [
            read.asked.path or "",
            read.asked.page_query,
            *map(str, read.asked.others.values()),
            token,
        ]
        assert all(c >= " " and c != "\x7f" for c in "".join(texts))
        assert not (read.token and read.code)


_names = [*(parameter.name for parameter in PARAMETERS), "new"]
_texts = (
    "wx1 1700000000 1700000000000 1001 1 pages%2Findex%2Findex id=3 id%3D3 %2525 %2f %7F %7E %20 + "
    "a.b-c_d=: ? ٣ %E6%9D%8E %C0%AF % %4 %zz"
)
_values = [*_texts.split(), "", "x" * 65, "x" * 129, "x" * 1025]
_escaped = ["%74oken=t", "tok%65n=", "token", "&", "?appid=wx1", "c%6Fde=c", "=x"]
PARSER = PullParser()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_usual_way_reads_what_the_strict_one_reads(seed: int) -> None:
    """Nor does it matter what was asked for before, of this one parser, by whom."""
    chance = random.Random(seed)
    for _ in range(1500):
        pairs = [
            chance.choice(_escaped)
            if chance.random() < 0.3
            else f"{chance.choice(_names)}={chance.choice(_values)}"
            for _ in range(chance.randrange(5))
        ]
        credentials = chance.choices(["", "t", "a.b-c", "%41", "t" * 200], k=chance.randrange(1, 4))
        needed = chance.sample(["appid=wx1", "timestamp=1700000000000", "credential"], 3)
        name, between = chance.choice(["token", "code"]), chance.choice("&&&;?")
        for credential in credentials:
            given = [f"{name}={credential}" if part == "credential" else part for part in needed]
            for parts in (given, given + pairs, pairs + given):
                text = between.join(parts).encode("latin-1", errors="replace")
                assert outcome(PARSER.parse, text) == outcome(parse_any, text), text


@pytest.mark.parametrize("timestamp", ["1700000000", "1700000000123"])
def test_usual_way_is_the_usual_one(timestamp: str) -> None:
    """A pull as WeChat sends it is read in one step, in whatever order and with what escapes."""
    good = {"appid": "wx1", "timestamp": timestamp, "path": "pages/a", "query": "id=3&tag=a b"}
    good |= {"scene": "1001", "token": "t.-_=", "customMiniprogramVersion": "1.2"}
    for shift in range(len(good)):
        names = [*good][shift:] + [*good][:shift]
        text = urlencode({name: good[name] for name in names}, quote_via=quote, safe="")
        assert (usual := PullParser().parse_usual(text)) is not None
        assert usual == parse_any(text.encode())


def test_what_many_ask_for_is_read_once() -> None:
    """Pulls that differ in who asks and when share it, and a bounded number is remembered."""
    parser = PullParser()
    one, other, third = (
        parser.parse(f"appid=wx1&timestamp=170000000{n}&{credential}path=pages/{page}".encode())
        for n, credential, page in ((0, "token=t1&", "a"), (1, "code=c1&", "a"), (2, "", "b"))
    )
    assert one.asked is other.asked is not third.asked
    for n in range(3 * MAX_KNOWN):
        parser.parse(f"{VALID}&path=pages/{n}".encode())
        parser.parse(f"{VALID}&path={'x' * 600}{n}".encode())
    assert 0 < len(parser._known) <= MAX_KNOWN


def outcome(parse: Callable[[bytes], Inputs], text: bytes) -> Inputs | tuple[int, str]:
    try:
        return parse(text)
    except PullRefused as refusal:
        return refusal.status, refusal.reason


def inputs_or_refusal(query: bytes) -> Inputs | PullRefused:
    try:
        return PullParser().parse(query)
    except PullRefused as refusal:
        return refusal


@settings(
    database=None,
    deadline=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.binary(max_size=60).map(quote) | st.lists(_pieces, max_size=12).map("".join))
def test_any_query_string_is_answered_or_refused(
    app: Flask, send: Callable[..., Response], query: str
) -> None:
    """Over HTTP nothing that comes is a server error, and a refusal has no body."""
    reply = send(app, f"/prefetch/pre_fetch?{query}")
    assert reply.status_code in (200, 400, 403)
    assert (reply.status_code == 200) == bool(reply.data)


@settings(database=None, deadline=None)
@given(path=_nasty, page_query=_nasty)
def test_printable_text_comes_through_unchanged(path: str, page_query: str) -> None:
    """Text of any language reaches the handler as the page sent it."""
    given = {"appid": "wx1", "timestamp": "1700000000", "path": path, "query": page_query}
    if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in path + page_query):
        with pytest.raises(PullRefused, match="control character"):
            PullParser().parse(urlencode(given).encode())
    else:
        inputs = PullParser().parse(urlencode(given).encode())
        assert (inputs.asked.path or "", inputs.asked.page_query) == (path, page_query)


@settings(database=None, deadline=None)
@given(st.lists(st.tuples(st.text("ab &=%+中", min_size=1, max_size=4), st.text("1 &=+文"))))
def test_page_query_agrees_with_the_standard_library(pairs: list[tuple[str, str]]) -> None:
    """The second decoding is that of `urllib.parse`, doubled names and empty values included."""
    text = urlencode(pairs)
    read = PageQuery(text)
    assert {name: read.getlist(name) for name in read} == parse_qs(text, keep_blank_values=True)


def test_page_query_is_a_read_only_mapping() -> None:
    """It reads like a dict of first values, and cannot be written."""
    query = PageQuery("id=7&id=8&tag=")
    assert (query["id"], query.getlist("id"), query["tag"]) == ("7", ["7", "8"], "")
    assert (list(query), len(query), "id" in query, "no" in query) == (
        ["id", "tag"],
        2,
        True,
        False,
    )
    assert (query.get("no"), query.get("no", "x"), query.getlist("no")) == (None, "x", [])
    assert dict(query) == {"id": "7", "tag": ""} == query
    assert not hasattr(query, "__setitem__")
    query.getlist("id").append("9")
    assert query.getlist("id") == ["7", "8"]
    assert not PageQuery("")


def test_missing_key_can_be_caught() -> None:
    """A handler that expects a key to be missing catches a KeyError like any other."""
    with pytest.raises(KeyError) as caught:
        PageQuery("id=7")["name"]
    assert isinstance(caught.value, QueryKeyMissing)
    assert caught.value.key == "name"
    assert str(caught.value) == "the handler needs query['name'], which did not come"


def test_missing_key_refuses_the_pull(
    make_app: Callable[..., Flask], prefetch: Prefetch, ask: Callable[..., Response]
) -> None:
    """A handler that simply subscripts turns a pull without the key into a 400."""
    prefetch.pre_fetch()(lambda pull: pull.query["id"])
    app = make_app(prefetch)
    facts: list[dict[str, object]] = []
    with pull_refused.connected_to(lambda _, **given: facts.append(given), sender=app):
        reply = ask(app, query="name=x")
    assert (reply.status_code, reply.headers["X-Prefetch-Refused"]) == (400, "query")
    assert (reply.data, facts[0]["reason"]) == (b"", "query")
    assert ask(app, query="id=x").data == b"x"


def test_no_repr_shows_a_credential_or_a_user() -> None:
    """Trackers print local variables: of them only the pull shows the page and its query."""
    inputs = PullParser().parse(f"{VALID}&token=canary&query=name%3Dx&path=pages/a".encode())
    request = Request(inputs, lambda _: "canary")
    pull = Pull(request, kind="pre_fetch", reads=None)
    assert repr(pull) == "<Pull pre_fetch wx1 page='pages/a' query='name=x' user=proved>"
    assert "canary" not in f"{inputs!r} {request!r} {pull.query!r} {pull!r} {vars(Inputs)}"


def test_pull_hands_out_no_raw_credentials() -> None:
    """Token and code are not for handlers: one is given only what was proved."""
    public = {name for name in dir(Pull) if not name.startswith("_")}
    sent = {"appid", "dialect", "extra", "kind", "path", "query", "scene", "timestamp", "version"}
    assert public == sent | {"user_id"}
