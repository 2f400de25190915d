"""Which app of a fleet is next: first the canaries, then the others, and those to be retried."""

import heapq
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from prefetch_kit.weixin.retry import TRIES_OF_AN_APP

# With this many apps waiting for a retry no new one begins: the memory stays bounded.
_MOST_WAITING: Final = 1000
# Below this many apps a share says little; a smaller fleet counts as what it is.
_FEWEST_FOR_SHARE: Final = 20
# Retries of all apps: this many, and one more for each five apps begun.
_SPARE_RETRIES: Final = 100
_APPS_A_RETRY: Final = 5


@dataclass(frozen=True, slots=True)
class Task:
    """One try at one app. `tries` were made before."""

    appid: str
    target: str
    tries: int = 0
    is_canary: bool = False


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
    proving: set[str] = field(default_factory=set)
    waiting: list[tuple[float, int, Task]] = field(default_factory=list)


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
        self.next_step = "Run the same command again to go on: what is done is found done"

    def next(self) -> Task | None:
        """The next task, waited for; None where there will be no more."""
        progress = self._progress
        with self._changed:
            while not self.stopping.is_set():
                now = time.monotonic()
                if (task := self._due(now)) is not None:
                    progress.in_flight += 1
                    return task
                if progress.begun == self.total and not progress.waiting and not progress.in_flight:
                    self._changed.notify_all()
                    return None
                next_at = progress.waiting[0][0] if progress.waiting else None
                self._changed.wait(None if next_at is None else max(0.0, next_at - now))
            return None

    def again(self, task: Task, *, delay_s: float) -> bool:
        """Put a task back for later; False where it, or the fleet, has tried often enough."""
        with self._changed:
            progress = self._progress
            budget = _SPARE_RETRIES + progress.begun // _APPS_A_RETRY
            if self.stopping.is_set() or task.tries + 1 >= TRIES_OF_AN_APP:
                return False
            if progress.retried >= budget:
                return False
            progress.retried += 1
            progress.in_flight -= 1
            progress.proving.discard(task.appid)  # else others would wait for this task
            later = Task(task.appid, task.target, task.tries + 1, task.is_canary)
            entry = (time.monotonic() + delay_s, progress.retried, later)
            heapq.heappush(progress.waiting, entry)
            self._changed.notify_all()
            return True

    def may_send(self, task: Task) -> bool:
        """Wait until something may be sent for a task; False where the fleet is stopping."""
        progress = self._progress
        with self._changed:
            while not self.stopping.is_set():
                if progress.proven >= self._canary:
                    return True
                if progress.proven + len(progress.proving) < self._canary:
                    progress.proving.add(task.appid)
                    return True
                self._changed.wait()
            return False

    def finish(self, task: Task, *, fine: bool, failed: bool, is_of_account: bool = False) -> None:
        """Record the result of a task; neither fine nor failed is deferred.

        One that failed for a reason of its own account says nothing of the others: it is no part
        of the share of failures, and a canary is replaced.
        """
        with self._changed:
            progress = self._progress
            progress.in_flight -= 1
            self._finish_canary(task, fine=fine, failed=failed, is_of_account=is_of_account)
            if not is_of_account:
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

    def _finish_canary(self, task: Task, *, fine: bool, failed: bool, is_of_account: bool) -> None:
        progress = self._progress
        is_sent = task.appid in progress.proving
        progress.proving.discard(task.appid)
        if fine:
            progress.canaries_fine += task.is_canary
            progress.proven += is_sent
        elif task.is_canary or is_sent:
            progress.canaries_begun -= task.is_canary
            progress.canaries_replaced += is_of_account
            if not is_of_account or progress.canaries_replaced > self._canary:
                self._stop(
                    f"{task.appid} is one of the first (--canary {self._canary}), and was not done",
                    "Mend it or take it off the list, or go on with --canary 0" if failed else None,
                )

    def stop(self, because: str) -> None:
        """Begin nothing more; what is under way is finished."""
        with self._changed:
            self._stop(because)
            self._changed.notify_all()

    def _stop(self, because: str, next_step: str | None = None) -> None:
        if self.stopped_because is None:
            self.stopped_because = because
            self.next_step = next_step or self.next_step
        self.stopping.set()

    def _due(self, now: float) -> Task | None:
        progress = self._progress
        if progress.waiting and progress.waiting[0][0] <= now:
            return heapq.heappop(progress.waiting)[2]
        is_canary = progress.canaries_fine < self._canary
        if is_canary and progress.canaries_begun >= self._canary:
            return None
        if progress.begun == self.total or len(progress.waiting) >= _MOST_WAITING:
            return None
        appid, target = next(self._apps)
        progress.begun += 1
        progress.canaries_begun += is_canary
        return Task(appid, target, is_canary=is_canary)
