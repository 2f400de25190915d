"""Make WeChat's settings what they should be, and believe only what was read back."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

from filelock import FileLock, Timeout

from prefetch_kit.addresses import wechat_name
from prefetch_kit.errors import (
    ConfigError,
    JournalFailed,
    LockHeld,
    NoSuchRun,
    NothingToRollBack,
    PlanStale,
)
from prefetch_kit.fetch_setting import FetchSetting, FetchSettings, Kind
from prefetch_kit.registrar.execute import (
    APPLY_REASONS,
    ROLLBACK_REASONS,
    check_guards,
    execute,
)
from prefetch_kit.registrar.journal import Journal
from prefetch_kit.registrar.plan import (
    Change,
    Guard,
    Past,
    Plan,
    Wanted,
    check_wanted,
    checked_changes,
    explain,
    plan_return,
    plan_saved,
    plan_wanted,
)
from prefetch_kit.registrar.probe import Probed, probe_setting
from prefetch_kit.registrar.state_dir import make_directory
from prefetch_kit.weixin.grants import APPID_SHAPE
from prefetch_kit.weixin.settings import SettingsApi
from prefetch_kit.weixin.tokens import TokenSource, token_source_of
from prefetch_kit.weixin.transport import Transport

_LOCK_WAIT_S: Final = 30.0


class Registrar:
    """The settings of one mini program at WeChat, changed by one process at a time.

    `tokens` is a `TokenSource`, or a function that gives the access token to use now and is
    asked again where WeChat rejects one. `state_dir` holds the journal that `rollback` needs:
    the same directory (PREFETCH_STATE_DIR) for all that change this mini program. `transport`
    says which WeChat is meant, by default the real one. `sleep` is called with seconds where
    WeChat asks to wait.

    Raises `ConfigError`; methods raise `WeixinError`, `TokenSourceError` and `RegistrarError`.
    They end within the deadlines of the calls they make: at most three reads, for each kind of
    pull one more and two writes, and one lock wait of 30 s. However long `approve` takes, no lock
    is held meanwhile.
    Use it in a `with` block, which closes its connections.
    """

    def __init__(
        self,
        appid: str,
        *,
        tokens: TokenSource | Callable[[], str],
        state_dir: str | Path,
        transport: Transport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not APPID_SHAPE.match(appid):
            raise ConfigError("appid", "is none", remedy='Give the mini program\'s own, "wx…"')
        self._appid = appid
        self._transport = transport or Transport()
        self._settings = SettingsApi(self._transport, token_source_of(tokens), sleep=sleep)
        self._state_dir = Path(state_dir, wechat_name(self._transport.base_url), appid)
        self._journal = Journal(self._state_dir / "journal.sqlite3")

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
        plan = plan_wanted(self._appid, self._settings.get(), wanted)
        return explain(plan, self._journal.confirmed(self._appid)) if plan.changes else plan

    def apply(
        self,
        wanted: Wanted,
        *,
        allow: Collection[Guard] = (),
        approve: Callable[[Plan], object] = lambda _: None,
    ) -> Plan:
        """Make WeChat fetch from where it is wanted, and read back that it does.

        A change that switches off what is on needs "disable" in `allow`, one that replaces a
        source of another host or environment "takeover": else `GuardRefused` is raised, before
        anything is sent. `approve` sees the plan before that, and stops it by raising: the place
        to probe URLs and to ask a person. It is not called where nothing is to do. Raises
        `PlanStale` where something else is to be done by then; what another registrar has done
        by then is left out of the plan that is returned.
        """
        return self._apply(lambda: self.plan(wanted), allow, approve)

    def apply_changes(
        self,
        changes: Sequence[Change],
        *,
        allow: Collection[Guard] = (),
        approve: Callable[[Plan], object] = lambda _: None,
    ) -> Plan:
        """Carry out the changes of a plan that was made earlier, the same way.

        Raises `PlanStale` where WeChat has changed since, what the plan wants excepted. Each
        needs the guards that it needed in its plan.
        """
        checked = checked_changes(changes)
        return self._apply(
            lambda: plan_saved(self._appid, self._settings.get(), checked), allow, approve
        )

    def _apply(
        self,
        planned: Callable[[], Plan],
        allow: Collection[Guard],
        approve: Callable[[Plan], object],
    ) -> Plan:
        approved = planned()
        if not approved.changes:
            return approved
        check_guards(approved, allow, APPLY_REASONS)
        approve(approved)
        with self._locked():
            plan = planned()
            _check_fresh(plan, approved)
            if plan.changes:
                self._execute(plan, self._journal.begin(plan, "apply"))
        return plan

    def rollback(
        self,
        *,
        to: int | None = None,
        allow: Collection[Guard] = (),
        approve: Callable[[Plan], object] = lambda _: None,
    ) -> Plan:
        """Undo the newest apply that was not rolled back yet, and read back that it is so.

        With `to` all that was done from that run on is undone: what stood there before it
        stands there again. `allow`, `approve` and `PlanStale` as with `apply`. Raises
        `NothingToRollBack` where the journal knows of no such apply, `NoSuchRun` of no such run.
        """
        if to is None:
            return self._undo(self._last_applied(), self._journal.past, allow, approve)
        if to not in (runs := self._journal.runs(self._appid)):
            raise NoSuchRun(to, runs, str(self._journal.path))
        return self._undo(to, self._journal.since, allow, approve)

    def _last_applied(self) -> int:
        applied = self._journal.last_applied(self._appid)
        if applied is None:
            raise NothingToRollBack(self._appid, str(self._journal.path))
        return applied

    def _undo(
        self,
        run: int,
        past: Callable[[str, int], Mapping[Kind, Past]],
        allow: Collection[Guard],
        approve: Callable[[Plan], object],
    ) -> Plan:
        def planned() -> Plan:
            return plan_return(self._appid, self._settings.get(), past(self._appid, run))

        undone_by = self._journal.last_applied(self._appid)
        approved = planned()
        check_guards(approved, allow, ROLLBACK_REASONS)
        if approved.changes:
            approve(approved)
        with self._locked():
            plan = planned()
            if self._journal.last_applied(self._appid) == undone_by:
                _check_fresh(plan, approved)
                self._execute(plan, self._journal.begin(plan, "rollback", returns_from=run))
            elif plan.changes:
                raise PlanStale(self._appid)
        return plan

    def _execute(self, plan: Plan, run: int) -> None:
        execute(plan, run, self._settings, self._journal)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        path = self._state_dir / f"{self._appid}.lock"
        try:
            make_directory(self._state_dir)
            lock = FileLock(path, timeout=_LOCK_WAIT_S, mode=0o600).acquire()
        except Timeout:
            raise LockHeld(str(path), _LOCK_WAIT_S) from None
        except OSError as error:
            raise JournalFailed(str(path), str(error)) from error
        with lock:
            yield


def _check_fresh(plan: Plan, approved: Plan) -> None:
    """What is still to do must have been approved exactly so; some of it may be done by now."""
    if not set(plan.changes) <= set(approved.changes):
        raise PlanStale(plan.appid)
