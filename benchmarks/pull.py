"""One pull in this process, without a server: P1, P3 and P4."""

from collections.abc import Callable, Iterator
from itertools import repeat

from benchmarks import kit, rivals
from benchmarks.children import one_core, pinned
from benchmarks.entrants import KB, Entrant, caller, check, query_string
from benchmarks.report import Goal, Table
from benchmarks.timing import Measure, cost_of, interleaved

_SECONDS = 0.2
_VALIDATION = (rivals.WEBARGS, rivals.SMOREST, rivals.APIFLASK)
_UNCACHED = (kit.UNCACHED, kit.NO_DEADLINE, kit.UNCACHED_FAST, kit.NO_DEADLINE_FAST)
_SMALL = (
    *(rivals.BARE_WSGI, rivals.BARE_FLASK, rivals.KEYED_FLASK),
    *(rivals.HAND_PARSED, *_VALIDATION),
    *(rivals.USUAL, rivals.USUAL_CACHED),
    *_UNCACHED,
    *(kit.CACHED, kit.FAST),
)
_FREE = (rivals.BARE_FLASK, *_UNCACHED)
_LARGE = (rivals.BARE_FLASK, rivals.JSONIFY, *_UNCACHED, kit.FAST)


def _goal(name: str, row: str, rival: str, at_most: float) -> Goal:
    return Goal(name=name, row=row, rival=rival, at_most=at_most, figure="cpu_us")


_SMALL_GOALS = (
    _goal("P1", kit.FAST, rivals.BARE_FLASK, 0.15),
    *(_goal("P3", row, rivals.BARE_FLASK, 1.9) for row in _UNCACHED),
    *(_goal("P3", row, rival, 1.0) for row in _UNCACHED for rival in _VALIDATION),
)
_LARGE_GOALS = tuple(_goal("P4", row, rivals.JSONIFY, 0.15) for row in _UNCACHED)


def run(*, rounds: int, seconds: float = _SECONDS) -> Iterator[Table]:
    for size, names, goals, baseline, is_pinned in (
        (2 * KB, _SMALL, _SMALL_GOALS, rivals.BARE_FLASK, True),
        (2 * KB, _FREE, (), rivals.BARE_FLASK, False),
        (200 * KB, _LARGE, _LARGE_GOALS, rivals.JSONIFY, True),
    ):
        # Like a worker on a machine with one worker per core.
        with pinned(one_core() if is_pinned else None):
            measures = {name: _measure(name, size, seconds) for name in names}
            samples = interleaved(measures, rounds=rounds)
        where = "" if is_pinned else ", threads on any core"
        yield Table(f"pull, {size // KB} KB{where}", samples, goals, baseline)


def _measure(name: str, size: int, seconds: float) -> Measure | None:
    make: Callable[[int], Entrant] = (rivals.RIVALS | kit.KIT)[name]
    try:
        entrant = make(size)
    except ImportError:
        return None
    check(entrant)
    queries = repeat(query_string(entrant.token))
    return cost_of(caller(entrant.app, queries.__next__), seconds=seconds)
