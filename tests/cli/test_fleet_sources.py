"""A fleet whose mini programs have their data from URLs, from cloud functions, or not at all."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefetch_kit.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.cli.conftest import Cli, Ended, Leaks

SECRET = "canary/fleet+secret=0123456789"
COLUMN = '[urls]\npre_fetch = "{source}"'
COLUMNS = """[urls]
pre_fetch = "{url}"
[cloud.pre_fetch]
env = "{env}"
function_name = "f-{name}"
"""
SERVER = {"is_pre_fetch_open": True, "pre_fetch_type": 0, "pre_fetch_url": "https://shop.example/a"}
FUNCTION = {
    "is_pre_fetch_open": True,
    "pre_fetch_type": 1,
    "pre_env": "test-pfyol",
    "pre_function_name": "login",
}
OFF = FUNCTION | {"is_pre_fetch_open": False}
BY_HAND = FUNCTION | {"pre_function_name": "by-hand"}
Run = Callable[..., "Ended"]
Listed = Callable[[str, list[dict[str, str]]], Run]


@pytest.fixture
def listed(
    wx: Sandbox, tmp_path: Path, cli: "Cli", leaks: "Leaks", monkeypatch: pytest.MonkeyPatch
) -> Listed:
    """`listed(pulls, rows)`: a fleet of these rows, whose commands are run by what it gives."""
    leaks.secrets.append(SECRET)

    def listed(pulls: str, rows: list[dict[str, str]]) -> Run:
        for row in rows:
            wx.add_app(row["appid"], secret=SECRET)
            wx.add_domain(row["appid"], "shop.example")
        secrets = {row["appid"]: SECRET for row in rows}
        monkeypatch.setenv("FLEET_SECRETS", json.dumps(secrets))
        path = tmp_path / "prefetch.toml"
        path.write_text(
            f'api_base_url = "{wx.base_url}"\nstate_dir = "state"\n[apps]\nlist = "apps.csv"\n'
            f'{pulls}\n[tokens]\napp_secrets = {{ env = "FLEET_SECRETS" }}\n'
        )
        with (tmp_path / "apps.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["appid", *(key for key in rows[0] if key != "appid")])
            writer.writeheader()
            writer.writerows(rows)
        return lambda *words: cli("fleet", *words, "--config", str(path))

    return listed


def rows_of(*cells: dict[str, str]) -> list[dict[str, str]]:
    return [{"appid": f"wxm{number}", **each} for number, each in enumerate(cells)]


MIXED = rows_of(
    {"source": "https://shop.example/a"},
    {"source": "cloud:test-pfyol/login"},
    {"source": "off"},
    {"source": ""},
)
# What WeChat has before: with the third to be switched off, and the fourth to be left alone.
HELD: list[dict[str, object]] = [{}, {}, FUNCTION, SERVER]


def found(wx: Sandbox) -> list[object]:
    return [wx.settings(row["appid"]) for row in MIXED]


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_list_that_mixes_them(wx: Sandbox, listed: Listed, as_json: list[str]) -> None:
    """Planned, applied, found done, drifted and rolled back, each as its row says."""
    run = listed(COLUMN, MIXED)
    for row, settings in zip(MIXED, HELD, strict=True):
        wx.put_settings(row["appid"], settings)
    planned = run("plan", "--detailed-exitcode", *as_json)
    assert (planned.status, "needs --allow-disable" in planned.stdout) == (3, True)
    applied = run("apply", "--yes", "--allow-disable", *as_json)
    assert applied.status == 0
    if as_json:
        check_records([json.loads(line) for line in applied.stdout.splitlines()])
    assert found(wx) == [SERVER, FUNCTION, OFF, SERVER]
    assert run("plan", "--detailed-exitcode", *as_json).status == 0
    wx.put_settings("wxm1", BY_HAND)
    drifted = run("plan", "--detailed-exitcode", *as_json)
    assert (drifted.status, "drift" in drifted.stdout) == (3, True)
    left = run("rollback", "--yes", "--stop-at", "100%", *as_json)
    assert (left.status, "what somebody else set since" in left.stdout) == (1, True)
    assert run("rollback", "--yes", "--allow-takeover", *as_json).status == 0
    # What had no source before is off now, with the source it has.
    off = {"is_pre_fetch_open": False}
    assert found(wx) == [SERVER | off, BY_HAND | off, FUNCTION, SERVER]


def check_records(records: list[dict[str, Any]]) -> None:
    changes = {each["appid"]: each["changes"] for each in records if each["type"] == "app"}
    (off,) = changes["wxm2"]
    assert (off["before"]["open"], off["after"]["open"]) == (True, False)
    assert off["after"]["function_name"] == "login"
    assert off["guard"] == "disable"
    assert records[-1]["done"] == 4


def test_columns_of_each_field(wx: Sandbox, listed: Listed) -> None:
    """A URL in one column, the environment and the name of a function in others."""
    rows = rows_of(
        {"url": "https://shop.example/a", "env": "", "name": ""},
        {"url": "", "env": "test-pfyol", "name": "1"},
        {"url": "", "env": "", "name": ""},
    )
    assert listed(COLUMNS, rows)("apply", "--yes").status == 0
    assert wx.settings("wxm0") == SERVER
    assert wx.settings("wxm1") == FUNCTION | {"pre_function_name": "f-1"}
    assert wx.settings("wxm2") == {}


def test_one_function_for_all(wx: Sandbox, listed: Listed) -> None:
    """Without a list's columns, and without [urls]."""
    table = '[cloud.pre_fetch]\nenv = "test-pfyol"\nfunction_name = "login"'
    assert listed(table, rows_of({}, {}))("apply", "--yes").status == 0
    assert wx.settings("wxm1") == FUNCTION


def test_off_from_there_alone(wx: Sandbox, listed: Listed) -> None:
    """`off` in [urls] leaves alone what comes from elsewhere, a cloud function's too."""
    table = '[urls]\noff = ["pre_fetch"]\n'
    table += '[cloud.pre_fetch]\nenv = "test-pfyol"\nfunction_name = "login"'
    run = listed(table, rows_of({}, {}))
    wx.put_settings("wxm0", FUNCTION)
    wx.put_settings("wxm1", SERVER)
    assert run("apply", "--yes", "--allow-disable").status == 0
    assert wx.settings("wxm0") == FUNCTION | {"is_pre_fetch_open": False}
    assert wx.settings("wxm1") == SERVER


def test_off_twice_is_off(wx: Sandbox, listed: Listed) -> None:
    """A pull that is off for any source is switched off from each."""
    run = listed('[urls]\npre_fetch = "{source}"\noff = ["pre_fetch"]', MIXED)
    for row in MIXED:
        wx.put_settings(row["appid"], SERVER)
    wx.put_settings("wxm1", FUNCTION)
    wx.put_settings("wxm2", {})
    assert run("apply", "--yes", "--allow-disable").status == 0
    off = {"is_pre_fetch_open": False}
    assert found(wx) == [SERVER | off, FUNCTION | off, {}, SERVER]
    wx.put_settings("wxm2", SERVER)
    assert run("apply", "--yes", "--allow-disable").status == 0
    assert found(wx)[2] == SERVER | off


def test_objects_may_say_nothing(wx: Sandbox, listed: Listed, tmp_path: Path) -> None:
    """Null is an empty cell, and spaces around a value are ignored."""
    run = listed(COLUMN, MIXED)
    path = tmp_path / "prefetch.toml"
    path.write_text(path.read_text().replace("apps.csv", "apps.jsonl"))
    lines = ['{"appid": "wxm0", "source": " cloud:test-pfyol/login "}']
    lines += ['{"appid": "wxm1", "source": null}']
    (tmp_path / "apps.jsonl").write_text("\n".join(lines))
    assert run("apply", "--yes").status == 0
    assert found(wx)[:2] == [FUNCTION, {}]


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        (
            {"url": "https://shop.example/a", "env": "e", "name": "n"},
            "there are two sources at once (columns env, name, url)",
        ),
        ({"url": "", "env": "e", "name": ""}, "column name is empty, which the cloud function"),
        ({"url": "", "env": "", "name": "n"}, "column env is empty, which the cloud function"),
        ({"url": "", "env": "e" * 129, "name": "n"}, "column env, name names a cloud function"),
        ({"url": "", "env": "a/b", "name": "n"}, "env is not made of letters, digits"),
        ({"url": "cloud:e/", "env": "", "name": ""}, "column url names a cloud function without"),
        ({"url": "OFF", "env": "", "name": ""}, "column url is neither a URL, nor cloud:ENV/NAME"),
        ({"url": "http://a.example", "env": "", "name": ""}, "does not begin with https://"),
    ],
)
def test_a_wrong_line_is_named(
    wx: Sandbox, listed: Listed, cells: dict[str, str], says: str
) -> None:
    """With its number and the column that is wrong, and nothing is sent for the others."""
    fine = {"url": "off", "env": "", "name": ""}
    ended = listed(COLUMNS, rows_of(fine, cells))("apply", "--yes")
    assert ended.status == 4
    assert "line 3: " in ended.stderr
    assert says in ended.stderr
    assert wx.requests() == []


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("", "[urls] pre_fetch is missing"),
        ('[cloud.pre_fetch]\nenv = "e"', "[cloud.pre_fetch] function_name is missing"),
        ('[cloud.pre_fetch]\nfunction_name = "f"', "[cloud.pre_fetch] env is missing"),
        ('[cloud.pre_fetch]\nenv = ""\nfunction_name = "f"', "without its environment (env)"),
        ('[cloud.pre_fetch]\nenv = "a/b"\nfunction_name = "f"', "[cloud.pre_fetch] env holds a"),
        ('[cloud.pre_fetch]\nenv = "{x"\nfunction_name = "f"', "has a brace without its other"),
        ('[cloud.fetch]\nenv = "e"\nfunction_name = "f"', "[cloud] fetch is not known"),
        (
            '[urls]\npre_fetch = "cloud:e/f"',
            "is no URL. Name a cloud function in [cloud.pre_fetch]",
        ),
        ('[urls]\npre_fetch = "OFF"', "[urls] pre_fetch is neither a URL"),
        ('[urls]\noff = ["pre_fetch"]', "[urls] off names pre_fetch, of which nothing else"),
        ('[cloud.pre_fetch]\nenv = "e"\nfunction_name = "a b"', "[cloud.pre_fetch] function_name"),
        ('[cloud]\npre_fetch = "cloud:e/f"', "[cloud.pre_fetch] is no table"),
        ('[urls]\nperiod_fetch = "cloud:e/f"', "Name a cloud function in [cloud.period_fetch]"),
        ('[urls]\nperiod_fetch = "off"\noff = ["pre_fetch"]', "[urls] off names pre_fetch, of"),
        (
            '[urls]\npre_fetch = "https://a.example/"\n'
            '[cloud.pre_fetch]\nenv = "e"\nfunction_name = "f"',
            "[cloud.pre_fetch] and [urls] pre_fetch name two sources at once",
        ),
    ],
)
def test_a_wrong_file_is_named(wx: Sandbox, listed: Listed, table: str, says: str) -> None:
    """With the table and the key that are wrong."""
    ended = listed(table, rows_of({}))("plan")
    assert ended.status == 4
    assert says in ended.stderr
    assert wx.requests() == []


def test_for_once_by_flag(wx: Sandbox, listed: Listed) -> None:
    """A flag goes before the file, for all of the list; wrong ones are wrong usage."""
    run = listed(COLUMN, MIXED)
    assert run("apply", "--yes", "--pre-fetch", "cloud:test-pfyol/login").status == 0
    assert found(wx) == [FUNCTION] * 4
    absent = run("plan", "--pre-fetch", "{x}").stderr
    assert "there is no column ***, which a placeholder names" in absent
    for flag, says in {"cloud:e": "without its function", "{a": "brace", "x": "neither"}.items():
        ended = run("plan", "--period-fetch", flag)
        assert (ended.status, says in ended.stderr) == (2, True)


def test_a_flag_where_the_file_says_nothing(wx: Sandbox, listed: Listed) -> None:
    """It is enough; without it the file lacks something."""
    run = listed("", rows_of({}))
    assert "[urls] pre_fetch is missing" in run("apply", "--yes").stderr
    assert run("apply", "--yes", "--pre-fetch", "cloud:test-pfyol/login").status == 0
    assert wx.settings("wxm0") == FUNCTION


def test_a_saved_plan_says_it_itself(wx: Sandbox, listed: Listed, tmp_path: Path) -> None:
    """A flag beside the file would contradict it."""
    run, path = listed(COLUMN, MIXED), str(tmp_path / "plan.jsonl")
    assert run("plan", "--out", path).status == 0
    ended = run("apply", path, "--yes", "--pre-fetch", "off")
    assert (ended.status, "leave out --pre-fetch." in ended.stderr) == (2, True)
    assert run("apply", path, "--yes").status == 0
    assert found(wx) == [SERVER, FUNCTION, {}, {}]
