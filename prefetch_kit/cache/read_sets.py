"""Which inputs of a request a handler reads: noted during a run, and remembered for lookups."""

from collections.abc import Iterable
from typing import Final

# The names of the inputs that a run read, sorted. A key of the page's query is "query=" and its
# name, and one of the parameters that WeChat does not document "extra=" and its name.
ReadSet = tuple[str, ...]

TIMESTAMP: Final = "timestamp"
USER_ID: Final = "user_id"
ALL_OF_QUERY: Final = "query"
ALL_OF_EXTRA: Final = "extra"

_MAX_NAMES: Final = 32
_MAX_READ_SETS: Final = 8
# This many places are kept for sets that proved useful.
_USEFUL: Final = 4


class Reads:
    """Notes which inputs a handler reads while it runs."""

    __slots__ = ("_names",)

    def __init__(self) -> None:
        self._names: dict[str, None] = {}

    def note(self, name: str) -> None:
        self._names[name] = None

    def names(self) -> ReadSet:
        """The inputs read so far."""
        return _read_set(self._names)


def _read_set(names: Iterable[str]) -> ReadSet:
    """These names as a set; all of the query, or very much of it, counts as one input."""
    kept = set(names)
    for whole in (ALL_OF_QUERY, ALL_OF_EXTRA):
        if whole in kept or len(kept) > _MAX_NAMES:
            others = {name for name in kept if not name.startswith(f"{whole}=")}
            if len(others) < len(kept):
                kept = others | {whole}
    return tuple(sorted(kept))


class ReadSets:
    """What the runs of one handler were seen to read: the 8 most recently useful sets.

    `ever_read` is all that any run was seen to read. No name leaves it, so that no number of odd
    runs can make the cache forget that a handler reads, say, the user.

    Changed without a lock, by replacing a tuple: a set that another thread's change loses is
    found again by a later run.
    """

    def __init__(self) -> None:
        self._order: tuple[ReadSet, ...] = ()
        self._latest: ReadSet | None = None
        self.for_lookup: tuple[ReadSet, ...] = ()
        self.last_useful: ReadSet | None = None
        self.ever_read: ReadSet = ()

    @property
    def likeliest(self) -> ReadSet | None:
        """What the next run will probably read."""
        return self._latest if self.last_useful is None else self.last_useful

    def are_in(self, names: ReadSet) -> bool:
        """Whether a run reads nothing but these names, as far as runs were seen to."""
        return TIMESTAMP not in self.ever_read and set(self.ever_read) <= set(names)

    def saw(self, names: ReadSet) -> None:
        """Note what a run read, whether or not its answer was kept."""
        self._latest = names
        ever_read = _read_set((*self.ever_read, *names))
        if ever_read != self.ever_read:
            self.ever_read = ever_read

    def add(self, names: ReadSet) -> None:
        """Note a set that an answer was kept under; it comes behind the useful ones."""
        self.saw(names)
        if names not in self._order:
            self._set((*self._order[:_USEFUL], names, *self._order[_USEFUL:]))

    def proved_useful(self, names: ReadSet) -> None:
        """Note that an answer was found under this set."""
        self.last_useful = names
        order = self._order
        if names not in order[:_USEFUL]:
            self._set((names, *(other for other in order if other != names)))

    def _set(self, order: tuple[ReadSet, ...]) -> None:
        self._order = order[:_MAX_READ_SETS]
        # Sets with the user come last: proving a user may mean asking WeChat.
        self.for_lookup = tuple(sorted(self._order, key=lambda names: USER_ID in names))


def is_read_set(names: object) -> bool:
    """Whether this list, which came from outside, can be what a run read."""
    return (
        isinstance(names, list)
        and len(names) <= _MAX_NAMES
        and all(isinstance(name, str) and name != TIMESTAMP for name in names)
    )
