"""The fleet commands: their output, their exit codes, and how they are stopped."""

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefetch_kit.sandbox import Fault

if TYPE_CHECKING:
    from tests.cli.conftest import Project, Shell

pytestmark = pytest.mark.slow

SECRET = "canary/fleet+secret=0123456789"


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each retry waits almost the shortest possible time."""
    monkeypatch.setattr("random.uniform", lambda low, high: low + (high - low) / 1000)


def test_apply_says_what_was_done_by_cause(project: "Project") -> None:
    """Counts on standard output, the rest beside it."""
    ended = project("apply", "--yes")
    assert ended.status == 0
    assert "8 of 8 done." in ended.stdout
    assert "set and read back" in ended.stdout
    assert "Run 1 is apply: 8 mini programs." in ended.stderr


def test_json_begins_with_its_version_and_ends_with_the_summary(project: "Project") -> None:
    """One object per line, and nothing else on standard output."""
    first, begun, *apps, last = project.lines("apply", "--yes")
    assert (first["type"], first["format"], first["program"]) == ("version", 1, "prefetch-kit")
    assert begun == {
        "type": "begun",
        "action": "apply",
        "apps": 8,
        "run": 1,
        "resumed": False,
        "unread": 0,
        "unlisted": [],
        "returns_from": None,
        "left_by": None,
    }
    assert sorted(each["appid"] for each in apps) == project.appids
    assert {each["changes"][0]["kind"] for each in apps} == {"pre_fetch"}
    assert (last["type"], last["done"], last["exit_code"]) == ("summary", 8, 0)


def test_plan_tells_cause_and_exit_code(project: "Project") -> None:
    """With --detailed-exitcode it is 3 where there is something to do; drift is named."""
    assert project("plan").status == 0
    assert project("plan", "--detailed-exitcode").status == 3
    assert project.lines("plan", "--detailed-exitcode")[-1]["exit_code"] == 3
    project("apply", "--yes")
    assert project("plan", "--detailed-exitcode").status == 0
    project.wx.put_settings(project.appids[0], {})
    changes = [c for each in project.lines("plan") for c in each.get("changes", ())]
    assert [(c["appid"], c["cause"]) for c in changes] == [(project.appids[0], "drift")]


def test_a_plan_calls_nothing_done(project: "Project") -> None:
    """Where all it did was to read."""
    project("apply", "--yes")
    project.wx.put_settings(project.appids[0], {})
    ended = project("plan")
    assert "8 of 8 read." in ended.stdout
    assert re.search(r"^1 +read +wxm00 +drifted", ended.stdout, re.MULTILINE)
    assert "done" not in ended.stdout


def test_a_saved_plan_goes_through_a_file(project: "Project") -> None:
    """Saved by one command, executed by the next, and refused when it was changed."""
    file = str(project.folder / "plan.jsonl")
    assert project("plan", "--out", file).status == 0
    assert project("apply", file, "--yes").status == 0
    Path(file).write_text(Path(file).read_text().replace("wxm01", "wxm02", 1))
    ended = project("apply", file, "--yes")
    assert (ended.status, "plan --out" in ended.stderr) == (4, True)


def test_whom_a_saved_plan_lacks_is_said(project: "Project") -> None:
    """In words and in JSON, when it is executed."""
    project.wx.deny(project.appids[0], 61003)
    file = str(project.folder / "plan.jsonl")
    assert project("plan", "--out", file).status == 1
    assert "The plan lacks 1 that could not be read" in project("apply", file, "--yes").stderr
    assert project.lines("apply", file, "--yes")[1]["unread"] == 1


def test_exit_codes(project: "Project") -> None:
    """0, 75 for what only waits, 1 where some failed, 4 where all did."""
    project.wx.inject(Fault(kind="errcode", action="get", errcode=45009))
    assert project("apply", "--yes").status == 75
    project.wx.deny(project.appids[0], 61007)
    assert project("apply", "--yes").status == 1
    for appid in project.appids:
        project.wx.deny(appid, 61007)
    assert project("apply", "--yes").status == 4


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["apply", "--stop-at", "ten"], 2),
        (["apply", "--stop-at", "0%"], 2),
        (["apply", "--canary", "-1"], 2),
        (["apply", "--workers", "0"], 2),
        (["apply", "--rate", "0"], 2),
        (["apply", "--rate", "nan"], 2),
        (["apply", "--rate", "1e-300"], 2),
        (["rollback", "--to", "x"], 2),
        (["sail"], 2),
        (["apply"], 4),
        (["rollback", "--yes"], 4),
        (["status"], 4),
    ],
)
def test_wrong_usage_and_nothing_to_do(project: "Project", words: list[str], status: int) -> None:
    """2 for what cannot be meant, and one sentence; nothing was asked."""
    ended = project(*words)
    assert ended.status == status
    assert "Error: " in ended.stderr
    assert project.wx.count(action="get") == 0


@pytest.mark.parametrize("wrong", ["[urls]\ncolor = 1", "x = {", ""])
def test_a_wrong_file_is_named(project: "Project", wrong: str) -> None:
    """Exit code 4: nothing could be done."""
    project.path.write_text(wrong)
    ended = project("apply", "--yes")
    assert ended.status == 4
    assert str(project.path) in ended.stderr


def test_status_asks_nobody(project: "Project") -> None:
    """By cause, with examples, from the journal alone; with --live one read an app."""
    project.wx.deny(project.appids[3], 61007)
    project("apply", "--yes")
    asked = len(project.wx.requests())
    ended = project("status")
    assert "7 of 8 done, 1 failed." in ended.stdout
    assert "61007" in ended.stdout
    assert project.appids[3] in ended.stdout
    assert len(project.wx.requests()) == asked
    _, status = project.lines("status")
    assert status["unreached"] == 0
    assert (status["run"], status["ended"], status["failed"]) == (1, True, 1)
    assert project("status", "--live").status == 1
    assert len(project.wx.requests()) == asked + 8


def test_rollback_by_command(project: "Project") -> None:
    """And to a run by its number."""
    project("apply", "--yes")
    assert project("rollback", "--yes").status == 0
    assert {project.wx.settings(a)["is_pre_fetch_open"] for a in project.appids} == {False}
    assert project("rollback", "--to", "2", "--yes").status == 0
    assert {project.wx.settings(a)["is_pre_fetch_open"] for a in project.appids} == {True}


def test_a_rollback_says_what_it_leaves(project: "Project") -> None:
    """What failed, and was done by the same command later, is all that the later run changed."""
    refused = Fault(kind="errcode", errcode=9410016, action="set_pre_fetch", times=1)
    project.wx.inject(refused)
    assert project("apply", "--yes", "--stop-at", "100%").status == 1
    assert project("apply", "--yes").status == 0
    ended = project("rollback", "--yes")
    assert (ended.status, "1 of 1 done." in ended.stdout) == (0, True)
    assert "Run 3 is rollback of run 2: 1 mini program." in ended.stderr
    said = "7 mini programs that it did not change will keep what run 1 set; fleet rollback --to 1"
    assert said in ended.stderr
    assert project("rollback", "--to", "1", "--yes").status == 0
    assert {project.wx.settings(a)["is_pre_fetch_open"] for a in project.appids} == {False}


def test_a_journal_that_is_lost_after_a_set(
    project: "Project", state_dir: Path, until: Callable[[Callable[[], object]], None]
) -> None:
    """Something was done by then, so the exit code is not the one that says nothing was."""
    project.wx.inject(Fault(kind="delay", action="set_pre_fetch", delay_s=0.3, times=None))

    def lose() -> None:
        until(lambda: project.wx.count(action="set_pre_fetch"))
        shutil.rmtree(state_dir)

    other = threading.Thread(target=lose)
    other.start()
    ended = project("apply", "--yes", "--workers", "1")
    other.join()
    assert (ended.status, "removed or replaced" in ended.stderr) == (1, True)


def test_a_rollback_has_no_canaries(project: "Project") -> None:
    """A mini program that cannot be asked any more does not stop the others, as a canary would."""
    project.path.write_text(project.path.read_text().replace("canary = 0", "canary = 1"))
    project("apply", "--yes")
    refused = Fault(kind="errcode", action="get", errcode=40013)
    project.wx.inject(refused)
    assert "7 of 8 done, 1 failed." in project("rollback", "--yes").stdout
    project.wx.inject(refused)
    assert "--canary 0" in project("rollback", "--yes", "--canary", "1").stderr


@pytest.mark.parametrize("kind", ["errcode", "raw", "redirect", "close", "reset", "cut"])
@pytest.mark.parametrize("action", ["get", "set_pre_fetch"])
def test_no_secret_in_any_failure(project: "Project", kind: Any, action: str) -> None:
    """Whatever WeChat echoes: not in words, not in JSON, not in the journal (`cli` looks)."""
    token = project.wx.access_token(project.appids[0])
    (project.folder / "apps.csv").write_text(f"appid\n{project.appids[0]}")
    fault = Fault(
        kind=kind,
        action=action,
        times=None,
        errcode=40164,
        errmsg=f"{token} is not allowed",
        body=f"{SECRET} {token}",
        location=f"{project.wx.base_url}/{token}",
    )
    project.wx.inject(fault)
    is_unknown = action != "get" and kind != "errcode"
    ended = project("apply", "--yes", "--stop-at", "1%", "--wait", "0")
    assert ended.status == (1 if is_unknown else 4)
    assert project("plan", "--json").status in (0, 4)
    assert project("status", "--json").status == 0


def test_no_secret_where_no_token_can_be_had(
    project: "Project", monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong secrets, refused ones, and none."""
    project.wx.inject(
        Fault(kind="errcode", path="/cgi-bin/stable_token", times=None, errcode=40125)
    )
    assert project("apply", "--yes").status == 4
    monkeypatch.setenv("FLEET_SECRETS", SECRET)
    assert project("apply", "--yes").status == 4
    monkeypatch.setenv("FLEET_SECRETS", "{}")
    assert "no AppSecret" in project("apply", "--yes").stderr


@pytest.fixture
def slow_sets() -> Fault:
    return Fault(kind="delay", action="set_pre_fetch", times=4, delay_s=3.0)


@pytest.fixture
def started(
    project: "Project",
    slow_sets: Fault,
    shell: "Shell",
    state_dir: Path,
    until: Callable[[Callable[[], object]], None],
) -> "subprocess.Popen[str]":
    """An apply in a separate process, whose first four sets are under way and take long."""
    project.wx.inject(slow_sets)
    shell.environment["FLEET_SECRETS"] = os.environ["FLEET_SECRETS"]
    words = ["prefetch_kit", "fleet", "apply", "--yes", "--config", str(project.path)]
    process = shell.start(*words)
    until(lambda: intents(state_dir) >= 4)
    return process


def intents(state_dir: Path) -> int:
    """How many changes were begun, as the journal has it."""
    try:
        (path,) = state_dir.rglob("journal.sqlite3")
        with closing(sqlite3.connect(path)) as db:
            sql = "SELECT COUNT(*) FROM changes WHERE outcome = 'intent'"
            return int(db.execute(sql).fetchone()[0])
    except (ValueError, sqlite3.Error):  # not there yet, or being made
        return 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_finishes_what_is_under_way(
    project: "Project", shell: "Shell", started: "subprocess.Popen[str]", number: int
) -> None:
    """No set is left without being read back; how to go on is said, and going on ends it."""
    with started:
        started.send_signal(number)
        ended = shell.end(started)
    assert ended.status == 1
    assert ended.stderr.count("Stopping: what is under way is finished.") == 1
    assert "Stopped: interrupted." in ended.stderr
    assert "Run the same command again" in ended.stderr
    reached = [a for a in project.appids if project.wx.settings(a)]
    assert 4 <= len(reached) < 8
    assert f"{len(reached)} of 8 done" in ended.stdout
    assert project("apply", "--yes").status == 0


# None is answered before its deadline, however long the second signal takes to come.
@pytest.mark.parametrize("slow_sets", [Fault(kind="hang", action="set_pre_fetch", times=4)])
def test_a_second_ctrl_c_ends_at_once(
    project: "Project", shell: "Shell", started: "subprocess.Popen[str]", state_dir: Path
) -> None:
    """What was under way is not waited for; what that means and how to go on is said."""
    with started:
        started.send_signal(signal.SIGINT)
        assert started.stderr is not None
        said = iter(started.stderr.readline, "")
        assert any("Once more ends at once." in line for line in said)
        started.send_signal(signal.SIGINT)
        ended = shell.end(started)
    assert ended.status == 128 + signal.SIGINT
    assert "What was under way may have been set, or not." in ended.stderr
    assert "Run the same command again" in ended.stderr
    assert intents(state_dir) == 4
    assert project("apply", "--yes").status == 0


def test_two_fleets_at_once(
    project: "Project", shell: "Shell", started: "subprocess.Popen[str]"
) -> None:
    """The second says who holds the lock, and exits with 4; `status` says that one runs."""
    with started:
        ended = project("apply", "--yes")
        status, (_, record) = project("status"), project.lines("status")
        assert shell.end(started).status == 0
    assert f", running in process {started.pid} on " in status.stdout
    assert (record["ended"], record["running"]) == (False, True)
    assert project.lines("status")[1]["running"] is False
    assert ended.status == 4
    assert f"process {started.pid} on " in ended.stderr


def test_both_ways_in_need_no_app(project: "Project", shell: "Shell", tmp_path: Path) -> None:
    """`flask prefetch fleet` and `prefetch-kit fleet`, in a directory without any app."""
    (tmp_path / "shop_app.py").unlink()
    shell.environment["FLEET_SECRETS"] = os.environ["FLEET_SECRETS"]
    for entry in (["flask", "prefetch"], ["prefetch_kit"]):
        assert shell.run(*entry, "fleet", "plan").status == 0


def on_a_terminal(words: Sequence[str], folder: Path) -> str:
    """What a command shows where standard error is a terminal."""
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "prefetch_kit", *words]
    with subprocess.Popen(command, cwd=folder, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        try:
            while read := os.read(ours, 4096):
                shown += read
        except OSError:  # how Linux tells that nobody holds the other end any more
            pass
        assert process.wait() == 0
    os.close(ours)
    return shown.decode()


def test_a_bar_on_a_terminal(project: "Project", tmp_path: Path) -> None:
    """It moves, and leaves the summary behind."""
    shown = on_a_terminal(["fleet", "apply", "--yes"], tmp_path)
    assert "8 of 8 done." in shown
    assert "━" in shown
