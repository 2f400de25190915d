"""The cost of an import in a fresh process, besides flask and marshmallow: P9."""

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Final

from benchmarks.report import Goal, Table
from benchmarks.timing import Measure, Sample, interleaved

_KIT: Final = "prefetch_kit"
_MODULES: Final = (_KIT, "webargs.flaskparser", "flask_smorest", "apiflask", "flask_caching")
_PROGRAM: Final = """
import flask, marshmallow, json, sys, time
wall, cpu = time.perf_counter(), time.process_time()
__import__(sys.argv[1])
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
loaded = {name: int(name in sys.modules) for name in ("requests", "redis")}
print(json.dumps({"wall_ms": wall * 1e3, "cpu_ms": cpu * 1e3} | loaded))
"""


def run(*, rounds: int, **_: float) -> Iterator[Table]:
    measures = {f"import {module}": _measure(module) for module in _MODULES}
    row = f"import {_KIT}"
    goals = (
        Goal(name="P9", row=row, figure="wall_ms", at_most=60),
        Goal(name="P9", row=row, figure="requests", at_most=0, of=max),
        Goal(name="P9", row=row, figure="redis", at_most=0, of=max),
    )
    note = "after flask and marshmallow; requests and redis: 1 where it is imported too"
    yield Table("import", interleaved(measures, rounds=rounds), goals, note=note)


def _measure(module: str) -> Measure | None:
    if find_spec(module.partition(".")[0]) is None:
        return None
    _in_fresh_process(module)  # so that its bytecode exists
    return lambda: _in_fresh_process(module)


def _in_fresh_process(module: str) -> Sample:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, module], check=True, capture_output=True, timeout=60
    )
    sample: Sample = json.loads(done.stdout)
    return sample
