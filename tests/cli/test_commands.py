"""What the commands do and print."""

import json
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask

from prefetch_kit import Prefetch
from prefetch_kit.sandbox import Fault, Sandbox

if TYPE_CHECKING:
    from tests.cli.conftest import Cli, Ended

APPID = "wx01"
PRE_URL = "https://shop.example/prefetch/pre_fetch"
PERIOD_URL = "https://shop.example/prefetch/period_fetch"
NEVER = {"open": None, "source": None, "url": None, "env": None, "function_name": None}
PRE_ON = {"open": True, "source": "server", "url": PRE_URL, "env": None, "function_name": None}


def records(ended: "Ended") -> list[dict[str, Any]]:
    """One JSON object per line, and nothing else."""
    return [json.loads(line) for line in ended.stdout.splitlines()]


def test_show_before_anything_was_set(cli: "Cli") -> None:
    """Both halves are named, and the grey release that no API shows is mentioned."""
    ended = cli("show")
    assert ended.status == 0
    assert ended.stdout.splitlines()[1:] == [
        "  pre_fetch     never configured",
        "  period_fetch  never configured",
    ]
    assert "灰度" in ended.stderr


def test_show_json_is_complete(wx: Sandbox, cli: "Cli") -> None:
    """One object with every field of both halves, under our names."""
    cloud = {"pre_fetch_type": 1, "pre_env": "e-1", "pre_function_name": "main"}
    wx.put_settings(APPID, {"is_pre_fetch_open": True, **cloud})
    (shown,) = records(cli("show", "--json"))
    in_cloud = {"source": "cloud_function", "env": "e-1", "function_name": "main"}
    assert shown == {
        "appid": APPID,
        "pre_fetch": {"open": True, "url": None, **in_cloud},
        "period_fetch": NEVER,
    }


def test_plan_and_its_exit_codes(cli: "Cli", served: str) -> None:
    """3 where something would change, 0 where nothing would; 0 always without the option."""
    assert cli("plan").status == 0
    before = cli("plan", "--detailed-exitcode")
    assert before.status == 3
    assert f"  + on, {PRE_URL}" in before.stdout
    assert cli("apply", "--yes").status == 0
    after = cli("plan", "--detailed-exitcode")
    assert (after.status, after.stdout) == (0, f"{APPID}: nothing to do.\n")


def test_plan_json_is_complete(cli: "Cli") -> None:
    """Each change has before, after and guard; the summary is last."""
    ended = cli("plan", "--json", "--detailed-exitcode")
    first, second, summary = records(ended)
    assert ended.status == 3
    assert first == {
        "type": "change",
        "appid": APPID,
        "kind": "pre_fetch",
        "before": NEVER,
        "after": PRE_ON,
        "guard": None,
        "guards": [],
        "note": None,
        "cause": "change",
    }
    assert second["after"]["url"] == PERIOD_URL
    assert summary == {"type": "summary", "appid": APPID, "changes": 2, "applied": False}


def test_apply_probes_first_and_registers(wx: Sandbox, cli: "Cli", served: str) -> None:
    """The probe is on standard error, the result on standard output."""
    ended = cli("apply", "--yes")
    assert ended.status == 0
    assert "Done, and read back from WeChat." in ended.stdout
    assert ended.stderr.count("ok   status") == 2
    assert wx.settings(APPID)["pre_fetch_url"] == PRE_URL
    assert wx.settings(APPID)["period_fetch_url"] == PERIOD_URL


def test_apply_json_then_again(cli: "Cli", served: str) -> None:
    """The first run has applied two changes, the second none."""
    assert records(cli("apply", "--yes", "--json"))[-1]["applied"] is True
    again = records(cli("apply", "--yes", "--json"))
    assert again == [{"type": "summary", "appid": APPID, "changes": 0, "applied": False}]


def test_a_failed_probe_sends_nothing(wx: Sandbox, cli: "Cli") -> None:
    """Without the app listening nothing is registered, unless the probe is skipped."""
    wx.map_origin("shop.example", "http://127.0.0.1:1")
    ended = cli("apply", "--yes")
    assert ended.status == 1
    assert "Nothing was sent" in ended.stderr
    assert wx.count(action="set_pre_fetch") == 0
    assert cli("apply", "--yes", "--skip-probe").status == 0
    assert wx.count(action="set_pre_fetch") == 1


def test_takeover_and_disable_flags(
    wx: Sandbox, cli: "Cli", served: str, settings: dict[str, Any]
) -> None:
    """Each guard names its flag, the plan shows it, and the flag lifts it."""
    wx.put_settings(APPID, {"is_pre_fetch_open": True, "pre_fetch_type": 1})
    wx.put_settings(APPID, wx.settings(APPID) | {"pre_env": "e-1", "pre_function_name": "main"})
    assert "! needs --allow-takeover" in cli("plan").stdout
    assert "add --allow-takeover" in cli.refused("apply", "--yes")
    assert cli("apply", "--yes", "--allow-takeover").status == 0
    empty = Flask(__name__)
    empty.config.update(settings)
    empty.register_blueprint(Prefetch("prefetch", __name__, url_prefix="/prefetch"))
    assert "add --allow-disable" in cli.refused("apply", "--yes", app=empty)
    assert cli("apply", "--yes", "--allow-disable", app=empty).status == 0
    assert wx.settings(APPID)["is_pre_fetch_open"] is False


def test_rollback_says_what_cannot_be_undone(wx: Sandbox, cli: "Cli", served: str) -> None:
    """Back to never configured means switched off, as text and as JSON."""
    cli("apply", "--yes")
    assert "WeChat cannot forget" in cli("rollback", "--yes").stdout
    wx.put_settings(APPID, {})
    assert "add --allow-takeover" in cli("apply", "--yes", "--wait", "1s").stderr
    assert cli("apply", "--yes", "--wait", "1s", "--allow-takeover").status == 0
    first, _, summary = records(cli("rollback", "--yes", "--json"))
    assert "switched off" in first["note"]
    assert summary["applied"] is True
    assert wx.settings(APPID)["is_pre_fetch_open"] is False


def test_rollback_needs_a_flag_for_what_others_set(wx: Sandbox, cli: "Cli", served: str) -> None:
    """A change since the apply is named with its flag, and the flag lifts the guard."""
    cli("apply", "--yes")
    wx.put_settings(APPID, wx.settings(APPID) | {"pre_fetch_url": "https://shop.example/hotfix"})
    assert "add --allow-takeover" in cli.refused("rollback", "--yes")
    done = records(cli("rollback", "--yes", "--json", "--allow-takeover"))
    assert [record["guard"] for record in done[:-1]] == ["takeover", None]
    assert wx.settings(APPID)["is_pre_fetch_open"] is False


def test_nothing_to_roll_back(cli: "Cli") -> None:
    """An empty journal is a sentence with a remedy."""
    assert "run rollback there" in cli.refused("rollback", "--yes")


def test_routes(cli: "Cli") -> None:
    """Each page has its rule, its handler and whether it needs a user."""
    header, *rows = cli("routes").stdout.splitlines()
    assert header.split() == ["ENDPOINT", "RULE", "PAGE", "HANDLER", "LOGIN", "CACHED", "READS"]
    assert len(rows) == 4
    assert rows[0].split()[:3] == ["prefetch.pre_fetch", "/prefetch/pre_fetch", "pages/private"]
    assert rows[0].endswith("required")
    assert "every other page" in rows[2]
    assert "(periodic)" in rows[3]


def test_routes_json(cli: "Cli") -> None:
    """The same as records; no page is null."""
    found = records(cli("routes", "--json"))
    assert [(row["kind"], row["page"], row["login_required"]) for row in found] == [
        ("pre_fetch", "pages/private", True),
        ("pre_fetch", "pages/index/index", False),
        ("pre_fetch", None, False),
        ("period_fetch", None, False),
    ]
    assert {row["rule"] for row in found} == {"/prefetch/pre_fetch", "/prefetch/period_fetch"}


def test_routes_need_no_choice(cli: "Cli", app: Flask) -> None:
    """Every blueprint is listed, so there is nothing to choose and no option for it."""
    second = Prefetch("second", __name__, url_prefix="/second")
    second.period_fetch()(lambda _: {})
    app.register_blueprint(second)
    assert [row["endpoint"] for row in records(cli("routes", "--json"))] == [
        *["prefetch.pre_fetch"] * 3,
        "prefetch.period_fetch",
        "second.period_fetch",
    ]
    assert cli("routes", "--appid", APPID).status == 2


def test_waiting_for_weixin_is_told(
    wx: Sandbox, cli: "Cli", monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person sees why nothing happens, beside the output."""
    monkeypatch.setattr(random, "uniform", lambda _low, high: high * 0.8)
    monkeypatch.setattr("prefetch_kit.cli.app.time", SimpleNamespace(sleep=lambda _: None))
    wx.inject(Fault(kind="errcode", errcode=-1, times=2))
    ended = cli("show")
    assert ended.status == 0
    assert ended.stderr.splitlines()[:-1] == ["Asking WeChat again in 2 s …"]


def test_token_is_accepted_by_the_app(app: Flask, cli: "Cli") -> None:
    """What is printed is a token the app takes for that user."""
    token = cli("token", "alice").stdout.strip()
    query = {"appid": APPID, "timestamp": "1700000000", "path": "pages/private", "token": token}
    answer = app.test_client().get("/prefetch/pre_fetch", query_string=query)
    assert answer.json == {"user": "alice"}


@pytest.mark.parametrize("given", [["--endpoint", "two"], ["--endpoint", "one"]])
def test_endpoint_chooses_among_blueprints(
    wx: Sandbox, cli: "Cli", settings: dict[str, Any], given: list[str]
) -> None:
    """The blueprint that was named is the one WeChat is pointed at."""
    app = Flask(__name__)
    app.config.update(settings)
    for name in ("one", "two"):
        blueprint = Prefetch(name, __name__, url_prefix=f"/{name}")
        blueprint.pre_fetch()(lambda _: {})
        app.register_blueprint(blueprint)
    assert cli("apply", "--yes", "--skip-probe", *given, app=app).status == 0
    assert wx.settings(APPID)["pre_fetch_url"] == f"https://shop.example/{given[1]}/pre_fetch"


def test_appid_chooses_among_mini_programs(
    wx: Sandbox, cli: "Cli", settings: dict[str, Any], prefetch: Prefetch
) -> None:
    """The appid that was named is in the URL and in the call, and has its own state."""
    wx.add_app("wx02", secret="other-secret")
    wx.add_domain("wx02", "shop.example")
    del settings["PREFETCH_APP_SECRET"]
    settings["PREFETCH_APPIDS"] = [APPID, "wx02"]
    settings["PREFETCH_APP_SECRETS"] = {APPID: "unused", "wx02": "other-secret"}
    app = Flask(__name__)
    app.config.update(settings)
    app.register_blueprint(prefetch, url_prefix="/p/<appid>")
    assert cli("apply", "--yes", "--skip-probe", "--appid", "wx02", app=app).status == 0
    assert wx.settings("wx02")["pre_fetch_url"] == "https://shop.example/p/wx02/pre_fetch"
    assert wx.settings(APPID) == {}


@pytest.mark.parametrize(
    "source",
    [
        lambda wx: {"PREFETCH_ACCESS_TOKEN": wx.access_token(APPID)},
        lambda wx: {"PREFETCH_TOKEN_COMMAND": ["echo", wx.access_token(APPID)]},
    ],
)
def test_other_token_sources(
    wx: Sandbox,
    cli: "Cli",
    app: Flask,
    settings: dict[str, Any],
    prefetch: Prefetch,
    source: Callable[[Sandbox], dict[str, Any]],
) -> None:
    """A fixed token or a command's token needs no app secret."""
    del settings["PREFETCH_APP_SECRET"]
    other = Flask(__name__)
    other.config.update(settings | source(wx))
    other.register_blueprint(prefetch)
    assert cli("show", app=other).status == 0
    assert wx.count(path="/cgi-bin/stable_token") == 0
