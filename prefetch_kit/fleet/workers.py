"""The workers of a fleet."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from prefetch_kit.errors import JournalFailed, PrefetchKitError
from prefetch_kit.fleet.results import Result, Tally, done_cause, failure, is_of_the_account
from prefetch_kit.fleet.schedule import Schedule, Task
from prefetch_kit.registrar.plan import Plan
from prefetch_kit.weixin.retry import pause_s

_LOOK_S: Final = 0.2


class NotSent(Exception):
    """The fleet is stopping, and nothing was sent for this app."""


@dataclass(frozen=True, slots=True)
class Summary:
    """How a fleet of `apps` ended; `stopped_because` is None where it was not stopped.

    `next_step`, a sentence without its full stop, says what to do where not all is done.
    """

    apps: int
    tally: Tally
    stopped_because: str | None
    next_step: str

    @property
    def unreached(self) -> int:
        """How many apps the fleet stopped before."""
        return self.apps - self.tally.total

    @property
    def is_ended(self) -> bool:
        """Whether there is nothing to continue: all were reached, and nothing only waits."""
        return self.stopped_because is None and self.exit_code != 75

    @property
    def exit_code(self) -> int:
        """0: all done, 1: some are not, 4: none could be done, 75: only deferred ones remain."""
        tally = self.tally
        if tally["done"] == self.apps:
            return 0
        if tally["deferred"] and not tally["failed"] and self.stopped_because is None:
            return 75
        return 1 if tally["done"] else 4


class Workers:
    """Threads that take tasks from a schedule, do `work` for each, and hand `report` the result.

    `work` returns an app's plan, executed where `sent`. `report` is called from the workers.
    """

    def __init__(
        self,
        schedule: Schedule,
        work: Callable[[Task], Plan],
        report: Callable[[Result], None],
        *,
        sent: bool,
    ) -> None:
        self._schedule = schedule
        self._work = work
        self._report = report
        self._sent = sent
        self._lock = threading.Lock()
        self._tally = Tally()
        self._broken: BaseException | None = None
        self._running = 0
        self._over = threading.Event()

    def run(self, workers: int, *, apps: int) -> Summary:
        """Work until there is nothing left, or Ctrl-C: then what is under way is finished.

        Raises `JournalFailed` where a result could not be stored, and whatever is no error of
        the kit's.
        """
        self._running = min(workers, apps)
        for number in range(self._running):
            threading.Thread(target=self._run, name=f"fleet-{number}", daemon=True).start()
        if self._running:
            self._wait()
        if self._broken is not None:
            raise self._broken
        return Summary(apps, self._tally, self._schedule.stopped_because, self._schedule.next_step)

    def _wait(self) -> None:
        # Not by Thread.join: where Ctrl-C interrupts that, Python 3.11 takes the thread for ended.
        while True:
            try:
                while not self._over.wait(_LOOK_S):
                    pass
            except KeyboardInterrupt:
                if self._schedule.stopping.is_set():
                    raise
                self._schedule.stop("interrupted")
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
                    self._over.set()

    def _do(self, task: Task) -> None:
        is_of_account = False
        try:
            plan = self._work(task)
            result = Result(task.appid, "done", done_cause(plan, sent=self._sent), plan)
        except NotSent as stopped:
            self._schedule.stop(str(stopped))
            result = Result(task.appid, "left", "the fleet stopped before anything was sent")
        except JournalFailed:
            raise
        except PrefetchKitError as error:
            delay_s = pause_s(error, task.tries)
            if delay_s is not None and self._schedule.again(task, delay_s=delay_s):
                return
            result = failure(task.appid, error)
            is_of_account = is_of_the_account(error)
        with self._lock:
            self._tally.add(result.appid, result.outcome, result.cause)
        self._report(result)
        self._schedule.finish(
            task,
            fine=result.outcome == "done",
            failed=result.outcome == "failed",
            is_of_account=is_of_account,
        )
