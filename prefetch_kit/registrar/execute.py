"""A plan executed: each change sent, and read back until WeChat shows it."""

import random
import time
from collections.abc import Callable, Collection, Mapping
from typing import Final

from prefetch_kit.errors import (
    GuardRefused,
    NotConfirmed,
    PartlySet,
    PlanStale,
    PrefetchKitError,
    Refused,
    TokenSourceError,
    WeixinError,
)
from prefetch_kit.fetch_setting import FetchSettings, Kind
from prefetch_kit.registrar.journal import Action, Journal, Outcome
from prefetch_kit.registrar.plan import Change, Guard, Plan, are_alike
from prefetch_kit.weixin.retry import pause_s
from prefetch_kit.weixin.settings import SettingsApi

# How long WeChat may take to show what was set; nobody documents it.
WAIT_S: Final = 60.0

# Reads to see what was set: the pause doubles from the first to the longest.
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 5.0
# A call that was cut off has arrived at WeChat by then, or never will: twice its deadline.
_UNDER_WAY_S: Final = 10.0
_MAY_BE_HELD: Final[frozenset[Outcome]] = frozenset({"intent", "sent", "unknown", "confirmed"})

_REASONS: Final[Mapping[Action, Mapping[Guard, str]]] = {
    "apply": {
        "disable": "would switch off what WeChat pulls now",
        "takeover": "would replace a source of another host, cloud environment or kind",
    },
    "rollback": {"takeover": "would replace what somebody else set since"},
}


class TooEarly(Exception):
    """What WeChat shows may be older than what was set last. `left_s` is how long it may be."""

    def __init__(self, left_s: float) -> None:
        self.left_s = left_s
        super().__init__(f"{left_s:g} s")


def check_guards(plan: Plan, allow: Collection[Guard], action: Action) -> None:
    """Raises `GuardRefused` for a change of which a guard is not lifted."""
    for change in plan.changes:
        held = [guard for guard in change.guards if guard not in allow]
        if held:
            reason = " and ".join(_REASONS[action][guard] for guard in held)
            flag = " ".join(f"--allow-{guard}" for guard in held)
            raise GuardRefused(f"{plan.appid} {change.kind}", reason, flag=flag)


def plan_now(
    appid: str,
    current: FetchSettings,
    planned: Callable[[FetchSettings], Plan],
    journal: Journal,
    *,
    kinds: Collection[Kind],
    wait_s: float,
    waited_s: float,
    must_know_before: bool = True,
) -> Plan:
    """What is `planned` for what WeChat shows now, of these kinds.

    Raises `TooEarly` where another value was set for one of them a moment ago, and that call may
    still arrive; with `must_know_before` also where it was set less than `wait_s` seconds ago and
    is not shown: then it is not known what the plan replaces. `waited_s` was waited for that here,
    which counts also where the journal's clock was set back meanwhile.
    """
    recent = journal.recent(appid, within_s=wait_s)
    stale: PlanStale | None = None
    try:
        plan = planned(current)
    except PlanStale as error:
        if not recent:
            raise
        plan, stale = Plan(appid, current, ()), error
    wanted = {change.kind: change.after for change in plan.changes}
    for kind in recent.keys() & kinds:
        last, now = recent[kind], current.for_kind(kind)
        if are_alike(wanted.get(kind, now), last.wanted):
            continue
        age_s = max(last.age_s, waited_s)
        under_way_s = min(wait_s, _UNDER_WAY_S) - age_s
        if last.may_arrive and under_way_s > 0:
            raise TooEarly(under_way_s)
        if must_know_before and age_s < wait_s and not are_alike(now, last.wanted):
            raise TooEarly(wait_s - age_s)
    if stale is not None:
        raise stale
    return plan


class Execution:
    """A plan that is executed as part of a run, over as many calls of `advance` as it takes.

    Each change is recorded before it is sent and again when more is known; with `undoes`, also
    that all since that run is undone. What was set is read back until WeChat shows it, and what
    may not have taken effect is set again, for `wait_s` seconds in all.
    """

    def __init__(
        self,
        plan: Plan,
        run: int,
        settings: SettingsApi,
        journal: Journal,
        *,
        wait_s: float,
        undoes: int | None = None,
    ) -> None:
        self.plan = plan
        self.outcomes: dict[Kind, Outcome] = {change.kind: "planned" for change in plan.changes}
        self._run = run
        self._settings = settings
        self._journal = journal
        self._wait_s = wait_s
        self._undoes = undoes
        self._errors: dict[Kind, PrefetchKitError] = {}
        # Of which a call may still arrive at WeChat, though a later one was answered.
        self._doubtful: dict[Kind, str] = {}
        # The kind whose error does not pass: nothing more is sent.
        self._stuck: Kind | None = None
        self._began_at = time.monotonic()
        self._paused_s = 0.0
        self._looks = 0
        self._is_over = False
        if plan.changes:
            journal.record(run, plan)

    @property
    def is_sent(self) -> bool:
        """Whether WeChat may hold a part of it."""
        return not _MAY_BE_HELD.isdisjoint(self.outcomes.values())

    def advance(self) -> float | None:
        """Send and read back; after how many seconds to call this again, None where all is done.

        Raises `WeixinError`, `TokenSourceError`, `NotConfirmed`, `PartlySet` and `JournalFailed`.
        """
        if self._of("unknown"):
            self._read_back()
        for change in self._of("unknown", "planned"):
            if self._stuck is None:
                self._set(change)
            if self.outcomes[change.kind] == "unknown":
                self._read_back()
            if self.outcomes[change.kind] not in ("sent", "confirmed"):
                break  # what comes after it is not sent before this is known
        if self._of("sent") and not self._of("unknown"):
            self._read_back()
        is_pending = self._of("sent", "unknown") or (self._of("planned") and self._stuck is None)
        if is_pending and (pause := self._pause()) is not None:
            return pause
        self.end()
        return None

    def end(self) -> None:
        """Record how it ended. Raises what went wrong, if anything did."""
        for change in self._of("planned"):
            self._mark(change, "unsent")
        kept = [change.kind for change in self._of("confirmed", "sent")]
        failed = [change.kind for change in self._of("unknown", "refused", "unsent")]
        errors = [self._errors[kind] for kind in failed if kind in self._errors]
        if errors:
            raise PartlySet(self.plan.appid, kept, errors[0]) if kept else errors[0]
        if sent := self._of("sent"):
            raise NotConfirmed(self.plan.appid, [self._difference(each.kind) for each in sent])
        if self._undoes is not None:
            self._journal.undo(self._run, self.plan, since=self._undoes)

    def _set(self, change: Change) -> None:
        kind, was = change.kind, self.outcomes[change.kind]
        is_first = not self.is_sent
        self._mark(change, "intent")
        try:
            self._settings.put(kind, change.after)
        except (WeixinError, TokenSourceError) as error:
            self._errors[kind] = error
            may_be_set = (
                isinstance(error, WeixinError)
                and error.action == f"set_{kind}"  # and no call for an access token
                and not error.rules_out_effect
            )
            passes = may_be_set or pause_s(error, 0) is not None
            if may_be_set:
                self._doubtful[kind] = str(error)
            if was == "unknown" or may_be_set:
                self._mark(change, "unknown")
            elif passes and not is_first:
                self._mark(change, "planned")
            else:
                self._mark(change, "refused" if isinstance(error, Refused) else "unsent")
            if not passes or self.outcomes[kind] in ("refused", "unsent"):
                self._stuck = kind
        else:
            self._errors.pop(kind, None)
            self._mark(change, "sent")

    def _read_back(self) -> None:
        try:
            now = self._settings.get()
        except (WeixinError, TokenSourceError) as error:
            self._is_over = pause_s(error, 0) is None
            self._errors |= {change.kind: error for change in self._of("sent", "unknown")}
            return
        for change in self._of("sent", "unknown"):
            kind, is_sent = change.kind, self.outcomes[change.kind] == "sent"
            if is_sent:
                self._errors.pop(kind, None)
            # What it showed before already may be old: then only WeChat's own "ok" is proof.
            is_proof = is_sent or not are_alike(change.before, change.after)
            if is_proof and are_alike(now.for_kind(kind), change.after):
                self._errors.pop(kind, None)
                self._stuck = None if self._stuck == kind else self._stuck
                self._mark(change, "confirmed")

    def _pause(self) -> float | None:
        """How many seconds to wait before the next look; None where the time is over."""
        elapsed_s = max(self._paused_s, time.monotonic() - self._began_at)
        left_s = self._wait_s - elapsed_s
        if self._is_over or left_s <= 0:
            return None
        longest = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**self._looks)
        asked = [pause_s(error, 0) or 0.0 for error in self._errors.values()]
        pause = min(left_s, max([random.uniform(longest / 2, longest), *asked]))
        self._looks += 1
        self._paused_s += pause
        return pause

    def _difference(self, kind: Kind) -> str:
        if (error := self._errors.get(kind)) is not None:
            return f"{kind} could not be read back ({str(error).rstrip('.')})"
        return f"WeChat did not show {kind} as it was set within {self._wait_s:g} s"

    def _of(self, *outcomes: Outcome) -> list[Change]:
        return [change for change in self.plan.changes if self.outcomes[change.kind] in outcomes]

    def _mark(self, change: Change, outcome: Outcome) -> None:
        error = self._errors.get(change.kind)
        detail = self._doubtful.get(change.kind, "") if error is None else str(error)
        self._journal.mark(self._run, self.plan.appid, change.kind, outcome, detail=detail)
        self.outcomes[change.kind] = outcome
