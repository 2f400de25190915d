"""Measure rows in turns, so that disturbances affect all of them alike."""

import gc
import time
from collections.abc import Callable, Mapping
from statistics import median

# The figures of one measurement, by name and unit; the first one is compared.
Sample = Mapping[str, float]
Measure = Callable[[], Sample]


def interleaved(measures: Mapping[str, Measure | None], *, rounds: int) -> dict[str, list[Sample]]:
    """Measure every row once a round, each round beginning with another row.

    None stands for what is not installed, and gets no samples.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in measures}
    present = {name: measure for name, measure in measures.items() if measure}
    names = list(present)
    gc.collect()
    gc.freeze()  # else a collection looks through every row's app
    for number in range(rounds):
        first = number % max(1, len(names))
        for name in names[first:] + names[:first]:
            gc.collect()
            samples[name].append(present[name]())
    gc.unfreeze()
    return samples


def cost_of(call: Callable[[], object], *, seconds: float) -> Measure:
    """Measures the cost of a call by repeating it for about this long, after a warm-up."""
    count = 1
    while _cost(call, count)["wall_us"] * count < seconds * 1e6:
        count *= 2

    return lambda: _cost(call, count)


def _cost(call: Callable[[], object], count: int) -> Sample:
    """Microseconds a call: of the process's CPU, in all its threads, and of the clock."""
    turns = range(count)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in turns:
        call()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"cpu_us": cpu / count * 1e6, "wall_us": wall / count * 1e6}


def medians(samples: list[Sample]) -> dict[str, float]:
    return {name: median(sample[name] for sample in samples) for name in samples[0]}


def ratio(ours: list[Sample], theirs: list[Sample], figure: str) -> float:
    """The median of the ratios of each round."""
    pairs = zip(ours, theirs, strict=True)
    return median(one[figure] / other[figure] for one, other in pairs)
