"""What operators see of a fleet, and for which of its apps a command is."""

import csv
import io
import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefetch_kit.sandbox import Fault

if TYPE_CHECKING:
    import subprocess

    from tests.cli.conftest import Project, Shell

pytestmark = pytest.mark.slow

KIND = "is_pre_fetch_open"


def on(project: "Project") -> list[str]:
    return [appid for appid in project.appids if project.wx.settings(appid).get(KIND)]


def rows_of(text: str) -> dict[str, dict[str, str]]:
    return {row["appid"]: row for row in csv.DictReader(io.StringIO(text))}


@pytest.fixture
def half_way(
    project: "Project", shell: "Shell", until: Callable[[Callable[[], object]], None]
) -> "subprocess.Popen[str]":
    """An apply in a separate process, of which four apps are done and the others take long."""
    shell.environment["FLEET_SECRETS"] = os.environ["FLEET_SECRETS"]
    late = Fault(kind="delay", action="set_pre_fetch", after=4, times=4, delay_s=30.0)
    project.wx.inject(late)
    process = shell.start("prefetch_kit", "fleet", "apply", "--yes", "--json")
    until(lambda: counted(project) == [(4, 4)])
    return process


def counted(project: "Project") -> list[tuple[object, object]]:
    """How many are done and how many under way, once a fleet has begun."""
    return [(record.get("done"), record.get("sent")) for record in project.lines("status")[1:]]


def test_status_beside_a_running_fleet(
    project: "Project", half_way: "subprocess.Popen[str]"
) -> None:
    """That it runs, since when, by whom, how fast, and how long it will take."""
    with half_way:
        said, (_, record) = project("status").stdout, project.lines("status")
        half_way.kill()
    assert re.search(
        rf"running in process {half_way.pid} on \S+ since 20\S+: \d+\.\d a second", said
    )
    assert re.search(r", (\d+ min )?\d+ s left\.", said)
    assert f"process {half_way.pid} on " in record["holder"]
    assert record["rate_per_s"] > 0
    assert record["eta_s"] >= 1


def test_status_after_a_kill(project: "Project", half_way: "subprocess.Popen[str]") -> None:
    """Each app that was set is counted, and each that may have been."""
    with half_way:
        half_way.kill()
    _, record = project.lines("status")
    assert (record["running"], record["ended"], record["eta_s"]) == (False, False, None)
    assert (record["done"], record["sent"], record["unreached"]) == (4, 4, 0)
    assert "it may have been set, or not" in project("status").stdout
    assert project("apply", "--yes").status == 0
    assert project.lines("status")[1]["done"] == 8


def test_progress_tells_rate_and_rest(project: "Project", shell: "Shell") -> None:
    """On standard error, where it is no terminal."""
    shell.environment["FLEET_SECRETS"] = os.environ["FLEET_SECRETS"]
    project.wx.inject(Fault(kind="delay", action="get", times=None, delay_s=0.8))
    said = shell.run("prefetch_kit", "fleet", "plan", "--workers", "1").stderr
    assert re.search(r"\d of 8: \d done, \d+\.\d a second, \d+ s left", said)


def test_only_and_exclude(project: "Project", tmp_path: Path) -> None:
    """By appid, by list and by file, for every command."""
    first, second, third, *_ = project.appids
    names = tmp_path / "names.txt"
    names.write_text(f"{second}\n{third}\n")
    only = ("--only", first, "--only", str(names))
    assert "3 of 3 read." in project("plan", *only).stdout
    assert "3 of 3 done." in project("apply", "--yes", *only).stdout
    assert on(project) == [first, second, third]
    assert "2 of 2 done." in project("rollback", "--yes", "--exclude", first).stdout
    assert on(project) == [first]
    assert (
        "5 of 5 read."
        in project("status", "--live", "--exclude", str(names), "--exclude", first).stdout
    )
    listed = tmp_path / "some.csv"
    listed.write_text(f"name,appid\nx,{first}\n")
    assert "7 of 7 read." in project("plan", "--exclude", str(listed)).stdout


@pytest.mark.parametrize("option", ["--only", "--exclude"])
def test_names_that_cannot_be_found(project: "Project", tmp_path: Path, option: str) -> None:
    """A mistyped name sets no other app, and leaves none in."""
    for name, problem in [
        ("wxm0l", "wxm0l (--only, --exclude) cannot be found in"),
        ("nobody.txt", "neither an appid nor a file"),
        (str(tmp_path / "empty.csv"), "it names no mini program"),
        (str(tmp_path / "odd.csv"), "it is no appid"),
    ]:
        (tmp_path / "empty.csv").write_text("appid\n")
        (tmp_path / "odd.csv").write_text("appid\na b\n")
        ended = project("apply", "--yes", option, name)
        assert (ended.status, problem in ended.stderr) == (4, True)
    assert project.wx.count(action="get") == 0


@pytest.mark.parametrize("content", ["0123456789abcdef" * 2, '{"canary+app/secret": "wx01"}'])
def test_a_secret_taken_for_a_list_is_not_shown(
    project: "Project", tmp_path: Path, content: str
) -> None:
    """A file of secrets lies beside the list, and is soon mistaken for it."""
    path = tmp_path / "secret.txt"
    path.write_text(content)
    ended = project("plan", "--only", str(path))
    assert ended.status == 4
    assert "0123456789" not in ended.stdout + ended.stderr
    assert "canary" not in ended.stdout + ended.stderr


def test_one_app_does_not_end_a_run_that_was_cut_short(
    project: "Project", half_way: "subprocess.Popen[str]"
) -> None:
    """What is done for some apps in between leaves one rollback for all of it."""
    with half_way:
        half_way.kill()
    assert project("apply", "--yes", "--only", project.appids[5]).status == 0
    assert project("apply", "--yes").status == 0
    assert on(project) == project.appids
    assert project("rollback", "--yes").status == 0
    assert on(project) == []


def test_a_saved_plan_leaves_out_whom_the_list_has_no_more(project: "Project") -> None:
    """With a word; a plan of which nobody is left is refused."""
    file = str(project.folder / "plan.jsonl")
    project("plan", "--out", file)
    (project.folder / "apps.csv").write_text("\n".join(["appid", *project.appids[:2]]))
    begun = project.lines("apply", file, "--yes")[1]
    assert begun["unlisted"] == project.appids[2:]
    assert on(project) == project.appids[:2]
    said = project("apply", file, "--yes").stderr
    assert "6 of the plan are left out, because they are not on the list any more: wxm02, " in said
    (project.folder / "apps.csv").write_text("appid\nwxnew\n")
    assert "is on the list any more" in project("apply", file, "--yes").stderr


def test_live_status_tells_drift(project: "Project") -> None:
    """By its exit code, with --detailed-exitcode."""
    project("apply", "--yes")
    live = ("status", "--live", "--detailed-exitcode")
    assert project(*live).status == 0
    project.wx.put_settings(project.appids[0], {})
    assert project(*live).status == 3
    assert project("status", "--live").status == 0
    assert project("status", "--detailed-exitcode").status == 2


def test_half_set_is_named(project: "Project") -> None:
    """Which half WeChat has now: in text, in status, in JSON and in the report."""
    with project.path.open("a") as file:
        file.write('[cloud.period_fetch]\nenv = "test-pfyol"\nfunction_name = "news"\n')
    project.wx.inject(
        Fault(kind="errcode", action="set_period_fetch", after=2, times=1, errcode=9410017)
    )
    lines = project.lines("apply", "--yes", "--workers", "1")
    record = next(each for each in lines if each.get("outcome") == "failed")
    assert {change["kind"]: change["outcome"] for change in record["changes"]} == {
        "pre_fetch": "confirmed",
        "period_fetch": "refused",
    }
    assert "pre_fetch set, period_fetch refused: 9410017" in project("status").stdout
    row = rows_of(project("report").stdout)[record["appid"]]
    assert (row["outcome"], row["pre_fetch_outcome"], row["period_fetch_outcome"]) == (
        "failed",
        "confirmed",
        "refused",
    )
    assert row["period_fetch"] == "cloud:test-pfyol/news"


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl"])
def test_report(project: "Project", suffix: str) -> None:
    """Every app with its outcome, its cause, what was set and when."""
    project.wx.deny(project.appids[3], 61007)
    project("apply", "--yes")
    out = project.folder / f"run.{suffix}"
    assert project("report", "1", "--out", str(out)).status == 0
    text = out.read_text()
    found: dict[str, Any] = (
        rows_of(text)
        if suffix == "csv"
        else {row["appid"]: row for row in json.loads(text)}
        if suffix == "json"
        else {row["appid"]: row for row in map(json.loads, text.splitlines())}
    )
    assert sorted(found) == project.appids
    assert found["wxm03"]["outcome"] == "failed"
    assert "61007" in found["wxm03"]["cause"]
    assert found["wxm00"]["pre_fetch"] == "https://shop.example/p/wxm00/pre_fetch"
    assert (found["wxm00"]["outcome"], found["wxm00"]["pre_fetch_before"]) == ("done", "")
    assert found["wxm00"]["at"].startswith("20")


def test_a_report_holds_no_formula(project: "Project") -> None:
    """Whatever WeChat answers, a spreadsheet computes nothing of it."""
    project.wx.inject(
        Fault(kind="errcode", action="set_pre_fetch", times=None, errcode=-1, errmsg="=1+1")
    )
    project("apply", "--yes", "--wait", "0s", "--only", project.appids[0])
    (row,) = rows_of(project("report").stdout).values()
    assert [text for text in row.values() if text[:1] in tuple("=+-@\t\r")] == []


def test_reports_that_cannot_be_made(project: "Project") -> None:
    """No such run, no such format, no such directory: a sentence."""
    assert project("report").status == 4
    project("apply", "--yes")
    assert project("report", "7").status == 4
    assert project("report", "--out", "run.xls").status == 2
    ended = project("report", "--out", str(project.folder / "nowhere" / "run.csv"))
    assert (ended.status, "cannot be written" in ended.stderr) == (1, True)


def test_a_killed_fleet_is_reported(project: "Project", half_way: "subprocess.Popen[str]") -> None:
    """Those in the middle of which it was killed are in it."""
    with half_way:
        half_way.send_signal(signal.SIGKILL)
    rows = rows_of(project("report").stdout)
    assert sorted(row["outcome"] for row in rows.values()) == ["done"] * 4 + ["sent"] * 4
