"""The cached pull behind real servers, with server and load on one core each: P2 and P10."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from typing import Final

from benchmarks import kit, rivals
from benchmarks.children import GRANIAN, GTHREAD, SIZE_BYTES, SYNC, serving
from benchmarks.entrants import URL, check, query_string
from benchmarks.load import GENERATOR, load
from benchmarks.report import Goal, Table
from benchmarks.timing import Measure, interleaved

_ROWS: Final = (
    *(rivals.BARE_WSGI, rivals.BARE_FLASK, rivals.USUAL_CACHED),
    *(kit.CACHED, kit.FAST),
)


def run(*, rounds: int, seconds: float = 2) -> Iterator[Table]:
    for server in (SYNC, GTHREAD, GRANIAN):
        yield _table(server, rounds, seconds)


def _table(server: str, rounds: int, seconds: float) -> Table:
    with ExitStack() as children:
        measures = {row: measure_of(server, row, seconds, children) for row in _ROWS}
        samples = interleaved(measures, rounds=rounds)
    return Table(
        f"server, {server}",
        samples,
        _goals(server),
        rivals.BARE_WSGI,
        note=f"one worker on one core; load by {GENERATOR}, niced, on another",
    )


def measure_of(
    server: str,
    row: str,
    seconds: float,
    children: ExitStack,
    *,
    workers: int = 1,
    is_pinned: bool = True,
) -> Measure | None:
    """Measures a row behind a server that runs until `children` are closed.

    Pinned, the server has one core and the load another; else they share all of them.
    """
    if server == GRANIAN and find_spec("granian") is None:
        return None
    try:
        entrant = (rivals.RIVALS | kit.KIT)[row](SIZE_BYTES)
    except ImportError:
        return None
    check(entrant)
    ours, theirs = _cores() if is_pinned else (None, None)
    served = children.enter_context(serving(server, row, workers=workers, cores=ours))
    target = f"{URL}?{query_string(entrant.token)}"
    return partial(load, served, target, seconds=seconds, cores=theirs)


def _cores() -> tuple[set[int], set[int]]:
    """A core for the server and one for the load; the same one where there is no other."""
    cores = sorted(os.sched_getaffinity(0))
    return {cores[0]}, {cores[-1]}


def _goals(server: str) -> list[Goal]:
    bounds = {rivals.BARE_WSGI: 0.90, rivals.BARE_FLASK: 1.5, rivals.USUAL_CACHED: 2.4}
    if server == GRANIAN:
        bounds = {rivals.BARE_WSGI: 0.85}
    return [
        Goal(
            name="P10" if server == GRANIAN else "P2",
            row=kit.FAST,
            rival=rival,
            figure="requests_per_s",
            at_least=bound,
        )
        for rival, bound in bounds.items()
    ]
