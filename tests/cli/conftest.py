"""An app, a sandbox that knows it, and two ways to run a command: in here and as a process."""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch
from urllib.parse import quote, quote_plus

import pytest
from flask import Flask
from flask.cli import ScriptInfo

from prefetch_kit import NO_DATA, Prefetch, Pull
from prefetch_kit.cli import commands
from prefetch_kit.sandbox import Sandbox

APPID = "wx01"
SECRET = "canary/app+secret=0123456789"
SECRET_KEY = "canary/secret+key=0123456789"
FLEET_SECRET = "canary/fleet+secret=0123456789"
APP = """
import os
from flask import Flask
from prefetch_kit import Prefetch

def create_app():
    prefetch = Prefetch("prefetch", __name__, url_prefix="/prefetch")
    prefetch.pre_fetch("pages/index/index")(lambda pull: {"user": pull.user_id})
    prefetch.period_fetch()(lambda pull: {"news": []})
    app = Flask(__name__)
    app.secret_key = os.environ["SHOP_KEY"]
    app.register_blueprint(prefetch)
    return app
"""

PROJECT = """
api_base_url = "{base_url}"
state_dir = "state"
[apps]
list = "apps.csv"
[urls]
pre_fetch = "https://shop.example/p/{{appid}}/pre_fetch"
[tokens]
app_secrets = {{ env = "FLEET_SECRETS" }}
[fleet]
workers = 4
canary = 0
stop_at = "100%"
"""


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    stdout: str
    stderr: str


class Leaks:
    """Looks for secrets in what was said, and in what was left in the state directory."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self.secrets = [SECRET, SECRET_KEY]

    def found_in(self, *texts: str) -> list[str]:
        left = [path.name for path in self._state_dir.rglob("*")]
        left += [path.read_bytes().decode("latin-1") for path in self._journals()]
        everything = "\n".join([*texts, *left])
        return [form for secret in self.secrets for form in forms(secret) if form in everything]

    def _journals(self) -> Iterator[Path]:
        return self._state_dir.rglob("journal*")


def forms(secret: str) -> set[str]:
    """A secret as it may be hidden: plain, percent-encoded, base64, cut short."""
    raw = secret.encode()
    packed = {base64.b64encode(raw), base64.urlsafe_b64encode(raw)}
    encoded = {text.decode().rstrip("=") for text in packed}
    return {secret, quote(secret, safe=""), quote_plus(secret), secret[:12], *encoded}


def text(content: str = "") -> TextIOWrapper:
    return TextIOWrapper(BytesIO(content.encode()), encoding="utf-8")


def read(stream: TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


class Cli:
    """Runs a command in this process, and never lets a secret or a traceback pass."""

    def __init__(self, app: Flask, leaks: Leaks) -> None:
        self.app = app
        self.leaks = leaks

    def __call__(self, *words: str, stdin: str = "", app: Flask | None = None) -> Ended:
        served = app or self.app
        info = ScriptInfo(create_app=lambda: served)
        # Not click's CliRunner: older ones mix what goes to standard error into the output.
        with (
            patch("sys.stdin", text(stdin)),
            redirect_stdout(text()) as stdout,
            redirect_stderr(text()) as stderr,
            pytest.raises(SystemExit) as ending,
        ):
            commands.main(words, prog_name="prefetch", obj=info)
        ended = Ended(int(ending.value.code or 0), read(stdout), read(stderr))
        if words[0] != "token":
            assert self.leaks.found_in(ended.stdout, ended.stderr) == []
        return ended

    def refused(self, *words: str, app: Flask | None = None) -> str:
        """The sentence of a command that must fail: one line on standard error, status 1."""
        ended = self(*words, app=app)
        assert (ended.status, ended.stdout) == (1, "")
        *before, sentence = ended.stderr.splitlines()
        assert before == []
        assert sentence.startswith("Error: ")
        return sentence


class Shell:
    """Runs a command as a separate process, in a directory with `shop_app.py`."""

    def __init__(self, cwd: Path, environment: dict[str, str], leaks: Leaks) -> None:
        self.cwd = cwd
        self.environment = environment
        self.leaks = leaks

    def start(self, *words: str, **options: Any) -> "subprocess.Popen[str]":
        """Start `python -m …` without waiting; remember to end it."""
        return subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=self.cwd,
            text=True,
            **{
                "env": self.environment,
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                **options,
            },
        )

    def run(self, *words: str, **options: Any) -> Ended:
        with self.start(*words, **options) as process:
            return self.end(process)

    def end(self, process: "subprocess.Popen[str]") -> Ended:
        stdout, stderr = process.communicate(timeout=60)
        assert self.leaks.found_in(stdout, stderr) == []
        assert "Traceback" not in stderr
        return Ended(process.returncode, stdout, stderr)


class Project:
    """A prefetch.toml of some mini programs, and the commands for it."""

    def __init__(self, wx: Sandbox, folder: Path, cli: Cli) -> None:
        self.wx = wx
        self.folder = folder
        self.path = folder / "prefetch.toml"
        self._cli = cli
        self.appids = [f"wxm{number:02}" for number in range(8)]
        for appid in self.appids:
            wx.add_app(appid, secret=FLEET_SECRET)
            wx.add_domain(appid, "shop.example")
        self.path.write_text(PROJECT.format(base_url=wx.base_url))
        (folder / "apps.csv").write_text("\n".join(["appid", *self.appids]))

    def __call__(self, *words: str) -> Ended:
        return self._cli("fleet", *words, "--config", str(self.path))

    def lines(self, *words: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self(*words, "--json").stdout.splitlines()]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variables that the developer has exported."""
    for name in os.environ:
        if name.startswith(("PREFETCH_", "FLASK_")):
            monkeypatch.delenv(name)


@pytest.fixture(scope="package")
def running() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def wx(running: Sandbox, leaks: Leaks) -> Sandbox:
    """A WeChat that is reset for each test, on one port."""
    running.reset()
    running.add_app(APPID, secret=SECRET)
    running.add_user(APPID, "alice")
    running.add_domain(APPID, "shop.example")
    leaks.secrets.append(running.access_token(APPID))
    return running


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def leaks(state_dir: Path) -> Leaks:
    return Leaks(state_dir)


@pytest.fixture
def prefetch() -> Prefetch:
    """A public page, a private one, a large one, nothing for the others; a periodic pull."""
    blueprint = Prefetch("prefetch", __name__, url_prefix="/prefetch")

    @blueprint.pre_fetch("pages/private", login_required=True)
    def private(pull: Pull) -> object:
        return {"user": pull.user_id}

    @blueprint.pre_fetch("pages/index/index")
    def index(pull: Pull) -> object:
        return {"user": pull.user_id, "id": pull.query.get("id"), "scene": pull.scene}

    @blueprint.pre_fetch()
    def anything(_pull: Pull) -> object:
        return NO_DATA

    @blueprint.period_fetch()
    def digest(pull: Pull) -> object:
        return {"news": [], "user": pull.user_id}

    return blueprint


@pytest.fixture
def settings(wx: Sandbox, state_dir: Path) -> dict[str, Any]:
    """What the app is configured with."""
    return {
        "SECRET_KEY": SECRET_KEY,
        "PREFETCH_APPIDS": [APPID],
        "PREFETCH_APP_SECRET": SECRET,
        "PREFETCH_BASE_URL": "https://shop.example",
        "PREFETCH_API_BASE_URL": wx.base_url,
        "PREFETCH_STATE_DIR": state_dir,
    }


@pytest.fixture
def app(settings: dict[str, Any], prefetch: Prefetch) -> Flask:
    made = Flask(__name__)
    made.config.update(settings)
    made.register_blueprint(prefetch)
    return made


@pytest.fixture
def cli(app: Flask, leaks: Leaks) -> Cli:
    return Cli(app, leaks)


@pytest.fixture
def served(wx: Sandbox, app: Flask, serve: Callable[[Flask], str]) -> str:
    """The app, really listening; WeChat connects there for shop.example."""
    origin = serve(app)
    wx.map_origin("shop.example", origin)
    return origin


@pytest.fixture
def shell(wx: Sandbox, state_dir: Path, tmp_path: Path, leaks: Leaks) -> Shell:
    (tmp_path / "shop_app.py").write_text(APP)
    environment = os.environ | {
        "PREFETCH_APPIDS": APPID,
        "PREFETCH_APP_SECRET": SECRET,
        "PREFETCH_BASE_URL": "https://shop.example",
        "PREFETCH_API_BASE_URL": wx.base_url,
        "PREFETCH_STATE_DIR": str(state_dir),
        "SHOP_KEY": SECRET_KEY,
    }
    return Shell(tmp_path, environment, leaks)


@pytest.fixture(params=["prefetch-kit", "flask"])
def entry(request: pytest.FixtureRequest) -> Sequence[str]:
    """Both ways in: `python -m prefetch_kit --app …` and `flask --app … prefetch`."""
    app = ["--app", "shop_app:create_app()"]
    if request.param == "flask":
        return ["flask", *app, "prefetch"]
    return ["prefetch_kit", *app]


@pytest.fixture
def project(
    wx: Sandbox, tmp_path: Path, cli: Cli, leaks: Leaks, monkeypatch: pytest.MonkeyPatch
) -> Project:
    made = Project(wx, tmp_path, cli)
    secrets = json.dumps(dict.fromkeys(made.appids, FLEET_SECRET))
    monkeypatch.setenv("FLEET_SECRETS", secrets)
    leaks.secrets += [FLEET_SECRET, *(wx.access_token(appid) for appid in made.appids)]
    return made
