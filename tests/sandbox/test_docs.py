"""The page about the sandbox lists what there is."""

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from prefetch_kit.sandbox import Fault, Switches
from prefetch_kit.sandbox.faults import FaultKind

PAGE = (Path(__file__).parents[2] / "docs" / "sandbox.md").read_text()
_, SWITCHES, FAULTS = re.split("^## ", PAGE, flags=re.MULTILINE)


def test_the_table_of_switches_is_the_one_of_the_code() -> None:
    """Each switch has a row with its default."""
    rows = re.findall(r"^\| `(\w+)` \| `(.*?)` \|", SWITCHES, re.MULTILINE)
    assert {name: json.loads(value) for name, value in rows} == vars(Switches())
    assert [name for name, _ in rows] == [each.name for each in fields(Switches)]


def test_the_table_of_faults_is_the_one_of_the_code() -> None:
    """Each kind has a row."""
    kinds = re.findall(r"^\| `(\w+)` \|", FAULTS, re.MULTILINE)
    assert kinds == list(get_args(FaultKind))


@pytest.mark.parametrize("script", re.findall(r"`(\{.*?\})`", FAULTS))
def test_the_scripts_can_be_played(script: str) -> None:
    """The two in the text are faults."""
    assert Fault(**json.loads(script)).effect != "none"
