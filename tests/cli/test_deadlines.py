"""A WeChat, or an app, that never answers."""

import socket
import subprocess
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefetch_kit.sandbox import Fault, Sandbox
from prefetch_kit.sandbox.faults import FaultKind

if TYPE_CHECKING:
    from tests.cli.conftest import Shell

SLOW: tuple[FaultKind, ...] = ("drip_headers", "drip_body", "hang")
PATHS = ("/cgi-bin/stable_token", "/wxa/fetchdatasetting")
APP = ["prefetch_kit", "--app", "shop_app:create_app()"]
COMMANDS = [["show"], ["plan"], ["apply", "--yes", "--skip-probe"]]


@pytest.fixture
def waiting(
    shell: "Shell", wx: Sandbox, state_dir: Path
) -> "Iterator[list[subprocess.Popen[str]]]":
    """Each command, waiting for a token that does not come or for settings that do not."""
    # Each reads twice before it gives up.
    for path, kind in product(PATHS, SLOW):
        wx.inject(Fault(kind=kind, path=path, times=2))
    token = {"PREFETCH_ACCESS_TOKEN": wx.access_token("wx01")}
    started = []
    for number, (words, source) in enumerate(product(COMMANDS, [{}, token])):
        # A state directory each, or they would wait for each other's token.
        own = {"PREFETCH_STATE_DIR": str(state_dir / str(number))}
        started.append(shell.start(*APP, *words, env=shell.environment | source | own))
    yield started
    for process in started:
        process.kill()


@pytest.mark.slow
def test_every_command_ends(
    shell: "Shell", wx: Sandbox, waiting: "list[subprocess.Popen[str]]"
) -> None:
    """Dripped at or hung upon, at either call or by the app itself: a sentence, in its time."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        origin = f"http://127.0.0.1:{silent.getsockname()[1]}"
        wx.map_origin("shop.example", origin)
        pull = shell.start(*APP, "pull", f"{origin}/data")
        probe = shell.start(*APP, "probe", "https://shop.example/data")
        assert "within 10 s" in shell.end(pull).stderr
        assert "FAIL answered: no complete answer within 10 s" in shell.end(probe).stdout
    for process in waiting:
        ended = shell.end(process)
        assert (ended.status, ended.stdout) == (1, "")
        assert "no complete answer within 5 s" in ended.stderr
    assert [wx.count(path=path) for path in PATHS] == [6, 6]
