"""QQ and FinClip pull as WeChat does, but for some names; what nobody documents can be read too."""

import json
import subprocess
import sys
from collections.abc import Callable

import pytest
from flask import Flask
from werkzeug.wrappers import Response

from prefetch_kit import CachePolicy, Prefetch, Pull, QueryKeyMissing
from prefetch_kit.cache.read_sets import Reads
from prefetch_kit.endpoint.pull import ExtraParameters
from prefetch_kit.endpoint.request import parse_any

PAGE = "pages/index/index"
WECHAT, QQ, FINCLIP = "wx5e0f00d5ca1ab1e0", "1109876543", "fc2316895829617157"
APPIDS = [WECHAT, QQ, FINCLIP]
TIME = "1700000000000"
Get = Callable[[str], Response]


@pytest.fixture
def get(make_app: Callable[..., Flask], prefetch: Prefetch) -> Get:
    """Pulls with a query string that is written out, of an app that tells what it read."""

    def told(pull: Pull) -> dict[str, object]:
        return {
            "dialect": pull.dialect,
            "appid": pull.appid,
            "path": pull.path,
            "id": pull.query.get("id"),
            "scene": pull.scene,
            "version": pull.version,
            "user": pull.user_id,
            "at": pull.timestamp.timestamp(),
            "extra": {name: pull.extra.getlist(name) for name in pull.extra},
        }

    prefetch.pre_fetch(PAGE)(told)
    prefetch.token_verifier(lambda _appid, token: f"user of {token}")
    client = make_app(prefetch, PREFETCH_APPIDS=APPIDS).test_client()
    return lambda query: client.get(f"/prefetch/pre_fetch?{query}")


def test_finclip(get: Get) -> None:
    """Its two other names, and a version that its tools send."""
    reply = get(
        f"appId={FINCLIP}&timeStamp={TIME}&token=t&path={PAGE}&query=id%3D7&scene=1001"
        "&customMiniprogramVersion=devtool"
    )
    assert reply.json == {
        "dialect": "finclip",
        "appid": FINCLIP,
        "path": PAGE,
        "id": "7",
        "scene": 1001,
        "version": "devtool",
        "user": "user of t",
        "at": int(TIME) / 1000,
        "extra": {},
    }


def test_qq(get: Get) -> None:
    """The page's query within the path, a token as it is, and the URL's own parameters behind."""
    reply = get(f"appid={QQ}&timestamp={TIME}&token=a+b/c==&path={PAGE}%3Fid%3D7&scene=1001&own=1")
    told = reply.json
    assert told is not None
    assert (told["dialect"], told["path"], told["id"]) == ("qq", PAGE, "7")
    assert told["user"] == "user of a+b/c=="
    assert told["extra"] == {"own": ["1"]}


def test_an_answer_for_one_dialect_is_none_for_another(
    make_app: Callable[..., Flask], prefetch: Prefetch
) -> None:
    """Though all else that the handler read is the same."""
    prefetch.pre_fetch(PAGE, cache=60)(lambda pull: pull.dialect)
    client = make_app(prefetch, PREFETCH_APPIDS=APPIDS).test_client()
    ways = [f"appid={FINCLIP}&timestamp", f"appId={FINCLIP}&timeStamp"]
    replies = [client.get(f"/prefetch/pre_fetch?{way}={TIME}&path={PAGE}") for way in ways]
    assert [each.text for each in replies] == ["wechat", "finclip"]


def test_plus_is_a_space_for_the_others(get: Get) -> None:
    """WeChat encodes what it sends; then a plus stands for a space."""
    told = get(f"appid={WECHAT}&timestamp={TIME}&token=a+b&path={PAGE}").json
    assert told is not None
    assert (told["dialect"], told["user"]) == ("wechat", "user of a b")


@pytest.mark.parametrize("appid", [WECHAT, QQ])
def test_first_spelling_holds(get: Get, appid: str) -> None:
    """What says appid is no FinClip, whatever else it says."""
    told = get(f"appid={appid}&timestamp={TIME}&path={PAGE}&appId={FINCLIP}").json
    assert told is not None
    assert told["dialect"] in ("wechat", "qq")
    assert told["extra"] == {"appId": [FINCLIP]}


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        (f"appId={FINCLIP}&timestamp=x", "timestamp"),
        (f"appId={FINCLIP}", "timestamp"),
        (f"appId={FINCLIP}&timeStamp=x", "timestamp"),
        (f"appId=a%20b&timeStamp={TIME}", "appid"),
        (f"appId={FINCLIP}&appId={FINCLIP}&timeStamp={TIME}", "doubled"),
        (f"appId={FINCLIP}&timeStamp={TIME}&timestamp={TIME}", "doubled"),
        (f"appid={WECHAT}&timeStamp={TIME}", "timestamp"),
    ],
)
def test_malformed_pull_of_a_dialect(get: Get, query: str, reason: str) -> None:
    """The same rules, by the same names of their reasons."""
    reply = get(f"{query}&path={PAGE}")
    assert (reply.status_code, reply.headers["X-Prefetch-Refused"]) == (400, reason)


def test_login_code_of_another_platform_proves_nobody(
    make_app: Callable[..., Flask], prefetch: Prefetch, logged: Callable[[], list[str]]
) -> None:
    """WeChat is not asked about it: here nothing listens at its address, which would be logged."""
    prefetch.pre_fetch(PAGE)(lambda pull: {"user": pull.user_id})
    prefetch.code_user(lambda _appid, openid, _unionid: openid)
    secrets = {
        "PREFETCH_APPIDS": APPIDS,
        "PREFETCH_APP_SECRET": "s" * 32,
        "PREFETCH_API_BASE_URL": "http://127.0.0.1:1",
    }
    app = make_app(prefetch, **secrets)
    for query in (f"appid={QQ}&timestamp={TIME}", f"appId={FINCLIP}&timeStamp={TIME}"):
        reply = app.test_client().get(f"/prefetch/pre_fetch?{query}&path={PAGE}&code={'c' * 32}")
        assert (reply.json, logged()) == ({"user": None}, [])
    wechat = f"appid={WECHAT}&timestamp={TIME}&path={PAGE}&code={'c' * 32}"
    assert app.test_client().get(f"/prefetch/pre_fetch?{wechat}").json == {"user": None}
    assert any("a login code could not be exchanged" in line for line in logged())


@pytest.mark.parametrize(
    "query", [f"own=1?appId={FINCLIP}&timeStamp={TIME}", f"own=1?appid={QQ}&timestamp={TIME}"]
)
def test_second_question_mark(get: Get, query: str) -> None:
    """A registered URL that has a query itself gets another one appended."""
    told = get(f"{query}&path={PAGE}").json
    assert told is not None
    assert told["extra"] == {"own": ["1"]}


def test_dialects_share_only_what_does_not_depend_on_them(
    make_app: Callable[..., Flask], prefetch: Prefetch
) -> None:
    """Reading the dialect, or an extra parameter, keeps answers apart; nothing else does."""
    runs: list[str] = []

    def said(pull: Pull) -> str:
        runs.append(pull.dialect if pull.query.get("by") == "dialect" else pull.extra["lang"])
        return runs[-1]

    prefetch.pre_fetch(PAGE, cache=CachePolicy(fresh=60))(said)
    decide = dict.fromkeys((WECHAT, QQ), True).get
    app = make_app(prefetch, PREFETCH_APPIDS=lambda appid: decide(appid, False))
    client = app.test_client()

    def ask(appid: str, rest: str) -> object:
        at = f"/prefetch/pre_fetch?appid={appid}&timestamp={TIME}&path={PAGE}&{rest}"
        return client.get(at).text

    for _ in range(2):
        assert [ask(a, "query=by%3Ddialect") for a in (WECHAT, QQ)] == ["wechat", "qq"]
        assert [ask(WECHAT, f"lang={lang}") for lang in ("zh", "en")] == ["zh", "en"]
        assert ask(WECHAT, "lang=zh&other=1") == "zh"
    assert sorted(runs) == ["en", "qq", "wechat", "zh"]
    assert (
        client.get(f"/prefetch/pre_fetch?appid={WECHAT}&timestamp={TIME}&path={PAGE}").headers[
            "X-Prefetch-Refused"
        ]
        == "extra"
    )


def test_extra_parameters_note_what_is_read() -> None:
    """Names and all values of one; iterating notes them all; a key in square brackets must come."""
    reads = Reads()
    extra = ExtraParameters._of(
        parse_any(b"appid=a&timestamp=1700000000&b=1&b=2").asked.extra, reads
    )
    assert (extra.getlist("b"), extra.get("c"), "d" in extra) == (["1", "2"], None, False)
    assert reads.names() == ("extra=b", "extra=c", "extra=d")
    with pytest.raises(QueryKeyMissing, match=r"extra\['e'\]"):
        extra["e"]
    assert list(extra) == ["b"]
    assert reads.names() == ("extra",)
    assert repr(extra) == "<ExtraParameters>"


def test_all_extra_parameters_are_part_of_a_key() -> None:
    """No two sets of them are written alike."""
    sets = ["b=1", "b=2", "b=1&b=2", "b=2&b=1", "b=1&c=2", "bc=1", "b=1%26c=2", ""]
    asked = [parse_any(f"appid=a&timestamp=1700000000&{each}".encode()).asked for each in sets]
    assert len({each.encoded("extra") for each in asked}) == len(sets)
    assert len({each.encoded("extra=b") for each in asked[:4]}) == 4


LOCATION = """
import importlib, json
from prefetch_kit.endpoint import parameters, request
from prefetch_kit.endpoint.parameters import Parameter
from prefetch_kit.errors import PullRefused

line = Parameter("latitude", None, 20, shape="-?[0-9.]+", must_be="must be degrees")
parameters.PARAMETERS += (line,)
importlib.reload(request)

def told(query):
    query = f"appid=wx1&timestamp=1700000000&{query}"
    try:
        asked = request.PullParser().parse(query.encode()).asked
    except PullRefused as refusal:
        return refusal.reason
    return [asked.extra, asked.unknown_parameters]

queries = ["latitude=39.9", "latitude=%33", "latitude=x", "altitude=x"]
print(json.dumps([told(query) for query in queries]))
"""


@pytest.mark.slow
def test_a_parameter_that_becomes_known_needs_one_line() -> None:
    """WeChat may send where the user is, by names that are not known yet."""
    done = subprocess.run([sys.executable, "-c", LOCATION], capture_output=True, check=True)
    assert json.loads(done.stdout) == [
        [{"latitude": ["39.9"]}, 0],
        [{"latitude": ["3"]}, 0],
        "latitude",
        [{"altitude": ["x"]}, 1],
    ]
