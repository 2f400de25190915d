"""A fleet that is killed again and again, and run again.

How many mini programs there are, and how many kills, is said by PREFETCH_KIT_FLEET_APPS and
PREFETCH_KIT_FLEET_KILLS.
"""

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefetch_kit.sandbox import Sandbox
from tests.conftest import until

if TYPE_CHECKING:
    from tests.fleet.conftest import Merchants

pytestmark = pytest.mark.slow

APPS = int(os.environ.get("PREFETCH_KIT_FLEET_APPS", "60"))
KILLS = int(os.environ.get("PREFETCH_KIT_FLEET_KILLS", "10"))
WORKERS = 32
SETS = ("set_pre_fetch", "set_period_fetch")
BEFORE = {
    "is_pre_fetch_open": True,
    "pre_fetch_type": 0,
    "pre_fetch_url": "https://shop.example/before",
    "is_period_fetch_open": False,
    "period_fetch_type": 0,
    "period_fetch_url": "https://shop.example/before/period",
}


class Counted:
    """What the played WeChat was really asked: by action, and each set that took effect."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.sets: Counter[tuple[str, str]] = Counter()

    def __call__(self, line: str) -> None:
        words = line.removesuffix(": errcode 0").split()
        if words[1] == "/wxa/fetchdatasetting":
            action, appid = words[2].strip("'"), words[3]
            self.calls[action] += 1
            if action in SETS:
                self.sets[appid, action] += 1


@pytest.fixture
def counted() -> Counted:
    return Counted()


@pytest.fixture
def wx(counted: Counted) -> Iterator[Sandbox]:
    with Sandbox(log=counted) as sandbox:
        yield sandbox


def fleet(config: Path, *words: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "prefetch_kit", "fleet", *words, "--config", str(config)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def is_killed_at(process: "subprocess.Popen[bytes]", counted: Counted, calls: int) -> bool:
    """Kill it when WeChat has been asked so often, unless it ends before."""
    until(lambda: counted.calls.total() >= calls or process.poll() is not None, within_s=600)
    process.kill()
    return process.wait() == -signal.SIGKILL


def test_killed_again_and_again(wx: Sandbox, counted: Counted, merchants: "Merchants") -> None:
    """Nothing is lost, hardly anything is repeated, and all of it can still be rolled back."""
    for appid in merchants.add(APPS):
        wx.put_settings(appid, BEFORE)
    config = merchants.write()
    kills = 0
    while kills < KILLS:
        done = sum(counted.sets[appid, SETS[1]] > 0 for appid in merchants.appids)
        # One read for each that is done, four calls for each that is not: it is killed sooner,
        # but where sets were under way at the last kill, which were counted as still to come.
        least = counted.calls.total() + done + 4 * (APPS - done)
        aimed = random.randrange(counted.calls.total() + 1, least)
        with fleet(config, "apply", "--yes") as process:
            kills += is_killed_at(process, counted, aimed)
    with fleet(config, "apply", "--yes") as process:
        assert process.wait(600) == 0
    repeated = counted.sets.total() - len(counted.sets)
    assert len(counted.sets) == 2 * APPS
    assert merchants.urls() == {"pre_fetch"}
    assert repeated <= KILLS * WORKERS

    counted.calls.clear()
    with fleet(config, "apply", "--yes") as process:
        assert process.wait(600) == 0
    assert counted.calls == {"get": APPS}
    print(f"{APPS} apps, {KILLS} kills: {repeated} sets repeated, then {counted.calls}")

    with fleet(config, "rollback", "--yes") as process:
        assert process.wait(600) == 0
    assert all(wx.settings(appid) == BEFORE for appid in merchants.appids)
