"""`pull` and `probe`, against an app that listens."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask

from prefetch_kit import Prefetch
from prefetch_kit.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.cli.conftest import Cli, Leaks

APPID = "wx01"
PRE_URL = "https://shop.example/prefetch/pre_fetch"


def answered(cli: "Cli", *words: str, stdin: str = "") -> dict[str, Any]:
    """What the app answered to a pull."""
    record = pulled(cli, *words, stdin=stdin)
    assert record["kept"] is True
    body: dict[str, Any] = json.loads(record["body"])
    return body


def pulled(cli: "Cli", *words: str, stdin: str = "") -> dict[str, Any]:
    ended = cli("pull", "--json", *words, stdin=stdin)
    record: dict[str, Any] = json.loads(ended.stdout)
    assert ended.status == (0 if record["status"] == 200 else 1)
    return record


def test_a_pull_finds_the_public_page(cli: "Cli", served: str) -> None:
    """Without options it asks for a page that needs no user, as nobody."""
    assert answered(cli) == {"user": None, "id": None, "scene": 1001}


def test_options_reach_the_handler(cli: "Cli", served: str) -> None:
    """Query and scene come through as WeChat would send them."""
    page = ["--path", "pages/index/index", "--query", "id=3&x=茶", "--scene", "1007"]
    assert answered(cli, *page) == {"user": None, "id": "3", "scene": 1007}


def test_the_periodic_pull(cli: "Cli", served: str) -> None:
    """The other kind goes to the other URL."""
    assert answered(cli, "--kind", "period_fetch") == {"news": [], "user": None}


def test_record_is_complete(cli: "Cli", served: str) -> None:
    """Every figure of an answer is in the JSON."""
    record = pulled(cli)
    assert record.keys() == {"status", "refused", "incident", "bytes", "ms", "kept", "body"}
    assert record["bytes"] == len(record["body"])
    assert (record["refused"], record["incident"]) == (None, None)


def test_text_goes_to_standard_output(cli: "Cli", served: str) -> None:
    """The body alone is on standard output, the verdict beside it."""
    ended = cli("pull")
    assert json.loads(ended.stdout)["user"] is None
    assert ended.stderr.endswith("a phone would keep it.\n")


@pytest.mark.parametrize("where", ["", "http", "https"])
def test_a_user_is_proved_by_a_minted_token(cli: "Cli", served: str, where: str) -> None:
    """At the app's own URL, at its loopback address and at a public one alike."""
    urls = {"http": f"{served}/prefetch/pre_fetch", "https": PRE_URL}
    url = [urls[where]] if where else []
    private = ["--path", "pages/private", "--user", "alice"]
    assert answered(cli, *url, *private) == {"user": "alice"}


def test_a_token_from_a_file_or_standard_input(cli: "Cli", served: str, tmp_path: Path) -> None:
    """The token is never on the command line."""
    token = cli("token", "alice").stdout.strip()
    cli.leaks.secrets.append(token)
    (tmp_path / "token").write_text(f"{token}\n")
    page = ["--path", "pages/private"]
    assert answered(cli, *page, "--token-file", f"{tmp_path}/token") == {"user": "alice"}
    assert answered(cli, *page, "--token-file", "-", stdin=token) == {"user": "alice"}


@pytest.fixture
def by_code(wx: Sandbox, leaks: "Leaks", tmp_path: Path) -> list[str]:
    """The options of a private pull with alice's login code."""
    code = wx.login_code(APPID, "alice")
    leaks.secrets.append(code)
    (tmp_path / "code").write_text(code)
    return ["--path", "pages/private", "--code-file", f"{tmp_path}/code"]


def test_a_login_code_is_nobodys(wx: Sandbox, cli: "Cli", served: str, by_code: list[str]) -> None:
    """An app that maps no logins to users does not ask whose it is."""
    assert pulled(cli, *by_code)["status"] == 401
    assert wx.count(path="/sns/jscode2session") == 0


@pytest.fixture
def maps_logins(prefetch: Prefetch) -> None:
    prefetch.code_user(lambda appid, openid, _: f"{appid} {openid}")


def test_a_login_code_from_a_file(
    maps_logins: None, cli: "Cli", served: str, by_code: list[str]
) -> None:
    """An app that maps logins to users exchanges it."""
    assert answered(cli, *by_code) == {"user": "wx01 alice"}


def test_a_forged_token_is_nobody(cli: "Cli", served: str) -> None:
    """Refused with its reason, and not repeated."""
    token = cli("token", "alice").stdout.strip()[:-1] + "!"
    cli.leaks.secrets.append(token)
    record = pulled(cli, "--path", "pages/private", "--token-file", "-", stdin=token)
    assert (record["status"], record["kept"]) == (401, False)
    assert (record["refused"], record["incident"]) == ("login", None)


@pytest.fixture
def breaks(prefetch: Prefetch) -> None:
    prefetch.token_verifier(lambda _appid, _token: str(1 / 0))


def test_what_broke_has_an_incident(breaks: None, cli: "Cli", served: str) -> None:
    """The JSON has the reason and the incident separately, the text has both."""
    private = ["--path", "pages/private", "--token-file", "-"]
    record = pulled(cli, *private, stdin="t")
    assert (record["status"], record["refused"]) == (500, "failed")
    assert re.fullmatch("[0-9a-f]{12}", record["incident"])
    ended = cli("pull", *private, stdin="t")
    assert re.search(r"refused as failed \(incident [0-9a-f]{12}\)\.$", ended.stderr, re.MULTILINE)


def test_bytes_that_are_no_text_are_not_kept(cli: "Cli", app: Flask, served: str) -> None:
    """A phone keeps the body as a string; the probe says the same."""
    app.add_url_rule("/odd", view_func=lambda: b"\xff\xfe")
    assert pulled(cli, f"{served}/odd")["kept"] is False
    assert "nothing: the body is not UTF-8 text." in cli("pull", f"{served}/odd").stderr
    assert "FAIL text: the body is not UTF-8 text" in cli("probe", f"{served}/odd").stdout


def test_no_data_is_not_kept(cli: "Cli", served: str) -> None:
    """An empty 200 is a good answer of which a phone keeps nothing."""
    record = pulled(cli, "--path", "pages/other")
    assert (record["status"], record["kept"], record["bytes"]) == (200, False, 0)


def test_a_loopback_url_that_nobody_answers(cli: "Cli") -> None:
    """A refused connection is one sentence, without the query."""
    sentence = cli.refused("pull", "http://127.0.0.1:1/data")
    assert "the connection was refused" in sentence
    assert "timestamp" not in sentence


def test_probe_of_both_urls(cli: "Cli", served: str) -> None:
    """Each URL has its verdicts, as text and as JSON."""
    assert cli("probe").stdout.count("  ok   ") == 12
    records = [json.loads(line) for line in cli("probe", "--json").stdout.splitlines()]
    assert [record["url"] for record in records] == [PRE_URL, PRE_URL.replace("pre_", "period_")]
    assert all(record["ok"] and record["status"] == 200 for record in records)
    rules = ["redirect", "status", "size", "time", "text", "phone"]
    assert [verdict["rule"] for verdict in records[0]["verdicts"]] == rules


def test_probe_of_a_loopback_url(cli: "Cli", served: str) -> None:
    """The app is probed where it listens, as `pull` pulls it."""
    ended = cli("probe", f"{served}/prefetch/pre_fetch")
    assert (ended.status, ended.stdout.count("  ok   ")) == (0, 6)


def test_probe_of_a_url_that_fails(cli: "Cli", served: str) -> None:
    """A broken rule is marked, and the command ends with 1."""
    ended = cli("probe", "https://shop.example/nothing")
    assert ended.status == 1
    assert "FAIL status: it answers 404" in ended.stdout
