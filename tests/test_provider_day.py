"""A day of a service provider: the page, with each command typed and its output compared."""

import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from threading import Timer

import pytest

PAGE = (Path(__file__).parent.parent / "docs/provider-day.md").read_text()
BLOCK = re.compile(r"^(?:`([\w.]+)`[^`\n]*:\n\n)?```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^\$ (.*\n(?:> .*\n)*)((?:(?!\$ ).*\n)*)", re.MULTILINE)
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00")
END = "-- the end of what a command says:"
WHOLE_DAY_S = 300
Start = Callable[[str, Path], str]


class Terminal:
    """A shell that is typed into."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._bash = subprocess.Popen(
            ["bash", "--norc"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def type(self, command: str) -> tuple[str, int]:
        """What a command says, on both streams, and its exit code."""
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.write(f"{command}\n{{ code=$?; echo '{END}' $code; (exit $code); }}\n")
        self._bash.stdin.flush()
        said = ""
        while END not in said:
            line = self._bash.stdout.readline()
            assert line, f"{command} does not come to its end"
            said += line
        said, _, code = said.partition(END)
        return said, int(code)

    def kill(self) -> None:
        os.killpg(self._bash.pid, signal.SIGKILL)

    def close(self) -> None:
        with self._bash:
            self.kill()


class Day:
    """A folder, a terminal for commands, and one for each server."""

    def __init__(
        self, folder: Path, environment: dict[str, str], wechat: Start, listening: socket.socket
    ) -> None:
        self._folder = folder
        self._environment = environment
        self._wechat = wechat
        self._listening = listening
        self._app: subprocess.Popen[bytes] | None = None
        self._ports = {"--bind 127.0.0.1:8000": f"--bind fd://{listening.fileno()}"}
        self._ports["127.0.0.1:8000"] = f"127.0.0.1:{listening.getsockname()[1]}"
        self.terminal = Terminal(folder, environment)

    def here(self, text: str) -> str:
        """With ports that are free on this machine."""
        for there, here in self._ports.items():
            text = text.replace(there, here)
        return text

    def write(self, name: str, text: str) -> None:
        (self._folder / name).write_text(self.here(text))

    def serve(self, block: str) -> None:
        """Start WeChat, or the app, in a separate terminal; the app after Ctrl-C, if it runs."""
        script = self.here(block)
        if " sandbox " in script:
            self._ports["http://127.0.0.1:9000"] = self._wechat(script, self._folder)
            return
        self.stop()
        self._app = subprocess.Popen(
            ["bash", "-ec", script.replace("gunicorn", "exec gunicorn")],
            cwd=self._folder,
            env=self._environment,
            pass_fds=[self._listening.fileno()],
        )
        with closing(HTTPConnection(self._ports["127.0.0.1:8000"], timeout=60)) as connection:
            connection.request("GET", "/")
            connection.getresponse().read()  # any answer will do: the app is up

    def stop(self) -> None:
        if self._app is not None:
            self._app.send_signal(signal.SIGINT)
            self._app.wait(timeout=30)

    def type(self, commands: str) -> str:
        """What a reader of the page sees: each command, and under it what it says."""
        seen = ""
        typed = COMMAND.findall(commands)
        for (command, _), (following, shown) in zip(typed, [*typed[1:], ("", "")], strict=True):
            said, code = self.terminal.type(self.here(command.replace("\n> ", "\n")))
            expected = int(shown) if following == "echo $?\n" else 0
            assert code == expected, f"{command}exits with {code}:\n{said}"
            seen += f"$ {command}{said}"
        return seen


@pytest.fixture
def day(tmp_path: Path, bare: dict[str, str], local_wechat: Start) -> Iterator[Day]:
    """It ends, whatever happens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        day = Day(tmp_path, bare, local_wechat, listening)
        too_late = Timer(WHOLE_DAY_S, day.terminal.kill)
        too_late.start()
        yield day
        too_late.cancel()
        day.terminal.close()
        day.stop()


@pytest.mark.slow
def test_the_day(day: Day) -> None:
    """Every file is written, every command typed; they say what the page shows, but the times."""
    for name, language, block in BLOCK.findall(PAGE):
        if name:
            day.write(name, block)
        elif language == "sh":
            day.serve(block)
        else:
            assert TIME.sub("(time)", day.type(block)) == TIME.sub("(time)", block)
