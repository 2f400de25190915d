"""The result of each app of a fleet, and their number by cause."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from prefetch_kit.errors import (
    DomainMissing,
    GuardRefused,
    LockHeld,
    MayBeSet,
    NotAuthorized,
    NotConfirmed,
    OutcomeUnknown,
    PartlySet,
    PlanStale,
    PlatformUnusable,
    PrefetchKitError,
    Refused,
    TokenSourceError,
    TokenStoreFailed,
)
from prefetch_kit.fetch_setting import KINDS, Kind
from prefetch_kit.registrar.journal import Outcome
from prefetch_kit.registrar.plan import Plan
from prefetch_kit.weixin.retry import pause_s

# Sent: WeChat accepted it, and does not show it yet. Left: begun when the fleet stopped, and
# nothing was sent for it. Skipped: it is no mini program, and the platform's list has all accounts.
FleetOutcome = Literal["done", "sent", "failed", "deferred", "left", "skipped"]
# Of whom a failure says something: of its own account, or of all apps of the fleet.
Whose = Literal["account", "all"]

_EXAMPLES: Final = 3
_MOST_CAUSES: Final = 100
# No mini program, not allowed to use the API, not authorized, and authorized without it.
_NO_MINI_PROGRAM: Final = 40166
_ITS_OWN: Final = frozenset({_NO_MINI_PROGRAM, 48001, 61003, 61007})
# This machine's address, and the platform's appid.
_EVERYONES: Final = frozenset({61004, 61011})
# Calls that the platform makes in its own name.
_OF_PLATFORM: Final = frozenset(
    {"api_component_token", "api_authorizer_token", "api_get_authorizer_list"}
)
_ADDRESSES: Final = frozenset({40164, 89501, 89503, 89506, 89507})
# Too many business domains, or the account of a person; of the platform's list they say the same.
_ITS_OWN_DOMAINS: Final = frozenset({89029, 89231})
_ADDRESS: Final = re.compile(r"\b[0-9]{1,3}(?:\.[0-9]{1,3}){3}\b|\b[0-9a-f]*(?::[0-9a-f]*){2,7}\b")
_HELD: Final = "another process is changing it, such as an apply for this app alone"
_WHY: Final = {
    "change": "to change",
    "drift": "drifted: WeChat no longer holds what was read back last",
    "both": "drifted, and to change",
}


@dataclass(frozen=True, slots=True)
class Result:
    """One app: its plan, if there was time for one, and why it is done or not."""

    appid: str
    outcome: FleetOutcome
    cause: str
    plan: Plan | None = None
    errcode: int | None = None
    # How far each change of the plan has come; empty where nothing was to be sent.
    outcomes: Mapping[Kind, Outcome] = field(default_factory=dict)


@dataclass(slots=True)
class Group:
    """All apps with one outcome and one cause."""

    outcome: FleetOutcome
    cause: str
    count: int = 0
    examples: list[str] = field(default_factory=list)


class Tally:
    """Counts by cause, of which there are few. For one thread at a time."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str], Group] = {}

    def add(self, appid: str, outcome: FleetOutcome, cause: str) -> None:
        if (outcome, cause) not in self._groups and len(self._groups) >= _MOST_CAUSES:
            cause = "other causes"
        group = self._groups.setdefault((outcome, cause), Group(outcome, cause))
        group.count += 1
        if len(group.examples) < _EXAMPLES:
            group.examples.append(appid)
            group.examples.sort()

    def __getitem__(self, outcome: FleetOutcome) -> int:
        return sum(group.count for group in self._groups.values() if group.outcome == outcome)

    @property
    def total(self) -> int:
        return sum(group.count for group in self._groups.values())

    def groups(self) -> list[Group]:
        """The largest first; the order does not depend on which app was quicker."""
        return sorted(self._groups.values(), key=lambda g: (-g.count, g.outcome, g.cause))


def done_cause(plan: Plan, *, sent: bool) -> str:
    """What was done, or would be done, for an app without an error."""
    if not plan.changes:
        return "nothing to do"
    if sent:
        return "set and read back"
    guards = sorted({f"--allow-{guard}" for change in plan.changes for guard in change.guards})
    needs = f", needs {' and '.join(guards)}" if guards else ""
    causes = {change.cause for change in plan.changes}
    why = _WHY["both" if len(causes) > 1 else causes.pop()]
    return f"{why}{needs}"


def whose(error: PrefetchKitError) -> Whose | None:
    """Of whom an error says something; None where that is not known."""
    if isinstance(error, PartlySet | MayBeSet):
        return whose(error.error)
    if isinstance(error, Refused):
        is_full = error.action == "setwebviewdomain" and error.errcode in _ITS_OWN_DOMAINS
        if is_full or error.errcode in _ITS_OWN:
            return "account"
        is_all = error.errcode in _EVERYONES or error.action == "api_component_token"
        if error.action in _OF_PLATFORM:
            is_all = is_all or error.errcode in _ADDRESSES or error.kind == "quota_day"
        return "all" if is_all and error.kind not in ("transient", "quota_minute") else None
    if isinstance(error, OutcomeUnknown):
        is_long = error.retry_after_s is not None and pause_s(error, 0) is None
        return "all" if is_long else None
    # Where hosts are added, a domain is missing only if the account may have none.
    if isinstance(error, NotAuthorized | DomainMissing):
        return "account"
    return "all" if isinstance(error, PlatformUnusable | TokenStoreFailed) else None


def failure(appid: str, error: PrefetchKitError, *, skips_others: bool = False) -> Result:
    """What became of an app of which this error is the end.

    With `skips_others` one that is no mini program is left out.
    """
    outcome: FleetOutcome = "failed"
    errcode = None
    match error:
        case PartlySet():
            rest = failure(appid, error.error)
            outcome, errcode = rest.outcome, rest.errcode
            is_refused = isinstance(error.error, Refused) and error.error.rules_out_effect
            other = " and ".join(kind for kind in KINDS if kind not in error.kept)
            cause = (
                f"{' and '.join(error.kept)} set, {other} {'refused' if is_refused else 'not'}: "
                f"{rest.cause}"
            )
        case MayBeSet():
            rest = failure(appid, error.error)
            outcome, errcode = rest.outcome, rest.errcode
            kept = "".join(f"{kind} set, " for kind in error.kept)
            doubt = failure(appid, error.doubt).cause
            cause = f"{kept}{' and '.join(error.kinds)} may be set, or not: {doubt}"
        case Refused(errcode=code) if skips_others and code == _NO_MINI_PROGRAM:
            outcome, errcode = "skipped", code
            cause = f"{code}, no mini program but another account, such as an official one (公众号)"
        case Refused():
            errcode, meaning = error.errcode, error.meaning
            if errcode in _ADDRESSES and (address := _ADDRESS.search(error.errmsg)):
                meaning += f" ({address[0]})"
            cause = f"{errcode}, {meaning}. {error.remedy}"
            if error.kind in ("quota_minute", "quota_day"):
                outcome = "deferred"
        case OutcomeUnknown():
            cause = f"{error.action}: {error.cause}"
            if error.retry_after_s is not None:
                outcome = "deferred"
        case DomainMissing():
            cause = ". ".join(error.problems)
        case NotConfirmed():
            outcome, cause = "sent", "set, not yet confirmed"
        case GuardRefused():
            cause = f"it {error.reason}: needs {error.flag}"
        case LockHeld():
            outcome, cause = "deferred", _HELD
        case PlanStale():
            cause = "WeChat changed since the plan was made"
        case TokenSourceError():
            cause = f"no access token: {error.problem}. {error.remedy}"
        case _:
            cause = str(error).rstrip(".")
    return Result(appid, outcome, cause, errcode=errcode)
