"""The settings of thousands of mini programs: the same as for one, many at a time.

Level-triggered: each app is read, compared, set where it differs and read back. So a fleet that
was killed is simply run again: what was done is found done. Calls may be repeated, their effect
stays the same.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from prefetch_kit.addresses import wechat_name
from prefetch_kit.errors import ConfigError, NoSuchRun, NothingToRollBack, PlanUnusable
from prefetch_kit.fetch_setting import FetchSettings
from prefetch_kit.fleet.aims import (
    Planned,
    changes_of,
    changes_text,
    plan_of_changes,
    plan_of_wanted,
    read_settings,
    settings_text,
)
from prefetch_kit.fleet.app_list import merchants, spool_wanted
from prefetch_kit.fleet.fleet_journal import FleetHistory, FleetJournal
from prefetch_kit.fleet.fleet_lock import only_fleet
from prefetch_kit.fleet.project import Pace, Project
from prefetch_kit.fleet.rate_limit import Rate, RateLimitedCalls, RateLimitedTransport
from prefetch_kit.fleet.results import Result
from prefetch_kit.fleet.schedule import Schedule, Task
from prefetch_kit.fleet.targets import Spool
from prefetch_kit.fleet.workers import LeftAlone, Summary, Workers
from prefetch_kit.registrar.domains import HostDomains
from prefetch_kit.registrar.execute import (
    APPLY_REASONS,
    ROLLBACK_REASONS,
    check_guards,
    execute,
)
from prefetch_kit.registrar.journal import Action
from prefetch_kit.registrar.plan import Guard, Plan, explain, plan_return
from prefetch_kit.registrar.plan_file import check_directory, read_plans, write_plans
from prefetch_kit.weixin.authorizers import Authorizers
from prefetch_kit.weixin.settings import SettingsApi
from prefetch_kit.weixin.sources import TokenSources

_JOURNAL: Final = "journal.sqlite3"

# A read does no harm, so none is held up, and no failures stop the others.
_NEVER: Final = 2.0
_STOPPING: Final = "it is stopping"

_Found = Iterator[tuple[str, FetchSettings]]


@dataclass(frozen=True, slots=True)
class Begun:
    """What a fleet is about to do. `run` is its number in the journal, None if it sends nothing.

    `unread` apps are not in the saved plan that it carries out, as they could not be read for it.
    """

    action: str
    apps: int
    run: int | None = None
    resumed: bool = False
    unread: int = 0


class Report(Protocol):
    """Who is told how a fleet goes, from its threads; one call at a time."""

    def begun(self, begun: Begun) -> None: ...

    def app(self, result: Result) -> None: ...


class _Silent:
    """Tells nobody: the summary is enough."""

    def begun(self, begun: Begun) -> None: ...

    def app(self, result: Result) -> None: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be sent: which guards are lifted, and how many changes there may be at most.

    Where `max_changes` is left out, the project's own is meant. With `ensure_domain` hosts are
    made business domains before a URL of theirs is set.
    """

    allow: frozenset[Guard] = frozenset()
    max_changes: int | None = None
    ensure_domain: bool = False


NO_GUARD_LIFTED: Final = Limits()


class Fleet:
    """The mini programs of a project, at the pace it names, for one run.

    Methods raise what their parts raise: `ConfigError`, `ListRefused`, `LockHeld`,
    `JournalFailed`, `PlanUnusable`, and while the list of merchants is read `WeixinError` and
    `TokenSourceError`. What goes wrong with one app is in its result. `settings_of` gives the
    way to one app's settings; the project says where left out.
    """

    def __init__(
        self,
        project: Project,
        report: Report | None = None,
        *,
        pace: Pace | None = None,
        settings_of: Callable[[str], SettingsApi] | None = None,
    ) -> None:
        self._project = project
        self._report = report or _Silent()
        self._pace = pace or project.pace
        self._stopping = threading.Event()
        self._settings_of = settings_of or self._own_settings
        self._transport = RateLimitedTransport(
            Rate(self._pace.rate, stopping=self._stopping),
            base_url=project.api_base_url,
            ca_file=project.ca_file,
        )
        self._tokens = TokenSources(project, self._transport)

    @property
    def history(self) -> FleetHistory:
        return FleetHistory(self._project.fleet_dir / _JOURNAL)

    def plan(self, *, out: str | Path | None = None) -> Summary:
        """What `apply` would do: one read an app. With `out` it is saved there.

        Apps that could not be read are counted there; a plan that was interrupted is not saved.
        """
        out = None if out is None else Path(out)
        if out is not None:
            check_directory(out)
        history = self.history
        is_known = history.exists()
        with self._wanted() as spool:

            def work(task: Task) -> Plan:
                current = self._settings_of(task.appid).get()
                plan = plan_of_wanted(task.appid, task.aim, current)
                if plan.changes and is_known:
                    plan = explain(plan, history.confirmed(task.appid))
                if plan.changes and out is not None:
                    spool.note(task.appid, changes_text(plan.changes))
                return plan

            self._report.begun(Begun("plan", len(spool)))
            summary = self._crew(work, self._schedule(spool, 0, _NEVER))
            if out is not None and summary.stopped_because is None:
                plans = ((appid, changes_of(text)) for appid, text in spool.found())
                unread = summary.apps - summary.tally["done"]
                write_plans(
                    out, plans, place=wechat_name(self._project.api_base_url), unread=unread
                )
        return summary

    def read(self, appids: Iterable[str] | None, take: Callable[[_Found], object]) -> Summary:
        """What WeChat has now for these apps, or for all the platform's merchants.

        `take` is called once, with each app that could be read and its settings; not at all if
        that was interrupted.
        """
        with Spool() as spool:
            for appid in merchants(self._authorizers) if appids is None else appids:
                spool.add(appid, "")

            def work(task: Task) -> Plan:
                current = self._settings_of(task.appid).get()
                spool.note(task.appid, settings_text(current))
                return Plan(task.appid, current, ())

            self._report.begun(Begun("import", len(spool)))
            summary = self._crew(work, self._schedule(spool, 0, _NEVER))
            if summary.stopped_because is None:
                take((appid, read_settings(text)) for appid, text in spool.found())
        return summary

    def apply(
        self, limits: Limits = NO_GUARD_LIFTED, *, saved: str | Path | None = None
    ) -> Summary:
        """Make WeChat fetch as the project says, or as a saved plan does, and read that back.

        A run that was cut short is gone on with, if all that is wanted is still the same.
        """
        with only_fleet(self._project.fleet_dir):
            if saved is None:
                with self._wanted() as spool:
                    return self._carry("apply", spool, plan_of_wanted, limits)
            with self._saved(Path(saved)) as (spool, unread):
                return self._carry("apply", spool, plan_of_changes, limits, unread=unread)

    def rollback(self, limits: Limits = NO_GUARD_LIFTED, *, to: int | None = None) -> Summary:
        """Bring back what stood there before the last apply, or before the run `to`.

        Raises `NothingToRollBack` and `NoSuchRun`.
        """
        with only_fleet(self._project.fleet_dir):
            history = self.history
            fleet = history.last_applied() if to is None else to
            if fleet is None:
                raise NothingToRollBack("The fleet", str(history.path))
            if fleet not in (known := history.known()):
                raise NoSuchRun(fleet, known, str(history.path))
            first = history.first_run(fleet)
            with Spool() as spool:
                for appid in history.changed_since(first):
                    spool.add(appid, str(first))
                return self._carry("rollback", spool, None, limits, returns_from=fleet)

    @property
    def _authorizers(self) -> Authorizers | None:
        platform = self._tokens.platform
        return None if platform is None else platform.authorizers

    def _domains(self, changes: "_Changes") -> Callable[[str, str], HostDomains]:
        """From an appid and a host."""
        if (platform := self._tokens.platform) is None:
            raise ConfigError(
                f"{self._project.path}: [tokens] component_appid",
                "is missing, and WeChat lets nobody but third-party platforms add domains",
                remedy="Give it with component_secret, or leave out --ensure-domain",
            )
        lock = threading.Lock()

        @contextmanager
        def turn() -> Iterator[None]:
            with lock:
                # Who was let in before --max-changes was reached still goes on.
                if self._stopping.is_set() and not changes.are_used_up:
                    raise LeftAlone(_STOPPING)
                yield

        return partial(
            HostDomains.of_merchant, platform=platform, transport=self._transport, turn=turn
        )

    @contextmanager
    def _wanted(self) -> Iterator[Spool]:
        with Spool() as spool:
            spool_wanted(self._project, self._authorizers, spool)
            yield spool

    @contextmanager
    def _saved(self, path: Path) -> Iterator[tuple[Spool, int]]:
        unread: list[int] = []
        with Spool() as spool:
            place = wechat_name(self._project.api_base_url)
            for appid, changes in read_plans(path, place=place, at_end=unread.append):
                if not spool.add(appid, changes_text(changes)):
                    raise PlanUnusable(str(path), f"{appid} is there twice")
            yield spool, sum(unread)

    def _carry(
        self,
        action: Action,
        spool: Spool,
        planned: Planned | None,
        limits: Limits,
        *,
        returns_from: int | None = None,
        unread: int = 0,
    ) -> Summary:
        path = self._project.fleet_dir / _JOURNAL
        most = limits.max_changes
        changes = _Changes(self._pace.max_changes if most is None else most)
        domains = self._domains(changes) if limits.ensure_domain else None
        with FleetJournal(path, on_failure=self._stopping.set) as journal:
            journal.begin_fleet(
                action, spool.fingerprint(), apps=len(spool), returns_from=returns_from
            )
            self._report.begun(Begun(action, len(spool), journal.fleet, journal.resumed, unread))
            schedule = self._schedule(spool, self._pace.canary, self._pace.stop_at)

            def work(task: Task) -> Plan:
                settings = self._settings_of(task.appid)
                plan = plan_of(task.appid, task.aim, settings.get())
                if plan.changes:
                    check_guards(plan, limits.allow, reasons)
                    if not schedule.may_send(task):
                        raise LeftAlone(_STOPPING)
                    if not changes.take(len(plan.changes)):
                        raise LeftAlone("another change would be one more than --max-changes")
                    if domains is not None and self._tokens.are_of_platform(task.appid):
                        for host in plan.hosts:
                            domains(task.appid, host).ensure(directly=False).check()
                    execute(plan, journal.begin(plan, action), settings, journal)
                return plan

            plan_of = planned or _plan_back(journal)
            reasons = APPLY_REASONS if action == "apply" else ROLLBACK_REASONS
            summary = self._crew(work, schedule, journal=journal)
            # What failed is for another run. But a rollback is done only when all is back: else
            # the next one would undo an earlier apply too.
            is_back = summary.exit_code == 0
            journal.end_fleet(ended=summary.is_ended if action == "apply" else is_back)
        return summary

    def _schedule(self, spool: Spool, canary: int, stop_at: float) -> Schedule:
        return Schedule(
            spool, total=len(spool), canary=canary, stop_at=stop_at, stopping=self._stopping
        )

    def _crew(
        self,
        work: Callable[[Task], Plan],
        schedule: Schedule,
        *,
        journal: FleetJournal | None = None,
    ) -> Summary:
        def report(result: Result) -> None:
            if journal is not None:
                journal.note(result.appid, result.outcome, result.cause)
            self._report.app(result)

        crew = Workers(schedule, work, report, sent=journal is not None)
        try:
            return crew.run(workers=self._pace.workers, apps=schedule.total)
        finally:
            self._transport.close()

    def _own_settings(self, appid: str) -> SettingsApi:
        rate = Rate(self._pace.per_app_rate, stopping=self._stopping)
        return SettingsApi(
            RateLimitedCalls(self._transport, rate),
            self._tokens.of(appid),
            max_wait_s=0,  # it is tried again when its turn comes, and no worker waits
        )


class _Changes:
    """How many changes may still be sent."""

    def __init__(self, most: int | None) -> None:
        self._lock = threading.Lock()
        self._left = most
        self.are_used_up = False

    def take(self, count: int) -> bool:
        with self._lock:
            if self._left is None:
                return True
            if self._left < count:
                self.are_used_up = True
                return False
            self._left -= count
            return True


def _plan_back(journal: FleetJournal) -> Planned:
    def planned(appid: str, aim: str, current: FetchSettings) -> Plan:
        return plan_return(appid, current, journal.past(appid, int(aim)))

    return planned
