"""What goes wrong is one sentence on standard error and status 1, never a traceback."""

import os
import pty
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from flask import Flask, current_app

from prefetch_kit import Prefetch
from prefetch_kit.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.cli.conftest import Cli, Shell

APPID = "wx01"
SECRET_KEY = "canary/secret+key=0123456789"
ALL = [["show"], ["plan"], ["apply", "--yes", "--skip-probe"], ["rollback", "--yes"]]


@pytest.fixture
def built(settings: dict[str, Any], prefetch: Prefetch) -> Callable[..., Flask]:
    """An app with other settings; None takes one away."""

    def build(**changes: Any) -> Flask:
        app = Flask(__name__)
        given = {**settings, **changes}
        app.config.update({key: value for key, value in given.items() if value is not None})
        app.register_blueprint(prefetch)
        return app

    return build


@pytest.mark.parametrize("words", ALL[:3])
def test_wrong_secret(cli: "Cli", built: Callable[..., Flask], words: list[str]) -> None:
    """WeChat's refusal comes with its code and what to check."""
    app = built(PREFETCH_APP_SECRET="wrong-secret-0123456789")
    cli.leaks.secrets.append("wrong-secret-0123456789")
    assert "40125" in cli.refused(*words, app=app)


@pytest.mark.parametrize("words", [*ALL[:3], ["probe"], ["pull"]])
def test_weixin_is_not_there(cli: "Cli", built: Callable[..., Flask], words: list[str]) -> None:
    """With nobody listening nothing was sent; it says so, where to, and what to start."""
    with Sandbox() as stopped:
        url = stopped.base_url
    sentence = cli.refused(*words, app=built(PREFETCH_API_BASE_URL=url))
    assert f"Nothing was sent to {url}: start `prefetch-kit sandbox`" in sentence
    assert "PREFETCH_API_BASE_URL" in sentence


@pytest.mark.parametrize("words", [["plan"], ["apply", "--yes"], ["probe"], ["pull"]])
def test_no_public_url(cli: "Cli", built: Callable[..., Flask], words: list[str]) -> None:
    """Commands that need the public URL name the setting."""
    assert "PREFETCH_BASE_URL is missing" in cli.refused(*words, app=built(PREFETCH_BASE_URL=None))


def test_domain_that_is_not_ours(cli: "Cli", built: Callable[..., Flask]) -> None:
    """A host outside the business domains is WeChat's own refusal, with the way out."""
    app = built(PREFETCH_BASE_URL="https://other.example")
    assert "业务域名" in cli.refused("apply", "--yes", "--skip-probe", app=app)


def test_no_token_source(cli: "Cli", built: Callable[..., Flask]) -> None:
    """Without any way to a token the three settings are named."""
    sentence = cli.refused("show", app=built(PREFETCH_APP_SECRET=None))
    assert "PREFETCH_TOKEN_COMMAND" in sentence


def test_no_secret_key(cli: "Cli", settings: dict[str, Any]) -> None:
    """Without a key no token can be minted."""
    app = Flask(__name__)
    app.config.update({key: value for key, value in settings.items() if key != "SECRET_KEY"})
    app.register_blueprint(Prefetch("prefetch", __name__))
    assert "SECRET_KEY is missing" in cli.refused("token", "alice", app=app)


@pytest.mark.parametrize("user_id", ["", "x" * 200])
def test_impossible_user_id(cli: "Cli", user_id: str) -> None:
    """A user id that fits no token is refused in a sentence."""
    assert "user id" in cli.refused("token", user_id)


@pytest.mark.parametrize("words", [*ALL, ["token", "alice"], ["pull"], ["probe"]])
def test_several_appids(cli: "Cli", built: Callable[..., Flask], words: list[str]) -> None:
    """Which mini program is meant has to be said."""
    app = built(PREFETCH_APPIDS=[APPID, "wx02"], PREFETCH_APP_SECRET=None)
    sentence = cli.refused(*words, app=app)
    assert "wx01, wx02" in sentence
    assert "--appid" in sentence


def test_an_appid_that_is_not_ours(cli: "Cli") -> None:
    """A mistyped appid is found before anything is sent."""
    assert "lacks wx99" in cli.refused("show", "--appid", "wx99")


@pytest.mark.parametrize("words", [["plan"], ["apply", "--yes"], ["pull"], ["probe"]])
def test_several_endpoints(cli: "Cli", app: Flask, words: list[str]) -> None:
    """Which blueprint is meant has to be said."""
    app.register_blueprint(Prefetch("second", __name__, url_prefix="/second"))
    sentence = cli.refused(*words)
    assert "prefetch, second" in sentence
    assert "--endpoint" in sentence


def test_an_endpoint_that_does_not_exist(cli: "Cli") -> None:
    """A mistyped blueprint is answered with the ones there are."""
    assert "names prefech, which is not registered. Name one of prefetch" in cli.refused(
        "plan", "--endpoint", "prefech"
    )


def test_a_prefix_with_an_open_variable(cli: "Cli", settings: dict[str, Any]) -> None:
    """A URL that cannot be known is not guessed."""
    app = Flask(__name__)
    app.config.update(settings)
    app.register_blueprint(Prefetch("prefetch", __name__, url_prefix="/<shop>"))
    assert "app.url_defaults" in cli.refused("plan", app=app)


def test_an_app_without_prefetch(cli: "Cli") -> None:
    """An app that never registered the blueprint is told so."""
    assert "register_blueprint" in cli.refused("routes", app=Flask(__name__))


@pytest.mark.parametrize("words", ALL)
def test_state_directory_that_cannot_be_made(
    cli: "Cli", state_dir: Path, wx: Sandbox, words: list[str]
) -> None:
    """A file in its way stops every command that needs the state, before WeChat is asked."""
    state_dir.write_text("")
    assert str(state_dir) in cli.refused(*words)
    assert wx.count(path="/wxa/fetchdatasetting") == 0


def test_nobody_to_ask(wx: Sandbox, cli: "Cli", served: str) -> None:
    """Without a terminal and without --yes nothing is sent."""
    ended = cli("apply")
    assert (ended.status, ended.stderr.splitlines()[-1]) == (
        1,
        "Error: Nobody is here to answer; add --yes.",
    )
    assert wx.count(action="set_pre_fetch") == 0


@pytest.mark.parametrize("url", ["https://[broken", "http://[::1"])
@pytest.mark.parametrize("command", ["probe", "pull"])
def test_urls_that_are_none(cli: "Cli", served: str, command: str, url: str) -> None:
    """Garbage for a URL is a usage error."""
    ended = cli(command, url)
    assert ended.status == 2
    assert ended.stderr.endswith("it is not a URL.\n")


@pytest.mark.parametrize("url", ["http://shop.example/p", "ftp://127.0.0.1/p", "/p", "https://@/"])
@pytest.mark.parametrize("command", ["probe", "pull"])
def test_urls_weixin_would_not_pull(cli: "Cli", served: str, command: str, url: str) -> None:
    """Only https, or http on this machine, is pulled at all."""
    assert " cannot be registered: it " in cli.refused(command, url)


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe\xfa"])
def test_token_files_without_a_token(cli: "Cli", tmp_path: Path, content: bytes) -> None:
    """An empty file, or one that holds no text, is named."""
    (tmp_path / "token").write_bytes(content)
    assert "holds no text" in cli.refused("pull", "--token-file", f"{tmp_path}/token")


def test_two_proofs_of_a_user(cli: "Cli", tmp_path: Path) -> None:
    """Token and code never come together."""
    (tmp_path / "code").write_text("c")
    ended = cli("pull", "--user", "alice", "--code-file", f"{tmp_path}/code")
    assert (ended.status, "Give one of" in ended.stderr) == (2, True)


BROKEN = {
    "raises": ("raise RuntimeError(SECRET)", "RuntimeError at "),
    "exits": ("raise SystemExit(0)", "SystemExit at "),
    "imports": ("import no_such_module_of_ours", "ModuleNotFoundError at "),
    "import error": ("raise ImportError(SECRET)", "ImportError at "),
    "type error": ("def create_app(): raise TypeError(SECRET)", "TypeError at "),
    "no app": ("create_app = 3", "leads to no Flask app"),
    "no name": ("", "leads to no Flask app"),
    "bad syntax": ("def", "SyntaxError at "),
}


@pytest.mark.parametrize("case", BROKEN)
def test_apps_that_cannot_be_loaded(shell: "Shell", case: str) -> None:
    """Any failure of an app while it loads becomes a sentence without a secret."""
    code, cause = BROKEN[case]
    (shell.cwd / "broken_app.py").write_text(f"SECRET = {shell.leaks.secrets[0]!r}\n{code}\n")
    ended = shell.run("prefetch_kit", "--app", "broken_app:create_app()", "show")
    assert (ended.status, ended.stdout) == (1, "")
    assert ended.stderr.startswith("Error: ")
    assert cause in ended.stderr
    assert ended.stderr.count("\n") == 1


FOREIGN = {
    "generated": ("exec('1/0')", "ZeroDivisionError"),
    "standard library": ("import json; json.loads(SECRET)", "JSONDecodeError"),
    "installed": ("from flask import Flask; Flask(__name__).route('x')(print)", "ValueError"),
    "kit": (
        "from prefetch_kit import Prefetch as P; P('p', '').pre_fetch('/')(print)",
        "ValueError",
    ),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_the_developers_own_frame_is_named(shell: "Shell", case: str) -> None:
    """What is raised deep in other people's code is located where the app called it."""
    code, error = FOREIGN[case]
    (shell.cwd / "broken_app.py").write_text(f"SECRET = {shell.leaks.secrets[0]!r}\n{code}\n")
    ended = shell.run("prefetch_kit", "--app", "broken_app:create_app()", "routes")
    assert f"loaded: {error} at {shell.cwd / 'broken_app.py'}:2. " in ended.stderr
    assert "Run `flask routes` with the same --app to see" in ended.stderr


def test_bad_syntax_is_located(shell: "Shell", entry: list[str]) -> None:
    """The sentence names the broken line, not the import."""
    (shell.cwd / "views.py").write_text("x = 1\n\ndef\n")
    (shell.cwd / "shop_app.py").write_text("import views\n")
    ended = shell.run(*entry, "routes")
    assert f"SyntaxError at {shell.cwd / 'views.py'}:3. " in ended.stderr


def fail(*_: object) -> NoReturn:
    raise LookupError(SECRET_KEY)


FAIL_LINE = f"{__file__}:{fail.__code__.co_firstlineno + 1}"


@pytest.mark.parametrize("words", [["plan"], ["probe"], ["pull"]])
def test_url_defaults_that_fail(cli: "Cli", app: Flask, words: list[str]) -> None:
    """A failing function of the app is named by the class and the line of its error."""
    app.url_defaults(fail)
    assert cli.refused(*words) == f"Error: The app failed: LookupError at {FAIL_LINE}."


@pytest.mark.parametrize("words", [["show"], ["token", "alice"], ["pull", "--user", "alice"]])
def test_a_callable_for_appids_that_fails(
    cli: "Cli", built: Callable[..., Flask], words: list[str]
) -> None:
    """So is the callable in PREFETCH_APPIDS."""
    app = built(PREFETCH_APPIDS=fail, PREFETCH_APP_SECRET=None)
    sentence = cli.refused(*words, "--appid", APPID, app=app)
    assert sentence == f"Error: The app failed: LookupError at {FAIL_LINE}."


def test_a_callable_for_appids_has_the_app(cli: "Cli", built: Callable[..., Flask]) -> None:
    """It may ask the app's own database, in a command as in a pull."""
    appids = {"PREFETCH_APPIDS": lambda appid: appid == current_app.config["OURS"]}
    app = built(**appids, OURS=APPID, PREFETCH_APP_SECRET=None)
    assert cli("token", "alice", "--appid", APPID, app=app).status == 0
    assert "lacks wx99" in cli.refused("token", "alice", "--appid", "wx99", app=app)


def test_an_app_with_a_missing_import(shell: "Shell", entry: list[str]) -> None:
    """Flask would show a whole traceback here, by either way in."""
    (shell.cwd / "shop_app.py").write_text("import no_such_module_of_ours\n")
    ended = shell.run(*entry, "show")
    assert (ended.status, ended.stderr.count("\n")) == (1, 1)
    assert "ModuleNotFoundError at " in ended.stderr
    assert "shop_app.py:1" in ended.stderr


def test_no_app_at_all(shell: "Shell") -> None:
    """Where none is named and none is found, it says how to name one."""
    ended = shell.run("prefetch_kit", "show")
    assert (ended.status, ended.stderr.count("\n")) == (1, 1)
    assert "--app" in ended.stderr


def test_an_app_that_does_not_exist(shell: "Shell", entry: list[str]) -> None:
    """A mistyped module is one sentence as well."""
    words = [word.replace("shop_app", "shop_ap") for word in entry]
    ended = shell.run(*words, "show")
    assert (ended.status, ended.stderr.count("\n")) == (1, 1)
    assert ended.stderr.startswith("Error: --app (or FLASK_APP) leads to no Flask app")


def test_closed_standard_input(shell: "Shell", wx: Sandbox) -> None:
    """Without any standard input there is nobody to ask either."""
    words = ["prefetch_kit", "--app", "shop_app:create_app()", "apply", "--skip-probe"]
    ended = shell.run(*words, stdin=None, preexec_fn=lambda: os.close(0))
    assert (ended.status, ended.stderr) == (1, "Error: Nobody is here to answer; add --yes.\n")
    assert wx.count(action="set_pre_fetch") == 0


@pytest.mark.parametrize(("answer", "status", "halves"), [("y\n", 0, 1), ("n\n", 1, 0)])
def test_a_person_is_asked(
    shell: "Shell", wx: Sandbox, answer: str, status: int, halves: int
) -> None:
    """At a terminal the plan is shown and the answer counts."""
    ours, theirs = pty.openpty()
    os.write(ours, answer.encode())
    words = ["prefetch_kit", "--app", "shop_app:create_app()", "apply", "--skip-probe"]
    ended = shell.run(*words, stdin=theirs)
    os.close(ours)
    os.close(theirs)
    assert ended.status == status
    assert "never configured" in ended.stdout
    assert wx.count(action="set_pre_fetch") == halves


def test_output_that_cannot_be_written(
    shell: "Shell", entry: list[str], demand: Callable[[object, str], None]
) -> None:
    """A full disk is reported on standard error; the exit code stays that of the work."""
    demand(Path("/dev/full").exists(), "/dev/full")
    with open("/dev/full", "w") as full, shell.start(*entry, "plan", stdout=full) as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert said.endswith("Not all was printed: standard output failed (No space left on device).\n")
