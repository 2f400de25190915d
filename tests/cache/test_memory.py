"""The answers of one process, within their bound."""

from collections.abc import Callable

from prefetch_kit.cache.entry import Entry
from prefetch_kit.cache.memory import ENTRY_BYTES, MemoryStore

MakeEntry = Callable[..., Entry]


def kept(store: MemoryStore, *keys: bytes) -> list[bool]:
    return [store.get(key) is not None for key in keys]


def test_user_ids_count(make_entry: MakeEntry) -> None:
    """A verifier of the app's may give ids of any length: the answer has it, and so has its key."""
    store = MemoryStore(2 * (ENTRY_BYTES + 8000))
    for key in (b"1", b"2", b"3"):
        store.put(key, make_entry(b"", user_id="u" * 4000))
    assert kept(store, b"1", b"2", b"3") == [False, True, True]


def test_bytes_of_what_is_dropped_are_free_again(make_entry: MakeEntry) -> None:
    """However often an answer is replaced or dropped, the others stay."""
    store = MemoryStore(3 * (ENTRY_BYTES + 100))
    store.put(b"other", make_entry(b"x" * 100))
    for _ in range(20):
        store.put(b"key", make_entry(b"x" * 100))
        store.put(b"key", make_entry(b"x" * 50))
        store.put(b"dropped", make_entry(b"x" * 100))
        store.drop(b"dropped", began_at=make_entry().made_at)
    assert kept(store, b"other", b"key", b"dropped") == [True, True, False]


def test_an_older_run_changes_nothing(make_entry: MakeEntry) -> None:
    """Neither its answer nor its lack of data replaces what a later run made."""
    store, newer, older = MemoryStore(10_000), make_entry(b"new"), make_entry(began_ago_s=5.0)
    assert store.put(b"key", newer)
    assert not store.put(b"key", older)
    store.drop(b"key", began_at=older.began_at)
    assert store.get(b"key") is newer
    store.drop(b"key", began_at=newer.began_at)
    assert store.get(b"key") is None
