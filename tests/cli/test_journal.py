"""The commands for the journal."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefetch_kit.registrar.journal import Journal
from prefetch_kit.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.cli.conftest import Cli

pytestmark = pytest.mark.slow

TOML = """
api_base_url = "{base_url}"
state_dir = "{state_dir}"
[apps]
list = "apps.csv"
[tokens]
app_secrets = {{ env = "FLEET_SECRETS" }}
"""
BEFORE: dict[str, object] = {
    "is_pre_fetch_open": False,
    "pre_fetch_type": 0,
    "pre_fetch_url": "https://shop.example/before",
    "is_period_fetch_open": False,
    "period_fetch_type": 0,
    "period_fetch_url": "https://shop.example/before",
}
APPLY = ("apply", "--yes", "--skip-probe")


def test_backup_and_prune(cli: "Cli", served: str, tmp_path: Path) -> None:
    """Of the app's journal: old runs go, and what rollback needs stays."""
    assert cli("journal", "prune", "--older-than", "1d").stderr == "There is no journal.\n"
    assert cli(*APPLY).status == 0
    copied = cli("journal", "backup", str(tmp_path / "copy"))
    assert (copied.status, Journal(tmp_path / "copy").runs()) == (0, [1])
    found = cli("journal", "prune", "--older-than", "1d", "--yes")
    assert found.stdout == "To be removed: 0 runs and 0 changes.\n"
    assert cli("rollback", "--yes").status == 0
    assert "such as 90d" in cli("journal", "prune", "--older-than", "soon").stderr


def test_the_journal_of_a_project(
    cli: "Cli",
    wx: Sandbox,
    served: str,
    state_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is the same file where both name the same directory; a person is asked first."""
    monkeypatch.setenv("FLEET_SECRETS", "{}")
    path = tmp_path / "prefetch.toml"
    path.write_text(TOML.format(base_url=wx.base_url, state_dir=state_dir))
    for _ in range(2):
        wx.put_settings("wx01", BEFORE)
        assert cli(*APPLY, "--wait", "1s").status == 0
    config = ("--config", str(path))
    assert cli("journal", "backup", str(tmp_path / "copy"), *config).status == 0
    with closing(sqlite3.connect(tmp_path / "copy")) as db, db:
        db.execute("UPDATE runs SET at = '2020-01-01T00:00:00+00:00'")
        db.execute("UPDATE changes SET at = '2020-01-01T00:00:00+00:00'")
    (journal,) = state_dir.glob("*/journal.sqlite3")
    (tmp_path / "copy").replace(journal)
    old = ("journal", "prune", "--older-than", "90d", *config)
    assert cli(*old, "--dry-run").stdout == "To be removed: 1 run and 2 changes.\n"
    assert cli(*old).status == 1
    assert Journal(journal).runs() == [1, 2]
    assert "Removed 1 run and 2 changes." in cli(*old, "--yes").stdout
    assert Journal(journal).runs() == [2]
    assert cli("rollback", "--yes").status == 0
