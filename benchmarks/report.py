"""The figures and the goals, as tables and as JSON."""

import os
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.timing import Sample, medians, ratio

_LIBRARIES: Final = (
    *("flask", "werkzeug", "marshmallow", "itsdangerous", "orjson", "cachetools", "gunicorn"),
    *("webargs", "flask-smorest", "apiflask", "flask-caching", "granian", "redis"),
)


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A bound for one figure of a row, or with a `rival` for its ratio to that row's.

    Without a rival, `of` makes one number of the rounds.
    """

    name: str
    row: str
    figure: str
    at_most: float | None = None
    at_least: float | None = None
    rival: str | None = None
    of: Callable[[Iterable[float]], float] = median

    @property
    def bound(self) -> str:
        return f"≤ {self.at_most:g}" if self.at_most is not None else f"≥ {self.at_least:g}"

    def is_met(self, number: float) -> bool:
        if self.at_most is not None:
            return number <= self.at_most
        return self.at_least is None or number >= self.at_least


@dataclass(frozen=True)
class Table:
    """The samples of rows measured together; a row without samples is not installed.

    With a `baseline` each row is shown in relation to it.
    """

    benchmark: str
    samples: dict[str, list[Sample]]
    goals: Sequence[Goal] = ()
    baseline: str | None = None
    note: str = ""

    def rows(self) -> list[dict[str, Any]]:
        """One JSON object per row."""
        return [self._row(name, samples) for name, samples in self.samples.items()]

    def _row(self, name: str, samples: list[Sample]) -> dict[str, Any]:
        figures = medians(samples) if samples else {}
        return {
            "benchmark": self.benchmark,
            "row": name,
            "installed": bool(samples),
            "rounds": len(samples),
            "figures": {figure: round(number, 4) for figure, number in figures.items()},
            "baseline": self.baseline,
            "ratio": self._ratio(name, self.baseline, next(iter(figures), "")),
            "goals": [self._judged(goal) for goal in self.goals if goal.row == name],
        }

    def _ratio(self, name: str, rival: str | None, figure: str) -> float | None:
        ours, theirs = self.samples[name], self.samples.get(rival or "")
        return round(ratio(ours, theirs, figure), 4) if ours and theirs else None

    def _judged(self, goal: Goal) -> dict[str, Any]:
        """The goal and whether it is met; None where it cannot be told."""
        ours, theirs = self.samples[goal.row], self.samples.get(goal.rival or "")
        value = goal.of(sample[goal.figure] for sample in ours) if ours else None
        compared = self._ratio(goal.row, goal.rival, goal.figure)
        deciding = compared if goal.rival else value
        return {
            "goal": goal.name,
            "figure": goal.figure,
            "value": value,
            "rival": goal.rival,
            "rival_value": medians(theirs)[goal.figure] if theirs else None,
            "ratio": compared,
            "bound": goal.bound,
            "met": None if deciding is None else goal.is_met(deciding),
        }


def show(table: Table) -> None:
    """Print a table, and below it each goal and whether it is met."""
    rows = table.rows()
    figures = next((list(row["figures"]) for row in rows if row["figures"]), [])
    print(f"\n{table.benchmark}")
    if table.note:
        print(f"  {table.note}")
    widest = max(len(row["row"]) for row in rows)
    related = f"  x {table.baseline}" if table.baseline else ""
    print(" ".join([" " * widest, *(f"{figure:>18}" for figure in figures)]) + related)
    for row in rows:
        numbers = [f"{row['figures'][figure]:18,.2f}" for figure in row["figures"]]
        beside = "" if row["ratio"] is None else f"  {row['ratio']:.3f}"
        print(" ".join([f"{row['row']:{widest}}", *(numbers or ["not installed"])]) + beside)
    for row in rows:
        for goal in row["goals"]:
            print(f"  {_sentence(row['row'], goal)}")


def _sentence(row: str, goal: dict[str, Any]) -> str:
    outcome = {True: "met", False: "NOT MET", None: "not measured"}[goal["met"]]
    if goal["rival"]:
        number, what = goal["ratio"], f"{row} / {goal['rival']}"
    else:
        number, what = goal["value"], f"{row}: {goal['figure']}"
    shown = "" if number is None else f" = {number:.3f}"
    return f"{goal['goal']} {outcome}: {what}{shown} ({goal['bound']})"


def machine() -> dict[str, Any]:
    """The machine and the versions behind the figures."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in _LIBRARIES},
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
