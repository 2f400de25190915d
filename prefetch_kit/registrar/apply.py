"""Make WeChat's settings what they should be, and believe only what was read back."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from prefetch_kit.errors import (
    JournalFailed,
    LockHeld,
    NoSuchRun,
    NothingToRollBack,
    PlanStale,
)
from prefetch_kit.registrar.carry import (
    APPLY_REASONS,
    ROLLBACK_REASONS,
    carry_out,
    check_guards,
)
from prefetch_kit.registrar.journal import Journal
from prefetch_kit.registrar.plan import (
    Change,
    Guard,
    Past,
    Plan,
    Target,
    explain,
    plan_return,
    plan_saved,
    plan_targets,
)
from prefetch_kit.registrar.state_dir import make_directory
from prefetch_kit.weixin.settings import FetchSettings, Kind, SettingsApi

_LOCK_WAIT_S: Final = 30.0


class Registrar:
    """The settings of one mini program, changed one registrar at a time.

    `state_dir` holds the journal and the lock. Methods raise `WeixinError`, `TokenSourceError`
    and `RegistrarError`; they end within the deadlines of the calls they make: at most three
    reads, for each kind of pull one more and two writes, and one lock wait of 30 s. However
    long `approve` takes, no lock is held meanwhile.
    """

    def __init__(self, appid: str, *, settings: SettingsApi, state_dir: Path) -> None:
        self._appid = appid
        self._settings = settings
        self._state_dir = state_dir
        self._journal = Journal(state_dir / "journal.sqlite3")

    def current(self) -> FetchSettings:
        """What WeChat holds now."""
        return self._settings.get()

    def plan(self, targets: Sequence[Target]) -> Plan:
        """What `apply` would change, and why; sends nothing but one read."""
        plan = plan_targets(self._appid, self._settings.get(), targets)
        return explain(plan, self._journal.confirmed(self._appid)) if plan.changes else plan

    def apply(
        self,
        targets: Sequence[Target],
        *,
        allow: frozenset[Guard] = frozenset(),
        approve: Callable[[Plan], object],
    ) -> Plan:
        """Point WeChat at the targets and read back that it is so.

        `approve` sees the plan before anything is sent, and stops it by raising: the place to
        probe the URLs and to ask a person. It is not called where nothing is to do. Raises
        `PlanStale` where something else is to be done by then; what another registrar has done
        by then is left out of the plan that is returned.
        """
        return self._apply(lambda: self.plan(targets), allow, approve)

    def apply_saved(
        self,
        saved: Sequence[Change],
        *,
        allow: frozenset[Guard] = frozenset(),
        approve: Callable[[Plan], object],
    ) -> Plan:
        """Carry out the changes of a saved plan, the same way.

        Raises `PlanStale` where WeChat has changed since, what the plan wants excepted.
        """
        return self._apply(
            lambda: plan_saved(self._appid, self._settings.get(), saved), allow, approve
        )

    def _apply(
        self,
        planned: Callable[[], Plan],
        allow: frozenset[Guard],
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
                self._carry_out(plan, self._journal.begin(plan, "apply"))
        return plan

    def rollback(
        self,
        *,
        to: int | None = None,
        allow: frozenset[Guard] = frozenset(),
        approve: Callable[[Plan], object],
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
        allow: frozenset[Guard],
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
                self._carry_out(plan, self._journal.begin(plan, "rollback", returns_from=run))
            elif plan.changes:
                raise PlanStale(self._appid)
        return plan

    def _carry_out(self, plan: Plan, run: int) -> None:
        carry_out(plan, run, self._settings, self._journal)

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
