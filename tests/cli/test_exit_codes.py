"""Each exit code has its section on the page for those who have to look it up."""

import re
from pathlib import Path

import pytest

from prefetch_kit.cli.errors import CHANGES_FOUND, FAILED, NothingDone, NotYetConfirmed
from prefetch_kit.cli.signals import _NUMBERS

PAGE = Path(__file__).parents[2] / "docs" / "three-in-the-morning.md"
OF_A_FLEET = 75
OF_USAGE = 2


@pytest.mark.parametrize(
    "code",
    [
        *(0, FAILED, OF_USAGE, CHANGES_FOUND, NothingDone.exit_code, NotYetConfirmed.exit_code),
        *(OF_A_FLEET, *(128 + number for number in _NUMBERS)),
    ],
)
def test_an_exit_code_has_a_section(code: int) -> None:
    """Its heading begins with the number, alone or in a list of some."""
    headings = re.findall(r"^## ([0-9, ]+):", PAGE.read_text(), re.MULTILINE)
    assert str(code) in re.split(", ", ", ".join(headings))
