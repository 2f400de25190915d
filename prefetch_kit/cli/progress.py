"""How fast a fleet goes, and how long it will take."""

import time
from collections import deque
from math import ceil
from typing import Final

# What a speed is taken from, in seconds: long enough to be calm, short enough to be of now.
WINDOW_S: Final = 60.0


class Speed:
    """Apps a second over the last minute. `total` is how many there are."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._seen = deque([(time.monotonic(), 0)])

    def reach(self, count: int) -> str:
        """Note that so many are through; how fast that is and how long the rest takes, in words."""
        now = time.monotonic()
        while len(self._seen) > 1 and now - self._seen[0][0] > WINDOW_S:
            self._seen.popleft()
        since, before = self._seen[0]
        if now - self._seen[-1][0] >= 1:
            self._seen.append((now, count))
        if now - since < 1:
            return ""
        rate = (count - before) / (now - since)
        return f", {rate_text(rate)}, {left_text(remaining_s(self._total - count, rate))}"


def remaining_s(count: int, rate: float) -> float | None:
    """How many seconds so many apps take at a rate a second; None where nothing moves."""
    return count / rate if rate > 0 else None


def rate_text(rate: float) -> str:
    return f"{rate:.1f} a second"


def left_text(seconds: float | None) -> str:
    if seconds is None:
        return "no end in sight"
    minutes, rest = divmod(ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min left"
    return f"{minutes} min {rest:02} s left" if minutes else f"{rest} s left"
