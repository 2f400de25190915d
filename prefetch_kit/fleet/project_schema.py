"""The shape of prefetch.toml, and what is said about a file that has another."""

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from marshmallow import (
    Schema,
    ValidationError,
    fields,
    post_load,
    validate,
    validates,
    validates_schema,
)

from prefetch_kit.addresses import platform_url_problem
from prefetch_kit.errors import ConfigError, SourceRefused
from prefetch_kit.fetch_setting import KINDS
from prefetch_kit.quoting import harmless
from prefetch_kit.registrar.template import Template
from prefetch_kit.weixin.authorizations import WRITTEN_APPID

_WAIT: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smh]?)\Z")
_LONGEST_WAIT_S: Final = 3600.0
_SLOWEST: Final = 0.001  # a call in seventeen minutes
_UNKNOWN: Final = "Unknown field."
# marshmallow's own messages: what is said instead, and the remedy.
_MESSAGES: Final = {
    "Unknown field": (
        "is not known",
        "Correct its spelling, or take it out; the README lists what there is",
    ),
    "Missing data for required field": (
        "is missing",
        "Add it; the README shows the smallest file",
    ),
    "Invalid input type": (
        "is no table",
        "Give each of its keys a line of its own below its name",
    ),
}


def checked(path: Path, given: dict[str, Any]) -> dict[str, Any]:
    """What the file says, with its defaults. Raises `ConfigError` for the first thing wrong."""
    try:
        read: dict[str, Any] = _ProjectSchema().load(given)
    except ValidationError as error:
        where, problem, remedy = _first(error.messages)
    else:
        return read
    raise ConfigError(f"{path}: {where}", problem, remedy=remedy)


def _first(messages: Any, table: str = "") -> tuple[str, str, str]:
    """The key of the first of marshmallow's messages, its problem and its remedy."""
    key = next(iter(messages))
    below = messages[key]
    if isinstance(below, dict):
        return _first(below, table=f"{table}.{key}" if table else str(key))
    if below == [_UNKNOWN]:
        key = harmless(key, among=[known for _, keys in tables() for known in keys])
    problem, _, remedy = below[0].rstrip(".").partition("\n")
    if not remedy:
        problem, remedy = _MESSAGES.get(problem, (problem, "Correct it"))
    if key == "_schema":  # it is about the table itself
        return f"[{table}]", problem, remedy
    return f"[{table}] {key}" if table else str(key), problem, remedy


def tables(schema: Schema | None = None, name: str = "") -> Iterator[tuple[str, list[str]]]:
    """The tables that the file can have, the file itself first, and the keys of each."""
    known = (schema or _ProjectSchema()).fields
    keys = {field.data_key or key: field for key, field in known.items()}
    yield name, list(keys)
    for key, field in keys.items():
        if isinstance(field, fields.Nested):
            yield from tables(field.schema, f"{name}.{key}".lstrip("."))


def _invalid(problem: str, remedy: str, key: str = "_schema") -> ValidationError:
    return ValidationError(f"{problem}\n{remedy}", key)


def _check_reference(value: object) -> None:
    """Refuse a secret that is in the file itself, without repeating it."""
    if isinstance(value, dict) and len(value) == 1 and value.keys() <= {"env", "file"}:
        (named,) = value.values()
        if isinstance(named, str) and named:
            return
    remedy = 'Write { env = "NAME" } or { file = "PATH" }; no secret stands in this file'
    raise _invalid("does not say where the secret is", remedy)


def _check_base_url(value: str) -> None:
    if problem := platform_url_problem(value):
        remedy = "Leave it out for WeChat itself, or give the sandbox's http://127.0.0.1:PORT"
        raise _invalid(problem, remedy)


class _TemplateField(fields.String):
    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        text = super()._deserialize(value, *args, **kwargs)
        if text.startswith("cloud:"):
            raise _invalid("is no URL", f"Name a cloud function in [cloud.{self.name}]")
        return _template(text, remedy="Write https://shop.example/p/{appid}/pre_fetch")


def _template(text: str, *, remedy: str) -> Template:
    try:
        return Template(text)
    except SourceRefused as error:
        problem, remedy = error.problem, error.remedy
    except ValueError as error:
        problem = str(error)
    raise _invalid(problem, remedy)


class _Number(fields.Raw):
    """A number that `read` reads, which raises ValueError."""

    def __init__(
        self, read: Callable[[object], float], *, remedy: str, data_key: str | None = None
    ) -> None:
        super().__init__(data_key=data_key)
        self._read = read
        self._remedy = remedy

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> float:
        try:
            return self._read(value)
        except ValueError as error:
            raise _invalid(str(error), self._remedy) from None


def read_wait(text: object) -> float:
    """Seconds, such as 60, "60s", "2m" or "1h". Raises ValueError."""
    found = _WAIT.match(str(text))
    seconds = math.inf
    if found and not isinstance(text, bool):
        seconds = float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]
    if seconds > _LONGEST_WAIT_S:
        raise ValueError("is no time such as 60s or 2m, an hour at most")
    return seconds


def read_share(text: object) -> float:
    """A share written as `10%`. Raises ValueError."""
    if isinstance(text, str) and text.endswith("%"):
        try:
            share = float(text[:-1]) / 100
        except ValueError:
            share = -1
        if 0 < share <= 1:
            return share
    raise ValueError("is not a share between 0% and 100%")


def read_rate(value: object) -> float:
    """Calls a second, as a number or a text. Raises ValueError."""
    try:
        rate = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        rate = math.nan
    if _SLOWEST <= rate < math.inf:
        return rate
    raise ValueError(f"is not a number of calls a second, {_SLOWEST} at least")


class _AppsSchema(Schema):
    list = fields.String(
        validate=validate.Regexp(
            r".*\.(csv|jsonl)\Z",
            error="is neither .csv nor .jsonl\nGive a list in one of the two",
        )
    )
    authorized = fields.Boolean(truthy={True}, falsy={False})

    @validates_schema
    def _one_of_them(self, data: dict[str, Any], **_: object) -> None:
        if ("list" in data) == bool(data.get("authorized")):
            remedy = 'Give list = "apps.csv", or authorized = true for the platform\'s merchants'
            raise _invalid("is not the one source of appids", remedy, "list")


class _UrlsSchema(Schema):
    pre_fetch = _TemplateField()
    period_fetch = _TemplateField()
    off = fields.List(fields.String(validate=validate.OneOf(KINDS)), load_default=list)


_NAMES: Final = "Write a name, or {column} for what differs from app to app"


class _CloudFunctionSchema(Schema):
    env = fields.String(required=True)
    function_name = fields.String(required=True)

    @validates("env")
    def _check_env(self, env: str, **_: object) -> None:
        if "/" in env:
            raise _invalid("holds a slash", "Give the environment alone")
        _template(f"cloud:{env}/x", remedy=_NAMES)

    @validates("function_name")
    def _check_function_name(self, function_name: str, **_: object) -> None:
        _template(f"cloud:x/{function_name}", remedy=_NAMES)

    @post_load
    def _as_template(self, data: dict[str, str], **_: object) -> Template:
        return Template(f"cloud:{data['env']}/{data['function_name']}")


class _CloudSchema(Schema):
    pre_fetch = fields.Nested(_CloudFunctionSchema)
    period_fetch = fields.Nested(_CloudFunctionSchema)


class _TokensSchema(Schema):
    component_appid = fields.String(
        load_default=None,
        validate=validate.Regexp(
            WRITTEN_APPID, error='is no appid\nWrite the platform\'s own, "wx…"'
        ),
    )
    component_secret = fields.Raw(load_default=None, validate=_check_reference)
    app_secrets = fields.Raw(load_default=None, validate=_check_reference)
    store_url = fields.Raw(load_default=None, validate=_check_reference)
    command = fields.List(fields.String(), load_default=None)
    call = fields.String(
        load_default="stable_token", validate=validate.OneOf(["stable_token", "token"])
    )
    namespace = fields.String(load_default="prefetch_kit")

    @validates("command")
    def _names_the_app(self, words: list[str] | None, **_: object) -> None:
        if words is not None and "{appid}" not in " ".join(words):
            remedy = "Put {appid} in it: each mini program has a token of its own"
            raise _invalid("does not say whose token is wanted", remedy)

    @validates_schema
    def _names_a_source(self, data: dict[str, Any], **_: object) -> None:
        if (data["component_appid"] is None) != (data["component_secret"] is None):
            problem = "and component_appid need each other"
            raise _invalid(problem, "Give both, or neither", "component_secret")
        if all(data[way] is None for way in ("component_appid", "command", "app_secrets")):
            remedy = "Give component_appid with component_secret, or app_secrets, or command"
            raise _invalid("says nothing of where access tokens come from", remedy)


class _FleetSchema(Schema):
    workers = fields.Integer(strict=True, validate=validate.Range(1, 512))
    rate = _Number(read_rate, remedy="Leave it out for no limit")
    per_app_rate = _Number(read_rate, remedy="Leave it out for no limit")
    canary = fields.Integer(strict=True, validate=validate.Range(0))
    stop_at = _Number(read_share, remedy='Write "10%"')
    max_changes = fields.Integer(strict=True, validate=validate.Range(0))
    wait_s = _Number(read_wait, remedy='Write "60s"', data_key="wait")


class _ProjectSchema(Schema):
    state_dir = fields.String(
        load_default=None,
        validate=validate.Length(
            min=1, error="is empty\nName a directory, or leave it out for the default"
        ),
    )
    api_base_url = fields.String(load_default="https://api.weixin.qq.com", validate=_check_base_url)
    ca_file = fields.String(load_default=None)
    proxy = fields.Raw(load_default=None, validate=_check_reference)
    apps = fields.Nested(_AppsSchema, required=True)
    urls = fields.Nested(_UrlsSchema, load_default=lambda: {"off": []})
    cloud = fields.Nested(_CloudSchema, load_default=dict)
    tokens = fields.Nested(_TokensSchema, required=True)
    fleet = fields.Nested(_FleetSchema, load_default=dict)

    @validates_schema
    def _has_a_list(self, data: dict[str, Any], **_: object) -> None:
        if data["apps"].get("authorized") and data["tokens"]["component_appid"] is None:
            message = (
                "is the list of a third-party platform, and none is given\n"
                "Give component_appid and component_secret in [tokens]"
            )
            raise ValidationError({"apps": {"authorized": [message]}})
