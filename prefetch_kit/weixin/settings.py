"""Which URL, or which cloud function, WeChat fetches data from.

developers.weixin.qq.com: the getFetchdataSetting page. Its spellings stop in this module.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from marshmallow import Schema, fields, validate

from prefetch_kit.errors import ConfigError, OutcomeUnknown, Refused
from prefetch_kit.fetch_setting import (
    KINDS,
    SOURCES,
    TEXTS,
    FetchSetting,
    FetchSettings,
    Flag,
    Kind,
)
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.answers import answer_schema, read
from prefetch_kit.weixin.retry import REPEATS_OF_A_CALL, pause_s
from prefetch_kit.weixin.tokens import TokenSource

_PATH = "/wxa/fetchdatasetting"

_T = TypeVar("_T")


class Calls(Protocol):
    """Makes a call to WeChat, as a `Transport` does. Raises `Refused` and `OutcomeUnknown`."""

    def call(
        self,
        action: str,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | Secret],
        body: Mapping[str, object] | None = None,
    ) -> dict[str, object]: ...


class SettingsApi:
    """Reads and writes the settings of the mini program the tokens belong to.

    A rejected token is renewed once; a busy system is asked again at most twice, after a
    random pause, and a read without an answer once; a minute's quota is waited for once. All
    pauses of one call together stay within `max_wait_s`. Everything else is raised at once:
    Refused, OutcomeUnknown and what the token source raises.
    """

    def __init__(
        self,
        transport: Calls,
        tokens: TokenSource,
        *,
        sleep: Callable[[float], None] = time.sleep,
        max_wait_s: float = 70.0,
    ) -> None:
        self._transport = transport
        self._tokens = tokens
        self._sleep = sleep
        self._max_wait_s = max_wait_s

    def get(self) -> FetchSettings:
        """Read both kinds of pull."""
        return self._call("get", {}, _from_wire, repeats_unknown=True)

    def put(self, kind: Kind, setting: FetchSetting) -> None:
        """Write one kind of pull, off or on, always with its source.

        Raises ConfigError before anything is sent if something WeChat requires is missing.
        After OutcomeUnknown read back before repeating: it may have taken effect.
        """
        self._call(f"set_{kind}", _to_wire(kind, setting), _has_errcode, repeats_unknown=False)

    def _call(
        self,
        action: str,
        wire: Mapping[str, object],
        read: Callable[[dict[str, object]], _T | None],
        *,
        repeats_unknown: bool,
    ) -> _T:
        """What is read from an answer. No frame that raises has seen it: it may echo a secret."""
        token: Secret | None = None
        left_s = self._max_wait_s
        tries: Counter[str] = Counter()
        while True:
            failure: Refused | OutcomeUnknown = _unreadable(action)
            try:
                token = token or self._tokens.get()
                value = read(
                    self._transport.call(
                        action,
                        "POST",
                        _PATH,
                        query={"access_token": token},
                        body={"action": action, **wire},
                    )
                )
                if value is not None:
                    return value
            except (Refused, OutcomeUnknown) as error:
                failure = error
            if isinstance(failure, Refused):
                kind, is_final = failure.kind, token is None  # then there is no token to be had
            else:
                kind, is_final = "unknown", not repeats_unknown
            wait_s = pause_s(failure, tries[kind])
            if (
                is_final
                or wait_s is None
                or wait_s > left_s
                or tries[kind] == REPEATS_OF_A_CALL[kind]
            ):
                raise failure
            if kind == "renew" and token is not None:
                rejected, token = token, self._tokens.renew(token)
                if token == rejected:
                    raise failure
            tries[kind] += 1
            left_s -= wait_s
            self._sleep(wait_s)


def _unreadable(action: str) -> OutcomeUnknown:
    return OutcomeUnknown(
        action,
        "the answer is not what the API promises",
        sent=True,
        remedy="Whether it took effect is unknown: read back before repeating",
    )


def wire_names(kind: Kind) -> dict[str, str]:
    """The page's name of each attribute of a setting."""
    stem = kind.removesuffix("_fetch")
    return {
        "open": f"is_{kind}_open",
        "source": f"{kind}_type",
        "url": f"{kind}_url",
        "env": f"{stem}_env",
        "function_name": f"{stem}_function_name",
    }


def spelled(kind: Kind, setting: FetchSetting) -> dict[str, object]:
    """A setting as the page spells it, without the members that are None."""
    values: dict[str, object] = {**setting.to_dict()}
    if setting.source is not None:
        values["source"] = SOURCES.index(setting.source)
    names = wire_names(kind)
    return {names[name]: value for name, value in values.items() if value is not None}


def _wire_schema(kind: Kind) -> Schema:
    names = wire_names(kind)
    members: dict[str, fields.Field[Any]] = {
        "errcode": fields.Integer(strict=True, required=True),
        "open": Flag(data_key=names["open"]),
        "source": fields.Integer(
            strict=True, data_key=names["source"], validate=validate.OneOf([0, 1])
        ),
    }
    texts = {name: fields.String(data_key=names[name]) for name in TEXTS}
    return answer_schema(**members, **texts)


_WIRE: Mapping[Kind, Schema] = MappingProxyType({kind: _wire_schema(kind) for kind in KINDS})


def _from_wire(answer: Mapping[str, object]) -> FetchSettings | None:
    halves = {}
    for kind in KINDS:
        half = read(_WIRE[kind], answer)
        if half is None:
            return None
        source = half.get("source")
        halves[kind] = FetchSetting(
            open=half.get("open"),
            source=None if source is None else SOURCES[source],
            url=half.get("url") or None,
            env=half.get("env") or None,
            function_name=half.get("function_name") or None,
        )
    return FetchSettings(**halves)


def _has_errcode(answer: Mapping[str, object]) -> bool | None:
    return True if "errcode" in answer else None


def _to_wire(kind: Kind, setting: FetchSetting) -> dict[str, object]:
    needed = ("url",) if setting.source == "server" else ("env", "function_name")
    for name in ("open", "source", *needed):
        if getattr(setting, name) in (None, ""):
            raise ConfigError(
                f"{kind}.{name}", "is missing", remedy="WeChat requires it, switched off or on"
            )
    return spelled(kind, setting.of_its_source())
