"""The deployment examples: each file is read as its platform reads it, and its command is run."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from flask import Flask

import example_app
from example_app.shop import APPID, create_app
from prefetch_kit.sandbox import Sandbox

ROOT = Path(example_app.__file__).parents[1]
DEPLOY = ROOT / "example_app" / "deploy"
SECRET = "any-secret-will-do"
Run = Callable[..., "subprocess.CompletedProcess[str]"]

pytestmark = pytest.mark.slow


def read_yaml(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


@pytest.fixture
def wx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Callable[[Flask], str]
) -> Iterator[Sandbox]:
    """A WeChat that knows the shop, which is deployed and answers."""
    monkeypatch.setenv("SHOP_DATA", str(tmp_path / "shop"))
    with Sandbox() as wechat:
        wechat.add_app(APPID, secret=SECRET)
        wechat.add_domain(APPID, "shop.example")
        wechat.map_origin("shop.example", serve(create_app()))
        yield wechat


@pytest.fixture
def run(wx: Sandbox, tmp_path: Path) -> Run:
    """Run a command with this environment and nothing else but what leads it to the sandbox."""
    programs = tmp_path / "bin"
    programs.mkdir()
    flask = programs / "flask"
    flask.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m flask "$@"\n')
    flask.chmod(0o755)

    def run(command: list[str], environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
        given = {"PREFETCH_API_BASE_URL": wx.base_url, "PATH": f"{programs}:{os.environ['PATH']}"}
        return subprocess.run(
            command,
            cwd=ROOT,
            env={"SHOP_DATA": str(tmp_path / "data"), **given, **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


def check_registered(wx: Sandbox, run: Run, command: list[str], **environment: str) -> None:
    """The first run registers, the second changes nothing; then WeChat can pull."""
    for _ in range(2):
        done = run(command, environment)
        assert done.returncode == 0, done.stdout + done.stderr
        assert wx.count(action="set_pre_fetch") == wx.count(action="set_period_fetch") == 1
    wx.add_user(APPID, "alice")
    assert wx.cold_start(APPID, "alice", path="pages/index/index").kept


def test_the_release_command(wx: Sandbox, run: Run) -> None:
    """Run through a shell, as a Procfile's lines are."""
    processes = dict(
        line.split(": ", 1)
        for line in (DEPLOY / "Procfile").read_text().splitlines()
        if line[0] != "#"
    )
    assert processes.keys() == {"release", "web"}
    command = ["sh", "-c", processes["release"]]
    check_registered(wx, run, command, PREFETCH_APP_SECRET=SECRET)


def test_the_release_command_needs_no_app_that_answers(wx: Sandbox, run: Run) -> None:
    """It comes before the new version, which may be the first."""
    wx.map_origin("shop.example", "http://127.0.0.1:1")
    release = re.search(r"^release: (.*)$", (DEPLOY / "Procfile").read_text(), re.MULTILINE)
    assert release is not None
    assert run(shlex.split(release[1]), {"PREFETCH_APP_SECRET": SECRET}).returncode == 0


def test_the_web_process_starts(run: Run) -> None:
    """Its command line is one that gunicorn takes."""
    web = re.search(r"^web: gunicorn (.*)$", (DEPLOY / "Procfile").read_text(), re.MULTILINE)
    assert web is not None
    gunicorn = [sys.executable, "-m", "gunicorn", "--check-config", *shlex.split(web[1])]
    done = run(gunicorn, {})
    assert done.returncode == 0, done.stderr


def test_the_kubernetes_job(wx: Sandbox, run: Run, tmp_path: Path) -> None:
    """The container's own command and variables, with its volumes in a directory of the test."""
    job = read_yaml("kubernetes-job.yaml")
    assert (job["kind"], job["apiVersion"]) == ("Job", "batch/v1")
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    secret = Path(f"{tmp_path}{mounts['wechat']}/app-secret")
    secret.parent.mkdir(parents=True)
    secret.write_text(f"{SECRET}\n")
    variables = {each["name"]: f"{tmp_path}{each['value']}" for each in container["env"]}
    check_registered(wx, run, container["command"], **variables)
    assert (tmp_path / "data" / "prefetch_kit").is_dir()


def test_the_ci_pipeline(wx: Sandbox, run: Run) -> None:
    """The step that registers, run as GitHub runs a step; the last line proves it is done."""
    workflow = read_yaml("github-actions.yaml")
    step = next(s for s in workflow["jobs"]["deploy"]["steps"] if s.get("name") == "Register")
    (variable,) = step["env"]
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    check_registered(wx, run, command, **{variable: SECRET})


def test_a_pipeline_fails_where_weixin_refuses(wx: Sandbox, run: Run) -> None:
    """A registration that was refused is a failed deployment, not a green one."""
    wx.deny(APPID, 48001)
    job = read_yaml("kubernetes-job.yaml")
    command = job["spec"]["template"]["spec"]["containers"][0]["command"]
    done = run(command, {"PREFETCH_APP_SECRET": SECRET})
    assert (done.returncode, "48001" in done.stderr) == (1, True)
