"""The shape of prefetch.toml, and what is said about a file that has another."""

import math
from pathlib import Path
from typing import Any, Final

from marshmallow import (
    RAISE,
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
from prefetch_kit.registrar.template import Template
from prefetch_kit.weixin.authorizations import APPID_SHAPE

_SLOWEST: Final = 0.001  # a call in seventeen minutes


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
    problem, _, remedy = below[0].rstrip(".").partition("\n")
    where = f"[{table}] {key}" if table else str(key)
    if key == "_schema":  # it is about the table itself
        where = f"[{table}]"
    return where, _PROBLEMS.get(problem, problem), remedy or _REMEDIES.get(problem, "Correct it")


_PROBLEMS: Final = {
    "Unknown field": "is not known",
    "Missing data for required field": "is missing",
    "Field may not be null": "is empty",
    "Invalid input type": "is no table",
}
_REMEDIES: Final = {
    "Unknown field": "Correct its spelling, or take it out; the README lists what there is",
    "Invalid input type": "Give each of its keys a line of its own below its name",
    "Missing data for required field": "Add it; the README shows the smallest file",
}


def _says(problem: str, remedy: str) -> str:
    return f"{problem}\n{remedy}"


def _check_reference(value: object) -> None:
    """Refuse a secret that is in the file itself, without repeating it."""
    if isinstance(value, dict) and len(value) == 1 and value.keys() <= {"env", "file"}:
        (named,) = value.values()
        if isinstance(named, str) and named:
            return
    remedy = 'Write { env = "NAME" } or { file = "PATH" }; no secret stands in this file'
    raise ValidationError(_says("does not say where the secret is", remedy))


def _check_base_url(value: str) -> None:
    if problem := platform_url_problem(value):
        remedy = "Leave it out for WeChat itself, or give the sandbox's http://127.0.0.1:PORT"
        raise ValidationError(_says(problem, remedy))


class _TemplateField(fields.String):
    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        text = super()._deserialize(value, *args, **kwargs)
        if text.startswith("cloud:"):
            problem, remedy = "is no URL", f"Name a cloud function in [cloud.{self.name}]"
            raise ValidationError(_says(problem, remedy))
        return _template(text, remedy="Write https://shop.example/p/{appid}/pre_fetch")


def _template(text: str, *, remedy: str) -> Template:
    try:
        return Template(text)
    except SourceRefused as error:
        problem, remedy = error.problem, error.remedy
    except ValueError as error:
        problem = str(error)
    raise ValidationError(_says(problem, remedy))


class _Rate(fields.Field[float]):
    def _deserialize(self, value: Any, *_: Any, **__: Any) -> float:
        try:
            return read_rate(value)
        except ValueError as error:
            raise ValidationError(_says(str(error), "Leave it out for no limit")) from None


class _StopAt(fields.Field[float]):
    def _deserialize(self, value: Any, *_: Any, **__: Any) -> float:
        try:
            return read_share(value)
        except ValueError as error:
            raise ValidationError(_says(str(error), 'Write "10%"')) from None


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


class _Table(Schema):
    class Meta:
        unknown = RAISE


class _AppsSchema(_Table):
    list = fields.String(
        validate=validate.Regexp(
            r".*\.(csv|jsonl)\Z",
            error=_says("is neither .csv nor .jsonl", "Give a list in one of the two"),
        )
    )
    authorized = fields.Boolean(truthy={True}, falsy={False})

    @validates_schema
    def _one_of_them(self, data: dict[str, Any], **_: object) -> None:
        if ("list" in data) == bool(data.get("authorized")):
            remedy = 'Give list = "apps.csv", or authorized = true for the platform\'s merchants'
            raise ValidationError(_says("is not the one source of appids", remedy), "list")


class _UrlsSchema(_Table):
    pre_fetch = _TemplateField()
    period_fetch = _TemplateField()
    off = fields.List(fields.String(validate=validate.OneOf(KINDS)), load_default=list)


_NAMES: Final = "Write a name, or {column} for what differs from app to app"


class _CloudFunctionSchema(_Table):
    env = fields.String(required=True)
    function_name = fields.String(required=True)

    @validates("env")
    def _check_env(self, env: str, **_: object) -> None:
        if "/" in env:
            raise ValidationError(_says("holds a slash", "Give the environment alone"))
        _template(f"cloud:{env}/x", remedy=_NAMES)

    @validates("function_name")
    def _check_function_name(self, function_name: str, **_: object) -> None:
        _template(f"cloud:x/{function_name}", remedy=_NAMES)

    @post_load
    def _as_template(self, data: dict[str, str], **_: object) -> Template:
        return Template(f"cloud:{data['env']}/{data['function_name']}")


class _CloudSchema(_Table):
    pre_fetch = fields.Nested(_CloudFunctionSchema)
    period_fetch = fields.Nested(_CloudFunctionSchema)


class _TokensSchema(_Table):
    component_appid = fields.String(
        load_default=None,
        validate=validate.Regexp(
            APPID_SHAPE, error=_says("is no appid", 'Write the platform\'s own, "wx…"')
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
            raise ValidationError(_says("does not say whose token is wanted", remedy))


class _FleetSchema(_Table):
    workers = fields.Integer(strict=True, validate=validate.Range(1, 512))
    rate = _Rate()
    per_app_rate = _Rate()
    canary = fields.Integer(strict=True, validate=validate.Range(0))
    stop_at = _StopAt()
    max_changes = fields.Integer(strict=True, validate=validate.Range(0))


class _ProjectSchema(_Table):
    state_dir = fields.String(load_default=None)
    api_base_url = fields.String(load_default="https://api.weixin.qq.com", validate=_check_base_url)
    ca_file = fields.String(load_default=None)
    apps = fields.Nested(_AppsSchema, required=True)
    urls = fields.Nested(_UrlsSchema, load_default=lambda: {"off": []})
    cloud = fields.Nested(_CloudSchema, load_default=dict)
    tokens = fields.Nested(_TokensSchema, required=True)
    fleet = fields.Nested(_FleetSchema, load_default=dict)
