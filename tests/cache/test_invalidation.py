"""The log of invalidations: which answers its marks put out of reach."""

from collections.abc import Callable

import pytest

from prefetch_kit.cache import invalidation
from prefetch_kit.cache.entry import Entry
from prefetch_kit.cache.invalidation import Invalidations, Mark

MakeEntry = Callable[..., Entry]
EVERYTHING: Mark = ("prefetch", None, None, None)
OTHERS: Mark = ("prefetch", None, "nobody", None)


@pytest.mark.parametrize(
    ("mark", "is_covered"),
    [
        (EVERYTHING, True),
        (("prefetch", "pages/a", None, None), True),
        (("prefetch", "pages/a", "alice", "wx1"), True),
        (("prefetch", None, "alice", None), True),
        (("prefetch", None, None, "wx1"), True),
        (("other", None, None, None), False),
        (("prefetch", "pages/b", None, None), False),
        (("prefetch", "pages/a", "bob", None), False),
        (("prefetch", "pages/a", "alice", "wx2"), False),
    ],
)
def test_a_mark_covers_what_it_names(make_entry: MakeEntry, mark: Mark, is_covered: bool) -> None:
    """All that it names must be so."""
    log = Invalidations()
    log.add([mark])
    assert log.has_invalidated(make_entry(user_id="alice")) is is_covered


def test_only_answers_of_before_are_covered(make_entry: MakeEntry) -> None:
    """A run that began when the invalidation was known has read what is true since."""
    log = Invalidations()
    log.add([EVERYTHING], at=(5, 2))
    assert log.last == (5, 2)
    positions = [(5, 1), (5, 2), (5, 3), (6, 0)]
    covered = [log.has_invalidated(make_entry(position=position)) for position in positions]
    assert covered == [True, False, False, False]


def test_news_of_long_ago_takes_nothing_back(make_entry: MakeEntry) -> None:
    """The same mark may arrive again under an earlier position."""
    log = Invalidations()
    log.add([EVERYTHING], at=(5, 0))
    log.add([EVERYTHING], at=(3, 0))
    assert log.last == (5, 0)
    assert log.has_invalidated(make_entry(position=(4, 0)))


def test_everything_of_before_is_covered_by_none(make_entry: MakeEntry) -> None:
    """That is how a record that cannot be read is taken."""
    log = Invalidations()
    log.add(None, at=(5, 0))
    assert log.has_invalidated(make_entry(position=(4, 9)))
    assert not log.has_invalidated(make_entry(position=(5, 0)))


def test_marks_that_are_dropped_cover_more(
    make_entry: MakeEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything from before the last one that was dropped is out of reach."""
    monkeypatch.setattr(invalidation, "MAX_MARKS", 2)
    log = Invalidations()
    for second in range(1, 5):
        log.add([("prefetch", None, f"user {second}", None)], at=(second, 0))
    positions = [(1, 0), (2, 0), (3, 0)]
    covered = [log.has_invalidated(make_entry(position=position)) for position in positions]
    assert covered == [True, False, False]
