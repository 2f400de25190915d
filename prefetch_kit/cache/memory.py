"""The answers kept in this process, bounded by bytes."""

import threading
from collections import OrderedDict
from typing import Final

from prefetch_kit.cache.entry import Entry

# What an entry costs beside its body: its key, its fields and its slots in the store.
ENTRY_BYTES: Final = 730


class MemoryStore:
    """The answers of one process, the least recently used ones dropped first.

    It has one table where cachetools has three: with small answers they are most of the memory.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._lock = threading.Lock()
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()

    def get(self, key: bytes) -> Entry | None:
        # Without the lock: none of these steps can be seen half done.
        entry = self._entries.get(key)
        if entry is not None:
            try:
                self._entries.move_to_end(key)
            except KeyError:
                return entry  # dropped just now, and still valid
        return entry

    def put(self, key: bytes, entry: Entry) -> bool:
        """Keep an answer, unless one is there whose run began later; False then.

        An answer that alone is over the bound is not kept either, but replaces nothing newer.
        """
        with self._lock:
            present = self._entries.get(key)
            if present is not None and present.began_at > entry.began_at:
                return False
            if _size(entry) <= self._max_bytes:
                self._remove(key)
                self._entries[key] = entry
                self._bytes += _size(entry)
                while self._bytes > self._max_bytes:
                    self._bytes -= _size(self._entries.popitem(last=False)[1])
        return True

    def drop(self, key: bytes, *, began_at: float) -> None:
        """Drop the answer of a run that began no later than this, in monotonic seconds."""
        with self._lock:
            present = self._entries.get(key)
            if present is not None and present.began_at <= began_at:
                self._remove(key)

    def _remove(self, key: bytes) -> None:
        if (entry := self._entries.pop(key, None)) is not None:
            self._bytes -= _size(entry)


def _size(entry: Entry) -> int:
    return len(entry.body) + 2 * len(entry.user_id or "") + ENTRY_BYTES
