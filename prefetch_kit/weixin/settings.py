"""Which URL, or which cloud function, WeChat fetches data from.

developers.weixin.qq.com: the getFetchdataSetting page. Its spellings stop in this module.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

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
from prefetch_kit.weixin.tokens import TokenSource

_PATH = "/wxa/fetchdatasetting"
_REPEATS: Mapping[str, int] = MappingProxyType({"renew": 1, "transient": 2, "quota_minute": 1})


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
    random pause; a minute's quota is waited for once. All pauses of one call together stay
    within `max_wait_s`. Everything else is raised at once: Refused, OutcomeUnknown and what
    the token source raises.
    """

    def __init__(
        self,
        transport: Calls,
        tokens: TokenSource,
        *,
        sleep: Callable[[float], None] = time.sleep,
        max_wait_s: float = 65.0,
    ) -> None:
        self._transport = transport
        self._tokens = tokens
        self._sleep = sleep
        self._max_wait_s = max_wait_s

    def get(self) -> FetchSettings:
        """Read both halves. An unknown outcome is asked for once more."""
        patience = _Patience(self._max_wait_s)
        try:
            return self._read(patience)
        except OutcomeUnknown:
            pass
        return self._read(patience)

    def put(self, kind: Kind, setting: FetchSetting) -> None:
        """Write one half, off or on, always with its source.

        Raises ConfigError before anything is sent if something WeChat requires is missing.
        After OutcomeUnknown read back before repeating: it may have taken effect.
        """
        action = f"set_{kind}"
        # No local name for the answer: it may echo a secret, and the traceback shows this frame.
        if "errcode" not in self._call(
            action, _to_wire(kind, setting), _Patience(self._max_wait_s)
        ):
            raise _unreadable(action)

    def _read(self, patience: "_Patience") -> FetchSettings:
        settings = _from_wire(self._call("get", {}, patience))
        if settings is None:
            raise _unreadable("get")
        return settings

    def _call(
        self, action: str, wire: Mapping[str, object], patience: "_Patience"
    ) -> dict[str, object]:
        token = self._tokens.get()
        while True:
            try:
                return self._transport.call(
                    action,
                    "POST",
                    _PATH,
                    query={"access_token": token},
                    body={"action": action, **wire},
                )
            except Refused as error:
                refused = error
            pause_s = patience.pause_s(refused.kind)
            if pause_s is None:
                raise refused
            if refused.kind == "renew":
                rejected, token = token, self._tokens.renew(token)
                if token == rejected:
                    raise refused
            self._sleep(pause_s)


class _Patience:
    """How often a call is still repeated, and how long it still waits."""

    def __init__(self, max_wait_s: float) -> None:
        self._left_s = max_wait_s
        self._repeats: Counter[str] = Counter()

    def pause_s(self, kind: str) -> float | None:
        """How long to wait before the next try; None where there is no next try."""
        repeats = self._repeats[kind]
        pause_s = _pause_s(kind, repeats)
        if repeats == _REPEATS.get(kind, 0) or pause_s > self._left_s:
            return None
        self._repeats[kind] += 1
        self._left_s -= pause_s
        return pause_s


def _pause_s(kind: str, repeats: int) -> float:
    if kind == "transient":
        return random.uniform(0, 2.0**repeats)  # no fixed part, so that a fleet spreads out
    if kind == "quota_minute":
        return 60 - time.time() % 60 + random.uniform(0, 1)
    return 0.0


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


def _to_wire(kind: Kind, setting: FetchSetting) -> dict[str, object]:
    needed = ("url",) if setting.source == "server" else ("env", "function_name")
    for name in ("open", "source", *needed):
        if getattr(setting, name) in (None, ""):
            raise ConfigError(
                f"{kind}.{name}", "is missing", remedy="WeChat requires it, switched off or on"
            )
    return spelled(kind, setting.of_its_source())
