"""A kept answer."""

import random
import time
from dataclasses import dataclass
from typing import Final

from prefetch_kit.cache.invalidation import Position
from prefetch_kit.cache.scope import Scope

# Drawn from the system, because workers that are forked alike would draw alike.
_jitter: Final = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class Entry:
    """An answer, when it was made (seconds of the monotonic clock), and for whom.

    Of two answers to the same request the one is kept whose run began later, `took_s` before it
    was made. `position` is that of the last invalidation known when its run began. `user_id` is
    None where the run did not read it.
    """

    body: bytes
    made_at: float
    took_s: float
    fresh_s: float
    stale_s: float
    position: Position
    instance: str
    page: str | None
    appid: str
    user_id: str | None

    @property
    def began_at(self) -> float:
        return self.made_at - self.took_s

    def is_fresh(self, now: float) -> bool:
        return now - self.made_at < self.fresh_s

    def is_expired(self, now: float) -> bool:
        return now - self.made_at >= self.fresh_s + self.stale_s


def new_entry(
    body: bytes,
    scope: Scope,
    *,
    appid: str,
    user_id: str | None,
    position: Position,
    began_at: float,
) -> Entry:
    """An answer that was just made."""
    now = time.monotonic()
    return Entry(
        # A copy, because the bytes that orjson returns occupy many times their length.
        body=bytes(memoryview(body)),
        made_at=now,
        took_s=now - began_at,
        # Answers made at the same time must not all end at the same time.
        fresh_s=scope.policy.fresh * _jitter.uniform(0.9, 1.1),
        stale_s=scope.policy.stale,
        position=position,
        instance=scope.instance,
        page=scope.page,
        appid=appid,
        user_id=user_id,
    )
