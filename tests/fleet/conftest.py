"""Many mini programs in front of a sandbox, and a fleet of them."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefetch_kit.fleet import Begun, Fleet, Limits, Result, Summary, load_project
from prefetch_kit.sandbox import Sandbox
from tests.registrar.conftest import running as running
from tests.registrar.conftest import transport as transport
from tests.registrar.conftest import wx as wx

FLEET_SECRET = "canary-fleet-secret"
FLEET_TOML = """
api_base_url = "{base_url}"
state_dir = "state"
[apps]
list = "apps.csv"
[urls]
pre_fetch = "https://shop.example/p/{{appid}}/pre_fetch{version}"
period_fetch = "https://shop.example/p/{{appid}}/period_fetch{version}"
{more}
[tokens]
app_secrets = {{ file = "secrets.json" }}
"""
ALL_LIFTED = Limits(allow=frozenset({"disable", "takeover"}))


class Told:
    """A report that keeps what it is told."""

    def __init__(self) -> None:
        self.fleets: list[Begun] = []
        self.read_of_list: list[tuple[int, int]] = []
        self.results: dict[str, Result] = {}

    def begun(self, begun: Begun) -> None:
        self.fleets.append(begun)

    def stopping(self) -> None: ...

    def listed(self, merchants: int, total: int) -> None:
        self.read_of_list.append((merchants, total))

    def app(self, result: Result) -> None:
        self.results[result.appid] = result


class Merchants:
    """Mini programs of a played WeChat, and a fleet of them."""

    def __init__(self, wx: Sandbox, folder: Path) -> None:
        self.wx = wx
        self.folder = folder
        self.appids: list[str] = []
        self.left_out: set[str] = set()  # of the list
        self.told = Told()

    def add(self, count: int) -> list[str]:
        """Add mini programs, whose business domains are those of `wx`."""
        added = [f"wxm{number:05}" for number in range(len(self.appids), len(self.appids) + count)]
        for appid in added:
            self.wx.add_app(appid, secret=FLEET_SECRET)
            for host in ("shop.example", "old.example"):
                self.wx.add_domain(appid, host)
        self.appids += added
        return added

    def switch_off(self, *, host: str = "shop.example") -> None:
        """Let WeChat say of each that it is off: without a source it would be asked again."""
        url = f"https://{host}/before"
        settings: dict[str, object] = {
            "is_pre_fetch_open": False,
            "pre_fetch_type": 0,
            "pre_fetch_url": url,
            "is_period_fetch_open": False,
            "period_fetch_type": 0,
            "period_fetch_url": url,
        }
        for appid in self.appids:
            self.wx.put_settings(appid, settings)

    def write(self, more: str = "", *, version: str = "") -> Path:
        """The prefetch.toml of all of them; `version` ends their URLs."""
        lines = ["appid", *(appid for appid in self.appids if appid not in self.left_out)]
        (self.folder / "apps.csv").write_text("\n".join(lines))
        secrets = dict.fromkeys(self.appids, FLEET_SECRET)
        (self.folder / "secrets.json").write_text(json.dumps(secrets))
        path = self.folder / "prefetch.toml"
        path.write_text(FLEET_TOML.format(base_url=self.wx.base_url, version=version, more=more))
        return path

    def fleet(self, more: str = "", *, version: str = "", **pace: Any) -> Fleet:
        """A fleet of all of them, without a canary and without a stop unless `pace` says so."""
        project = load_project(self.write(more, version=version))
        self.told = Told()
        wanted = replace(project.pace, **{"canary": 0, "stop_at": 1.0, "workers": 8, **pace})
        return Fleet(project, self.told, pace=wanted)

    def apply(self, *, version: str = "", **pace: Any) -> Summary:
        """Apply with every guard lifted."""
        return self.fleet(version=version, **pace).apply(ALL_LIFTED)

    def urls(self) -> set[object]:
        """The last part of every pre_fetch URL that WeChat has, None for none."""
        found = (self.wx.settings(appid).get("pre_fetch_url") for appid in self.appids)
        return {url and str(url).rpartition("/")[2] for url in found}

    def spoil(self, appids: Iterable[str], errcode: int) -> None:
        """Let each call about these settings answer with a denial."""
        for appid in appids:
            self.wx.deny(appid, errcode)

    def outcomes(self) -> Counter[str]:
        return Counter(result.outcome for result in self.told.results.values())


@pytest.fixture
def merchants(wx: Sandbox, tmp_path: Path) -> Merchants:
    return Merchants(wx, tmp_path)
