"""What strangers may send to the push URL, and what no answer and no log may show."""

import base64
import hashlib
import os
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from flask import Flask, got_request_exception
from hypothesis import given
from hypothesis import settings as tried
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from prefetch_kit.pushes import PlatformPushes
from prefetch_kit.pushes.envelope import Keys, NotAcceptedError, opened
from prefetch_kit.pushes.xml import MAX_BYTES, read_members
from prefetch_kit.sandbox import Fault, Sandbox
from prefetch_kit.sandbox.pushes import event, seal
from prefetch_kit.sandbox.third_party import Component
from prefetch_kit.secret import Secret

pytestmark = pytest.mark.slow

APPID, COMPONENT = "wx01", "wxplatform"
SECRET, TOKEN = "canary-component-secret", "canary-message-token"
AES_KEY = "canary0AES0key0canary0AES0key0canary0AES0ke"
TICKET = "canary-ticket-0123456789"

KEYS = Keys(COMPONENT, Secret(TOKEN), Secret(AES_KEY))
WECHAT = Component(COMPONENT, SECRET, TOKEN, AES_KEY, None, 0.0)

Post = Callable[[dict[str, str], bytes], TestResponse]


def pushed(xml: str | None = None, wechat: Component = WECHAT) -> tuple[dict[str, str], bytes]:
    """Query and body of a push, as WeChat makes it."""
    given = {"ComponentVerifyTicket": TICKET}
    xml = event(wechat, "component_verify_ticket", now=1e9, **given) if xml is None else xml
    envelope = seal(wechat, xml, now=1e9)
    return dict(envelope.query), envelope.body


def signed(sealed: str, *, timestamp: str = "1", nonce: str = "2") -> tuple[dict[str, str], bytes]:
    """A push of any ciphertext, signed as only WeChat can."""
    query = {"timestamp": timestamp, "nonce": nonce}
    parts = "".join(sorted([TOKEN, timestamp, nonce, sealed]))
    query["msg_signature"] = hashlib.sha1(parts.encode()).hexdigest()  # noqa: S324 (WeChat's rule)
    return query, f"<xml><Encrypt>{sealed}</Encrypt></xml>".encode()


@pytest.fixture
def post(app: Flask) -> Post:
    client = app.test_client()
    return lambda query, body: client.post(f"/wechat/events?{urlencode(query)}", data=body)


@pytest.fixture
def nothing_kept(tmp_path: Path) -> Iterator[None]:
    yield
    assert not list((tmp_path / "state").rglob("*.json"))


def test_a_push_of_wechats_own_sample() -> None:
    """The vector of its sample code is signed and decrypted; only, it is no platform's event."""
    query = {"timestamp": "1409735669", "nonce": "1320562132"}
    query["msg_signature"] = "5d197aaffba7e9b25a30732f161a50dee96bd5fa"
    key = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG"
    keys = Keys("wx2c2769f8efd9abc2", Secret("spamtest"), Secret(key))
    with pytest.raises(NotAcceptedError, match="is no event of this platform"):
        opened(keys, query, f"<xml><Encrypt><![CDATA[{SAMPLE}]]></Encrypt></xml>".encode())


SAMPLE = (
    "hyzAe4OzmOMbd6TvGdIOO6uBmdJoD0Fk53REIHvxYtJlE2B655HuD0m8KUePWB3+LrPXo87wzQ1QLvbeUgmBM4x6F8PG"
    "HQHFVAFmOD2LdJF9FrXpbUAh0B5GIItb52sn896wVsMSHGuPE328HnRGBcrS7C41IzDWyWNlZkyyXwon8T332jisa+h6"
    "tEDYsVticbSnyU8dKOIbgU6ux5VTjg3yt+WGzjlpKn6NPhRjpA912xMezR4kw6KWwMrCVKSVCZciVGCgavjIQ6X8tCOp"
    "3yZbGpy0VxpAe+77TszTfRd5RJSVO/HTnifJpXgCSUdUue1v6h0EIBYYI1BD1DlD+C0CR8e6OewpusjZ4uBl9FyJvnhv"
    "Ql+q5rv1ixrcpCumEPo5MJSgM9ehVsNPfUM669WuMyVWQLCzpu9GhglF2PE="
)


def test_a_good_push_opens() -> None:
    """The base of all that follows."""
    assert opened(KEYS, *pushed())["ComponentVerifyTicket"] == TICKET


OLD_TOKEN, OLD_KEY = "canary-old-message-token", "canary1old1key1canary1old1key1canary1old1ke"


@pytest.mark.parametrize("token", [TOKEN, OLD_TOKEN])
@pytest.mark.parametrize("key", [AES_KEY, OLD_KEY])
def test_a_push_made_with_the_previous_secrets(token: str, key: str) -> None:
    """Each of the two may have been changed, and not at the same moment."""
    keys = replace(KEYS, previous_message_token=Secret(OLD_TOKEN), previous_aes_key=Secret(OLD_KEY))
    push = pushed(wechat=Component(COMPONENT, SECRET, token, key, None, 0.0))
    assert opened(keys, *push)["ComponentVerifyTicket"] == TICKET
    if (token, key) != (TOKEN, AES_KEY):
        with pytest.raises(NotAcceptedError):
            opened(KEYS, *push)


def test_the_secrets_before_the_previous_ones_open_nothing() -> None:
    """A stranger may know them by now."""
    keys = replace(KEYS, previous_message_token=Secret("t"), previous_aes_key=Secret("k" * 43))
    for token, key in ((OLD_TOKEN, AES_KEY), (TOKEN, OLD_KEY)):
        with pytest.raises(NotAcceptedError):
            opened(keys, *pushed(wechat=Component(COMPONENT, SECRET, token, key, None, 0.0)))


def test_the_settings_of_the_previous_secrets(settings: dict[str, Any]) -> None:
    """A platform that was given new secrets: a push on its way is still taken."""
    settings["PREFETCH_COMPONENT_PREVIOUS_AES_KEY"] = OLD_KEY
    settings["PREFETCH_COMPONENT_PREVIOUS_MESSAGE_TOKEN"] = OLD_TOKEN
    app = Flask("provider")
    app.config.update(settings)
    app.register_blueprint(PlatformPushes("wechat", __name__, url_prefix="/wechat"))
    query, body = pushed(wechat=Component(COMPONENT, SECRET, OLD_TOKEN, OLD_KEY, None, 0.0))
    answer = app.test_client().post(f"/wechat/events?{urlencode(query)}", data=body)
    assert (answer.status_code, answer.data) == (200, b"success")


@pytest.mark.parametrize("name", ["msg_signature", "timestamp", "nonce"])
@pytest.mark.parametrize("value", ["", "0", "x" * 65, "x" * 10_000, "é", "\ud800"])
def test_a_forged_signature(name: str, value: str) -> None:
    """Any change to the signed query is refused."""
    query, body = pushed()
    with pytest.raises(NotAcceptedError) as caught:
        opened(KEYS, {**query, name: value}, body)
    assert caught.value.status == 403


@pytest.mark.parametrize(
    "given",
    [
        {"timestamp": "1AbC"},
        {"timestamp": "17000000001"},
        {"timestamp": "1\n"},
        {"timestamp": "\u0661"},
        {"nonce": "2+/="},
        {"nonce": "2" * 65},
        {"nonce": "\u00e9"},
    ],
)
def test_what_is_signed_cannot_be_divided_otherwise(given: dict[str, str]) -> None:
    """The signature is of all in a row: nothing encrypted may pass for a timestamp or a nonce."""
    with pytest.raises(NotAcceptedError) as caught:
        opened(KEYS, *signed("QUJD", **given))
    assert caught.value.status == 403


@tried(deadline=None)
@given(st.data())
def test_one_changed_byte_of_what_is_encrypted(data: st.DataObject) -> None:
    """Each is noticed before anything is decrypted."""
    query, body = pushed()
    start, end = body.index(b"<Encrypt><![CDATA[") + 18, body.rindex(b"]]>")
    at = data.draw(st.integers(start, end - 1))
    byte = data.draw(st.sampled_from(b"AZaz09+/=").filter(lambda b: b != body[at]))
    with pytest.raises(NotAcceptedError) as caught:
        opened(KEYS, query, body[:at] + bytes([byte]) + body[at + 1 :])
    assert caught.value.status == 403


@tried(deadline=None)
@given(st.binary(max_size=200))
def test_anything_that_is_signed_but_no_push(sealed: bytes) -> None:
    """Even WeChat's own mistakes are one kind of error."""
    with pytest.raises(NotAcceptedError) as caught:
        opened(KEYS, *signed(base64.b64encode(sealed).decode() or "A"))
    assert caught.value.status == 400


ANOTHER = Component("wxother", SECRET, TOKEN, AES_KEY, None, 0.0)
TICKET_OF_OURS = event(WECHAT, "component_verify_ticket", now=1e9, ComponentVerifyTicket=TICKET)
OTHER_KEY = Component(COMPONENT, SECRET, TOKEN, "x" * 43, None, 0.0)


@pytest.mark.parametrize(
    "push",
    [
        pushed(wechat=ANOTHER),
        pushed(TICKET_OF_OURS, wechat=ANOTHER),
        pushed(wechat=OTHER_KEY),
        pushed("<xml><AppId>wxother</AppId></xml>"),
        pushed("<xml></xml>"),
        pushed("no xml"),
        pushed(f"<!DOCTYPE xml><xml><AppId>{COMPONENT}</AppId></xml>"),
        signed("not base64!"),
        signed("QUJD"),
    ],
)
@pytest.mark.usefixtures("nothing_kept")
def test_what_is_not_for_this_platform(post: Post, push: tuple[dict[str, str], bytes]) -> None:
    """Another platform's push, another key's, none at all: an empty answer that is no success."""
    reply = post(*push)
    assert (reply.status_code, reply.data) == (400, b"")


LAUGHS = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<xml>",
        b"\xff\xfe",
        b"[]",
        b"<html><Encrypt>x</Encrypt></html>",
        b"<xml><Encrypt>x</Encrypt><Encrypt>x</Encrypt></xml>",
        b'<xml a="b"><Encrypt>x</Encrypt></xml>',
        b"<xml>" + b"<a>" * 9 + b"</a>" * 9 + b"</xml>",
        b"<xml>" + b"".join(b"<a%d/>" % n for n in range(65)) + b"</xml>",
        b"<xml><Encrypt></Encrypt></xml>",
        f'<!DOCTYPE x [<!ENTITY a0 "x">{LAUGHS}]><xml><Encrypt>&a11;</Encrypt></xml>'.encode(),
        b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><xml><Encrypt>x</Encrypt></xml>',
        b"<xml><Encrypt>&undeclared;</Encrypt></xml>",
        '<?xml version="1.0" encoding="utf-16"?><xml><Encrypt>x</Encrypt></xml>'.encode("utf-16"),
    ],
)
@pytest.mark.usefixtures("nothing_kept")
def test_bodies_that_are_none(post: Post, body: bytes) -> None:
    """Nothing is expanded or fetched, and no page for people comes back."""
    assert read_members(body) is None or not read_members(body).get("Encrypt")  # type: ignore[union-attr]
    reply = post(pushed()[0], body)
    assert (reply.status_code, reply.data) == (400, b"")


def test_a_body_that_is_too_long(post: Post) -> None:
    """It is not read to its end."""
    reply = post(pushed()[0], b"<xml>" + b" " * MAX_BYTES + b"</xml>")
    assert (reply.status_code, reply.data) == (413, b"")


@tried(deadline=None)
@given(st.binary(max_size=300) | st.text(max_size=100).map(lambda t: f"<xml>{t}</xml>".encode()))
def test_no_body_raises(body: bytes) -> None:
    """Members or None, whatever the bytes."""
    members = read_members(body)
    assert members is None or isinstance(members, dict)


def test_cdata_and_references_are_read() -> None:
    """Both ways of writing text; elements inside a member are left out."""
    body = "<xml><a><![CDATA[x<y]]></a><b>1&lt;&#20013;</b><c>k<d>no</d>l</c></xml>"
    assert read_members(body.encode()) == {"a": "x<y", "b": "1<中", "c": "kl"}


@pytest.mark.parametrize("method", ["GET", "PUT", "HEAD", "OPTIONS"])
def test_only_post(app: Flask, method: str) -> None:
    """A browser that looks in sees nothing."""
    reply = app.test_client().open("/wechat/events?echostr=x", method=method)
    assert reply.status_code == 405


CODE = "canary-authorization-code"
FAULTS: list[dict[str, Any]] = [
    {"kind": "errcode", "errcode": 40125, "errmsg": "{} no"},
    {"kind": "errcode", "errcode": 48001, "errmsg": "bad {}"},
    {"kind": "raw", "body": f'{{"component_access_token": "{SECRET}"}}'},
    {"kind": "raw", "status": 502, "body": f"<html>{TICKET}"},
    {"kind": "reset"},
    {"kind": "hang"},
]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    ("call", "sent"), [("api_component_token", f"{SECRET} {TICKET}"), ("api_query_auth", CODE)]
)
def test_failures_on_the_way_show_no_secret(
    app: Flask,
    post: Post,
    wx: Sandbox,
    caplog: pytest.LogCaptureFixture,
    fault: dict[str, Any],
    call: str,
    sent: str,
) -> None:
    """Neither the answer nor the log, nor what an error tracker hears."""
    heard: list[BaseException] = []
    got_request_exception.connect(lambda _, exception: heard.append(exception), app, weak=False)
    with wx.lock:
        wx.component(COMPONENT).tickets[TICKET] = wx.now()
    assert post(*pushed()).data == b"success"
    given = {"AuthorizerAppid": APPID, "AuthorizationCode": CODE}
    echo = {"errmsg": fault["errmsg"].format(sent)} if "errmsg" in fault else {}
    wx.inject(Fault(path=f"/cgi-bin/component/{call}", **(fault | echo)))
    reply = post(*pushed(event(WECHAT, "authorized", now=1e9, **given)))
    assert (reply.status_code, reply.data, heard) == (503, b"", [])
    said = caplog.text + "".join(repr(vars(record)) for record in caplog.records)
    secrets = [SECRET, TOKEN, AES_KEY, TICKET, CODE]
    assert [secret for secret in secrets if secret[:12] in said] == []


def test_what_nobody_foresaw_is_no_page(
    app: Flask, post: Post, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk, a fault of ours: an empty 500, and only its kind in the log."""
    monkeypatch.setattr(
        "prefetch_kit.pushes.events.opened", lambda *_: (_ for _ in ()).throw(OSError(TICKET))
    )
    app.config["PROPAGATE_EXCEPTIONS"] = True
    reply = post(*pushed())
    assert (reply.status_code, reply.data) == (500, b"")
    assert "OSError" in caplog.text
    assert TICKET not in caplog.text


def test_a_state_directory_that_cannot_be_used(
    app: Flask, post: Post, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The ticket is not kept, so WeChat is not told success; the path is named."""
    (tmp_path / "state").write_text("")
    reply = post(*pushed())
    assert (reply.status_code, reply.data) == (503, b"")
    assert f"{tmp_path}{os.sep}state" in caplog.text
    assert TICKET not in caplog.text


def test_keys_are_not_printed() -> None:
    """In a traceback they are masked."""
    error = ValueError(KEYS)
    shown = "".join(traceback.format_exception(error)) + repr(KEYS)
    assert "canary" not in shown
