"""The raw query string of a pull becomes checked inputs, or a refusal."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, unquote_to_bytes

from marshmallow import EXCLUDE, Schema, fields, validate

from prefetch_kit.cache.key import encoded, encoded_list
from prefetch_kit.cache.read_sets import ALL_OF_EXTRA, ALL_OF_QUERY, ReadSet
from prefetch_kit.endpoint.parameters import PARAMETERS, DialectName, Parameter, dialect_of
from prefetch_kit.errors import PullRefused
from prefetch_kit.refusals import MALFORMED
from prefetch_kit.secret import Secret

_BY_NAME: Final = {parameter.name: parameter for parameter in PARAMETERS}
_CREDENTIALS: Final = tuple(parameter for parameter in PARAMETERS if parameter.is_credential)
# gunicorn accepts no longer request line; behind another server we must not parse megabytes.
MAX_QUERY_STRING_BYTES: Final = 8190
_SECOND_QUESTION_MARK: Final = re.compile(rb"\?(appid=|appId=)")
_TOKEN: Final = re.compile(rb"(?<![^&])token=[^&]*")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(slots=True)
class Asked:
    """What a pull asks for: everything it carries but its time and its credentials.

    Pulls of one endpoint that ask for the same share one. `values` are those of the page's
    query, by name; `others` are the other parameters, by attribute, and `extra` those without one,
    by name; `key_prefixes` is a memo of the cache.
    """

    appid: str
    path: str | None = None
    page_query: str = field(default="", repr=False)
    others: dict[str, Any] = field(default_factory=dict, repr=False)
    extra: dict[str, list[str]] = field(default_factory=dict, repr=False)
    dialect: DialectName = "wechat"
    unknown_parameters: int = 0
    values: dict[str, list[str]] = field(init=False, repr=False, compare=False)
    key_prefixes: dict[tuple[bytes, ReadSet], bytes] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.values = read_page_query(self.page_query)
        self.key_prefixes = {}

    @property
    def names(self) -> ReadSet:
        """The inputs that a handler can read here, in the order of a read set."""
        return _INPUTS

    def encoded(self, name: str) -> bytes:
        """One input as bytes that say its type and length."""
        kind, is_of_one, key = name.partition("=")
        if is_of_one:
            values = (self.values if kind == ALL_OF_QUERY else self.extra).get(key)
            return encoded(None) if values is None else encoded_list(values)
        match name:
            case "path":
                return encoded(self.path)
            case "dialect":
                return encoded(self.dialect)
            case _ if name == ALL_OF_QUERY:
                return encoded(self.page_query)
            case _ if name == ALL_OF_EXTRA:
                return b"".join(
                    encoded(extra) + encoded_list(values) for extra, values in self.extra.items()
                )
        return encoded(self.others.get(name))


_INPUTS: Final[ReadSet] = tuple(
    sorted(
        {ALL_OF_QUERY, ALL_OF_EXTRA, "dialect"}.union(
            parameter.attribute
            for parameter in PARAMETERS
            if parameter.attribute not in (None, "page_query")
            and not (parameter.is_credential or parameter.is_required)
        )
    )
)


class Inputs(NamedTuple):
    """What one pull carried, checked but unproved: token and code prove nothing yet."""

    asked: Asked
    timestamp: str
    token: Secret | None = None
    code: Secret | None = None

    def __repr__(self) -> str:
        return f"<Inputs {self.asked.appid} {self.asked.path!r}>"


def _field(parameter: Parameter) -> fields.String:
    if parameter.shape is None:
        says = f"must be at most {parameter.max_chars} characters"
        rule: Callable[[str], str] = validate.Length(max=parameter.max_chars, error=says)
    else:
        rule = validate.Regexp(rf"(?:{parameter.shape})\Z", error=parameter.must_be)
    return fields.String(
        required=parameter.is_required, validate=rule, error_messages={"required": "is missing"}
    )


_SCHEMA: Final = Schema.from_dict({each.name: _field(each) for each in PARAMETERS})(unknown=EXCLUDE)

# A value as WeChat writes it: plain characters, and escaped ASCII but for control characters.
_PLAIN: Final = r"[A-Za-z0-9_.~!*'()/,:;@$=-]*+"
_VALUE: Final = rf"{_PLAIN}(?:%(?:[2-6][0-9A-Fa-f]|7[0-9A-Ea-e]){_PLAIN})*+"
_USUAL: Final = re.compile(
    r"(?:(?:\A|&)(?:"
    + "|".join(
        f"{each.name}=({_VALUE})" if each.shape is None else f"{each.name}=({each.shape})?+"
        for each in PARAMETERS
    )
    + "))++"
)
_READERS: Final = tuple((each.name, each.max_chars, each.read) for each in PARAMETERS)
_REQUIRED: Final = {each.name for each in PARAMETERS if each.is_required}

# The same, cut into credential, time, and three pieces that are alike in pulls that ask for the
# same.
_OTHERS: Final = rf"(?!timestamp=|{'|'.join(f'{each.name}=' for each in _CREDENTIALS)})[^&]*+"
_CREDENTIAL: Final = "|".join(
    f"&{each.name}=([A-Za-z0-9_.~-]{{1,{each.max_chars}}})" for each in _CREDENTIALS
)
_CUT: Final = re.compile(
    rf"({_OTHERS}(?:&{_OTHERS})*+)"
    rf"&timestamp=({_BY_NAME['timestamp'].shape})((?:&{_OTHERS})*+)"
    rf"(?:{_CREDENTIAL})?((?:&{_OTHERS})*+)"
)
# A megabyte or two for each endpoint. Strangers can make it some eight, with many names in each
# query, and handlers that choose the names they read by what came.
MAX_KNOWN: Final = 1024
_MAX_KNOWN_CHARS: Final = 512
_MAX_KNOWN_VALUES: Final = 8


# Finds the page that a path means, and the query attached to it.
Locate = Callable[[str | None], tuple[str | None, str]]


def as_it_came(path: str | None) -> tuple[str | None, str]:
    return path, ""


class PullParser:
    """Reads the query strings of pulls, and remembers what many of them ask for."""

    def __init__(self, locate: Locate = as_it_came) -> None:
        self._locate = locate
        self._known: dict[tuple[str, str, str], Asked] = {}

    def parse(self, query_string: bytes) -> Inputs:
        """Read a pull's raw query string.

        Raises `PullRefused` (400) whose reason is the parameter at fault, or `encoding`,
        `too-long`, `doubled`, `token-and-code`. The raw bytes are needed because a framework's
        parsed arguments have already lost broken UTF-8 and the second of two equal names.
        """
        return self.parse_usual(query_string.decode("latin-1")) or parse_any(
            query_string, self._locate
        )

    def parse_usual(self, query_string: str) -> Inputs | None:
        """`parse` for what is written as WeChat writes it; None for most other spellings."""
        if len(query_string) > MAX_QUERY_STRING_BYTES:
            return None
        found = _CUT.fullmatch(query_string)
        if found is None:
            return parse_usual(query_string, self._locate)
        before, timestamp, between, token, code, after = found.groups()
        asked = self._known.get((before, between, after))
        if asked is None:
            inputs = parse_usual(query_string, self._locate)
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


def parse_usual(query_string: str, locate: Locate) -> Inputs | None:
    """Read a query string that is written as WeChat writes them, in a quarter of the time.

    None for every other one, good or bad; what is read is what `parse_any` reads. Raises as it
    does where the page's query is malformed.
    """
    found = _USUAL.fullmatch(query_string)
    if found is None:
        return None
    values = found.groups("")
    # A name that came twice has one group, and one that came empty has none.
    if len(PARAMETERS) - values.count("") != query_string.count("&") + 1:
        return None
    if "%" in query_string:
        values = tuple([_unescaped(value) if "%" in value else value for value in values])
    given: dict[str, Any] = {}
    for (name, max_chars, read), value in zip(_READERS, values, strict=True):
        if value:
            if len(value) > max_chars:
                return None
            given[name] = value if read is str else read(value)
    if not given.keys() >= _REQUIRED or {"token", "code"} <= given.keys():
        return None
    return _inputs(given, {}, dialect_of(given).name, locate)


def _unescaped(value: str) -> str:
    # Slashes first: they are nearly all there is, and unquote is slow.
    return unquote(value.replace("%2F", "/"))


def parse_any(query_string: bytes, locate: Locate = as_it_came) -> Inputs:
    """`PullParser.parse` for every spelling; raises as it does."""
    if len(query_string) > MAX_QUERY_STRING_BYTES:
        raise PullRefused("too-long")
    # To a registered URL that already holds "?x=y", WeChat appends a second "?appid=…".
    query_string = _SECOND_QUESTION_MARK.sub(rb"&\1", query_string, count=1)
    came = list(pairs(query_string))
    dialect = dialect_of(dict(reversed(came)))
    if dialect.has_raw_token:
        came = list(pairs(_TOKEN.sub(lambda token: token[0].replace(b"+", b"%2B"), query_string)))
    values: dict[str, str] = {}
    extra: dict[str, list[str]] = {}
    for its_name, value in came:
        name = dialect.spelling.get(its_name, its_name)
        if name not in _BY_NAME:
            extra.setdefault(name, []).append(value)
        elif name in values:
            raise PullRefused("doubled", f"{its_name} came twice")
        else:
            values[name] = value
    # An optional parameter that came empty says nothing, like one that did not come.
    values = {name: value for name, value in values.items() if value or _BY_NAME[name].is_required}
    if "token" in values and "code" in values:
        raise PullRefused("token-and-code")
    if messages := _SCHEMA.validate(values):
        name, problems = next(iter(messages.items()))
        reason = _BY_NAME[name].reason or _BY_NAME[name].attribute or name
        raise PullRefused(reason, f"{name} {problems[0]}", refusal=MALFORMED)
    given = {name: _BY_NAME[name].read(values.pop(name)) for name in [*values]}
    return _inputs(given, extra, dialect.name, locate)


def _inputs(
    given: dict[str, Any], extra: dict[str, list[str]], dialect: DialectName, locate: Locate
) -> Inputs:
    timestamp = given.pop("timestamp")
    credentials = given.pop("token", None), given.pop("code", None)
    appid, query = given.pop("appid"), given.pop("query", "")
    path, attached_query = locate(given.pop("path", None))
    others: dict[str, Any] = {}
    unknown_parameters = sum(map(len, extra.values()))
    for name, value in given.items():
        if (attribute := _BY_NAME[name].attribute) is None:
            extra[name] = [value]
        else:
            others[attribute] = value
    asked = Asked(appid, path, query or attached_query, others, extra, dialect, unknown_parameters)
    return Inputs(asked, timestamp, *credentials)


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
        raise PullRefused("encoding", "a name or value is not UTF-8")
    if _CONTROL.search(text):
        raise PullRefused("encoding", "a name or value holds a control character")
    return text
