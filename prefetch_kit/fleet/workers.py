"""The workers of a fleet."""

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import Final

from prefetch_kit.errors import JournalFailed, PrefetchKitError, TemporaryFileFailed
from prefetch_kit.fleet.changes import NotSent, Pending
from prefetch_kit.fleet.results import Result, Tally, done_cause, failure, whose
from prefetch_kit.fleet.schedule import Schedule, Task
from prefetch_kit.registrar.plan import Plan
from prefetch_kit.weixin.retry import pause_s

_LOOK_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Summary:
    """How a fleet of `apps` ended; `stopped_because` is None where it was not stopped.

    `next_step`, a sentence without its full stop, says what to do where not all is done.
    `is_sent` says whether WeChat may hold something of what was sent, `is_deferred` whether it
    was stopped by what only takes time.
    """

    apps: int
    tally: Tally
    stopped_because: str | None
    next_step: str
    is_sent: bool = False
    is_deferred: bool = False

    @property
    def unreached(self) -> int:
        """How many apps the fleet stopped before."""
        return self.apps - self.tally.total

    @property
    def is_ended(self) -> bool:
        """Whether there is nothing to continue: all were reached, and nothing only waits."""
        return self.stopped_because is None and self.exit_code not in (5, 75)

    @property
    def exit_code(self) -> int:
        """What the fleet ended with.

        0: all done. 75 and 5: nothing failed, but some are deferred, or set and not yet confirmed.
        4: nothing was done. 1: anything else.
        """
        tally = self.tally
        if tally["done"] + tally["skipped"] == self.apps:
            return 0
        if not tally["failed"] and (self.stopped_because is None or self.is_deferred):
            if tally["deferred"]:
                return 75
            if tally["sent"]:
                return 5
        return 1 if tally["done"] or tally["sent"] or self.is_sent else 4


class Workers:
    """Threads that take tasks from a schedule, do `work` for each, and hand `report` the result.

    `work` returns an app's plan, executed where `sent`. With `skips_others` apps that are no mini
    programs are left out. `report` is called from the workers, `stopping` after the first Ctrl-C.
    """

    def __init__(
        self,
        schedule: Schedule,
        work: Callable[[Task], Plan],
        report: Callable[[Result], None],
        *,
        stopping: Callable[[], object],
        sent: bool,
        skips_others: bool,
    ) -> None:
        self._schedule = schedule
        self._work = work
        self._report = report
        self._stopping = stopping
        self._sent = sent
        self._skips_others = skips_others
        self._is_sent = False
        self._lock = threading.Lock()
        self._tally = Tally()
        self._broken: BaseException | None = None
        self._running = 0
        self._over: SimpleQueue[None] = SimpleQueue()

    def run(self, workers: int, *, apps: int) -> Summary:
        """Work until there is nothing left, or Ctrl-C: then what is under way is finished.

        Raises `JournalFailed` where a result could not be stored, and whatever is no error of
        the kit's.
        """
        for number in range(min(workers, apps)):
            with self._lock:
                self._running += 1
            try:
                threading.Thread(target=self._run, name=f"fleet-{number}", daemon=True).start()
            except RuntimeError:  # the system has no more threads: those that run do it all
                with self._lock:
                    self._running -= 1
                if not number:
                    raise
                break
        if apps:
            self._wait()
        if self._broken is not None:
            raise self._broken
        schedule = self._schedule
        return Summary(
            apps,
            self._tally,
            schedule.stopped_because,
            schedule.next_step,
            self._is_sent,
            schedule.is_deferred,
        )

    def _wait(self) -> None:
        # Not by Thread.join: where Ctrl-C interrupts that, Python 3.11 takes the thread for ended.
        # Nor by an Event, whose lock a second Ctrl-C can leave in disorder.
        is_interrupted = False
        while True:
            try:
                while self._running:
                    with suppress(Empty):
                        self._over.get(timeout=_LOOK_S)
            except KeyboardInterrupt:
                if is_interrupted:
                    raise
                is_interrupted = True
                self._schedule.stop("interrupted")
                self._stopping()
            else:
                return

    def _run(self) -> None:
        try:
            while (task := self._schedule.next()) is not None:
                self._do(task)
        except BaseException as error:  # noqa: BLE001 (raised on in the thread that waits)
            self._broken = self._broken or error
            self._schedule.stop("it broke")
        finally:
            with self._lock:
                self._running -= 1
                if not self._running:
                    self._over.put(None)

    def _do(self, task: Task) -> None:
        says_of = None
        try:
            plan = self._turn(task)
            if plan is None:
                return
            result = Result(task.appid, "done", done_cause(plan, sent=self._sent), plan)
        except NotSent as stopped:
            self._schedule.stop(str(stopped))
            result = Result(task.appid, "left", "the fleet stopped before anything was sent")
        except (JournalFailed, TemporaryFileFailed):
            raise
        except PrefetchKitError as error:
            delay_s = None if task.is_open else pause_s(error, task.tries)
            if delay_s is not None and self._schedule.again(task, delay_s=delay_s):
                return
            result = failure(task.appid, error, skips_others=self._skips_others)
            says_of = whose(error)
        if (execution := task.execution) is not None:
            result = replace(result, plan=execution.plan, outcomes=dict(execution.outcomes))
        with self._lock:
            self._is_sent |= task.is_open
            self._tally.add(result.appid, result.outcome, result.cause)
        self._report(result)
        self._schedule.finish(task, result, says_of=says_of)

    def _turn(self, task: Task) -> Plan | None:
        """The app's plan where all is done; None where it was put back for another turn."""
        try:
            return self._work(task)
        except Pending as pending:
            delay_s = pending.delay_s
        if delay_s is None:
            is_back = self._schedule.hold(task)
        else:
            is_back = self._schedule.later(task, delay_s=delay_s)
        if is_back:
            return None
        if task.is_open and task.execution is not None:
            with task.held:
                task.execution.end()
            return task.execution.plan
        raise NotSent("it is stopping")
