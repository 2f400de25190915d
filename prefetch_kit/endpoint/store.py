"""Where answers are kept: in this process, bounded by bytes, and forgotten at once."""

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Final

# Beside its body an entry costs its key, its fields and its places in the store.
ENTRY_BYTES: Final = 730
MAX_MARKS: Final = 10_000

# Where a `forget` stands among the others: later is greater.
Position = tuple[int, int]
# Instance, page, user id and appid; None stands for any.
Mark = tuple[str, str | None, str | None, str | None]
_NEVER: Final[Position] = (-1, -1)


@dataclass(frozen=True, slots=True)
class Entry:
    """An answer, when it was made (seconds of a monotonic clock), and what it is an answer to.

    Of two to the same, the one holds whose run began later: `took_s` before it was made.
    `begun` is the position of the last `forget` that came before its run; `user_id` is None where
    the run did not read it.
    """

    body: bytes
    made_at: float
    took_s: float
    fresh_s: float
    stale_s: float
    begun: Position
    instance: str
    page: str | None
    appid: str
    user_id: str | None

    @property
    def began_at(self) -> float:
        return self.made_at - self.took_s

    def is_fresh(self, now: float) -> bool:
        return now - self.made_at < self.fresh_s

    def is_over(self, now: float) -> bool:
        return now - self.made_at >= self.fresh_s + self.stale_s


class MemoryStore:
    """The answers of one process, the least recently used ones dropped first.

    One table, where cachetools has three: beside small answers they are most of the memory.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._lock = threading.Lock()
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()

    def get(self, key: bytes) -> Entry | None:
        # Without the lock, since none of these three steps can be seen half done.
        entry = self._entries.get(key)
        if entry is not None:
            try:
                self._entries.move_to_end(key)
            except KeyError:
                return entry  # dropped just now, and good all the same
        return entry

    def put(self, key: bytes, entry: Entry) -> None:
        """Keep an answer, unless it alone is over the bound."""
        if _size(entry) > self._max_bytes:
            return
        with self._lock:
            self._take(key)
            self._entries[key] = entry
            self._bytes += _size(entry)
            while self._bytes > self._max_bytes:
                self._bytes -= _size(self._entries.popitem(last=False)[1])

    def drop(self, key: bytes) -> None:
        with self._lock:
            self._take(key)

    def _take(self, key: bytes) -> None:
        if (entry := self._entries.pop(key, None)) is not None:
            self._bytes -= _size(entry)


def _size(entry: Entry) -> int:
    return len(entry.body) + 2 * len(entry.user_id or "") + ENTRY_BYTES


class Forgotten:
    """What was forgotten, and when: nothing is searched for, it only cannot be reached again.

    Only so many marks are kept; what began before the last one dropped is out of reach
    altogether. `at` is the position of the last `forget` that is known here.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._marks: OrderedDict[Mark, Position] = OrderedDict()
        self._floor: Position = (0, 0)
        self.at: Position = (0, 0)

    def add(self, marks: Iterable[Mark] | None, *, at: Position | None = None) -> None:
        """Forget what the marks say, or everything for None, as of a position or of now."""
        with self._lock:
            at = at or (self.at[0], self.at[1] + 1)
            self.at = max(self.at, at)
            if marks is None:
                self._floor = max(self._floor, at)
            for mark in marks or ():
                self._marks[mark] = max(at, self._marks.get(mark, at))
                self._marks.move_to_end(mark)
            while len(self._marks) > MAX_MARKS:
                # In this order, as `has` asks without the lock: never is one in neither place.
                self._floor = max(self._floor, next(iter(self._marks.values())))
                self._marks.popitem(last=False)

    def has(self, entry: Entry) -> bool:
        """Whether an answer may not be handed out any more; never where it begun at `at`."""
        if entry.begun < self._floor:
            return True
        names = ((entry.page, None), (entry.user_id, None), (entry.appid, None))
        marks = ((entry.instance, *chosen) for chosen in product(*names))
        return any(self._marks.get(mark, _NEVER) > entry.begun for mark in marks)
