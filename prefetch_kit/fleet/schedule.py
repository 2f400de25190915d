"""Which app of a fleet is next: first the canaries, then the others, and those to be retried."""

import heapq
import threading
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final

from prefetch_kit.fleet.results import Result, Whose
from prefetch_kit.registrar.execute import Execution, Looks
from prefetch_kit.weixin.retry import TRIES_OF_AN_APP
from prefetch_kit.weixin.settings import SettingsApi

# With this many apps waiting for a retry no new one begins: the memory stays bounded.
_MOST_WAITING: Final = 1000
# Below this many apps a share says little; a smaller fleet counts as what it is.
_FEWEST_FOR_SHARE: Final = 20
# Retries of all apps: this many, and one more for each five apps begun.
_SPARE_RETRIES: Final = 100
_APPS_A_RETRY: Final = 5


@dataclass(slots=True)
class Task:
    """One app. `tries` failed before this one.

    `is_open` says that something was sent for it, which has to be read back; until then its lock
    is `held`. The others are what is kept of it from one turn to the next: the changes that were
    `taken` from those that may be sent, and its `looks` before anything is sent.
    """

    appid: str
    target: str
    tries: int = 0
    is_canary: bool = False
    is_open: bool = False
    settings: SettingsApi | None = None
    execution: Execution | None = None
    held: ExitStack = field(default_factory=ExitStack)
    taken: int = 0
    looks: Looks = field(default_factory=Looks)


@dataclass(slots=True)
class _Progress:
    """How far a fleet is. `judged` apps are those that ended, without any of its own account."""

    begun: int = 0
    in_flight: int = 0
    judged: int = 0
    failed: int = 0
    retried: int = 0
    canaries_begun: int = 0
    canaries_fine: int = 0
    canaries_replaced: int = 0
    proven: int = 0
    last_quota: int | None = None
    quotas: int = 0
    proving: set[str] = field(default_factory=set)
    # Each with its time on the monotonic clock, and a number that keeps their order.
    waiting: list[tuple[float, int, Task]] = field(default_factory=list)
    put_back: int = 0
    # Those that have something to send once enough canaries are done.
    held: list[Task] = field(default_factory=list)


class Schedule:
    """Hands tasks to workers, from any thread, and stops when enough went wrong.

    `canary` of `total` apps have to be fine before any other begins, and as many of those that
    have something sent before anything is sent for any other. `stop_at` is the share of failures
    among those that finished, with which no more begin.
    """

    def __init__(
        self,
        apps: Iterable[tuple[str, str]],
        *,
        total: int,
        canary: int,
        stop_at: float,
        stopping: threading.Event,
    ) -> None:
        self._apps = iter(apps)
        self.total = total
        self._canary = canary
        self._stop_at = stop_at
        self._changed = threading.Condition()
        self._progress = _Progress()
        self.stopping = stopping
        self.stopped_because: str | None = None
        # Whether it was stopped by what only takes time.
        self.is_deferred = False
        self.next_step = "Run the same command again to go on: what is done is found done"

    def next(self) -> Task | None:
        """The next task, waited for; None where there will be no more.

        Where the fleet is stopping, those that are open have one more turn.
        """
        progress = self._progress
        with self._changed:
            while True:
                now = time.monotonic()
                task = self._last() if self.stopping.is_set() else self._due(now)
                if task is not None:
                    progress.in_flight += 1
                    return task
                if self.stopping.is_set() or self._is_through():
                    self._changed.notify_all()
                    return None
                next_at = progress.waiting[0][0] if progress.waiting else None
                self._changed.wait(None if next_at is None else max(0.0, next_at - now))

    def again(self, task: Task, *, delay_s: float) -> bool:
        """Put a failed task back for later; False where it, or the fleet, tried often enough."""
        with self._changed:
            progress = self._progress
            budget = _SPARE_RETRIES + progress.begun // _APPS_A_RETRY
            if task.tries + 1 >= TRIES_OF_AN_APP or progress.retried >= budget:
                return False
            if self.stopping.is_set():
                return False
            progress.retried += 1
            task.tries += 1
            progress.proving.discard(task.appid)  # else others would wait for this task
            self._put_back(task, delay_s)
            return True

    def later(self, task: Task, *, delay_s: float) -> bool:
        """Put a task back that has not failed; False where the fleet is stopping."""
        with self._changed:
            if self.stopping.is_set():
                return False
            self._put_back(task, delay_s)
            return True

    def may_send(self, task: Task) -> bool:
        """Whether something may be sent for a task now; else `hold` it."""
        progress = self._progress
        with self._changed:
            if self.stopping.is_set():
                return False
            if progress.proven + len(progress.proving - {task.appid}) < self._canary:
                progress.proving.add(task.appid)
                return True
            return progress.proven >= self._canary

    def hold(self, task: Task) -> bool:
        """Put a task back until it may send; False where the fleet is stopping."""
        with self._changed:
            if self.stopping.is_set():
                return False
            self._progress.held.append(task)
            self._progress.in_flight -= 1
            self._release()
            self._changed.notify_all()
            return True

    def finish(self, task: Task, result: Result, *, says_of: Whose | None = None) -> None:
        """Record the result of a task; `says_of` is whose a failure is, None for nobody's.

        One of its own account says nothing of the others: it is no part of the share of failures,
        and a canary is replaced. One of all of them would come to each.
        """
        with self._changed:
            progress = self._progress
            progress.in_flight -= 1
            if says_of == "all":
                is_deferred = result.outcome == "deferred"
                self._stop(
                    f"each app would end so: {result.cause}",
                    None if is_deferred else "Mend that, then run the same command again",
                    only_takes_time=is_deferred,
                )
            self._finish_canary(task, result, is_of_account=says_of == "account")
            self._release()
            self._count_quota(result)
            if says_of != "account":
                failed = result.outcome == "failed"
                progress.judged += 1
                progress.failed += failed
                judged = max(progress.judged, min(self.total, _FEWEST_FOR_SHARE))
                if failed and progress.failed >= self._stop_at * judged:
                    self._stop(
                        f"{progress.failed} of {progress.judged} failed, and "
                        f"--stop-at is {self._stop_at:.0%}",
                        "Mend them or take them off the list, or go on with a larger --stop-at",
                    )
            self._changed.notify_all()

    def _finish_canary(self, task: Task, result: Result, *, is_of_account: bool) -> None:
        progress = self._progress
        is_sent = task.appid in progress.proving
        progress.proving.discard(task.appid)
        if result.outcome == "done":
            progress.canaries_fine += task.is_canary
            progress.proven += is_sent
        elif task.is_canary or is_sent:
            progress.canaries_begun -= task.is_canary
            if result.outcome == "skipped":
                return
            progress.canaries_replaced += is_of_account
            if not is_of_account or progress.canaries_replaced > self._canary:
                what = "is not yet confirmed" if result.outcome == "sent" else "was not done"
                has_failed = result.outcome == "failed"
                self._stop(
                    f"{task.appid} is one of the first (--canary {self._canary}), and {what}",
                    "Mend it or take it off the list, or go on with --canary 0"
                    if has_failed
                    else None,
                    only_takes_time=not has_failed,
                )

    def _count_quota(self, result: Result) -> None:
        """Stop where one app after the other meets the same quota."""
        progress = self._progress
        quota = result.errcode if result.outcome == "deferred" else None
        progress.quotas = progress.quotas + 1 if quota == progress.last_quota else 1
        progress.last_quota = quota
        if quota is not None and progress.quotas >= _FEWEST_FOR_SHARE:
            self._stop(
                f"{progress.quotas} apps in a row were deferred: {result.cause}",
                only_takes_time=True,
            )

    def stop(self, because: str) -> None:
        """Begin nothing more; what is under way is finished."""
        with self._changed:
            self._stop(because)
            self._changed.notify_all()

    def _stop(
        self, because: str, next_step: str | None = None, *, only_takes_time: bool = False
    ) -> None:
        if self.stopped_because is None:
            self.stopped_because = because
            self.is_deferred = only_takes_time
            self.next_step = next_step or self.next_step
        self.stopping.set()

    def _put_back(self, task: Task, delay_s: float) -> None:
        progress = self._progress
        progress.in_flight -= 1
        progress.put_back += 1
        heapq.heappush(progress.waiting, (time.monotonic() + delay_s, progress.put_back, task))
        self._release()
        self._changed.notify_all()

    def _release(self) -> None:
        """Let those that are held have their turn, as far as something may be sent for them."""
        progress = self._progress
        free = self._canary - progress.proven - len(progress.proving)
        count = len(progress.held) if progress.proven >= self._canary else max(0, free)
        released, progress.held = progress.held[:count], progress.held[count:]
        for task in released:
            progress.put_back += 1
            heapq.heappush(progress.waiting, (0.0, progress.put_back, task))

    def _is_through(self) -> bool:
        progress = self._progress
        busy = progress.in_flight or progress.waiting or progress.held
        return progress.begun == self.total and not busy

    def _last(self) -> Task | None:
        """One of those that are open, where the fleet is stopping."""
        waiting = self._progress.waiting
        for at, (_, _, task) in enumerate(waiting):
            if task.is_open:
                waiting[at] = waiting[-1]
                waiting.pop()
                return task
        return None

    def _due(self, now: float) -> Task | None:
        progress = self._progress
        if progress.waiting and progress.waiting[0][0] <= now:
            return heapq.heappop(progress.waiting)[2]
        if progress.held:
            return None  # another one would be held too
        is_canary = progress.canaries_fine < self._canary
        if is_canary and progress.canaries_begun >= self._canary:
            return None
        if progress.begun == self.total or len(progress.waiting) >= _MOST_WAITING:
            return None
        appid, target = next(self._apps)
        progress.begun += 1
        progress.canaries_begun += is_canary
        return Task(appid, target, is_canary=is_canary)
