"""Functions of the app that fail over a pull's token: what logs, answers and Sentry are told."""

import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask, abort
from werkzeug.exceptions import Forbidden
from werkzeug.wrappers import Response

from prefetch_kit import Prefetch, Pull

App = Callable[..., Flask]
Ask = Callable[..., Response]
Logged = Callable[[], list[str]]

PAGE = "pages/index/index"
TOKEN = "CANARY-0123456789-abcdefgh"
SENTRY = f"""
import sys
import sentry_sdk
from flask import Flask
from sentry_sdk.transport import Transport
from prefetch_kit import Prefetch

class Printed(Transport):
    def capture_envelope(self, envelope):
        print(*(item.payload.get_bytes().decode() for item in envelope.items))

sentry_sdk.init("https://key@sentry.example/1", transport=Printed, send_default_pii=True)
prefetch = Prefetch("prefetch", __name__, url_prefix="/prefetch")

@prefetch.token_verifier
def users(appid, token):
    parts = token.split("-")
    if sys.argv[1] == "quoting":
        return {{}}[token]
    return int(parts[1][:3] + "x")

@prefetch.pre_fetch()
def page(pull):
    return pull.user_id

app = Flask(__name__)
app.config.update(SECRET_KEY="a key of the shop", PREFETCH_APPIDS=["wx01"])
app.register_blueprint(prefetch)
pull = "/prefetch/pre_fetch?appid=wx01&timestamp=1700000000&path=x&token={TOKEN}"
assert app.test_client().get(pull, buffered=True).status_code == 500
sentry_sdk.flush()
"""


@pytest.fixture
def failing(make_app: App, prefetch: Prefetch) -> Callable[[Callable[[str, str], Any]], Flask]:
    """`failing(verifier)`: an app whose page asks for the user."""

    def failing(verifier: Callable[[str, str], Any]) -> Flask:
        prefetch.token_verifier(verifier)
        prefetch.pre_fetch(PAGE)(lambda pull: pull.user_id)
        return make_app(prefetch)

    return failing


def look_up(_appid: str, token: str) -> str:
    users: dict[str, str] = {}
    return users[token]


def complain(_appid: str, token: str) -> str:
    raise ValueError(f"bad signature of {token[4:18]}")


def lead_to(_appid: str, token: str) -> str:
    try:
        return look_up(_appid, token)
    except KeyError as error:
        raise LookupError("unknown") from error


def note(_appid: str, token: str) -> str:
    error = OSError("no database")
    error.add_note(f"for {token}")
    raise error


def say_aside(_appid: str, token: str) -> str:
    error = OSError("no database")
    error.detail = token  # type: ignore[attr-defined]  # trackers read it
    raise error


def group(_appid: str, token: str) -> str:
    raise ExceptionGroup("tried all", [OSError(f"of {token}"), LookupError("none")])


class Mute(Exception):
    def __str__(self) -> str:
        raise TypeError("no text")


def be_mute(_appid: str, _token: str) -> str:
    raise Mute


def encode(_appid: str, token: str) -> str:
    raise OSError(f"/check?token={quote(token).upper()}")


@pytest.mark.parametrize(
    "verifier", [look_up, complain, lead_to, note, say_aside, group, be_mute, encode]
)
def test_an_error_that_quotes_the_token_is_named_only(
    failing: Callable[..., Flask], ask: Ask, logged: Logged, verifier: Callable[..., str]
) -> None:
    """The log has the lines of code that led to it, and its class."""
    assert ask(failing(verifier), path=PAGE, token=TOKEN).status_code == 500
    said = "".join(logged())
    assert f"{verifier.__name__} raised " in said
    assert f"in {verifier.__name__}" in said
    assert "whose text may quote the token" in said
    assert "CANARY" not in said
    assert TOKEN[4:18] not in said


@pytest.mark.parametrize("is_async", [False, True])
def test_what_a_verifier_goes_on_with_stays_open(
    failing: Callable[..., Flask], ask: Ask, is_async: bool
) -> None:
    """A generator or coroutine that works for all users, and that one error went through."""

    class Waiting:
        def __await__(self) -> Generator[object, str, None]:
            return (yield from ask_database())

    def fail(token: str) -> None:
        raise LookupError(token)

    def ask_database() -> Generator[object, str, None]:
        user: object = None
        while True:
            token = yield user
            user = token.removeprefix("of-") if token.startswith("of-") else None
            if user is None:
                try:
                    fail(token)
                except LookupError as error:
                    user = error

    async def work() -> None:
        await Waiting()

    worker = work() if is_async else ask_database()
    worker.send(None)  # type: ignore[arg-type]  # to the first yield

    def verify(_appid: str, token: str) -> object:
        found: object = worker.send(token)
        if isinstance(found, Exception):
            raise found
        return found

    app = failing(verify)
    assert ask(app, path=PAGE, token=TOKEN).status_code == 500
    assert ask(app, path=PAGE, token="of-alice").data == b"alice"
    worker.close()


def test_an_error_that_the_app_keeps_stays_as_it_is(
    failing: Callable[..., Flask], ask: Ask
) -> None:
    """A refusal that it raises again and again, with a text that stands in any token."""
    kept = Forbidden("renew your membership")

    def refuse(_appid: str, _token: str) -> str:
        raise kept

    assert ask(failing(refuse), path=PAGE, token="your membership").status_code == 403
    assert kept.description == "renew your membership"


def test_an_error_of_a_frozen_class_is_a_failure(
    make_app: App, prefetch: Prefetch, ask: Ask, logged: Logged
) -> None:
    """Nothing can be set on it, and it is logged with its handler all the same."""

    @dataclass(frozen=True)
    class OutOfStock(Exception):
        sku: str

    @prefetch.pre_fetch(PAGE)
    def page(_: Pull) -> str:
        raise OutOfStock("tea")

    reply = ask(make_app(prefetch), path=PAGE)
    assert (reply.status_code, reply.data) == (500, b"")
    assert reply.headers["X-Prefetch-Refused"].startswith("failed")
    assert "OutOfStock" in "".join(logged())


def test_another_error_stays_as_it_is(
    failing: Callable[..., Flask], ask: Ask, logged: Logged
) -> None:
    """With its text and what led to it; a token of three letters is in any text."""

    def fail(_appid: str, _token: str) -> str:
        raise LookupError("cannot tell") from OSError("no route to the database")

    assert ask(failing(fail), path=PAGE, token="can").status_code == 500
    said = "".join(logged())
    assert "LookupError: cannot tell" in said
    assert "OSError: no route to the database" in said


def test_a_refusal_that_quotes_the_token_is_still_one(
    failing: Callable[..., Flask], ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    """With its status and without its text."""
    caplog.set_level("INFO")

    def refuse(_appid: str, token: str) -> str:
        abort(401, f"{token} has ended")

    assert ask(failing(refuse), path=PAGE, token=TOKEN).status_code == 401
    assert "the app aborted it" in caplog.text
    assert "CANARY" not in caplog.text


@pytest.mark.parametrize(
    ("gives", "named"), [(7, "int"), ("", "an empty str"), (b"alice", "bytes"), (True, "bool")]
)
def test_what_is_no_user_id_is_told_with_the_remedy(
    failing: Callable[..., Flask], ask: Ask, logged: Logged, gives: object, named: str
) -> None:
    """And which function gave it."""

    def find_user(_appid: str, _token: str) -> object:
        return gives

    assert ask(failing(find_user), path=PAGE, token=TOKEN).status_code == 500
    said = "".join(logged())
    assert f"find_user returned {named} as a user id; return str(…), or None" in said


@pytest.mark.slow
@pytest.mark.parametrize(("how", "told"), [("quoting", "RuntimeError"), ("else", "ValueError")])
def test_sentry_gets_no_local_variables_of_a_verifier(how: str, told: str) -> None:
    """They hold the token, or parts of it."""
    ended = subprocess.run(
        [sys.executable, "-c", SENTRY, how],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert f'"type":"{told}"' in ended.stdout.replace(" ", "")
    assert '"function":"users"' in ended.stdout.replace(" ", "")
    assert "CANARY" not in ended.stdout + ended.stderr
    assert "0123456789" not in ended.stdout + ended.stderr


def test_invented_tokens_take_no_thread_from_one_that_is_known(
    make_app: App, prefetch: Prefetch, ask: Ask, until: Callable[[Callable[[], bool]], None]
) -> None:
    """However many the app is asked about at once."""
    asked, is_over = list[str](), threading.Event()

    @prefetch.token_verifier
    def users(_appid: str, token: str) -> str | None:
        if token == "hers":
            return "alice"
        asked.append(token)
        is_over.wait(120)
        return None

    @prefetch.pre_fetch(PAGE, login_required=True)
    def page(pull: Pull) -> str | None:
        return pull.user_id

    app = make_app(prefetch, PREFETCH_THREADS=8, PREFETCH_DEADLINE=100)
    assert ask(app, path=PAGE, token="hers").data == b"alice"
    with ThreadPoolExecutor(4) as strangers:
        odd = [strangers.submit(ask, app, path=PAGE, token=f"odd{n}") for n in range(4)]
        until(lambda: len(asked) == 4)
        refused = ask(app, path=PAGE, token="odd4").headers["X-Prefetch-Refused"]
        hers = ask(app, path=PAGE, token="hers").data
        is_over.set()
    assert (refused.partition(";")[0], hers) == ("busy", b"alice")
    assert [each.result().status_code for each in odd] == [401] * 4
