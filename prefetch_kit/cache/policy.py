"""How long an answer is kept."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """How long an answer is served: `fresh` seconds as it is, then `stale` seconds more.

    A stale answer is served at once and made anew in the background. `stale` is one hour unless
    given. Raises `TypeError` for a value that is not a number and `ValueError` for an impossible
    one.
    """

    fresh: float
    stale: float = 3600.0

    def __post_init__(self) -> None:
        demand_seconds("fresh", self.fresh)
        demand_seconds("stale", self.stale)
        if not 0 < self.fresh < math.inf or not 0 <= self.stale < math.inf:
            raise ValueError("cache takes seconds: more than 0 fresh, and 0 or more stale")


def demand_seconds(name: str, value: object, *, or_else: str = "") -> None:
    """Raise `TypeError` for a value that is not a number of seconds: neither `True` nor `"30"`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} takes a number of seconds, such as 30{or_else}, not {value!r}")
