"""An apply that is killed, at each step of its journal."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefetch_kit.errors import NothingToRollBack
from prefetch_kit.fetch_setting import FetchSetting, Kind
from prefetch_kit.registrar.registrar import Registrar
from prefetch_kit.sandbox import Fault, Sandbox
from tests.conftest import until

if TYPE_CHECKING:
    from tests.registrar.conftest import Row

pytestmark = pytest.mark.slow

APPID = "wx01"
APP = """
from flask import Flask
from prefetch_kit import NO_DATA, Prefetch

prefetch = Prefetch("prefetch", __name__, url_prefix="/prefetch")
prefetch.pre_fetch()(lambda pull: NO_DATA)
prefetch.period_fetch()(lambda pull: NO_DATA)
app = Flask(__name__)
app.config.update(PREFETCH_APPIDS=["wx01"], PREFETCH_BASE_URL="https://shop.example")
app.register_blueprint(prefetch)
"""
BEFORE = {
    "is_pre_fetch_open": True,
    "pre_fetch_type": 1,
    "pre_env": "e-1",
    "pre_function_name": "main",
    "is_period_fetch_open": True,
    "period_fetch_type": 0,
    "period_fetch_url": "https://old.example/period",
}
FOREVER_S = 600.0
# What holds the apply, how many halves WeChat has by then, what the journal says of them.
STEPS = {
    "planning": ([Fault(kind="delay", action="get", after=1, delay_s=FOREVER_S)], 0, []),
    "first set": (
        [Fault(kind="delay", action="set_pre_fetch", delay_s=FOREVER_S)],
        0,
        ["intent", "planned"],
    ),
    "first set done": (
        [
            Fault(kind="lose", action="set_pre_fetch"),
            Fault(kind="delay", action="get", after=2, delay_s=FOREVER_S),
        ],
        1,
        ["intent", "planned"],
    ),
    "second set": (
        [Fault(kind="delay", action="set_period_fetch", delay_s=FOREVER_S)],
        1,
        ["sent", "intent"],
    ),
    "reading back": (
        [Fault(kind="delay", action="get", after=2, delay_s=FOREVER_S)],
        2,
        ["sent", "intent"],
    ),
}


@pytest.fixture
def command(wx: Sandbox, tmp_path: Path) -> "Callable[[], subprocess.Popen[bytes]]":
    """Start `apply` as another process."""
    (tmp_path / "killed_app.py").write_text(APP)
    environment = os.environ | {
        "PREFETCH_API_BASE_URL": wx.base_url,
        "PREFETCH_ACCESS_TOKEN": wx.access_token(APPID),
        "PREFETCH_STATE_DIR": str(tmp_path / "state"),
    }
    options = ["--app", "killed_app", "apply", "--yes", "--skip-probe", "--allow-takeover"]
    return lambda: subprocess.Popen(
        [sys.executable, "-m", "prefetch_kit", *options], cwd=tmp_path, env=environment
    )


@pytest.mark.parametrize("step", STEPS)
def test_kill_and_rerun_loses_nothing(
    wx: Sandbox,
    command: "Callable[[], subprocess.Popen[bytes]]",
    registrar: Registrar,
    wanted: Mapping[Kind, FetchSetting],
    rows: "Callable[[], list[Row]]",
    state_dir: Path,
    step: str,
) -> None:
    """Killed anywhere and run again, both halves are set and can be rolled back."""
    faults, halves, outcomes = STEPS[step]
    wx.put_settings(APPID, BEFORE)
    for fault in faults:
        wx.inject(fault)
    with command() as process:
        try:
            until(lambda: reached(wx, state_dir, rows, (halves, outcomes)))
            assert process.poll() is None
        finally:
            process.kill()
    registrar.apply(wanted, allow=frozenset({"takeover"}), approve=lambda _: None)
    assert wx.settings(APPID)["pre_fetch_url"] == wanted["pre_fetch"].url
    assert wx.settings(APPID)["period_fetch_url"] == wanted["period_fetch"].url
    roll_all_back(registrar)
    assert wx.settings(APPID) == BEFORE


def reached(
    wx: Sandbox, state_dir: Path, rows: "Callable[[], list[Row]]", wanted: tuple[int, list[str]]
) -> bool:
    """Whether the lock is there, the halves are new and the journal says of them what is wanted."""
    ours = sum("shop.example" in str(value) for value in wx.settings(APPID).values())
    try:
        recorded = [row.outcome for row in rows()]
    except sqlite3.OperationalError:  # not made yet, or just being made
        recorded = []
    return (state_dir / "apps.lock").exists() and (ours, recorded) == wanted


def roll_all_back(registrar: Registrar) -> None:
    for _ in range(3):
        try:
            registrar.rollback(approve=lambda _: None)
        except NothingToRollBack:
            return
    pytest.fail("there is no end to it")
