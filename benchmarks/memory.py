"""The memory of the answer cache while a million different queries are pulled: E6."""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final

from benchmarks.entrants import PAGE, SOME_TOKEN, caller, query_string
from benchmarks.kit import app_with, blueprint
from benchmarks.report import Goal, Table
from benchmarks.timing import Measure, Sample, interleaved
from prefetch_kit import Pull, fast_path

QUERIES: Final = 1_000_000
BOUND_BYTES: Final = 64 * 1024 * 1024

_DAY_S = 24 * 3600
_WARM_UP = 1_000
_MIB = 1024 * 1024
# By row: the parameter that differs in each pull; the handler reads `id`.
_PARAMETERS: Final = {"a parameter that nobody reads": "other", "a parameter it reads": "id"}


def run(*, queries: int = QUERIES, **_: float) -> Iterator[Table]:
    # One round in any case: the growth is the same each time, and a million pulls take minutes.
    measures: dict[str, Measure | None] = {
        row: partial(_in_fresh_process, row, queries) for row in _PARAMETERS
    }
    unread, read = _PARAMETERS
    goals = (
        Goal(name="E6", row=unread, figure="runs", at_most=1),
        Goal(name="E6", row=unread, figure="of_bound", at_most=1.1),
        Goal(name="E6", row=read, figure="of_bound", at_most=1.1),
    )
    note = (
        f"{queries:,} different queries, each row once in a separate process; "
        f"PREFETCH_CACHE_BYTES is {BOUND_BYTES // _MIB} MiB, and the process grew by grown_mib"
    )
    yield Table("memory", interleaved(measures, rounds=1), goals, note=note)


def _in_fresh_process(row: str, queries: int) -> Sample:
    command = [sys.executable, "-m", "benchmarks.memory", _PARAMETERS[row], str(queries)]
    folder = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE)
    sample: Sample = json.loads(done.stdout)
    return sample


def _grown(parameter: str, queries: int) -> Sample:
    """The growth of this process by pulls that differ in one parameter."""
    prefetch, ran = blueprint(), count()

    @prefetch.pre_fetch(PAGE, cache=_DAY_S)
    def products(pull: Pull) -> object:
        next(ran)
        return {"id": pull.query.get("id")}

    app = app_with(prefetch, PREFETCH_CACHE_BYTES=BOUND_BYTES)
    numbers = count()
    pull = caller(
        fast_path(app),
        lambda: query_string(SOME_TOKEN, query=f"{parameter}={next(numbers)}"),
    )
    for _ in range(_WARM_UP):
        pull()
    before = _resident_bytes()
    for _ in range(queries):
        pull()
    grown = _resident_bytes() - before
    return {"grown_mib": grown / _MIB, "of_bound": grown / BOUND_BYTES, "runs": next(ran)}


def _resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    print(json.dumps(_grown(sys.argv[1], int(sys.argv[2]))))
