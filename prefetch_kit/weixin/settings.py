"""Which URL, or which cloud function, WeChat fetches data from.

developers.weixin.qq.com: the getFetchdataSetting page. Its spellings stop in this module.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeVar

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
from prefetch_kit.weixin.retry import REPEATS_OF_A_READ, REPEATS_OF_A_WRITE, pause_s
from prefetch_kit.weixin.tokens import TokenSource

_PATH = "/wxa/fetchdatasetting"
# What WeChat answers for a mini program that was never configured is not documented. If it is a
# success without any field, one such answer could as well be a fault.
_READS_OF_NOTHING: Final = 3
_NOTHING: Final = FetchSettings(FetchSetting(), FetchSetting())

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

    A rejected token is renewed once, and a minute's quota is waited for once. A read is repeated
    at most twice where the system is busy, after a random pause, and once without an answer. All
    pauses of one call together stay within `max_wait_s`. Everything else is raised at once:
    Refused, OutcomeUnknown and what the token source raises.
    """

    def __init__(
        self,
        transport: Calls,
        tokens: TokenSource,
        *,
        sleep: Callable[[float], None] | None = None,
        max_wait_s: float = 70.0,
    ) -> None:
        self._transport = transport
        self._tokens = tokens
        self._sleep = sleep or time.sleep
        self._max_wait_s = max_wait_s

    def read(self) -> FetchSettings:
        """Read both kinds of pull, once."""
        return self._call("get", {}, _from_wire, REPEATS_OF_A_READ)

    def get(self) -> FetchSettings:
        """The same, but that neither was ever configured must be said three times."""
        for reads in range(1, _READS_OF_NOTHING + 1):
            found = self.read()
            if found != _NOTHING:
                break
            if reads < _READS_OF_NOTHING and self._max_wait_s:
                self._sleep(random.uniform(0.1, 0.5))
        return found

    def put(self, kind: Kind, setting: FetchSetting) -> None:
        """Write one kind of pull, off or on, always with its source.

        Raises ConfigError before anything is sent if something WeChat requires is missing.
        After an error that does not rule it out, read back before repeating: it may have taken
        effect.
        """
        self._call(f"set_{kind}", _to_wire(kind, setting), _has_errcode, REPEATS_OF_A_WRITE)

    def _call(
        self,
        action: str,
        wire: Mapping[str, object],
        read: Callable[[dict[str, object]], _T | None],
        repeats: Mapping[str, int],
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
            kind = failure.kind if isinstance(failure, Refused) else "unknown"
            wait_s = pause_s(failure, tries[kind])
            is_final = tries[kind] >= repeats.get(kind, 0)
            if isinstance(failure, Refused) and token is None:
                is_final = True  # then there is no token to be had
            if is_final or wait_s is None or wait_s > left_s:
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
        setting = FetchSetting(
            open=half.get("open"),
            source=None if source is None else SOURCES[source],
            url=half.get("url") or None,
            env=half.get("env") or None,
            function_name=half.get("function_name") or None,
        )
        if setting.open and not setting.is_whole:
            return None  # WeChat cannot pull from nowhere
        halves[kind] = setting
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
