"""A secret that stands where a name, a path or a URL belongs is not repeated.

Every setting, every option and argument and every key of prefetch.toml is tried, so that a new
one is tried too.
"""

import json
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import click
import pytest
from flask import Flask
from flask.cli import ScriptInfo

from prefetch_kit import Prefetch
from prefetch_kit.cli import commands
from prefetch_kit.cli.commands import program
from prefetch_kit.endpoint.config import TABLE
from prefetch_kit.fleet.project_schema import tables
from prefetch_kit.sandbox import Sandbox

CANARY = "CANARY"
SECRET = f"{CANARY}0123456789abcdef"
# As it can come: bare, with the letters of base64, swapped, in a URL of any kind, before a command.
FORMS = [
    SECRET,
    f"+{SECRET}/==",
    f"wx01,{SECRET}/",
    json.dumps({SECRET: "wx01"}),
    json.dumps({SECRET: ""}),
    json.dumps({"wx01": SECRET}),
    f"https://u:{SECRET}@shop.example/x",
    f"https:u:{SECRET}@shop.example/x",
    f"https:/u:{SECRET}@shop.example/x",
    f"https://shop.example/x?token={SECRET}",
    f"https://10.0.0.1/x;token={SECRET}",
    f"http://u:{SECRET}@127.0.0.1:1",
    f"redis://u:{SECRET}@127.0.0.1:1/0?x=y",
    f"cloud:{SECRET} x/y z",
    f"VAR={SECRET} my-tool",
    f"{SECRET}\n",
]
# What is printed because it was asked for: a token for this user.
ASKED_FOR = {("token",)}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a directory of its own: some options name a file to write."""
    monkeypatch.chdir(tmp_path)


def make_app(wx: Sandbox, **settings: object) -> Flask:
    prefetch = Prefetch("prefetch", __name__, url_prefix="/prefetch")
    prefetch.pre_fetch("pages/index/index")(lambda pull: {"page": pull.path})
    app = Flask(__name__)
    app.config.update(
        {
            "SECRET_KEY": "a key of the app, of some length",
            "PREFETCH_APPIDS": ["wx01"],
            "PREFETCH_BASE_URL": "https://shop.example",
            "PREFETCH_API_BASE_URL": wx.base_url,
            "PREFETCH_STATE_DIR": "state",
            **settings,
        }
    )
    app.register_blueprint(prefetch)
    return app


def said(wx: Sandbox, words: list[str], **settings: object) -> str:
    """All that a command says, and the text of an error that would end it with a traceback."""
    info = ScriptInfo(create_app=lambda: make_app(wx, **settings))
    out = StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        try:
            with commands.make_context("prefetch", list(words), obj=info) as context:
                commands.invoke(context)
        except (SystemExit, click.exceptions.Exit):
            pass
        except click.ClickException as error:
            error.show(out)
    return out.getvalue()


@pytest.mark.parametrize("key", TABLE)
def test_every_setting(wx: Sandbox, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """In the environment, under the setting's name and under that of its file."""
    names = [key, f"{key}_FILE"] if TABLE[key].secret else [key]
    for name in names:
        for form in FORMS:
            monkeypatch.setenv(name, form)
            for words in (["show"], ["plan", "--pre-fetch", "off"]):
                text = said(wx, words, **{key: None})
                assert CANARY not in text, (name, form, text)
        monkeypatch.delenv(name)


def every_command(
    command: click.Command, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield words, command
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            yield from every_command(each, (*words, name))


COMMANDS = {words: command for words, command in every_command(commands) if words not in ASKED_FOR}


def required(command: click.Command) -> list[str]:
    """The options that a command cannot do without, so that it comes to the others."""
    values = {"--older-than": "90d", "--redirect-uri": "https://shop.example/", "FILE": "copy.db"}
    needed = [each for each in command.params if each.required]
    return [
        word
        for each in needed
        if isinstance(each, click.Option)
        for word in (each.opts[-1], values.get(each.opts[-1], "1"))
    ]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_option_and_argument(
    wx: Sandbox, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """And words that are none."""
    command = COMMANDS[words]
    Path("prefetch.toml").write_text(f'api_base_url = "{wx.base_url}"\n{toml_of("", "", "")}')
    Path("apps.csv").write_text("appid\nwx01\n")
    monkeypatch.setenv("FLEET", json.dumps({"wx01": "a secret"}))
    attempts = [[f"--{SECRET}"], [f"--{SECRET}=x"], ["--json", "--", SECRET, SECRET, SECRET]]
    attempts += [[form] for form in FORMS]
    for option in command.params:
        if isinstance(option, click.Option) and not option.is_eager:
            flag = option.opts[-1]
            attempts += [[f"{flag}={form}"] for form in FORMS]
    for attempt in attempts:
        text = said(wx, [*words, *required(command), *attempt])
        assert CANARY not in text, (attempt, text)
        assert "Traceback" not in text


def test_the_app() -> None:
    """Neither a module nor the argument of a factory."""
    for app in (SECRET, f"json:{SECRET}", f"json:loads('{SECRET}')", f"json:dumps('{SECRET}')"):
        out = StringIO()
        with redirect_stdout(out), redirect_stderr(out), pytest.raises(SystemExit):
            program.main(["--app", app, "show"], prog_name="prefetch-kit")
        assert "Error: " in out.getvalue()
        assert CANARY not in out.getvalue()


LEAST = {
    "apps": {"list": '"apps.csv"'},
    "urls": {"pre_fetch": '"https://shop.example/{appid}"'},
    "tokens": {"app_secrets": '{ env = "FLEET" }'},
}
KEYS = [(table, key) for table, keys in tables() for key in keys] + [
    (table, SECRET) for table, _ in tables()
]


def toml_of(table: str, key: str, value: str) -> str:
    """The smallest prefetch.toml, and this one value more, if there is one."""
    file = {name: dict(content) for name, content in LEAST.items()}
    if key:
        file.setdefault(table, {})[key] = value
    above = [f"{name} = {said}" for name, said in file.pop("", {}).items()]
    blocks = [
        "\n".join([f"[{name}]", *(f"{k} = {v}" for k, v in content.items())])
        for name, content in file.items()
        if not (table == "" and name == key)
    ]
    return "\n".join([*above, *blocks])


@pytest.mark.parametrize(("table", "key"), KEYS)
def test_every_key_of_a_project(
    wx: Sandbox, monkeypatch: pytest.MonkeyPatch, table: str, key: str
) -> None:
    """As a text, a reference, in a list, without its end; and as the key itself."""
    monkeypatch.setenv("FLEET", json.dumps({SECRET: "wx01"}))
    Path("apps.csv").write_text(f"appid\n{SECRET}\n/+{SECRET}==\nwx01,{SECRET}\nwx01\n")
    for form in FORMS:
        quoted = json.dumps(form)
        values = [quoted, f"[{quoted}]", f"{{ env = {quoted} }}", f"{{ file = {quoted} }}"]
        for value in [*values, f"{{ {SECRET} = 1, {SECRET} = 1 }}", quoted[:-1]]:
            text_of_file = toml_of(table, key, value)
            Path("prefetch.toml").write_text(text_of_file)
            text = said(wx, ["fleet", "plan"])
            assert CANARY not in text, (text_of_file, text)
