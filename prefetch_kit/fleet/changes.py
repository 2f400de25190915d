"""What a run does for each app: planned, sent and read back, over as many turns as that takes."""

from collections.abc import Callable
from threading import Lock
from typing import Final

from prefetch_kit.fetch_setting import KINDS
from prefetch_kit.fleet.schedule import Schedule, Task
from prefetch_kit.fleet.targets import Planned, kinds_of
from prefetch_kit.registrar.execute import (
    Execution,
    TooEarly,
    check_guards,
    plan_now,
)
from prefetch_kit.registrar.journal import Action, Journal
from prefetch_kit.registrar.locks import Locks
from prefetch_kit.registrar.plan import Guard, Plan
from prefetch_kit.weixin.settings import SettingsApi

_SETTLING_PAUSE_S: Final = 5.0
_MORE_THAN_MOST: Final = "another change would be one more than --max-changes"


class Pending(Exception):
    """An app needs another turn: in `delay_s` seconds, or once enough canaries are done (None)."""

    def __init__(self, delay_s: float | None) -> None:
        self.delay_s = delay_s
        super().__init__()


class NotSent(Exception):
    """The fleet is stopping, and nothing was sent for this app."""


class Budget:
    """How many changes may still be sent; None is no limit."""

    def __init__(self, most: int | None) -> None:
        self._lock = Lock()
        self._left = most
        self.is_used_up = False

    def take(self, count: int) -> bool:
        with self._lock:
            if self._left is None:
                return True
            if self._left < count:
                self.is_used_up = True
                return False
            self._left -= count
            return True

    def give_back(self, count: int) -> None:
        with self._lock:
            if self._left is not None:
                self._left += count


class Changes:
    """The changes of one run of a fleet.

    `planned` makes an app's plan of its target and of what WeChat shows, `prepare` gets that plan
    before it is sent.
    """

    def __init__(
        self,
        run: int,
        action: Action,
        *,
        journal: Journal,
        locks: Locks,
        schedule: Schedule,
        budget: Budget,
        settings_of: Callable[[Task], SettingsApi],
        planned: Planned,
        prepare: Callable[[Plan], object],
        allow: frozenset[Guard],
        wait_s: float,
        undoes: int | None,
    ) -> None:
        self._run = run
        self._action: Action = action
        self._journal = journal
        self._locks = locks
        self._schedule = schedule
        self._budget = budget
        self._settings_of = settings_of
        self._planned = planned
        self._prepare = prepare
        self._allow = allow
        self._wait_s = wait_s
        self._undoes = undoes

    def turn(self, task: Task) -> Plan:
        """Do what can be done for an app now; its plan where all of it is done.

        Raises `Pending`, `NotSent`, and what an `Execution` raises.
        """
        pause: float | None = None
        try:
            execution = task.execution
            if execution is None or not task.is_open:
                task.execution = None
                task.held.enter_context(self._locks.hold(task.appid, run=self._run))
                task.execution = execution = self._begun(task)
            pause = execution.advance()
        finally:
            task.is_open = task.execution is not None and task.execution.is_sent
            if not task.is_open:
                self._budget.give_back(task.taken)
                task.taken = 0
            if pause is None:
                task.held.close()
        if pause is not None:
            raise Pending(pause)
        return execution.plan

    def _begun(self, task: Task) -> Execution:
        plan = self._plan(task)
        if plan.changes:
            check_guards(plan, self._allow, self._action)
            if not self._schedule.may_send(task):
                raise Pending(None)
            if not self._budget.take(len(plan.changes)):
                raise NotSent(_MORE_THAN_MOST)
            task.taken = len(plan.changes)
            self._prepare(plan)
        settings = self._settings_of(task)
        return Execution(
            plan, self._run, settings, self._journal, wait_s=self._wait_s, undoes=self._undoes
        )

    def _plan(self, task: Task) -> Plan:
        is_apply = self._action == "apply"
        try:
            return plan_now(
                task.appid,
                self._settings_of(task).read(),
                lambda now: self._planned(task.appid, task.target, now),
                self._journal,
                kinds=kinds_of(task.target) if is_apply else KINDS,
                wait_s=self._wait_s,
                looks=task.looks,
                must_know_before=is_apply,
            )
        except TooEarly as early:
            delay_s = min(early.left_s, _SETTLING_PAUSE_S)
        task.looks.waited_s += delay_s
        raise Pending(delay_s)
