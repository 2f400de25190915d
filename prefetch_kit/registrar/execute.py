"""A plan carried out: each change sent, looked at where nobody knows, and all read back."""

from collections.abc import Collection, Mapping
from typing import Final, Protocol

from prefetch_kit.errors import (
    GuardRefused,
    NotConfirmed,
    OutcomeUnknown,
    PrefetchKitError,
    Refused,
    TokenSourceError,
    WeixinError,
)
from prefetch_kit.fetch_setting import Kind
from prefetch_kit.registrar.journal import Outcome
from prefetch_kit.registrar.plan import Change, Guard, Plan, same
from prefetch_kit.weixin.settings import SettingsApi

APPLY_REASONS: Final[Mapping[Guard, str]] = {
    "disable": "would switch off what WeChat pulls now",
    "takeover": "would replace a source of another host, cloud environment or kind",
}
ROLLBACK_REASONS: Final[Mapping[Guard, str]] = {
    "takeover": "would replace what somebody else set since",
}
_FLAGS: Final[dict[Guard, str]] = {"disable": "--allow-disable", "takeover": "--allow-takeover"}


class Record(Protocol):
    """Where it is written how far each change of a run has come. Raises `JournalFailed`."""

    def mark(self, run: int, kind: Kind, outcome: Outcome, *, detail: str = "") -> None: ...


def check_guards(plan: Plan, allow: Collection[Guard], reasons: Mapping[Guard, str]) -> None:
    """Raises `GuardRefused` for a change of which a guard is not lifted."""
    for change in plan.changes:
        held = [guard for guard in change.guards if guard not in allow]
        if held:
            reason = " and ".join(reasons[guard] for guard in held)
            flag = " ".join(_FLAGS[guard] for guard in held)
            raise GuardRefused(f"{plan.appid} {change.kind}", reason, flag=flag)


def execute(plan: Plan, run: int, settings: SettingsApi, record: Record) -> None:
    """Send every change of a plan that was recorded as `run`, and read back that it is so.

    Each is recorded before it is sent and again when its result is known. Raises `WeixinError`,
    `TokenSourceError`, `JournalFailed` and `NotConfirmed`.
    """
    unsent = list(plan.changes)
    try:
        while unsent:
            _set(unsent.pop(0), run, settings, record)
    except PrefetchKitError:
        for change in unsent:
            record.mark(run, change.kind, "unsent")
        raise
    if plan.changes:
        _confirm(plan, run, settings, record)


def _set(change: Change, run: int, settings: SettingsApi, record: Record) -> None:
    record.mark(run, change.kind, "intent")
    try:
        settings.put(change.kind, change.after)
    except Refused as error:
        record.mark(run, change.kind, "refused", detail=str(error))
        raise
    except OutcomeUnknown:
        _look_and_set_again(change, run, settings, record)


def _look_and_set_again(change: Change, run: int, settings: SettingsApi, record: Record) -> None:
    try:
        if not same(settings.get().for_kind(change.kind), change.after):
            settings.put(change.kind, change.after)
    except (WeixinError, TokenSourceError) as error:
        # Refused or not: the first call may have taken effect.
        record.mark(run, change.kind, "unknown", detail=str(error))
        raise


def _confirm(plan: Plan, run: int, settings: SettingsApi, record: Record) -> None:
    now = settings.get()
    wrong: list[Kind] = []
    for change in plan.changes:
        if same(now.for_kind(change.kind), change.after):
            record.mark(run, change.kind, "confirmed")
        else:
            record.mark(run, change.kind, "unknown", detail="read back differently")
            wrong.append(change.kind)
    if wrong:
        raise NotConfirmed(plan.appid, [f"{kind} is not as it was set" for kind in wrong])
