"""The page docs/with-your-stack.md."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "with-your-stack.md"
ROWS = re.findall(r"^\| `?([A-Za-z-]+)`? \| ", PAGE.read_text(), re.MULTILINE)
TESTS = "".join(path.read_text() for path in Path(__file__).parent.glob("test_[!p]*.py"))


@pytest.mark.parametrize("package", [row for row in ROWS if row != "with"])
def test_each_row_is_tested(package: str) -> None:
    """A test in this folder names it."""
    assert package in TESTS
