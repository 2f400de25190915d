"""A plan executed: each change sent, and read back until WeChat shows it."""

import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final

from prefetch_kit.errors import (
    GuardRefused,
    JournalFailed,
    MayBeSet,
    NotConfirmed,
    OutcomeUnknown,
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
# A call that was cut off has arrived at WeChat by then, or never will: its deadline is 5 s.
_UNDER_WAY_S: Final = 30.0
# What WeChat says of a source that is to be changed must be said so often where it is not whole.
_LOOKS_AT_NOTHING: Final = 4
_BETWEEN_LOOKS_S: Final = (0.1, 0.3)
_SEEMS_LOST: Final = "WeChat shows no source, though it cannot forget the one that was read back"
_MAY_BE_HELD: Final[frozenset[Outcome]] = frozenset({"intent", "sent", "unknown", "confirmed"})

_REASONS: Final[Mapping[Action, Mapping[Guard, str]]] = {
    "apply": {
        "disable": "would switch off what WeChat pulls now",
        "takeover": "would replace a source of another host, cloud environment or kind",
    },
    "rollback": {"takeover": "would replace what somebody else set since"},
}


class TooEarly(Exception):
    """What WeChat shows cannot be believed yet. `left_s` is after how long it may be."""

    def __init__(self, left_s: float) -> None:
        self.left_s = left_s
        super().__init__(f"{left_s:g} s")


@dataclass(slots=True)
class Looks:
    """The looks at an app before anything is sent, and how long was waited between them.

    That counts also where the journal's clock was set back meanwhile. `lacking` is how often in a
    row a source was not whole.
    """

    waited_s: float = 0.0
    lacking: dict[Kind, int] = field(default_factory=dict)


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
    looks: Looks,
    must_know_before: bool = True,
) -> Plan:
    """What is `planned` for what WeChat shows now, of these kinds.

    Raises `TooEarly` where another value was set for one of them a moment ago, and that call may
    still arrive. With `must_know_before` also where it was set less than `wait_s` seconds ago and
    is not shown, or where WeChat does not say from where it would pull, and whether: then it is not
    known what the plan replaces. That is believed of several `looks` in a row; where the journal
    knows better, replacing it is a takeover all the same.
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
        age_s = max(last.age_s, looks.waited_s)
        under_way_s = min(wait_s, _UNDER_WAY_S) - age_s
        if last.may_arrive and under_way_s > 0:
            raise TooEarly(under_way_s)
        if must_know_before and age_s < wait_s and not are_alike(now, last.wanted):
            raise TooEarly(wait_s - age_s)
    if stale is not None:
        raise stale
    if must_know_before:
        return _with_known_sources(plan, journal, looks)
    return _without_guards_of_old(plan, journal, recent.keys())


def _without_guards_of_old(plan: Plan, journal: Journal, recent: Collection[Kind]) -> Plan:
    """The plan without takeovers of what is shown only because that is old."""

    def is_old(change: Change) -> bool:
        held = journal.held(plan.appid, change.kind)
        return any(are_alike(change.before, each) for each in held)

    changes = (
        replace(change, guards=())
        if change.guards and change.kind in recent and is_old(change)
        else change
        for change in plan.changes
    )
    return replace(plan, changes=tuple(changes))


def _with_known_sources(plan: Plan, journal: Journal, looks: Looks) -> Plan:
    """The plan, once it is known which sources it replaces. Raises `TooEarly`."""
    lacking = [
        change.kind
        for change in plan.changes
        if not change.before.is_whole or change.before.open is None
    ]
    looks.lacking = {kind: looks.lacking.get(kind, 0) + 1 for kind in lacking}
    if not lacking:
        return plan
    if min(looks.lacking.values()) < _LOOKS_AT_NOTHING:
        raise TooEarly(random.uniform(*_BETWEEN_LOOKS_S))
    confirmed = journal.confirmed(plan.appid)
    changes = (
        replace(change, guards=(*change.guards, "takeover"), note=_SEEMS_LOST)
        if not change.before.is_whole
        and "takeover" not in change.guards
        and confirmed.get(change.kind, change.before).is_whole
        else change
        for change in plan.changes
    )
    return replace(plan, changes=tuple(changes))


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
        self._doubtful: dict[Kind, WeixinError] = {}
        # The kind whose error does not pass: nothing more is sent.
        self._stuck: Kind | None = None
        self._began_at = time.monotonic()
        self._paused_s = 0.0
        self._looks = 0
        self._is_over = False
        # After how many seconds WeChat shows nothing any more that was set before this.
        self._settled_after_s: dict[Kind, float] = {}
        if plan.changes:
            recent = journal.recent(plan.appid, within_s=wait_s)
            self._settled_after_s = {kind: wait_s - last.age_s for kind, last in recent.items()}
            journal.record(run, plan)

    @property
    def is_sent(self) -> bool:
        """Whether WeChat may hold a part of it."""
        return not _MAY_BE_HELD.isdisjoint(self.outcomes.values())

    def advance(self) -> float | None:
        """Send and read back; after how many seconds to call this again, None where all is done.

        Raises `WeixinError`, `TokenSourceError`, `NotConfirmed`, `MayBeSet`, `PartlySet` and
        `JournalFailed`.
        """
        with self._telling_what_was_sent():
            return self._advance()

    def flush(self) -> None:
        """Wait until all of it is on the disk. Raises `JournalFailed`."""
        with self._telling_what_was_sent():
            self._journal.flush()

    @contextmanager
    def _telling_what_was_sent(self) -> Iterator[None]:
        try:
            yield
        except JournalFailed as error:
            failure = error.with_sent(self.plan.appid) if self.is_sent else error
        else:
            return
        raise failure

    def _advance(self) -> float | None:
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
        failed = [change.kind for change in self._of("refused", "unsent")]
        if unknown := [change.kind for change in self._of("unknown")]:
            doubt = self._doubtful[unknown[0]]
            last = self._errors.get(unknown[0], doubt)
            raise MayBeSet(self.plan.appid, unknown, doubt, error=last, kept=kept, unsent=failed)
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
            may_be_set = False
            if isinstance(error, WeixinError) and error.action == f"set_{kind}":  # no token's call
                may_be_set = not error.rules_out_effect
                if may_be_set:
                    self._doubtful[kind] = error
            has_pause = pause_s(error, 0) is not None
            passes = may_be_set or has_pause
            # It asks to be left alone for longer than this waits.
            self._is_over |= isinstance(error, OutcomeUnknown) and not has_pause
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
            now = self._settings.read()
        except (WeixinError, TokenSourceError) as error:
            self._is_over = pause_s(error, 0) is None
            self._errors |= {change.kind: error for change in self._of("sent", "unknown")}
            return
        for change in self._of("sent", "unknown"):
            kind, is_sent = change.kind, self.outcomes[change.kind] == "sent"
            if is_sent:
                self._errors.pop(kind, None)
            # It may be old, where WeChat had it before: then only WeChat's own "ok" is proof.
            is_new = self._elapsed_s >= self._settled_after_s.get(kind, 0.0)
            is_proof = is_sent or (is_new and not are_alike(change.before, change.after))
            if is_proof and are_alike(now.for_kind(kind), change.after):
                self._errors.pop(kind, None)
                self._stuck = None if self._stuck == kind else self._stuck
                self._mark(change, "confirmed")

    @property
    def _elapsed_s(self) -> float:
        return max(self._paused_s, time.monotonic() - self._began_at)

    def _pause(self) -> float | None:
        """How many seconds to wait before the next look; None where the time is over."""
        left_s = self._wait_s - self._elapsed_s
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
        doubt = self._doubtful.get(change.kind)
        error = self._errors.get(change.kind, doubt)
        said = doubt if outcome == "unknown" else error
        detail = "" if said is None else str(said)
        self._journal.mark(self._run, self.plan.appid, change.kind, outcome, detail=detail)
        self.outcomes[change.kind] = outcome
