"""Make WeChat's settings what they should be, and believe only what was read back."""

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Self

from prefetch_kit.addresses import wechat_name
from prefetch_kit.errors import ConfigError, NoSuchRun, NothingToRollBack, PlanStale
from prefetch_kit.fetch_setting import FetchSetting, FetchSettings, Kind
from prefetch_kit.registrar.database import LOCKS
from prefetch_kit.registrar.execute import (
    WAIT_S,
    Execution,
    Looks,
    TooEarly,
    check_guards,
    plan_now,
)
from prefetch_kit.registrar.journal import Journal
from prefetch_kit.registrar.locks import Locks
from prefetch_kit.registrar.plan import (
    Change,
    Guard,
    Plan,
    Wanted,
    are_alike,
    check_wanted,
    checked_changes,
    explain,
    plan_rollback,
    plan_saved,
    plan_wanted,
)
from prefetch_kit.registrar.probe import Probed, probe_setting
from prefetch_kit.weixin.authorizations import WRITTEN_APPID
from prefetch_kit.weixin.settings import SettingsApi
from prefetch_kit.weixin.token_sources import token_source_of
from prefetch_kit.weixin.tokens import TokenSource
from prefetch_kit.weixin.transport import Transport

_LOCK_WAIT_S: Final = 30.0
_SETTLING_PAUSE_S: Final = 2.0


class Registrar:
    """The settings of one mini program at WeChat, changed by one process at a time.

    `tokens` is a `TokenSource`, or a function that returns the access token and is called again
    where WeChat rejects one. `state_dir` (PREFETCH_STATE_DIR) has the journal and the locks, one
    directory for all that change this mini program. `transport` leads to the real WeChat by
    default. For `wait_s` seconds WeChat may show less than what was set, and is asked again.
    `sleep` is called with seconds before that, and before a failed call is repeated.

    Raises `ConfigError`; methods raise `WeixinError`, `TokenSourceError` and `RegistrarError`.
    They end after `wait_s`, the deadlines of the calls, and one lock wait of 30 s; where something
    else was set less than `wait_s` ago, `apply` waits for the rest of that first. No lock is held
    during `approve`. Use it in a `with` block, which closes its connections.
    """

    def __init__(
        self,
        appid: str,
        *,
        tokens: TokenSource | Callable[[], str],
        state_dir: str | Path,
        transport: Transport | None = None,
        wait_s: float = WAIT_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not WRITTEN_APPID.match(appid):
            remedy = 'Give the mini program\'s own, "wx…"'
            raise ConfigError("appid", "is not an appid", remedy=remedy)
        self._appid = appid
        self._transport = transport or Transport()
        self._settings = SettingsApi(self._transport, token_source_of(tokens), sleep=sleep)
        directory = Path(state_dir, wechat_name(self._transport.base_url))
        self._journal = Journal(directory / "journal.sqlite3")
        self._locks = Locks(directory / LOCKS)
        self._wait_s = wait_s
        self._sleep = sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._transport.close()

    def read(self) -> FetchSettings:
        """What WeChat holds now."""
        return self._settings.get()

    def probe(
        self, setting: FetchSetting, *, kind: Kind = "pre_fetch", page: str | None = None
    ) -> Probed:
        """Pull the URL of a setting once as WeChat will, of `page` if given, and judge it.

        A cloud function cannot be pulled from here: its verdict says so.
        """
        return probe_setting(self._transport, setting, appid=self._appid, kind=kind, page=page)

    def plan(self, wanted: Wanted) -> Plan:
        """What `apply` would change, and why; sends nothing but one read.

        Raises `SourceRefused` before that for what WeChat could not be told.
        """
        check_wanted(wanted)
        return self._plan_wanted(self._settings.get(), wanted)

    def apply(
        self,
        wanted: Wanted,
        *,
        allow: Collection[Guard] = (),
        approve: Callable[[Plan], object] = lambda _: None,
    ) -> Plan:
        """Make WeChat fetch from where it is wanted, and read back that it does.

        A change that switches off what is on needs "disable" in `allow`, one that replaces a
        source of another host or environment "takeover": else `GuardRefused` is raised. `approve`
        gets a plan that has changes before anything is sent, and stops it by raising: probe URLs
        and ask a person there. Raises `PlanStale` where something else is to be done by then; what
        another registrar has done by then is left out of the plan that is returned.
        """
        check_wanted(wanted)
        return self._apply(
            lambda now: self._plan_wanted(now, wanted), wanted.keys(), allow, approve
        )

    def apply_changes(
        self,
        changes: Sequence[Change],
        *,
        allow: Collection[Guard] = (),
        approve: Callable[[Plan], object] = lambda _: None,
    ) -> Plan:
        """Execute the changes of a plan that was made earlier, the same way.

        Raises `PlanStale` where WeChat has changed since, what the plan wants excepted. Each
        needs the guards that it needed in its plan.
        """
        checked = checked_changes(changes)
        return self._apply(
            lambda now: plan_saved(self._appid, now, checked),
            [change.kind for change in checked],
            allow,
            approve,
        )

    def _apply(
        self,
        planned: Callable[[FetchSettings], Plan],
        kinds: Collection[Kind],
        allow: Collection[Guard],
        approve: Callable[[Plan], object],
    ) -> Plan:
        looks = Looks()

        def read() -> Plan:
            return self._plan_now(planned, kinds=kinds, looks=looks)

        approved = self._as_soon_as_settled(read, looks)
        if not approved.changes:
            return approved
        check_guards(approved, allow, "apply")
        approve(approved)
        with self._locks.hold(self._appid, wait_s=_LOCK_WAIT_S), self._journal:
            plan = self._as_soon_as_settled(read, looks)
            _check_fresh(plan, approved)
            if plan.changes:
                self._execute(plan, self._journal.begin("apply", appid=self._appid))
        return plan

    def _as_soon_as_settled(self, plan: Callable[[], Plan], looks: Looks) -> Plan:
        """What `plan` gives as soon as its `looks` can be believed."""
        while True:
            try:
                return plan()
            except TooEarly as early:
                pause = min(early.left_s, _SETTLING_PAUSE_S)
            looks.waited_s += pause
            self._sleep(pause)

    def _plan_wanted(self, now: FetchSettings, wanted: Wanted) -> Plan:
        plan = plan_wanted(self._appid, now, wanted)
        return explain(plan, self._journal.confirmed(self._appid)) if plan.changes else plan

    def rollback(
        self,
        *,
        to: int | None = None,
        allow: Collection[Guard] = (),
        approve: Callable[[Plan], object] = lambda _: None,
    ) -> Plan:
        """Undo the newest run that changed this app, a fleet's too, and read back that it is so.

        With `to` that run and all later ones are undone. `allow`, `approve` and `PlanStale` as
        with `apply`. Raises `NothingToRollBack` and `NoSuchRun`.
        """
        last = self._journal.last_applied(self._appid)
        since = last if to is None else to
        if since is None:
            raise NothingToRollBack(self._appid, str(self._journal.path))
        if to is not None and to not in (runs := self._journal.runs(self._appid)):
            raise NoSuchRun(to, runs, str(self._journal.path))
        approved = self._plan_rollback(since, Looks(waited_s=math.inf))
        check_guards(approved, allow, "rollback")
        if approved.changes:
            approve(approved)
        with self._locks.hold(self._appid, wait_s=_LOCK_WAIT_S), self._journal:
            looks = Looks()
            plan = self._as_soon_as_settled(lambda: self._plan_rollback(since, looks), looks)
            if self._journal.last_applied(self._appid) == last:
                _check_fresh(plan, approved)
                if since not in self._journal.runs(self._appid):  # it was pruned meanwhile
                    raise PlanStale(self._appid)
                run = self._journal.begin("rollback", appid=self._appid, returns_from=since)
                self._execute(plan, run, undoes=since)
            elif all(are_alike(change.before, change.after) for change in plan.changes):
                return replace(plan, changes=())  # another registrar has done the same
            else:
                raise PlanStale(self._appid)
        return plan

    def _plan_rollback(self, since: int, looks: Looks) -> Plan:
        past = self._journal.past(self._appid, since=since)
        return self._plan_now(
            lambda now: plan_rollback(self._appid, now, past),
            kinds=past.keys(),
            looks=looks,
            must_know_before=False,
        )

    def _plan_now(
        self,
        planned: Callable[[FetchSettings], Plan],
        *,
        kinds: Collection[Kind],
        looks: Looks,
        must_know_before: bool = True,
    ) -> Plan:
        return plan_now(
            self._appid,
            self._settings.read(),
            planned,
            self._journal,
            kinds=kinds,
            wait_s=self._wait_s,
            looks=looks,
            must_know_before=must_know_before,
        )

    def _execute(self, plan: Plan, run: int, *, undoes: int | None = None) -> None:
        execution = Execution(
            plan, run, self._settings, self._journal, wait_s=self._wait_s, undoes=undoes
        )
        try:
            while (pause := execution.advance()) is not None:
                self._sleep(pause)
        finally:
            execution.flush()


def _check_fresh(plan: Plan, approved: Plan) -> None:
    """What is still to do must have been approved exactly so; some of it may be done by now."""
    if not set(plan.changes) <= set(approved.changes):
        raise PlanStale(plan.appid)
