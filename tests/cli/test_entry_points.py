"""Every command works as `prefetch-kit …` and as `flask … prefetch …`."""

import json
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask

from prefetch_kit import Prefetch
from prefetch_kit.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.cli.conftest import Shell

APPID = "wx01"


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["show"], 0, "never configured"),
        (["plan", "--detailed-exitcode"], 3, "+ on, https://shop.example/prefetch/pre_fetch"),
        (["apply", "--yes", "--skip-probe"], 0, "read back from WeChat"),
        (["probe", "http://127.0.0.1:1/"], 1, "FAIL answered: the connection was refused"),
        (["routes"], 0, "pages/index/index"),
        (["token", "alice"], 0, "."),
        (["pull", "http://127.0.0.1:1/"], 1, ""),
        (["--help"], 0, "数据预拉取"),
    ],
)
def test_each_command(
    shell: "Shell", entry: list[str], words: list[str], status: int, said: str
) -> None:
    """Same words, same answer, same exit status."""
    ended = shell.run(*entry, *words)
    assert ended.status == status, ended.stderr
    assert said in ended.stdout


def test_apply_then_rollback(shell: "Shell", entry: list[str], wx: Sandbox) -> None:
    """What one process did another undoes."""
    shell.run(*entry, "apply", "--yes", "--skip-probe")
    assert wx.settings(APPID)["is_pre_fetch_open"] is True
    ended = shell.run(*entry, "rollback", "--yes", "--json")
    assert json.loads(ended.stdout.splitlines()[-1])["applied"] is True
    assert wx.settings(APPID)["is_pre_fetch_open"] is False


def test_flask_app_from_the_environment(shell: "Shell") -> None:
    """FLASK_APP names the app for both."""
    shell.environment["FLASK_APP"] = "shop_app:create_app()"
    ours, flasks = shell.run("prefetch_kit", "routes"), shell.run("flask", "prefetch", "routes")
    assert ours.stdout == flasks.stdout
    assert "pages/index/index" in ours.stdout


def test_version(shell: "Shell") -> None:
    """The program says which version it is."""
    assert shell.run("prefetch_kit", "--version").stdout.startswith("prefetch-kit, version ")


def test_the_app_has_the_commands(app: Flask) -> None:
    """`app.test_cli_runner()` finds them, with their sentences and exit codes."""
    runner = app.test_cli_runner()
    assert "pages/index/index" in runner.invoke(args=["prefetch", "routes"]).output
    refused = runner.invoke(args=["prefetch", "token", "--appid", "wx99", "alice"])
    assert (refused.exit_code, "lacks wx99" in refused.output) == (1, True)
    assert "prefetch" in runner.invoke(args=["--help"]).output


def test_a_command_of_the_app_keeps_its_name(settings: dict[str, Any], prefetch: Prefetch) -> None:
    """One that was there before the kit."""
    app = Flask(__name__)
    app.config.update(settings)
    app.cli.command("prefetch")(lambda: print("mine"))
    app.register_blueprint(prefetch)
    assert app.test_cli_runner().invoke(args=["prefetch"]).output == "mine\n"


@pytest.mark.parametrize("name", [".env", ".flaskenv"])
def test_env_files(shell: "Shell", entry: list[str], name: str) -> None:
    """Both programs read them where they are run, and what is set already wins."""
    module, *_ = entry
    (shell.cwd / name).write_text(
        "FLASK_APP=shop_app:create_app()\nPREFETCH_MAX_BYTES=none\nPREFETCH_RELEASE=r\n"
    )
    words = [module, *(["prefetch"] if module == "flask" else []), "routes"]
    ended = shell.run(*words)
    assert (ended.status, "PREFETCH_MAX_BYTES" in ended.stderr) == (1, True)
    shell.environment["PREFETCH_MAX_BYTES"] = "1000"
    assert "pages/index/index" in shell.run(*words).stdout
    shell.environment["FLASK_SKIP_DOTENV"] = "1"
    assert shell.run(*words).status != 0


def test_an_env_file_that_cannot_be_read(shell: "Shell") -> None:
    """It ends the command with a sentence."""
    (shell.cwd / ".env").write_bytes(b"A=\xff\n")
    ended = shell.run("prefetch_kit", "routes")
    assert ended.stderr == "Error: A .env or .flaskenv cannot be read: it is not UTF-8 text.\n"


NO_METADATA = """
import importlib.metadata

def nothing(name):
    raise importlib.metadata.PackageNotFoundError(name)

importlib.metadata.Distribution.from_name = nothing
from prefetch_kit.cli import main
main()
"""


@pytest.mark.parametrize("words", [["show"], ["--version"]])
def test_without_metadata_of_packages(shell: "Shell", words: list[str]) -> None:
    """In a zip, or a folder that was copied, there is none."""
    (shell.cwd / "copied.py").write_text(NO_METADATA)
    ended = shell.run("copied", "--app", "shop_app:create_app()", *words)
    assert ended.status == 0, ended.stderr
