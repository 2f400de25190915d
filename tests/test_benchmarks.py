"""The benchmarks run, and say in JSON what they measured; the speed itself is not judged."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_pull_measures_each_way_of_the_kit() -> None:
    """Each row of the kit has figures and judged goals, whatever else is installed."""
    command = [sys.executable, "-m", "benchmarks", "pull", "--rounds=1", "--seconds=0.001"]
    done = subprocess.run(
        [*command, "--json"],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        check=True,
        timeout=300,
    )
    report = json.loads(done.stdout.splitlines()[-1])
    ours = [row for row in report["rows"] if row["row"].startswith("kit ")]
    tables = {"pull, 2 KB", "pull, 2 KB, threads on any core", "pull, 200 KB"}
    assert {row["benchmark"] for row in ours} == tables
    assert all(row["installed"] and row["rounds"] == 1 for row in ours)
    assert all(row["figures"]["cpu_us"] > 0 for row in ours)
    judged = {goal["goal"] for row in ours for goal in row["goals"] if goal["met"] is not None}
    assert judged == {"P1", "P3", "P4"}
    assert {"cpu", "cores", "python", "libraries"} <= report["machine"].keys()
