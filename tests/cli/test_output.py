"""Output that fails ends no command, and changes neither what is done nor the exit code."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefetch_kit.sandbox import Fault, Sandbox

if TYPE_CHECKING:
    from tests.cli.conftest import Ended, Project, Shell

pytestmark = pytest.mark.slow

APPID = "wx01"
ONE = ("prefetch_kit", "--app", "shop_app:create_app()", "apply", "--yes", "--skip-probe")
FLEET = ("prefetch_kit", "fleet", "apply", "--yes")


class Redirected:
    """Runs commands through a shell, which can close and redirect their streams."""

    def __init__(self, shell: "Shell") -> None:
        self._shell = shell

    def __call__(self, redirected: str, *words: str, **environment: str) -> "Ended":
        command = f'"$0" -m "$@" {redirected}; echo "ended with ${{PIPESTATUS[0]}}"'
        process = subprocess.Popen(
            ["bash", "-c", command, sys.executable, *words],
            cwd=self._shell.cwd,
            env=self._shell.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        with process:
            return self._shell.end(process)


@pytest.fixture
def run(shell: "Shell", project: "Project") -> Redirected:
    shell.environment["FLEET_SECRETS"] = os.environ["FLEET_SECRETS"]
    assert project.path.parent == shell.cwd
    return Redirected(shell)


def has_set(wx: Sandbox, appid: str) -> bool:
    return bool(wx.settings(appid).get("is_pre_fetch_open"))


LOST = ["| head -0", "| head -1", "> /dev/full", "2> /dev/full", ">&-", ">&- 2>&-", "<&- >&- 2>&-"]


@pytest.mark.parametrize("words", [ONE, FLEET, (*FLEET, "--json")], ids=["one", "fleet", "json"])
@pytest.mark.parametrize("redirected", LOST)
def test_output_that_cannot_be_written(
    run: Redirected, project: "Project", words: tuple[str, ...], redirected: str
) -> None:
    """A closed pipe, a full disk, closed streams: all is set, and the exit code says so."""
    ended = run(redirected, *words)
    assert "ended with 0\n" in ended.stdout
    appids = [APPID] if words is ONE else project.appids
    assert [appid for appid in appids if not has_set(project.wx, appid)] == []
    is_said = "Not all was printed: standard output failed" in ended.stderr
    is_lost = "head" in redirected or (">" in redirected and not redirected.startswith("2>"))
    says = is_lost and ("--json" in words or "/dev/full" in redirected)
    assert is_said == (says and "2>" not in redirected)


def test_failures_are_told_where_output_fails(run: Redirected, project: "Project") -> None:
    """The exit code of a fleet of which one app fails stays 1."""
    project.wx.deny(project.appids[0], 61007)
    assert "ended with 1\n" in run("| head -0", *FLEET, "--json").stdout


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "gbk"])
def test_an_encoding_that_lacks_characters(
    run: Redirected, project: "Project", encoding: str
) -> None:
    """They are replaced in text, and escaped in JSON, of which nothing is lost."""
    project.wx.inject(
        Fault(kind="errcode", action="get", times=None, errcode=9410016, errmsg="域名 😀")
    )
    said = {"PYTHONIOENCODING": encoding}
    for words in (["--help"], ["fleet", "apply", "--yes"], ["fleet", "status"]):
        run("", "prefetch_kit", *words, **said)  # and no traceback
    expected = {record.get("cause") for record in project.lines("plan") if "cause" in record}
    *lines, _ = run("", "prefetch_kit", "fleet", "plan", "--json", **said).stdout.splitlines()
    records = [json.loads(each) for each in lines]
    assert {record.get("cause") for record in records if "cause" in record} == expected


def test_a_terminal_that_is_lost(shell: "Shell", run: Redirected, project: "Project") -> None:
    """As under nohup, where SIGHUP is ignored: the fleet goes on."""
    project.wx.inject(Fault(kind="delay", action="set_pre_fetch", times=4, delay_s=1.0))
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", *FLEET],
        cwd=shell.cwd,
        env=shell.environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    with process:
        os.close(theirs)
        assert b"8 mini programs" in os.read(ours, 4096)
        os.close(ours)
        assert process.wait(60) == 0
    assert [appid for appid in project.appids if not has_set(project.wx, appid)] == []


@pytest.mark.parametrize("words", [ONE, FLEET], ids=["one", "fleet"])
def test_a_question_that_cannot_be_shown(
    shell: "Shell", run: Redirected, project: "Project", words: tuple[str, ...]
) -> None:
    """It is not taken for answered: nothing is sent."""
    ours, theirs = os.openpty()
    os.write(ours, b"y\n")
    asking = [each for each in words if each != "--yes"]
    full = os.open("/dev/full", os.O_WRONLY)
    with shell.start(*asking, stdin=theirs, stdout=full) as process:
        os.close(theirs)
        os.close(full)
        _, stderr = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == (1 if words is ONE else 4)
    assert "the question cannot be shown" in stderr
    assert project.wx.count(action="set_pre_fetch") == 0


def test_errors_are_records_too(cli: Callable[..., "Ended"], project: "Project") -> None:
    """With --json: the class of the error, its sentence and the exit code, on standard output."""
    record = json.loads(project("rollback", "--yes", "--json").stdout.splitlines()[-1])
    assert (record["type"], record["error"], record["exit_code"]) == (
        "error",
        "NothingToRollBack",
        4,
    )
    assert "not rolled back already" in record["message"]
    usage: dict[str, Any] = json.loads(cli("plan", "--json", "--color").stdout)
    assert (usage["error"], usage["exit_code"]) == ("NoSuchOption", 2)


def is_being_sent(folder: Path) -> bool:
    """Whether the journal below has a change of which a call is under way."""
    journals = folder.rglob("journal.sqlite3")
    with suppress(sqlite3.OperationalError):  # it is just being made
        for path in journals:
            with closing(sqlite3.connect(path)) as db:
                sql = "SELECT COUNT(*) FROM changes WHERE outcome = 'intent'"
                return bool(db.execute(sql).fetchone()[0])
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("command", ["apply", "rollback"])
def test_a_signal_in_the_middle_of_a_set(
    wx: Sandbox,
    shell: "Shell",
    until: Callable[[Callable[[], object]], None],
    command: str,
    number: signal.Signals,
) -> None:
    """What may have been sent is named, and what to run next; that leads to where it should."""
    app = ONE[:3]
    if command == "rollback":
        shell.run(*ONE)
    wx.inject(Fault(kind="delay", action="set_pre_fetch", times=1, delay_s=30.0))
    words = [*app, command, "--yes", *(["--skip-probe"] if command == "apply" else [])]
    with shell.start(*words) as process:
        until(lambda: is_being_sent(shell.cwd))
        process.send_signal(number)
        ended = shell.end(process)
    assert ended.status == 128 + number
    assert re.search(r"Of wx01, .*\bpre_fetch may have been set, or not", ended.stderr)
    again = {"apply": "Run the same command again", "rollback": "Run the same rollback again"}
    assert again[command] in ended.stderr
    assert shell.run(*words).status == 0
    assert has_set(wx, APPID) == (command == "apply")


def test_a_signal_before_anything_is_set(
    wx: Sandbox, shell: "Shell", until: Callable[[Callable[[], object]], None]
) -> None:
    """Then that is said."""
    wx.inject(Fault(kind="delay", action="get", times=1, delay_s=30.0))
    with shell.start(*ONE) as process:
        until(lambda: wx.count(action="get"))
        process.send_signal(signal.SIGTERM)
        ended = shell.end(process)
    assert (ended.status, "No pull was set." in ended.stderr) == (128 + signal.SIGTERM, True)


def test_closed_standard_input_is_empty(run: Redirected) -> None:
    """Whoever reads from it is told so, and nobody is asked."""
    app = ONE[:3]
    assert "holds no text" in run("<&-", *app, "pull", "--token-file", "-").stderr
    assert "Nobody is here to answer" in run("<&-", *app, "apply", "--skip-probe").stderr
