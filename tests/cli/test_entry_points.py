"""Every command works as `prefetch-kit …` and as `flask … prefetch …`."""

import json
from typing import TYPE_CHECKING

import pytest

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
