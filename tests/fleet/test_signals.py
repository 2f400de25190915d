"""Signals at any moment, in front of a WeChat that lags, says no to what it did, and drops answers.

How many signals there are is said by PREFETCH_KIT_SIGNALS.
"""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefetch_kit.fleet.project import Project, load_project
from prefetch_kit.sandbox import Fault, Sandbox
from prefetch_kit.sandbox.faults import FaultScript
from tests.conftest import until
from tests.fleet.test_authorized import PLATFORM, SECRET, authorize, forget_access_tokens, platform

if TYPE_CHECKING:
    from tests.fleet.conftest import Merchants

pytestmark = pytest.mark.slow
_fixtures = authorize, platform

SIGNALS = int(os.environ.get("PREFETCH_KIT_SIGNALS", "6"))
LAG_S, WAIT_S = 1.0, 5.0
SENT = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SETTINGS = "/wxa/fetchdatasetting"
TOML = """
api_base_url = "{base_url}"
state_dir = "state"
[apps]
list = "apps.csv"
[urls]
pre_fetch = "https://shop.example/p/{{appid}}/pre_fetch/{version}"
period_fetch = "https://shop.example/p/{{appid}}/period_fetch/{version}"
[tokens]
component_appid = "wxplatform"
component_secret = {{ env = "PLATFORM_SECRET" }}
[fleet]
canary = 1
wait = "{wait_s}s"
"""
APP = """
from flask import Flask
from prefetch_kit import NO_DATA, Prefetch

prefetch = Prefetch("prefetch", __name__, url_prefix="/p/<appid>")
prefetch.pre_fetch()(lambda pull: NO_DATA)
prefetch.period_fetch()(lambda pull: NO_DATA)
app = Flask(__name__)
app.config.update(
    PREFETCH_APPIDS={appids}, PREFETCH_BASE_URL="https://shop.example", PREFETCH_STATE_DIR="state",
)
app.register_blueprint(prefetch)
"""


def before(number: int) -> dict[str, object]:
    """What WeChat holds of each app before a round: another for each, and half of it off."""
    return {
        "is_pre_fetch_open": True,
        "pre_fetch_type": 0,
        "pre_fetch_url": f"https://shop.example/before/{number}",
        "is_period_fetch_open": bool(number % 2),
        "period_fetch_type": 1,
        "period_env": f"e-{number}",
        "period_function_name": "main",
    }


class Night:
    """Merchants of a platform, a WeChat at its worst, and commands that get signals."""

    def __init__(self, merchants: "Merchants", project: Project) -> None:
        self.merchants = merchants
        self.wx = merchants.wx
        self.project = project
        self.random = random.Random()
        self.codes: list[tuple[str, int]] = []
        self.said: list[object] = []

    def environment(self) -> dict[str, str]:
        return os.environ | {
            "PLATFORM_SECRET": SECRET,
            "PREFETCH_COMPONENT_APPID": PLATFORM,
            "PREFETCH_COMPONENT_SECRET": SECRET,
            "PREFETCH_COMPONENT_MESSAGE_TOKEN": "t",
            "PREFETCH_COMPONENT_AES_KEY": "k" * 43,
            "PREFETCH_API_BASE_URL": self.wx.base_url,
            "SECRET_KEY": "not read",
        }

    def write(self, version: int) -> None:
        folder = self.project.path.parent
        text = TOML.format(base_url=self.wx.base_url, version=version, wait_s=WAIT_S)
        self.project.path.write_text(text)
        (folder / "apps.csv").write_text("\n".join(["appid", *self.merchants.appids]))
        (folder / "night_app.py").write_text(APP.format(appids=self.merchants.appids))

    def misbehave(self) -> None:
        """Each of these to a share of the calls."""
        with self.wx.lock:
            self.wx.state.faults = FaultScript()
        for action in ("set_pre_fetch", "set_period_fetch"):
            for fault in (
                Fault(kind="errcode", action=action, chance=0.15, effect="now", times=None),
                Fault(kind="errcode", action=action, chance=0.1, times=None),
                Fault(kind="lose", action=action, chance=0.1, times=None),
                Fault(kind="close", action=action, chance=0.05, times=None),
                Fault(kind="raw", status=502, action=action, chance=0.1, effect="late", times=None),
            ):
                self.wx.inject(fault)
        for action in ("api_authorizer_token",):
            path = f"/cgi-bin/component/{action}"
            self.wx.inject(Fault(kind="lose", path=path, chance=0.2, times=None))
        self.wx.switches.get_lag_s = LAG_S

    def behave(self) -> None:
        with self.wx.lock:
            self.wx.state.faults = FaultScript()

    def start(self, *words: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "prefetch_kit", *words],
            cwd=self.project.path.parent,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )

    def run(self, *words: str) -> tuple[int, str, str]:
        process = self.start(*words)
        out, err = process.communicate(timeout=300)
        self.said.append((words, process.returncode, out[-300:], err[-300:]))
        assert "Traceback" not in err, err
        return process.returncode, out, err

    def interrupted(self, *words: str) -> None:
        """Send a signal at any moment of a command."""
        asked = len(self.wx.requests())
        process = self.start(*words)
        until(lambda: len(self.wx.requests()) > asked or process.poll() is not None)
        try:
            out, err = process.communicate(timeout=self.random.uniform(0, 3))
        except subprocess.TimeoutExpired:
            sent = self.random.choice(SENT)
            process.send_signal(sent)
            out, err = process.communicate(timeout=120)
            self.codes.append((f"{words[0]} {sent.name}", process.returncode))
        self.said.append((words, self.codes[-1:], out[-300:], err[-300:]))
        assert "Traceback" not in err, err
        for line in out.splitlines():
            if line.startswith('{"type": "summary"') and '"run": ' in line:
                self.check_summary(json.loads(line), out)

    def check_summary(self, summary: dict[str, object], out: str) -> None:
        """What a fleet says of an app is what WeChat has."""
        records = [json.loads(line) for line in out.splitlines()]
        apps = [record for record in records if record["type"] == "app"]
        assert summary["done"] == sum(app["outcome"] == "done" for app in apps)
        for app in apps:
            if app["outcome"] == "done":
                for change in app["changes"]:
                    self.check_held(app["appid"], change)

    def check_held(self, appid: str, change: dict[str, object]) -> None:
        held = self.wx.settings(appid)
        after = change["after"]
        assert isinstance(after, dict)
        assert held[f"is_{change['kind']}_open"] is after["open"]
        if after["url"]:
            assert held[f"{change['kind']}_url"] == after["url"]


@pytest.fixture
def night(
    merchants: "Merchants",
    wx: Sandbox,
    project: Project,
    authorize: Callable[[str], None],
) -> Night:
    wx.switches.refresh_token_grace_s = 0
    for appid in merchants.add(8):
        authorize(appid)
    return Night(merchants, project)


@pytest.fixture
def project(wx: Sandbox, tmp_path: Path) -> Project:
    """A platform, whose state directory is beside the file."""
    wx.add_platform(PLATFORM, secret=SECRET, token="t", aes_key="k" * 43)
    path = tmp_path / "prefetch.toml"
    path.write_text(TOML.format(base_url=wx.base_url, version=0, wait_s=WAIT_S))
    made = load_project(path, environment={"PLATFORM_SECRET": SECRET})
    return replace(made, state_dir=tmp_path / "state")


def test_a_night(night: Night, tmp_path: Path) -> None:
    """After a rollback WeChat holds what it held before, and what was said is what it has."""
    rounds = 0
    while len(night.codes) < SIGNALS:
        rounds += 1
        for number, appid in enumerate(night.merchants.appids):
            night.wx.put_settings(appid, before(number))
        first = next_run(night.project)
        forget_access_tokens(night.project)
        night.misbehave()
        for step in range(night.random.randrange(2, 5)):
            night.write(version=rounds * 10 + step)
            appid = night.random.choice(night.merchants.appids)
            single = ("--app", "night_app"), ("--appid", appid, "--yes")
            night.interrupted(
                *night.random.choice(
                    [
                        ("fleet", "apply", "--yes", "--json", "--allow-takeover"),
                        ("fleet", "rollback", "--yes", "--json"),
                        (*single[0], "apply", *single[1], "--skip-probe", "--allow-takeover"),
                        (*single[0], "rollback", *single[1], "--wait", f"{WAIT_S}s"),
                        (*single[0], "import", "--appid", appid, "--out", f"{rounds}-{step}.toml"),
                    ]
                )
            )
        if night.random.random() < 0.5:
            apply = "fleet", "apply", "--yes", "--json", "--allow-takeover"
            assert any(night.run(*apply)[0] == 0 for _ in range(5)), night.said[-5:]
        roll_back(night, first)
        for number, appid in enumerate(night.merchants.appids):
            held = night.wx.settings(appid)
            kept = {name: held.get(name) for name in before(number)}
            assert kept == before(number), (rounds, first, night.said)
        night.behave()
        assert night.run("fleet", "plan")[0] == 0  # no refresh token is lost
    print(f"{rounds} rounds: {night.codes}")


def last_run(project: Project) -> int:
    return numbers(project)[0]


def next_run(project: Project) -> int:
    """The first run that may change something now: a fleet that was cut short is continued."""
    last, is_cut_short, last_fleet = numbers(project)
    return last_fleet if is_cut_short else last + 1


def numbers(project: Project) -> tuple[int, bool, int]:
    """The last run, whether the last of a fleet was cut short, and its number."""
    path = next(project.state_dir.glob("*/journal.sqlite3"), None)
    if path is None:
        return 0, False, 0
    with closing(sqlite3.connect(path)) as db:
        last = db.execute("SELECT COALESCE(MAX(id), 0) FROM runs").fetchone()[0]
        fleet = "SELECT id, ended FROM runs WHERE appid IS NULL ORDER BY id DESC LIMIT 1"
        number, ended = db.execute(fleet).fetchone() or (0, True)
    return last, not ended, number


def roll_back(night: Night, first: int) -> None:
    """Undo all runs of a round; whatever fails in between is repeated."""
    last = last_run(night.project)
    if last < first:
        return
    for _ in range(10):
        code, out, err = night.run("fleet", "rollback", "--to", str(first), "--yes")
        if code == 0:
            return
        if "knows no run" in err:  # that run changed nothing
            first += 1
            if first > last:
                return
    pytest.fail(out + err)
