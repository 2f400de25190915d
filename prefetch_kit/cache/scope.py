"""The scope of one handler's answers."""

import math
from dataclasses import dataclass, field
from typing import Final

from prefetch_kit.cache.policy import CachePolicy
from prefetch_kit.cache.read_sets import ReadSets

_RECENT_S: Final = 300.0


class RunTimes:
    """How long the runs of one handler take.

    `slowest_s` is that of the slowest run of the last five to ten minutes in which there were
    runs, and 0 before the first one. It goes by time and not by number, or many quick runs could
    make it forget a slow one.
    """

    def __init__(self) -> None:
        self._began_at = -math.inf
        self._before_s = self._slowest_s = 0.0

    @property
    def slowest_s(self) -> float:
        return max(self._before_s, self._slowest_s)

    def add(self, took_s: float, *, now: float) -> None:
        """Note a run that ended now, in monotonic seconds."""
        if now - self._began_at >= _RECENT_S:
            self._began_at = now
            self._before_s, self._slowest_s = self._slowest_s, took_s
        elif took_s > self._slowest_s:
            self._slowest_s = took_s


@dataclass(slots=True, eq=False)
class Scope:
    """The answers of one handler, as one app registered it.

    Every key of its answers begins with `name`. `instance` and `page` are what an invalidation
    can name. `deadline_s` bounds a run, in seconds; `share` names the threads of its runs.
    """

    name: bytes
    instance: str
    page: str | None
    policy: CachePolicy
    deadline_s: float
    handler_name: str
    share: str
    read_sets: ReadSets = field(default_factory=ReadSets)
    run_times: RunTimes = field(default_factory=RunTimes)
    warned_of_timestamp: bool = False
