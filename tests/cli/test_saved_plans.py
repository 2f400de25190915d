"""Plans saved by one command and carried out by another."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefetch_kit.registrar.plan_file import write_plans
from prefetch_kit.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.cli.conftest import Cli

APPID = "wx01"


@pytest.fixture
def saved(cli: "Cli", tmp_path: Path) -> str:
    path = str(tmp_path / "plan.json")
    assert cli("plan", "--out", path).status == 0
    return path


def test_plan_then_apply(cli: "Cli", wx: Sandbox, served: str, saved: str) -> None:
    """What one command saved the next one sends."""
    assert "read back" in cli("apply", saved, "--yes").stdout
    assert str(wx.settings(APPID)["pre_fetch_url"]).startswith("https://shop.example/")


def test_a_directory_that_is_missing_is_said_first(cli: "Cli", wx: Sandbox) -> None:
    """Before anybody is asked: what was read could not be saved."""
    assert "its directory is not there" in cli.refused("plan", "--out", "none/plan.json")
    assert wx.requests() == []


def test_a_stale_plan_is_refused(cli: "Cli", wx: Sandbox, saved: str) -> None:
    """Nothing is sent once WeChat holds something else."""
    wx.put_settings(
        APPID,
        {"is_pre_fetch_open": True, "pre_fetch_type": 0, "pre_fetch_url": "https://x.example/"},
    )
    assert "changed since the plan" in cli.refused("apply", saved, "--yes")
    assert wx.count(action="set_pre_fetch") == 0


def test_a_plan_for_another_app_is_refused(cli: "Cli", saved: str) -> None:
    """The sentence names both."""
    wechat = json.loads(Path(saved).read_text().splitlines()[0])["place"]
    write_plans(Path(saved), [("wx02", ())], wechat=wechat)
    assert "is for wx02, and this is wx01" in cli.refused("apply", saved, "--yes")


def test_drift_is_said(cli: "Cli", wx: Sandbox, served: str) -> None:
    """In words and in JSON."""
    cli("apply", "--yes")
    wx.put_settings(APPID, wx.settings(APPID) | {"is_pre_fetch_open": False})
    assert "drift" in cli("plan").stdout
    assert json.loads(cli("plan", "--json").stdout.splitlines()[0])["cause"] == "drift"


def test_rollback_to_a_run(cli: "Cli", wx: Sandbox, served: str) -> None:
    """The number is that of the journal; a wrong one names the right ones."""
    cli("apply", "--yes")
    assert "It knows 1" in cli.refused("rollback", "--to", "7", "--yes")
    assert cli("rollback", "--to", "1", "--yes").status == 0
    assert wx.settings(APPID)["is_pre_fetch_open"] is False
