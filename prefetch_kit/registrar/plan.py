"""What WeChat holds compared with what it should hold: pure, no I/O."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal
from urllib.parse import urlsplit

from prefetch_kit.errors import PlanStale, SourceRefused
from prefetch_kit.fetch_setting import KINDS, FetchSetting, FetchSettings, Kind

Guard = Literal["disable", "takeover"]
# Why something is to be set: we want something else than before, WeChat no longer holds what was
# confirmed last, or both.
Cause = Literal["change", "drift", "both"]

_SAID_NOTHING: Final = "WeChat did not say whether it was on; it is switched off"
_CANNOT_FORGET: Final = "it had no source before; WeChat cannot forget one, so it is switched off"
_NEW_PLAN: Final = "Make a new one with plan --out, look at it, and apply that"
_SENT_ALL_THE_SAME: Final = "WeChat shows this already; it is sent all the same, as that may be old"


@dataclass(frozen=True, slots=True)
class OffIfFrom:
    """Off where WeChat fetches from there, and left alone where it fetches from elsewhere.

    So an app is kept from being pulled for what it has no handler for, which can only fail.
    """

    setting: FetchSetting


# What is wanted of each kind of pull; a kind that is missing is left alone.
Wanted = Mapping[Kind, FetchSetting | OffIfFrom]


@dataclass(frozen=True, slots=True)
class Change:
    """One half of the settings that has to be set.

    `guards` name the permissions it needs, `note` says where it is not quite what was asked for.
    `cause` depends on what the journal remembers, and so does not make two changes differ.
    """

    kind: Kind
    before: FetchSetting
    after: FetchSetting
    guards: tuple[Guard, ...] = ()
    note: str | None = None
    cause: Cause = field(default="change", compare=False)


@dataclass(frozen=True, slots=True)
class Plan:
    """The changes that make one mini program's settings what they should be."""

    appid: str
    current: FetchSettings
    changes: tuple[Change, ...]

    @property
    def hosts(self) -> list[str]:
        """From which WeChat would pull, and does not yet."""
        opened = (change.after for change in self.changes if change.after.open)
        urls = (setting.url for setting in opened if setting.source == "server")
        return sorted({urlsplit(url).hostname or "" for url in urls if url})


@dataclass(frozen=True, slots=True)
class Past:
    """What an earlier run found for one kind, and what it wanted there.

    `between` is what runs after it found and wanted, where those are undone with it.
    """

    before: FetchSetting
    wanted: FetchSetting
    between: tuple[FetchSetting, ...] = ()

    @property
    def known(self) -> tuple[FetchSetting, ...]:
        """All that WeChat may hold without anybody else having set it."""
        return self.before, self.wanted, *self.between


def check_wanted(wanted: Wanted) -> None:
    """Raises `SourceRefused` for what WeChat could not be told."""
    for kind, each in wanted.items():
        _check_kind(kind)
        setting: object = each.setting if isinstance(each, OffIfFrom) else each
        if not isinstance(setting, FetchSetting):
            remedy = "Give a FetchSetting; FetchSetting.parse makes one of a text"
            raise SourceRefused("is no setting", field="source", remedy=remedy, subject=kind)
        if isinstance(each, OffIfFrom) and setting.source is None:
            problem, remedy = "names no source", "Give the one to leave"
            raise SourceRefused(problem, field="source", remedy=remedy, subject=kind)
        try:
            setting.checked()
        except SourceRefused as error:
            raise error.of(kind) from None


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        problem, remedy = "is no kind of pull", "There are pre_fetch and period_fetch"
        raise SourceRefused(problem, field="kind", remedy=remedy, subject=repr(kind))


def checked_changes(changes: Sequence[Change]) -> list[Change]:
    """Changes that somebody kept, with the guards that each of them needs now.

    Raises `SourceRefused` for what WeChat could not be told.
    """
    for change in changes:
        _check_kind(change.kind)
        if not change.after.is_whole:
            remedy = "Give what plan gave"
            raise SourceRefused(
                "names no whole source", field="source", remedy=remedy, subject=change.kind
            )
        if change.after.open:  # what is switched off keeps the source that it has
            change.after.checked()
    if len({change.kind for change in changes}) != len(changes):
        problem, remedy = "has one kind of pull twice", "Give each of them once"
        raise SourceRefused(problem, field="kind", remedy=remedy, subject="The plan")
    return [replace(each, guards=guards_of(each.before, each.after)) for each in changes]


def plan_wanted(appid: str, current: FetchSettings, wanted: Wanted) -> Plan:
    """Make each kind of pull what is wanted of it. Switched off, it keeps the source it has."""
    changes = []
    for kind, each in wanted.items():
        before = current.for_kind(kind)
        if isinstance(each, OffIfFrom):
            after = before.switched_off() if are_alike(before, each.setting) else before
        elif each.source is not None:
            after = each
        else:
            after = before.switched_off() if before.open else before
        if are_alike(before, after):
            continue
        if not after.is_whole:
            problem, remedy = "is on, but WeChat names no source", "Set it to a source first"
            raise SourceRefused(problem, field="source", remedy=remedy, subject=kind)
        changes.append(Change(kind, before, after, guards_of(before, after)))
    return Plan(appid, current, tuple(changes))


def plan_rollback(appid: str, current: FetchSettings, pasts: Mapping[Kind, Past]) -> Plan:
    """Go back to what WeChat held before a run.

    All is sent, also what WeChat shows already, since that may be older than what was set last.
    WeChat demands a whole source even for switching off, and cannot forget one: a kind that had
    none is switched off with the source it has now. What was neither held before nor wanted by
    the run was set by somebody else since, and to replace that is a takeover.
    """
    changes = []
    for kind, past in pasts.items():
        now = current.for_kind(kind)
        if past.before.is_whole and past.before.open is not None:
            after, note = past.before, None
        elif past.before.is_whole:
            after, note = past.before.switched_off(), _SAID_NOTHING
        else:
            after = (now if now.is_whole else past.wanted).switched_off()
            note = _CANNOT_FORGET
        if not after.is_whole:
            continue  # it was never configured, and is not now
        is_known = any(are_alike(now, known) for known in (after, *past.known))
        if are_alike(now, after):
            note = _SENT_ALL_THE_SAME
        changes.append(Change(kind, now, after, () if is_known else ("takeover",), note))
    return Plan(appid, current, tuple(changes))


def plan_saved(appid: str, current: FetchSettings, saved: Sequence[Change]) -> Plan:
    """What is still to do of a plan that was saved.

    Raises `PlanStale` where WeChat holds neither what the plan found nor what it wants.
    """
    changes = []
    for change in saved:
        now = current.for_kind(change.kind)
        if are_alike(now, change.after):
            continue
        if not are_alike(now, change.before):
            raise PlanStale(appid, remedy=_NEW_PLAN)
        changes.append(change)
    return Plan(appid, current, tuple(changes))


def explain(plan: Plan, confirmed: Mapping[Kind, FetchSetting]) -> Plan:
    """The same plan with each change's cause, from what was confirmed last for each kind."""
    changes = []
    for change in plan.changes:
        last = confirmed.get(change.kind, change.before)
        cause: Cause = "change"
        if not are_alike(change.before, last):
            cause = "drift" if are_alike(change.after, last) else "both"
        changes.append(replace(change, cause=cause))
    return replace(plan, changes=tuple(changes))


def are_alike(left: FetchSetting, right: FetchSetting) -> bool:
    """Whether WeChat would behave alike: fields of an inactive source do not count."""
    ours, theirs = (replace(s.of_its_source(), open=bool(s.open)) for s in (left, right))
    return ours == theirs


def guards_of(before: FetchSetting, after: FetchSetting) -> tuple[Guard, ...]:
    """The permissions that an apply needs for this change."""
    guards: list[Guard] = []
    # Where WeChat leaves out whether a source is on, it may be.
    if not after.open and before.open is not False and before.source is not None:
        guards.append("disable")
    if not _is_ours(before, after):
        guards.append("takeover")
    return tuple(guards)


def _is_ours(before: FetchSetting, after: FetchSetting) -> bool:
    """Whether nothing is replaced, or what is on the same host or in the same environment."""
    if before.source == "cloud_function":
        is_same = after.source == "cloud_function" and before.env == after.env
        return is_same or not before.function_name
    if not before.url or before.url == after.url:
        return True
    try:
        host = urlsplit(before.url).hostname
        return host is not None and host == urlsplit(after.url or "").hostname
    except ValueError:
        return False
