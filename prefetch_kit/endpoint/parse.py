"""The raw query string of a pull becomes checked inputs, or a refusal."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, cast
from urllib.parse import unquote, unquote_to_bytes

from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate

from prefetch_kit.errors import PullRefused
from prefetch_kit.secret import Secret

# gunicorn accepts no longer request line; servers that do must not make us parse megabytes.
MAX_QUERY_STRING_BYTES: Final = 8190
MAX_CODE_CHARS: Final = 128
# /miniprogram/dev/framework/ability/pre-fetch.html: what setBackgroundFetchToken accepts.
MAX_TOKEN_CHARS: Final = 1024
MAX_PATH_CHARS: Final = 1024
MAX_PAGE_QUERY_CHARS: Final = 4096
MAX_VERSION_CHARS: Final = 64

APPID: Final = re.compile(r"[0-9A-Za-z_-]{1,64}\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(slots=True)
class Asked:
    """What a pull asks for: all that it carries but when, and who asks.

    Pulls of one endpoint that are alike in it share one. `values` are those of the page's query,
    by name; `heads` are the beginnings of the keys of its answers, by what a run read.
    """

    appid: str
    path: str | None = None
    page_query: str = field(default="", repr=False)
    scene: int | None = None
    version: str | None = None
    unknown_parameters: int = 0
    values: dict[str, list[str]] = field(init=False, repr=False, compare=False)
    heads: dict[tuple[str, ...], bytes] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.values = read_page_query(self.page_query)
        self.heads = {}


class Inputs(NamedTuple):
    """What one pull carried, checked but unproved: token and code are still only claims."""

    asked: Asked
    timestamp: str
    token: Secret | None = None
    code: Secret | None = None

    def __repr__(self) -> str:
        return f"<Inputs {self.asked.appid} {self.asked.path!r}>"


class _Digits(fields.Field[int]):
    """ASCII digits only: `int()` would also take signs, spaces, `_` and full-width digits."""

    default_error_messages = {"digits": "must be {shape}"}  # noqa: RUF012 (marshmallow's own way)

    def __init__(self, pattern: str, *, shape: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._pattern = re.compile(pattern)
        self._shape = shape

    def _deserialize(self, value: str, *_args: object, **_kwargs: object) -> int:
        if not self._pattern.fullmatch(value):
            raise self.make_error("digits", shape=self._shape)
        return int(value)


def _text(max_chars: int, **kwargs: Any) -> fields.String:
    longest = validate.Length(max=max_chars, error=f"must be at most {max_chars} characters")
    return fields.String(validate=longest, **kwargs)


class _PullSchema(Schema):
    """The parameters of /miniprogram/dev/framework/ability/pre-fetch.html."""

    class Meta:
        unknown = EXCLUDE

    appid = fields.String(
        required=True,
        validate=validate.Regexp(APPID, error="must be 1 to 64 ASCII letters and digits"),
        error_messages={"required": "is missing"},
    )
    # Seconds or milliseconds: the platform does not say which, so both are read.
    timestamp = fields.String(
        required=True,
        validate=validate.Regexp(
            r"(?:[0-9]{10}|[0-9]{13})\Z", error="must be 10 or 13 ASCII digits"
        ),
        error_messages={"required": "is missing"},
    )
    token = _text(MAX_TOKEN_CHARS)
    code = _text(MAX_CODE_CHARS)
    path = _text(MAX_PATH_CHARS)
    query = _text(MAX_PAGE_QUERY_CHARS, attribute="page_query")
    scene = _Digits("[0-9]{1,6}", shape="1 to 6 ASCII digits")
    customMiniprogramVersion = _text(MAX_VERSION_CHARS, attribute="version")  # noqa: N815


# A value as WeChat writes it: plain characters, and escaped ASCII that is no control.
_PLAIN = r"[A-Za-z0-9_.~!*'()/,:;@$=-]*+"
_VALUE = rf"({_PLAIN}(?:%(?:[2-6][0-9A-Fa-f]|7[0-9A-Ea-e]){_PLAIN})*+)"
_USUAL = re.compile(
    rf"""(?:(?:\A|&)(?:
        appid=([0-9A-Za-z_-]{{1,64}})
        |timestamp=([0-9]{{13}}|[0-9]{{10}})
        |scene=([0-9]{{0,6}})
        |path={_VALUE} |query={_VALUE} |token={_VALUE} |code={_VALUE}
        |customMiniprogramVersion={_VALUE}
    ))++""",
    re.VERBOSE,
)

# The same cut into who asks and when, and three pieces that all such pulls share.
_OTHERS = r"(?!timestamp=|token=|code=)[^&]*+"
_CLAIM = "[A-Za-z0-9_.~-]"
_CLAIMS = re.compile(
    rf"""({_OTHERS}(?:&{_OTHERS})*+)
    &timestamp=([0-9]{{13}}|[0-9]{{10}})((?:&{_OTHERS})*+)
    (?:&token=({_CLAIM}{{1,{MAX_TOKEN_CHARS}}})|&code=({_CLAIM}{{1,{MAX_CODE_CHARS}}}))?
    ((?:&{_OTHERS})*+)""",
    re.VERBOSE,
)
# A megabyte or two for each endpoint. Strangers can make it some eight, with many names in each
# query, and handlers that choose the names they read by what came.
MAX_KNOWN: Final = 1024
_MAX_KNOWN_CHARS: Final = 512
_MAX_KNOWN_VALUES: Final = 8

_SCHEMA = _PullSchema()
_KNOWN = frozenset(_SCHEMA.fields)
_CREDENTIALS = frozenset({"token", "code"})
# An optional parameter that came empty says nothing, like one that did not come.
_OPTIONAL = frozenset(name for name, field in _SCHEMA.fields.items() if not field.required)


class PullParser:
    """Reads the query strings of pulls, and what many of them ask for only once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, str], Asked] = {}

    def parse(self, query_string: bytes) -> Inputs:
        """Read a pull's raw query string.

        Raises `PullRefused` (400) whose reason is the offending parameter's name, or `encoding`,
        `too-long`, `doubled`, `token-and-code`. The raw bytes are needed because a framework's
        parsed arguments have already dropped broken UTF-8 and the second of two equal names.
        """
        return self.parse_usual(query_string.decode("latin-1")) or parse_any(query_string)

    def parse_usual(self, query_string: str) -> Inputs | None:
        """`parse` for what is written as WeChat writes it; None for most that is not."""
        if len(query_string) > MAX_QUERY_STRING_BYTES:
            return None
        found = _CLAIMS.fullmatch(query_string)
        if found is None:
            return parse_usual(query_string)
        before, timestamp, between, token, code, after = found.groups()
        if (asked := self._known.get((before, between, after))) is None:
            inputs = parse_usual(query_string)
            if inputs is not None:
                self._learn((before, between, after), inputs.asked)
            return inputs
        return Inputs(
            asked, timestamp, Secret(token) if token else None, Secret(code) if code else None
        )

    def _learn(self, pieces: tuple[str, str, str], asked: Asked) -> None:
        if sum(map(len, pieces)) <= _MAX_KNOWN_CHARS and len(asked.values) <= _MAX_KNOWN_VALUES:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()  # simpler than choosing; each is soon learnt again
            self._known[pieces] = asked


def parse_usual(query_string: str) -> Inputs | None:
    """Read a query string that is written as WeChat writes them, in a quarter of the time.

    None for every other one, good or bad; what is read is what `parse_any` reads. Raises as it
    does where the page's query is malformed.
    """
    found = _USUAL.fullmatch(query_string)
    if found is None:
        return None
    values = found.groups("")
    # A name that came twice has one group, and what came empty has none.
    if 8 - values.count("") != query_string.count("&") + 1:
        return None
    appid, timestamp, scene, path, query, token, code, version = values
    if "%" in query_string:
        path, query, token = _unescaped(path), _unescaped(query), _unescaped(token)
        code, version = _unescaped(code), _unescaped(version)
    if (
        not (appid and timestamp)
        or (token and code)
        or len(path) > MAX_PATH_CHARS
        or len(query) > MAX_PAGE_QUERY_CHARS
        or len(token) > MAX_TOKEN_CHARS
        or len(code) > MAX_CODE_CHARS
        or len(version) > MAX_VERSION_CHARS
    ):
        return None
    asked = Asked(appid, path or None, query, int(scene) if scene else None, version or None)
    return Inputs(
        asked, timestamp, Secret(token) if token else None, Secret(code) if code else None
    )


def _unescaped(value: str) -> str:
    # Slashes first: they are nearly all there is, and unquote is slow.
    return unquote(value.replace("%2F", "/")) if "%" in value else value


def parse_any(query_string: bytes) -> Inputs:
    """`PullParser.parse` for every spelling; raises as it does."""
    if len(query_string) > MAX_QUERY_STRING_BYTES:
        raise PullRefused(400, "too-long", f"over {MAX_QUERY_STRING_BYTES} bytes of query string")
    values: dict[str, str] = {}
    unknown = 0
    for name, value in pairs(_repair(query_string)):
        if name not in _KNOWN:
            unknown += 1
        elif name in values:
            raise PullRefused(400, "doubled", f"{name} came twice")
        else:
            values[name] = value
    given = {k: v for k, v in values.items() if v or k not in _OPTIONAL}
    if "token" in given and "code" in given:
        raise PullRefused(400, "token-and-code", "token and code came together")
    loaded = _check(given)
    claims = {name: Secret(loaded.pop(name)) for name in _CREDENTIALS & loaded.keys()}
    timestamp = loaded.pop("timestamp")
    return Inputs(Asked(**loaded, unknown_parameters=unknown), timestamp, **claims)


def _check(given: Mapping[str, str]) -> dict[str, Any]:
    try:
        return cast("dict[str, Any]", _SCHEMA.load(given))
    except ValidationError as error:
        messages = cast("dict[str, list[str]]", error.messages)
    name, problems = next(iter(messages.items()))
    reason = "version" if name == "customMiniprogramVersion" else name
    raise PullRefused(400, reason, f"{name} {problems[0]}")


def _repair(query_string: bytes) -> bytes:
    # A registered URL that already holds "?x=y" gets a second "?appid=…" appended.
    return query_string.replace(b"?appid=", b"&appid=", 1)


def read_page_query(page_query: str) -> dict[str, list[str]]:
    """All values of each name in a page's query. Raises `PullRefused` (400)."""
    values: dict[str, list[str]] = {}
    if page_query:
        for name, value in pairs(page_query.encode()):
            values.setdefault(name, []).append(value)
    return values


def pairs(query_string: bytes) -> Iterator[tuple[str, str]]:
    """The decoded names and values of a query string. Raises `PullRefused` (400)."""
    for part in query_string.split(b"&"):
        if part:
            name, _, value = part.partition(b"=")
            yield _decode(name), _decode(value)


def _decode(part: bytes) -> str:
    try:
        text = unquote_to_bytes(part.replace(b"+", b" ")).decode()
    except UnicodeDecodeError:
        text = None
    if text is None:  # outside the except block: the foreign error holds the raw bytes
        raise PullRefused(400, "encoding", "a name or value is not UTF-8")
    if _CONTROL.search(text):
        raise PullRefused(400, "encoding", "a name or value holds a control character")
    return text
