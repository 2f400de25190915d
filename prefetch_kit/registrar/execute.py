"""A plan executed: each change sent, looked at where its outcome is unknown, and all read back."""

from collections.abc import Collection, Mapping
from typing import Final

from prefetch_kit.errors import (
    GuardRefused,
    NotConfirmed,
    OutcomeUnknown,
    PrefetchKitError,
    Refused,
    TokenSourceError,
    WeixinError,
)
from prefetch_kit.registrar.journal import Action, Journal
from prefetch_kit.registrar.plan import Change, Guard, Plan, are_alike
from prefetch_kit.weixin.settings import SettingsApi

_REASONS: Final[Mapping[Action, Mapping[Guard, str]]] = {
    "apply": {
        "disable": "would switch off what WeChat pulls now",
        "takeover": "would replace a source of another host, cloud environment or kind",
    },
    "rollback": {"takeover": "would replace what somebody else set since"},
}


def check_guards(plan: Plan, allow: Collection[Guard], action: Action) -> None:
    """Raises `GuardRefused` for a change of which a guard is not lifted."""
    for change in plan.changes:
        held = [guard for guard in change.guards if guard not in allow]
        if held:
            reason = " and ".join(_REASONS[action][guard] for guard in held)
            flag = " ".join(f"--allow-{guard}" for guard in held)
            raise GuardRefused(f"{plan.appid} {change.kind}", reason, flag=flag)


def execute(
    plan: Plan, run: int, settings: SettingsApi, journal: Journal, *, undoes: int | None = None
) -> None:
    """Send every change of a plan as part of a run, and read back that it is so.

    Each is recorded before it is sent and again when its result is known; with `undoes`, also
    that all since that run is undone. Raises `WeixinError`, `TokenSourceError`, `JournalFailed`
    and `NotConfirmed`.
    """
    if plan.changes:
        journal.record(run, plan)
        _send(plan, run, settings, journal)
        _confirm(plan, run, settings, journal)
    if undoes is not None:
        journal.undo(run, plan, since=undoes)


def _send(plan: Plan, run: int, settings: SettingsApi, journal: Journal) -> None:
    unsent = list(plan.changes)
    try:
        while unsent:
            change = unsent.pop(0)
            journal.mark(run, plan.appid, change.kind, "intent")
            try:
                settings.put(change.kind, change.after)
            except Refused as error:
                journal.mark(run, plan.appid, change.kind, "refused", detail=str(error))
                raise
            except OutcomeUnknown:
                _look_and_put_again(change, plan.appid, run, settings, journal)
    except PrefetchKitError:
        for change in unsent:
            journal.mark(run, plan.appid, change.kind, "unsent")
        raise


def _look_and_put_again(
    change: Change, appid: str, run: int, settings: SettingsApi, journal: Journal
) -> None:
    try:
        if not are_alike(settings.get().for_kind(change.kind), change.after):
            settings.put(change.kind, change.after)
    except (WeixinError, TokenSourceError) as error:
        # Refused or not: the first call may have taken effect.
        journal.mark(run, appid, change.kind, "unknown", detail=str(error))
        raise


def _confirm(plan: Plan, run: int, settings: SettingsApi, journal: Journal) -> None:
    now = settings.get()
    wrong: list[str] = []
    for change in plan.changes:
        if are_alike(now.for_kind(change.kind), change.after):
            journal.mark(run, plan.appid, change.kind, "confirmed")
        else:
            detail = "read back differently"
            journal.mark(run, plan.appid, change.kind, "unknown", detail=detail)
            wrong.append(f"{change.kind} is not as it was set")
    if wrong:
        raise NotConfirmed(plan.appid, wrong)
