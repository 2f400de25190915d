"""The settings of thousands of mini programs: the same as for one, many at a time.

Level-triggered: each app is read, compared, set where it differs and read back. So a fleet that
was killed is simply run again: what was done is found done. Calls may be repeated, their effect
stays the same.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from prefetch_kit.addresses import wechat_name
from prefetch_kit.errors import ConfigError, NoSuchRun, NothingToRollBack, PlanUnusable
from prefetch_kit.fetch_setting import FetchSettings
from prefetch_kit.fleet.app_list import (
    fill_targets,
    listed_appids,
    merchants,
    recover_tokens,
    source_of_apps,
)
from prefetch_kit.fleet.changes import Budget, Changes, NotSent
from prefetch_kit.fleet.project import Pace, Project
from prefetch_kit.fleet.rate_limit import Rate, RateLimitedCalls, RateLimitedTransport
from prefetch_kit.fleet.results import Result
from prefetch_kit.fleet.schedule import Schedule, Task
from prefetch_kit.fleet.selection import EVERY_APP, Selection
from prefetch_kit.fleet.targets import (
    Planned,
    Targets,
    changes_of,
    changes_text,
    plan_of_changes,
    plan_of_wanted,
    read_settings,
    settings_text,
)
from prefetch_kit.fleet.workers import Summary, Workers
from prefetch_kit.quoting import harmless
from prefetch_kit.registrar.database import LOCKS
from prefetch_kit.registrar.domains import HostDomains
from prefetch_kit.registrar.journal import Action, Journal
from prefetch_kit.registrar.locks import FLEET, Locks
from prefetch_kit.registrar.plan import Guard, Plan, explain, plan_rollback
from prefetch_kit.registrar.plan_file import check_directory, read_plans, write_plans
from prefetch_kit.weixin.authorizers import Authorizers
from prefetch_kit.weixin.settings import SettingsApi
from prefetch_kit.weixin.token_sources import TokenSources

_NEVER: Final = 2.0  # a share that is never reached: a read does no harm to the other apps

_Found = Iterator[tuple[str, FetchSettings]]


@dataclass(frozen=True, slots=True)
class Begun:
    """What a fleet is about to do. `run` is its number in the journal, None if it sends nothing.

    `unread` apps are not in the saved plan that it executes, as they could not be read for it;
    `unlisted` ones are, and are left out, as they are no longer on the list. A rollback
    `returns_from` a run; `left_by` is an older one, and how many apps keep what that set.
    """

    action: str
    apps: int
    run: int | None = None
    resumed: bool = False
    unread: int = 0
    unlisted: tuple[str, ...] = ()
    returns_from: int | None = None
    left_by: tuple[int, int] | None = None


class Report(Protocol):
    """Receives the progress of a fleet, from its threads; one call at a time."""

    def begun(self, begun: Begun) -> None: ...

    def app(self, result: Result) -> None: ...

    def listed(self, merchants: int, total: int) -> None:
        """So many of the platform's merchants were read so far, before anything is begun."""

    def stopping(self) -> None:
        """Ctrl-C came: what is under way is finished. From the thread that runs the fleet."""


class _Silent:
    """For those to whom the summary is enough."""

    def begun(self, begun: Begun) -> None: ...

    def app(self, result: Result) -> None: ...

    def listed(self, merchants: int, total: int) -> None: ...

    def stopping(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be sent: which guards are lifted, and how many changes there may be at most.

    Without `max_changes` the project's own applies. With `ensure_domain` hosts are made business
    domains before a URL of theirs is set.
    """

    allow: frozenset[Guard] = frozenset()
    max_changes: int | None = None
    ensure_domain: bool = False


NO_GUARD_LIFTED: Final = Limits()


class Fleet:
    """The mini programs of a project, at the pace it names, for one run.

    Methods raise what their parts raise: `ConfigError`, `ListRefused`, `LockHeld`,
    `JournalFailed`, `TemporaryFileFailed`, `PlanUnusable`, and while the list of merchants is read
    `WeixinError` and `TokenSourceError`. What goes wrong with one app is in its result.
    `selection` leaves apps out. `settings_of` gives the way to one app's settings; the project
    says where left out.
    """

    def __init__(
        self,
        project: Project,
        report: Report | None = None,
        *,
        pace: Pace | None = None,
        selection: Selection = EVERY_APP,
        settings_of: Callable[[str], SettingsApi] | None = None,
    ) -> None:
        self._project = project
        self._report = report or _Silent()
        self._pace = pace or project.pace
        self._selection = selection
        self._stopping = threading.Event()
        self._settings_of = settings_of or self._own_settings
        self._transport = RateLimitedTransport(
            Rate(self._pace.rate, stopping=self._stopping),
            base_url=project.api_base_url,
            ca_file=project.ca_file,
            proxy=project.proxy,
        )
        self._tokens = TokenSources(project, self._transport)
        self._locks = Locks(project.wechat_dir / LOCKS)
        # The journal of all runs for this WeChat, also of those for one app alone.
        self.history: Final = Journal(project.wechat_dir / "journal.sqlite3")
        self._telling = threading.Lock()

    @property
    def holder(self) -> str | None:
        """The process in which a fleet runs now, in words; None where no fleet runs."""
        return self._locks.holder(FLEET)

    def plan(self, *, out: str | Path | None = None) -> Summary:
        """What `apply` would do: one read an app. With `out` it is saved there.

        Apps that could not be read are counted there; a plan that was interrupted is not saved.
        """
        out = None if out is None else Path(out)
        if out is not None:
            check_directory(out)
        with Targets() as targets, ExitStack() as stack:
            self._fill(targets)
            is_known = self.history.exists()
            if is_known:
                stack.enter_context(self.history)

            def work(task: Task) -> Plan:
                current = self._settings(task).get()
                plan = plan_of_wanted(task.appid, task.target, current)
                if plan.changes and is_known:
                    plan = explain(plan, self.history.confirmed(task.appid))
                if plan.changes and out is not None:
                    targets.note(task.appid, changes_text(plan.changes))
                return plan

            summary = self._read("plan", targets, work)
            if out is not None and summary.stopped_because is None:
                plans = ((appid, changes_of(text)) for appid, text in targets.found())
                unread = summary.apps - summary.tally["done"] - summary.tally["skipped"]
                wechat = wechat_name(self._project.api_base_url)
                write_plans(out, plans, wechat=wechat, unread=unread)
        return summary

    def read(self, appids: Iterable[str] | None, take: Callable[[_Found], object]) -> Summary:
        """What WeChat has now for these apps, or for all the platform's merchants.

        `take` is called once, with each app that could be read and its settings; not at all if
        that was interrupted, or none could be read.
        """
        with Targets() as targets:
            every = merchants(self._authorizers, self._report.listed)
            for appid in every if appids is None else appids:
                targets.add(appid)
            self._selection.reduce(targets, source_of_apps(self._project))

            def work(task: Task) -> Plan:
                current = self._settings(task).get()
                targets.note(task.appid, settings_text(current))
                return Plan(task.appid, current, ())

            summary = self._read("import", targets, work)
            if summary.stopped_because is None and summary.tally["done"]:
                take((appid, read_settings(text)) for appid, text in targets.found())
        return summary

    def apply(
        self, limits: Limits = NO_GUARD_LIFTED, *, saved: str | Path | None = None
    ) -> Summary:
        """Make WeChat fetch as the project says, or as a saved plan does, and read that back.

        A run that was cut short is continued, whatever is wanted now: one rollback undoes it all.
        """
        with self._locks.hold(FLEET), Targets() as targets:
            if saved is None:
                self._fill(targets)
                return self._change("apply", targets, limits, plan_of_wanted)
            path, unread = Path(saved), list[int]()
            wechat = wechat_name(self._project.api_base_url)
            for appid, changes in read_plans(path, wechat=wechat, at_end=unread.append):
                if not targets.add(appid, changes_text(changes)):
                    raise PlanUnusable(str(path), f"{harmless(appid)} is there twice")
            unlisted = self._drop_unlisted(targets, path)
            self._selection.reduce(targets, str(path))
            return self._change(
                "apply", targets, limits, plan_of_changes, unread=sum(unread), unlisted=unlisted
            )

    def rollback(self, limits: Limits = NO_GUARD_LIFTED, *, to: int | None = None) -> Summary:
        """Bring back what WeChat held before the last apply of a fleet, for each app it changed.

        What was done for these apps since is undone with it. With `to` all that was done from
        that run on is undone, for every app, also by runs for one app alone. Raises
        `NothingToRollBack` and `NoSuchRun`.
        """
        history = self.history
        with self._locks.hold(FLEET), Targets() as targets:
            since = history.last_fleet_applied() if to is None else to
            if since is None:
                raise NothingToRollBack("The fleet", str(history.path))
            if to is not None and to not in (known := history.runs()):
                raise NoSuchRun(to, known, str(history.path))
            changed = history.changed(since) if to is None else history.changed_since(since)
            for appid in changed:
                targets.add(appid)
            self._selection.reduce(targets, f"what run {since} changed, and was not rolled back")

            def planned(appid: str, _: str, current: FetchSettings) -> Plan:
                return plan_rollback(appid, current, history.past(appid, since=since))

            left_by = history.older_fleet_apply(since) if to is None else None
            return self._change("rollback", targets, limits, planned, undoes=since, left_by=left_by)

    def _fill(self, targets: Targets) -> None:
        shown = self._report.listed
        fill_targets(self._project, self._authorizers, targets, shown=shown)
        self._selection.reduce(targets, source_of_apps(self._project))
        recover_tokens(self._project, self._authorizers, targets, shown=shown)

    def _drop_unlisted(self, targets: Targets, plan: Path) -> tuple[str, ...]:
        """Take out those that came off the list after the plan was saved; who they are.

        An app is taken off the list to be left alone.
        """
        listed = listed_appids(self._project, self._authorizers, self._report.listed)
        unlisted = tuple(appid for appid, _ in targets if appid not in listed)
        for appid in unlisted:
            targets.drop(appid)
        if unlisted and not len(targets):
            raise PlanUnusable(str(plan), "none of its mini programs is on the list any more")
        return unlisted

    @property
    def _authorizers(self) -> Authorizers | None:
        platform = self._tokens.platform
        return None if platform is None else platform.authorizers

    def _domains(self, budget: Budget) -> Callable[[str, str], HostDomains]:
        """What adds a host's business domain, made from an appid and the host."""
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
                # What may be sent below --max-changes is still sent.
                if self._stopping.is_set() and not budget.is_used_up:
                    raise NotSent("it is stopping")
                yield

        return partial(
            HostDomains.of_merchant, platform=platform, transport=self._transport, turn=turn
        )

    def _read(self, action: str, targets: Targets, work: Callable[[Task], Plan]) -> Summary:
        """Do `work` for each app, which sends nothing."""
        self._report.begun(Begun(action, len(targets)))
        schedule = self._schedule(targets, canary=0, stop_at=_NEVER)
        skips_others = self._project.apps is None
        stopping = self._report.stopping
        workers = Workers(
            schedule, work, self._tell, stopping=stopping, sent=False, skips_others=skips_others
        )
        return self._work(workers, schedule)

    def _change(
        self,
        action: Action,
        targets: Targets,
        limits: Limits,
        planned: Planned,
        *,
        undoes: int | None = None,
        unread: int = 0,
        unlisted: tuple[str, ...] = (),
        left_by: tuple[int, int] | None = None,
    ) -> Summary:
        """Do what is `planned` for each app; with `undoes` all since that run is undone by it."""
        most = self._pace.max_changes if limits.max_changes is None else limits.max_changes
        budget = Budget(most)
        domains = self._domains(budget) if limits.ensure_domain else None

        def prepare(plan: Plan) -> None:
            if domains is not None and self._tokens.are_of_platform(plan.appid):
                for host in plan.hosts:
                    domains(plan.appid, host).ensure(directly=False).check()

        with self.history as journal:
            run, is_resumed = journal.begin_fleet(action, apps=len(targets), returns_from=undoes)
            if is_resumed and self._selection.is_all:
                others = sum(appid not in targets for appid, _, _ in journal.results(run))
                journal.resize(run, apps=len(targets) + others)
            self._report.begun(
                Begun(
                    action,
                    len(targets),
                    run,
                    resumed=is_resumed,
                    unread=unread,
                    unlisted=unlisted,
                    returns_from=undoes,
                    left_by=left_by,
                )
            )
            pace = self._pace
            schedule = self._schedule(targets, canary=pace.canary, stop_at=pace.stop_at)

            changes = Changes(
                run,
                action,
                journal=journal,
                locks=self._locks,
                schedule=schedule,
                budget=budget,
                settings_of=self._settings,
                planned=planned,
                prepare=prepare,
                allow=limits.allow,
                wait_s=pace.wait_s,
                undoes=undoes,
            )

            def report(result: Result) -> None:
                journal.note(run, result.appid, result.outcome, result.cause)
                self._tell(result)

            is_apply = action == "apply"
            skips_others = is_apply and self._project.apps is None
            stopping = self._report.stopping
            workers = Workers(
                schedule,
                changes.turn,
                report,
                stopping=stopping,
                sent=True,
                skips_others=skips_others,
            )
            summary = self._work(workers, schedule)
            # What failed is for another run. But a rollback is done only when all is back, and a
            # run that was cut short is not ended by one for some of its apps.
            is_over = summary.is_ended if is_apply else summary.exit_code == 0
            if is_over and (self._selection.is_all or not is_resumed):
                journal.end_fleet(run)
            journal.flush()
        return summary

    def _schedule(self, targets: Targets, *, canary: int, stop_at: float) -> Schedule:
        return Schedule(
            targets, total=len(targets), canary=canary, stop_at=stop_at, stopping=self._stopping
        )

    def _work(self, workers: Workers, schedule: Schedule) -> Summary:
        try:
            return workers.run(self._pace.workers, apps=schedule.total)
        finally:
            self._transport.close()

    def _tell(self, result: Result) -> None:
        with self._telling:
            self._report.app(result)

    def _settings(self, task: Task) -> SettingsApi:
        """The way to an app's settings, which keeps to a rate of its own over all turns."""
        if task.settings is None:
            task.settings = self._settings_of(task.appid)
        return task.settings

    def _own_settings(self, appid: str) -> SettingsApi:
        rate = Rate(self._pace.per_app_rate, stopping=self._stopping)
        return SettingsApi(
            RateLimitedCalls(self._transport, rate),
            self._tokens.of(appid),
            max_wait_s=0,  # it is tried again when its turn comes, and no worker waits
        )
