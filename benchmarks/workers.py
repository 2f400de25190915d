"""Two gunicorn workers beside one: P7."""

from collections.abc import Iterator
from contextlib import ExitStack

from benchmarks import kit, rivals
from benchmarks.children import SYNC
from benchmarks.load import GENERATOR
from benchmarks.report import Goal, Table
from benchmarks.server import measure_of
from benchmarks.timing import interleaved


def run(*, rounds: int, seconds: float = 2) -> Iterator[Table]:
    for row in (rivals.BARE_WSGI, kit.UNCACHED, kit.FAST):
        yield _table(row, rounds, seconds)


def _table(row: str, rounds: int, seconds: float) -> Table:
    one, two = "one worker", "two workers"
    with ExitStack() as children:
        measures = {
            name: measure_of(SYNC, row, seconds, children, workers=count, is_pinned=False)
            for count, name in enumerate((one, two), start=1)
        }
        samples = interleaved(measures, rounds=rounds)
    goal = Goal(name="P7", row=two, rival=one, figure="requests_per_s", at_least=1.8)
    goals = [goal] if row in kit.KIT else []
    note = f"{SYNC}; load by {GENERATOR}, niced, on the same cores"
    return Table(f"workers, {row}", samples, goals, one, note=note)
