"""Confirm files at the root of the host, over real HTTP."""

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from werkzeug.wrappers import Response

from prefetch_kit import ConfigError, Prefetch

NAME, CONTENT = "87PweoaRBw.txt", "7c5ffce3ba1f0e2c4b0fd684e371f25b"
Send = Callable[..., Response]


def built(files: object = None, **options: Any) -> Flask:
    app = Flask(__name__, **options)
    app.config["PREFETCH_APPIDS"] = ["wx1"]
    app.config["PREFETCH_BASE_URL"] = "https://shop.example/mounted"
    app.config["PREFETCH_CONFIRM_FILES"] = {NAME: CONTENT} if files is None else files
    app.register_blueprint(Prefetch("prefetch", __name__, url_prefix="/prefetch"))
    app.register_blueprint(Prefetch("other", __name__, url_prefix="/other"))
    return app


@pytest.mark.parametrize("content", [CONTENT, f"{CONTENT}\n", f" {CONTENT}\r\n"])
def test_byte_for_byte(send: Send, content: str) -> None:
    """At the root, whatever prefix the blueprint has; text, and nothing else to a browser."""
    reply = send(built({NAME: content}), f"/{NAME}")
    assert (reply.status_code, reply.data) == (200, content.encode())
    assert reply.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert reply.headers["X-Content-Type-Options"] == "nosniff"


def test_head_and_other_methods(send: Send) -> None:
    """It is there to be read only."""
    app = built()
    head = send(app, f"/{NAME}", method="HEAD")
    assert (head.status_code, head.data) == (200, b"")
    assert head.headers["Content-Length"] == str(len(CONTENT))
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert send(app, f"/{NAME}", method=method).status_code == 405


OTHERS = [f"/{NAME}{end}" for end in ("/", "x", "%00", "%0a")]
OTHERS += [f"/{start}{NAME}" for start in ("x/", "prefetch/", "x/../", "%2e%2e/", "%5c", ".")]


@pytest.mark.parametrize("target", [*OTHERS, f"/{NAME.lower()}", "/other.txt"])
def test_no_other_name_is_served(send: Send, target: str) -> None:
    """A rule has one name in it, and nothing of a request becomes a path."""
    assert send(built(), target).status_code == 404


def test_several_files_beside_the_apps_own_static_ones(send: Send) -> None:
    """An app that serves a folder from its root keeps doing so, and the files come first."""
    app = built({NAME: CONTENT, "b-_2.txt": "b"}, static_url_path="", static_folder="../example")
    assert send(app, f"/{NAME}").data == CONTENT.encode()
    assert send(app, "/b-_2.txt").data == b"b"
    assert send(app, "/conftest.py").status_code == 200


def test_an_app_that_matches_hosts(send: Send) -> None:
    """There the file is served under the public host."""
    app = built(host_matching=True, static_host="shop.example")
    assert send(app, f"/{NAME}", host="shop.example").data == CONTENT.encode()
    assert send(app, f"/{NAME}", host="other.example").status_code == 404


@pytest.mark.parametrize(
    "name",
    ["../x.txt", "a/b.txt", ".txt", "x.html", "x.txt\n", "x", "<p>.txt", "a.b.txt", "店.txt", 7],
)
def test_impossible_names(name: object) -> None:
    """Refused at start-up, by the key that is wrong."""
    with pytest.raises(ConfigError, match=r"PREFETCH_CONFIRM_FILES holds .*no name"):
        built({name: CONTENT})


@pytest.mark.parametrize("content", ["", "\ufeffx", "店", "x\0", b"x", 7, "x" * 4097])
def test_impossible_contents(content: object) -> None:
    """A byte order mark above all, which WeChat would find fault with."""
    with pytest.raises(ConfigError, match=r"gives 87PweoaRBw\.txt a content"):
        built({NAME: content})


def test_from_the_environment(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    """As JSON, which is how the command hands it out."""
    monkeypatch.setenv("PREFETCH_CONFIRM_FILES", f'{{"{NAME}": "{CONTENT}"}}')
    app = Flask(__name__)
    app.config["PREFETCH_APPIDS"] = ["wx1"]
    app.register_blueprint(Prefetch("prefetch", __name__))
    assert send(app, f"/{NAME}").data == CONTENT.encode()
