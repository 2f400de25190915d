"""What stands at WeChat compared with what should: pure, no I/O."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal
from urllib.parse import urlsplit

from prefetch_kit.addresses import public_url_problem
from prefetch_kit.errors import PlanStale, UrlRefused
from prefetch_kit.weixin.settings import FetchSetting, FetchSettings, Kind

Guard = Literal["disable", "takeover"]
# Why something is to be set: we want something else than before, WeChat no longer holds what was
# confirmed last, or both.
Cause = Literal["change", "drift", "both"]

_CANNOT_FORGET: Final = "it had no source before; WeChat cannot forget one, so it is switched off"


@dataclass(frozen=True, slots=True)
class Target:
    """Where the app serves one kind of pull, and whether a handler stands there.

    Raises `UrlRefused` for a URL that WeChat could not pull.
    """

    kind: Kind
    url: str
    served: bool

    def __post_init__(self) -> None:
        if problem := public_url_problem(self.url):
            raise UrlRefused(self.url, problem[0], remedy=problem[1])


@dataclass(frozen=True, slots=True)
class Change:
    """One half of the settings that has to be set.

    `guard` names the permission it needs, `note` says where it is not quite what was asked for.
    `cause` depends on what the journal remembers, and so does not make two changes differ.
    """

    kind: Kind
    before: FetchSetting
    after: FetchSetting
    guard: Guard | None = None
    note: str | None = None
    cause: Cause = field(default="change", compare=False)


@dataclass(frozen=True, slots=True)
class Plan:
    """The changes that make one mini program's settings what they should be."""

    appid: str
    current: FetchSettings
    changes: tuple[Change, ...]


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
        """All that stands there without anybody else having set it."""
        return self.before, self.wanted, *self.between


def plan_targets(appid: str, current: FetchSettings, targets: Sequence[Target]) -> Plan:
    """Point WeChat at the targets.

    A kind the app has no handler for is left alone, unless WeChat pulls it from the app's own
    URL: that can only fail, so it is switched off.
    """
    changes = []
    for target in targets:
        before = current.for_kind(target.kind)
        if target.served:
            after = FetchSetting(open=True, source="server", url=target.url)
        elif before.open and before.url == target.url:
            after = replace(before, open=False)
        else:
            continue
        if not same(before, after):
            changes.append(Change(target.kind, before, after, guard_of(before, after)))
    return Plan(appid, current, tuple(changes))


def plan_return(appid: str, current: FetchSettings, pasts: Mapping[Kind, Past]) -> Plan:
    """Go back to what stood there before a run.

    WeChat demands a whole source even for switching off, and cannot forget one it has. So a
    half that had none becomes switched off, with the source it has now. What neither stood
    there before nor was wanted by the run was set by somebody else since: a takeover.
    """
    changes = []
    for kind, past in pasts.items():
        now = current.for_kind(kind)
        if has_source(past.before):
            after, note = past.before, None
        else:
            after, note = replace(now, open=False), _CANNOT_FORGET
        if not same(now, after):
            is_known = any(same(now, known) for known in past.known)
            changes.append(Change(kind, now, after, None if is_known else "takeover", note))
    return Plan(appid, current, tuple(changes))


def plan_saved(appid: str, current: FetchSettings, saved: Sequence[Change]) -> Plan:
    """What is still to do of a plan that was saved.

    Raises `PlanStale` where WeChat holds neither what the plan found nor what it wants.
    """
    changes = []
    for change in saved:
        now = current.for_kind(change.kind)
        if same(now, change.after):
            continue
        if not same(now, change.before):
            raise PlanStale(appid)
        changes.append(change)
    return Plan(appid, current, tuple(changes))


def explain(plan: Plan, confirmed: Mapping[Kind, FetchSetting]) -> Plan:
    """The same plan with each change's cause, from what was confirmed last for each kind."""
    changes = [replace(c, cause=_cause(c, confirmed.get(c.kind))) for c in plan.changes]
    return replace(plan, changes=tuple(changes))


def _cause(change: Change, confirmed: FetchSetting | None) -> Cause:
    if confirmed is None or same(change.before, confirmed):
        return "change"
    return "drift" if same(change.after, confirmed) else "both"


def same(left: FetchSetting, right: FetchSetting) -> bool:
    """Whether WeChat would behave alike: fields of an inactive source do not count."""
    return _meaning(left) == _meaning(right)


def has_source(setting: FetchSetting) -> bool:
    """Whether it names all that WeChat needs to pull from there."""
    if setting.source == "cloud_function":
        return bool(setting.env and setting.function_name)
    return setting.source == "server" and bool(setting.url)


def _meaning(setting: FetchSetting) -> tuple[object, ...]:
    if setting.source == "cloud_function":
        return bool(setting.open), setting.source, setting.env, setting.function_name
    return bool(setting.open), setting.source, setting.url


def guard_of(before: FetchSetting, after: FetchSetting) -> Guard | None:
    """The permission that an apply needs for this change."""
    if not after.open:
        return "disable"
    return None if _is_ours(before, after) else "takeover"


def _is_ours(before: FetchSetting, after: FetchSetting) -> bool:
    if before.source == "cloud_function":
        return not before.function_name
    if not before.url:
        return True
    try:
        return urlsplit(before.url).hostname == urlsplit(after.url or "").hostname
    except ValueError:
        return False
