"""Tokens printed by a program of the operator's, which may do anything at all."""

import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from prefetch_kit.errors import ConfigError, TokenSourceError
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.command_token import CommandToken

pytestmark = pytest.mark.slow

CANARY = "canary-access-token"
FOREVER_S = 60.0


def shell(script: str, *args: str, deadline_s: float = FOREVER_S) -> CommandToken:
    return CommandToken(["sh", "-c", script, "sh", *args], deadline_s=deadline_s)


def printed(text: str | bytes) -> CommandToken:
    """A command that prints these bytes and ends well."""
    octal = "".join(f"\\{byte:03o}" for byte in (text.encode() if isinstance(text, str) else text))
    return shell(f"printf '{octal}'")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Holds one line for each time the `counting` command ran."""
    path = tmp_path / "runs"
    path.touch()
    return path


@pytest.fixture
def counting(runs: Path) -> Callable[[str], CommandToken]:
    """A command that counts its runs and prints text with their number in place of `N`."""

    def make(text: str) -> CommandToken:
        script = 'echo run >> "$1"; printf "%s" "$2" | sed "s/N/$(wc -l < "$1" | tr -d " ")/"'
        return shell(script, str(runs), text)

    return make


@pytest.mark.parametrize(
    "text",
    [
        CANARY,
        f"{CANARY}\n",
        f"\r\n {CANARY} \r\n",
        json.dumps({"access_token": CANARY}),
        json.dumps({"access_token": CANARY, "expires_in": 7200}),
        json.dumps({"access_token": CANARY, "name": "小程序"}, ensure_ascii=False),
        "\ufeff" + json.dumps({"errcode": 0, "access_token": CANARY}, indent=2),
    ],
)
def test_a_token_is_found_in_what_is_printed(text: str) -> None:
    """Bare or as JSON, with white space, other members and a byte order mark around it."""
    assert printed(text).get() == Secret(CANARY)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "two words",
        "first-line\nsecond-line",
        "x" * 1025,
        "токен",
        b"\xff\xfe\x00binary",
        "[]",
        '"quoted-by-jq"',
        "{",
        "{}",
        '{"access_token": ""}',
        '{"access_token": 7}',
        '{"access_token": "a b"}',
        '{"access_token": "a", "access_token": "b"}',
        '{"access_token": "a", "expires_in": 0}',
        '{"access_token": "a", "expires_in": -1}',
        '{"access_token": "a", "expires_in": "7200"}',
        '{"access_token": "a", "expires_in": null}',
        '{"access_token": "a", "expires_in": true}',
        '{"access_token": "a", "expires_in": NaN}',
        '{"access_token": "a", "expires_in": 1%s}' % ("0" * 400),
        '{"errcode": 40013, "errmsg": "invalid appid"}',
    ],
)
def test_anything_else_is_refused_and_not_shown(text: str | bytes) -> None:
    """What cannot be told to be a token may hold one, so it is not quoted."""
    with pytest.raises(TokenSourceError) as caught:
        printed(text).get()
    assert caught.value.problem == "what it printed is neither a token nor JSON with one"
    assert caught.value.__context__ is None


def test_what_goes_to_stderr_is_nobodys_business(capfd: pytest.CaptureFixture[str]) -> None:
    """Noise beside a token neither spoils it nor ends in our own output."""
    assert shell(f"echo noise >&2; echo {CANARY}; echo noise >&2").get() == Secret(CANARY)
    assert capfd.readouterr() == ("", "")


def test_a_token_printed_by_a_command_that_fails_is_not_used() -> None:
    """The status is believed, and named."""
    with pytest.raises(TokenSourceError, match="it ended with status 3"):
        shell(f"echo {CANARY}; exit 3").get()


@pytest.mark.parametrize(
    ("argv", "named", "why"),
    [
        (["/nowhere/to-be-found"], "***", "No such file"),  # it may be a token
        (["/etc/passwd"], "/etc/passwd", "Permission denied"),
        (["/"], "/", "Permission denied"),
        (["sh", "a\0b"], "sh", "bad argument"),
    ],
)
def test_a_command_that_cannot_be_started_is_named(
    argv: Sequence[str], named: str, why: str
) -> None:
    """The system's own reason, and the program if it is one, and what to try."""
    with pytest.raises(TokenSourceError, match=f"cannot be started .*{why}") as caught:
        CommandToken(argv).get()
    assert caught.value.source == f"PREFETCH_TOKEN_COMMAND ({named})"
    assert "Run it by hand" in caught.value.remedy


@pytest.mark.parametrize("argv", [[], "print-token --now"])
def test_a_command_is_a_list(argv: Sequence[str]) -> None:
    """A string would be taken for its letters."""
    with pytest.raises(ConfigError, match="PREFETCH_TOKEN_COMMAND"):
        CommandToken(argv)


@pytest.mark.parametrize(
    "script",
    [
        "sleep 300",
        f"echo {CANARY}; sleep 300",
        f"echo {CANARY}; exec >&-; sleep 300",
        "trap '' TERM INT HUP; while :; do sleep 1; done",
        f"while :; do printf x; sleep 0.05; done; echo {CANARY}",
        f"echo {CANARY}; sleep 300 &",
    ],
    ids=["silent", "printed", "closed stdout", "deaf", "dripping", "child keeps stdout"],
)
def test_a_command_that_does_not_end_is_cut_off_at_its_deadline(script: str) -> None:
    """However it dawdles, and whatever it has printed so far."""
    began = time.monotonic()
    with pytest.raises(TokenSourceError, match=r"did not finish within 0\.5 s"):
        shell(script, deadline_s=0.5).get()
    assert time.monotonic() - began < 30


def test_a_command_that_prints_forever_is_cut_off_by_size() -> None:
    """Long before its deadline, and without keeping what it prints."""
    with pytest.raises(TokenSourceError, match="printed more than 8192 bytes"):
        CommandToken(["yes", CANARY], deadline_s=FOREVER_S).get()


@pytest.mark.parametrize(
    "script",
    ["sleep 300 & echo $! > $1; wait", "sleep 300 & echo $! > $1; yes"],
    ids=["late", "endless"],
)
def test_what_a_cut_off_command_started_ends_with_it(tmp_path: Path, script: str) -> None:
    """No process is left behind that nobody knows of."""
    pid = tmp_path / "pid"
    for deadline_s in (0.5, 2, 8, 32):
        with pytest.raises(TokenSourceError):
            shell(script, str(pid), deadline_s=deadline_s).get()
        if pid.exists() and pid.read_text():  # a busy machine may not even have begun
            break
    stat = Path("/proc", pid.read_text().strip(), "stat")
    until = time.monotonic() + 30
    while stat.exists() and ") Z " not in stat.read_text():  # nobody may reap it in a container
        assert time.monotonic() < until
        time.sleep(0.01)


def test_it_reads_nothing_from_our_input() -> None:
    """A command that asks a question gets no answer instead of a terminal."""
    assert shell(f"read answer || echo {CANARY}").get() == Secret(CANARY)


def test_its_group_is_its_own() -> None:
    """So that killing it can never end the process that asked."""
    group = int(
        shell("ps -o pgid= -p $$ 2>/dev/null || cut -d' ' -f5 /proc/$$/stat").get().reveal()
    )
    assert group != os.getpgrp()


def test_a_failure_shows_the_program_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither arguments nor environment nor output are in the text or in any frame of ours."""
    secrets = [f"canary-{where}-{os.getpid()}" for where in ("argument", "variable", "output")]
    monkeypatch.setenv("TOKEN_PASSWORD", secrets[1])
    source = shell('echo "$1"; echo "$0 $TOKEN_PASSWORD" >&2; exit 1', secrets[0])
    with pytest.raises(TokenSourceError) as caught:
        source.get()
    frames = [entry.frame.f_locals for entry in caught.traceback[1:]]
    shown = f"{caught.value}{caught.value!r}{vars(caught.value)}{frames}"
    assert [secret for secret in secrets if secret in shown] == []
    assert caught.value.source == "PREFETCH_TOKEN_COMMAND (sh)"


def test_a_command_is_run_once_for_a_token_without_end(
    counting: Callable[[str], CommandToken], runs: Path
) -> None:
    """Bare, or as JSON that names no end: it is kept until WeChat rejects it."""
    for text in ("token-N", '{"access_token": "token-N"}'):
        runs.write_text("")
        source = counting(text)
        assert {source.get() for _ in range(5)} == {Secret("token-1")}
        assert source.renew(Secret("token-1")) == Secret("token-2")
        assert source.get() == Secret("token-2")


def test_a_command_is_run_again_when_its_token_ends_soon(
    counting: Callable[[str], CommandToken],
) -> None:
    """`expires_in` is believed: half a minute is too little to hand out twice."""
    source = counting('{"access_token": "token-N", "expires_in": 30}')
    assert [source.get(), source.get()] == [Secret("token-1"), Secret("token-2")]


def test_a_late_failure_of_an_old_token_runs_nothing(
    counting: Callable[[str], CommandToken], runs: Path
) -> None:
    """The fresh one is handed over instead."""
    source = counting("token-N")
    old = source.get()
    fresh = source.renew(old)
    assert source.renew(old) == fresh
    assert len(runs.read_text().split()) == 2


def test_threads_run_it_once(counting: Callable[[str], CommandToken], runs: Path) -> None:
    """16 at once, with one failed token: one run, one new token."""
    source = counting("token-N")
    failed = source.get()
    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(source.renew, [failed] * 16)) == {Secret("token-2")}
    assert len(runs.read_text().split()) == 2


def test_a_failed_renewal_leaves_the_old_token(tmp_path: Path) -> None:
    """A program that is broken for a while does not take away what it gave before."""
    source = shell('test -e "$1" || echo token', str(tmp_path / "broken"))
    old = source.get()
    (tmp_path / "broken").touch()
    with pytest.raises(TokenSourceError):
        source.renew(old)
    assert source.get() == old
