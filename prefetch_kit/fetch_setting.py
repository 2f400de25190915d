"""The source that WeChat fetches data from: its setting for each of the two pulls."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Final, Literal, Self, get_args

from marshmallow import Schema, ValidationError, fields, validate

from prefetch_kit.addresses import BRACE, public_url_problem, shown
from prefetch_kit.errors import SourceRefused, UrlRefused

Kind = Literal["pre_fetch", "period_fetch"]
Source = Literal["server", "cloud_function"]

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
SOURCES: Final[tuple[Source, ...]] = get_args(Source)  # in the order of WeChat's numbers 0 and 1
TEXTS: Final = ("url", "env", "function_name")

_OFF: Final = "off"
_CLOUD: Final = "cloud:"
# WeChat does not document the names of environments and functions, and refuses wrong ones itself
# (9410017). A slash separates the two in `cloud:ENV/NAME`.
_CLOUD_NAMES: Final = (
    ("env", "environment", re.compile(r"[!-.0-~]{1,128}\Z")),
    ("function_name", "function", re.compile(r"[!-~]{1,128}\Z")),
)
_FORMS: Final = 'Write "https://…", "cloud:ENV/NAME" or "off"'
_ONE_SOURCE: Final = "Give a URL, or the env and function_name of a cloud function"


@dataclass(frozen=True, slots=True)
class FetchSetting:
    """The setting of one kind of pull that WeChat has or should have.

    `source` is "server" with its `url`, or "cloud_function" (云函数) with its `env` and
    `function_name`. In what WeChat returns, None means that the field was left out, which is not
    the same as off. The class methods make complete settings.
    """

    open: bool | None = None
    source: Source | None = None
    url: str | None = None
    env: str | None = None
    function_name: str | None = None

    @classmethod
    def server(cls, url: str) -> Self:
        """Switched on, from this URL. Raises `UrlRefused`."""
        return cls(open=True, source="server", url=url).checked()

    @classmethod
    def cloud_function(cls, env: str, function_name: str) -> Self:
        """Switched on, from this function of this CloudBase environment. Raises `SourceRefused`."""
        made = cls(open=True, source="cloud_function", env=env, function_name=function_name)
        return made.checked()

    @classmethod
    def off(cls) -> Self:
        """Switched off. WeChat demands a source even then, so it keeps the one it has."""
        return cls(open=False)

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read `off`, a URL or `cloud:ENV/NAME`, or a mapping of `url`, or `env` and
        `function_name`; a setting is returned unchanged. Raises `SourceRefused`.
        """
        if isinstance(value, cls):
            return value.checked()
        if isinstance(value, Mapping):
            if not value or not value.keys() <= set(TEXTS):
                problem = "names something else than url, env and function_name"
                raise SourceRefused(problem, field="source", remedy=_ONE_SOURCE)
            source: Source = "server" if value.keys() == {"url"} else "cloud_function"
            return cls(open=True, source=source, **value).checked()
        if not isinstance(value, str):
            raise SourceRefused("is neither a text nor a mapping", field="source", remedy=_FORMS)
        if value == _OFF:
            return cls.off()
        if value.startswith(_CLOUD):
            env, _, function_name = value.removeprefix(_CLOUD).partition("/")
            return cls.cloud_function(env, function_name)
        if "://" not in value:
            problem = "is neither a URL, nor cloud:ENV/NAME, nor off"
            raise SourceRefused(problem, field="source", remedy=_FORMS)
        return cls.server(value)

    @classmethod
    def from_dict(cls, plain: Mapping[str, object]) -> Self:
        """Read what `to_dict` gave. Raises ValueError for anything else."""
        try:
            return cls(**_PLAIN.load(plain))
        except ValidationError as error:
            raise ValueError(f"not a fetch setting: {error}") from None

    def to_dict(self) -> dict[str, bool | str | None]:
        """This setting as JSON values, under the names of the attributes."""
        return asdict(self)

    def to_text(self) -> str:
        """What `parse` reads; for a setting that `checked` lets through."""
        if not self.open:
            return _OFF
        return self.url or f"{_CLOUD}{self.env}/{self.function_name}"

    @property
    def is_whole(self) -> bool:
        """Whether it has all fields that WeChat needs for its source, on or off."""
        if self.source == "cloud_function":
            return bool(self.env and self.function_name)
        return self.source == "server" and bool(self.url)

    def of_its_source(self) -> Self:
        """This setting without the fields of the other source, which WeChat remembers."""
        if self.source == "cloud_function":
            return replace(self, url=None)
        return replace(self, env=None, function_name=None)

    def switched_off(self) -> Self:
        """This source, switched off."""
        return replace(self.of_its_source(), open=False)

    def checked(self) -> Self:
        """This setting, if it is valid. Raises `SourceRefused`, `UrlRefused` for a URL.

        Without a source it must be off.
        """
        if not isinstance(self.open, bool):
            problem = "does not say whether it is open"
            raise SourceRefused(problem, field="open", remedy="Say True or False")
        given = {name for name in TEXTS if getattr(self, name) not in (None, "")}
        if self.source == "server":
            if given - {"url"}:
                raise _two_sources()
            if not isinstance(self.url, str) or not self.url:
                raise SourceRefused("names no URL", field="url", remedy="Give the URL to pull from")
            if url_problem := public_url_problem(self.url):
                raise UrlRefused(shown(self.url), url_problem[0], remedy=url_problem[1])
        elif self.source == "cloud_function":
            if "url" in given:
                raise _two_sources()
            self._check_cloud_names(given)
        elif self.open or given or self.source not in (None, ""):
            raise SourceRefused("names no source", field="source", remedy=_ONE_SOURCE)
        return self

    def _check_cloud_names(self, given: set[str]) -> None:
        for field, what, shape in _CLOUD_NAMES:
            if field not in given:
                problem = f"names a cloud function without its {what} ({field})"
                raise SourceRefused(problem, field=field, remedy=f"Give the {what} too")
            value = getattr(self, field)
            if not isinstance(value, str) or not shape.match(value) or BRACE.search(value):
                problem = f"names a cloud function whose {what} ({field}) cannot be one"
                remedy = "Give up to 128 printable ASCII characters, without spaces or braces"
                raise SourceRefused(problem, field=field, remedy=remedy)


def _two_sources() -> SourceRefused:
    problem = "names a URL and a cloud function at once"
    return SourceRefused(problem, field="url", remedy="Keep one of them")


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """Both settings of a mini program, as WeChat has them."""

    pre_fetch: FetchSetting
    period_fetch: FetchSetting

    def for_kind(self, kind: Kind) -> FetchSetting:
        return {"pre_fetch": self.pre_fetch, "period_fetch": self.period_fetch}[kind]


class Flag(fields.Raw):
    """True or False; the Boolean of marshmallow accepts 1 and "yes" as well."""

    def _deserialize(self, value: object, *_: object, **__: object) -> bool:
        if not isinstance(value, bool):
            raise ValidationError("Not true or false.")
        return value


_PLAIN: Final = Schema.from_dict(
    {
        "open": Flag(required=True, allow_none=True),
        "source": fields.String(
            required=True, allow_none=True, validate=validate.OneOf([*SOURCES, None])
        ),
        **{name: fields.String(required=True, allow_none=True) for name in TEXTS},
    }
)()
