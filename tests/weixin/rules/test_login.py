"""Login codes: whose they are, and what must be gone afterwards."""

import gc
import json
import time
from collections.abc import Callable, Iterator

import pytest

from prefetch_kit.errors import OutcomeUnknown, Refused
from prefetch_kit.sandbox import Fault, Sandbox
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.login import CodeExchange, Login

pytestmark = pytest.mark.slow

APPID = "wx01"
SECRET = "canary-app-secret"
PATH = "/sns/jscode2session"
BACKWARDS = "==yek-noisses-yranac"


@pytest.fixture
def exchange(wx: Sandbox) -> Iterator[Callable[[str], Login]]:
    """Exchange a code of the played app."""
    exchange = CodeExchange(base_url=wx.base_url)
    yield lambda code: exchange.exchange(APPID, Secret(SECRET), Secret(code))
    exchange.close()


@pytest.fixture
def answer_with(wx: Sandbox) -> Callable[..., None]:
    """Let WeChat answer with these members and a session key that nothing else holds."""

    def script(**members: object) -> None:
        answer = json.dumps({"session_key": BACKWARDS[::-1], **members})
        wx.inject(Fault(kind="raw", path=PATH, body=answer))

    return script


def holders_of_the_session_key() -> list[type]:
    """The kinds of objects in this process that refer to a text with the key in it."""
    gc.collect()
    key = BACKWARDS[::-1]
    return [
        type(holder)
        for holder in gc.get_objects()
        for text in gc.get_referents(holder)
        if (isinstance(text, str) and text is not key and key in text)
        or (isinstance(text, bytes | bytearray) and key.encode() in text)
    ]


def wait_until_nothing_holds_the_session_key() -> None:
    """The played WeChat lets go of its own answer a moment after it was read."""
    until = time.monotonic() + 10
    while holders := holders_of_the_session_key():
        assert time.monotonic() < until, holders
        time.sleep(0.05)


def test_a_code_says_whose_it_is(wx: Sandbox, exchange: Callable[[str], Login]) -> None:
    """The user's ids, the unionid where there is one."""
    wx.add_user(APPID, "o2")
    assert exchange(wx.login_code(APPID, "o1")) == Login("o1", "u1")
    assert exchange(wx.login_code(APPID, "o2")) == Login("o2", None)


@pytest.mark.parametrize("unionid", ["", None])
def test_an_empty_unionid_is_none(
    answer_with: Callable[..., None], exchange: Callable[[str], Login], unionid: str | None
) -> None:
    """It would otherwise join all users without one."""
    answer_with(openid="o1", unionid=unionid)
    assert exchange("code") == Login("o1", None)


def test_the_session_key_is_nowhere_afterwards(
    answer_with: Callable[..., None], exchange: Callable[[str], Login]
) -> None:
    """No object of this process refers to it once the user is known."""
    answer_with(openid="o1")
    assert holders_of_the_session_key() != []  # it is found while WeChat still has it
    assert exchange("code") == Login("o1", None)
    wait_until_nothing_holds_the_session_key()


def test_a_bad_answer_does_not_keep_the_session_key_either(
    answer_with: Callable[..., None], exchange: Callable[[str], Login]
) -> None:
    """Nor does the error, with its frames and what it was raised from."""
    answer_with(unionid="u1")
    with pytest.raises(OutcomeUnknown) as caught:
        exchange("code")
    assert caught.value.__context__ is None
    wait_until_nothing_holds_the_session_key()


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"openid": ""},
        {"openid": None},
        {"openid": 7},
        {"openid": ["o1"]},
        {"openid": "o 1"},
        {"openid": "o1\n"},
        {"openid": "o" * 129},
        {"openid": "о1"},
        {"openid": "o1", "unionid": 7},
        {"openid": "o1", "unionid": "u\n"},
    ],
)
def test_an_answer_without_a_clean_openid_is_no_login(
    answer_with: Callable[..., None], exchange: Callable[[str], Login], members: dict[str, object]
) -> None:
    """Ids go into keys and logs, so nothing odd becomes one; the code may be used up."""
    answer_with(**members)
    with pytest.raises(OutcomeUnknown, match="let the user log in again") as caught:
        exchange("code")
    assert caught.value.sent


@pytest.mark.parametrize(
    ("errcode", "kind"),
    [
        (40029, "permanent"),
        (40163, "permanent"),
        (40226, "permanent"),
        (45011, "quota_minute"),
        (-1, "transient"),
    ],
)
def test_a_refused_code_is_asked_about_once(
    wx: Sandbox, exchange: Callable[[str], Login], errcode: int, kind: str
) -> None:
    """The caller decides about repeats, not the exchange."""
    wx.inject(Fault(kind="errcode", path=PATH, errcode=errcode, times=None))
    with pytest.raises(Refused) as caught:
        exchange("code")
    assert (caught.value.errcode, caught.value.kind) == (errcode, kind)
    assert wx.count(path=PATH) == 1


@pytest.mark.parametrize("code", ["40029", "40163", "-1"])
def test_an_errcode_may_be_text(wx: Sandbox, exchange: Callable[[str], Login], code: str) -> None:
    """Login pages of old print it so."""
    body = json.dumps({"errcode": code, "errmsg": "invalid code"})
    wx.inject(Fault(kind="raw", path=PATH, body=body))
    with pytest.raises(Refused) as caught:
        exchange("code")
    assert caught.value.errcode == int(code)


def test_a_lost_answer_is_not_asked_for_again(
    wx: Sandbox, exchange: Callable[[str], Login]
) -> None:
    """The code is used up by then: a repeat would say 40163 of an honest user."""
    wx.inject(Fault(kind="lose", path=PATH))
    code = wx.login_code(APPID, "o1")
    with pytest.raises(OutcomeUnknown) as caught:
        exchange(code)
    assert (caught.value.sent, wx.count(path=PATH)) == (True, 1)


@pytest.mark.parametrize("fault", ["errcode", "close", "raw"])
def test_neither_code_nor_secret_is_in_an_error(
    wx: Sandbox, exchange: Callable[[str], Login], fault: str
) -> None:
    """Not in its text, not in its members, not in a frame of ours."""
    code = "canary-login-code"
    played = {
        "errcode": Fault(kind="errcode", path=PATH, errcode=40029, errmsg=f"{code} {SECRET}"),
        "close": Fault(kind="close", path=PATH),
        "raw": Fault(kind="raw", path=PATH, body=json.dumps({"echo": [code, SECRET]})),
    }
    wx.inject(played[fault])
    with pytest.raises((Refused, OutcomeUnknown)) as caught:
        exchange(code)
    frames = [
        entry.frame.f_locals for entry in caught.traceback if "prefetch_kit" in str(entry.path)
    ]
    shown = f"{caught.value!r}{vars(caught.value)}{frames}"
    assert [secret for secret in (code, SECRET) if secret in shown] == []
