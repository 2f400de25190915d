"""The scope of one handler's answers."""

from dataclasses import dataclass, field

from prefetch_kit.cache.policy import CachePolicy
from prefetch_kit.cache.read_sets import ReadSets


@dataclass(slots=True, eq=False)
class Scope:
    """The answers of one handler, as one app registered it.

    Every key of its answers begins with `name`. `instance` and `page` are what an invalidation
    can name. `deadline_s` bounds a run, in seconds.
    """

    name: bytes
    instance: str
    page: str | None
    policy: CachePolicy
    deadline_s: float
    handler_name: str
    read_sets: ReadSets = field(default_factory=ReadSets)
    warned_of_timestamp: bool = False
