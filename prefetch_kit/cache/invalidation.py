"""Invalidation: a log of marks that puts kept answers out of reach, without searching for them."""

import threading
from collections import OrderedDict
from collections.abc import Iterable
from itertools import product
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from prefetch_kit.cache.entry import Entry

MAX_MARKS: Final = 10_000

# Where an invalidation stands in the log: later is greater.
Position = tuple[int, int]
# Instance, page, user id and appid of the answers that it is about; None stands for any.
Mark = tuple[str, str | None, str | None, str | None]
_NEVER: Final[Position] = (-1, -1)


class Invalidations:
    """The log of one process.

    It holds a bounded number of marks; answers from before the last mark that was dropped are
    out of reach as a whole. `last` is the position of the last invalidation known here.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._marks: OrderedDict[Mark, Position] = OrderedDict()
        self._floor: Position = (0, 0)
        self.last: Position = (0, 0)

    def add(self, marks: Iterable[Mark] | None, *, at: Position | None = None) -> None:
        """Invalidate what the marks name, or everything for None, as of a position or of now."""
        with self._lock:
            at = at or (self.last[0], self.last[1] + 1)
            self.last = max(self.last, at)
            if marks is None:
                self._floor = max(self._floor, at)
            for mark in marks or ():
                self._marks[mark] = max(at, self._marks.get(mark, at))
                self._marks.move_to_end(mark)
            while len(self._marks) > MAX_MARKS:
                # In this order, since `has_invalidated` reads without the lock: one always holds.
                self._floor = max(self._floor, next(iter(self._marks.values())))
                self._marks.popitem(last=False)

    def has_invalidated(self, entry: "Entry") -> bool:
        """Whether an answer is invalidated; never one whose run began at the `last` position."""
        if entry.position < self._floor:
            return True
        names = ((entry.page, None), (entry.user_id, None), (entry.appid, None))
        marks = ((entry.instance, *chosen) for chosen in product(*names))
        return any(self._marks.get(mark, _NEVER) > entry.position for mark in marks)
