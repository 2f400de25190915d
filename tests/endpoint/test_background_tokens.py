"""Who a token or a login code proves, and that nothing else proves anyone."""

import gc
import hashlib
import random
import threading
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from logging import getLogger
from types import FunctionType, ModuleType

import pytest
from cachetools import TTLCache
from flask import Flask
from hypothesis import given, settings
from hypothesis import strategies as st
from itsdangerous import Signer
from werkzeug.wrappers import Response

from prefetch_kit import Prefetch, UserIdError
from prefetch_kit.endpoint import background_tokens
from prefetch_kit.endpoint.background_tokens import BackgroundTokens
from prefetch_kit.endpoint.login_codes import CodeLogins
from prefetch_kit.endpoint.login_limits import MAX_ASKING, LoginLimits
from prefetch_kit.errors import OutcomeUnknown
from prefetch_kit.logs import SafeLogger
from prefetch_kit.secret import Secret

DAY_S = 86_400
CODE = "a-code-of-32-letters-and-digits!"
NOW = 1_700_000_000


def tokens(*keys: str) -> BackgroundTokens:
    return BackgroundTokens(keys or ("a key of the shop",), max_age_s=DAY_S)


def signed(payload: bytes, *, salt: str = "prefetch_kit.background-token.v1:wx1") -> str:
    """A genuine signature by the key "a key of the shop" over any payload, made without the kit."""
    signer = Signer("a key of the shop", salt, key_derivation="hmac", digest_method=hashlib.sha256)
    return signer.sign(urlsafe_b64encode(payload).rstrip(b"=")).decode()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The wall clock, as a list whose one item is the time."""
    now = [float(NOW)]
    monkeypatch.setattr(time, "time", lambda: now[0])
    return now


@pytest.fixture
def cache_clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock of caches made from now on."""
    now = [0.0]
    monkeypatch.setattr(TTLCache.__init__, "__defaults__", (lambda: now[0], None))
    return now


def mutations(token: str) -> Iterator[str]:
    """Every token one byte away: changed, inserted, deleted."""
    for at in range(len(token) + 1):
        for byte in map(chr, range(256)):
            yield token[:at] + byte + token[at:]
            yield token[:at] + byte + token[at + 1 :]
        yield token[:at] + token[at + 1 :]


def test_verified_tokens_are_remembered_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many come, and each still proves its user."""
    monkeypatch.setattr(background_tokens, "VERIFIED_KEPT", 3)
    judge = tokens()
    for n in range(20):
        token = judge.issue(f"user {n}", appid="wx1")
        assert judge.verify(token, appid="wx1") == f"user {n}"
        assert len(judge._verified) == n % 3 + 1


def test_no_byte_of_a_token_can_change() -> None:
    """Of over 50,000 tokens one byte away from a valid one, none proves a user."""
    judge, tried = tokens(), 0
    for user_id in ("ÿ~?", "ÿ~?o", "ÿ~?oo"):  # each length leaves other spare bits
        valid = judge.issue(user_id, appid="wx1")
        for mutated in mutations(valid):
            if mutated != valid:
                assert judge.verify(mutated, appid="wx1") is None
                tried += 1
    assert tried > 50_000


@pytest.mark.parametrize("user_id", ["a", "ab", "abc", "alice"])
def test_only_the_canonical_encoding_passes(user_id: str) -> None:
    """Spellings that decode to the same bytes prove nobody."""
    judge = tokens()
    token = judge.issue(user_id, appid="wx1")
    payload, signature = token.split(".")
    for other in (f"{payload}=.{signature}", f"{token}=", token.replace("_", "/"), f"{token}\n"):
        assert (other == token) == (judge.verify(other, appid="wx1") == user_id)


@settings(database=None, deadline=None, max_examples=150)
@given(st.text() | st.from_regex(r"[A-Za-z0-9_-]{1,150}\.[A-Za-z0-9_-]{43}", fullmatch=True))
def test_made_up_token_proves_nobody(token: str) -> None:
    """No text of any shape is a user, and none raises."""
    assert tokens().verify(token, appid="wx1") is None


def test_halves_of_two_tokens_prove_nobody() -> None:
    """A signature belongs to its own payload."""
    judge = tokens()
    alice, bob = (judge.issue(user, appid="wx1").split(".") for user in ("alice", "bob"))
    assert judge.verify(f"{alice[0]}.{bob[1]}", appid="wx1") is None
    assert judge.verify(f"{bob[0]}.{alice[1]}", appid="wx1") is None


def test_token_is_good_for_its_own_app_only() -> None:
    """Of all pairs of apps and tokens only the diagonal proves the user."""
    judge, apps = tokens(), [f"wx{n}" for n in range(12)]
    minted = [judge.issue("alice", appid=appid) for appid in apps]
    for i, appid in enumerate(apps):
        assert [judge.verify(token, appid=appid) for token in minted] == [
            "alice" if i == j else None for j in range(len(apps))
        ]


def test_token_format_stays_readable() -> None:
    """Phones keep tokens for days: this format must outlive an upgrade of the kit."""
    token = signed(int(time.time()).to_bytes(5, "big") + b"alice")
    assert tokens().verify(token, appid="wx1") == "alice"


@pytest.mark.parametrize(
    "salt", ["cookie-session", "itsdangerous.Signer", "", "prefetch_kit.background-token.v1:wx2"]
)
def test_other_things_signed_with_the_same_key_prove_nobody(salt: str) -> None:
    """A session cookie's signature, or any other purpose's, is none here."""
    token = signed(int(time.time()).to_bytes(5, "big") + b"alice", salt=salt)
    assert tokens().verify(token, appid="wx1") is None


@pytest.mark.parametrize(
    "payload", [b"", b"\0", NOW.to_bytes(5, "big"), NOW.to_bytes(5, "big") + b"\xff"]
)
def test_signed_payload_without_a_user_proves_nobody(payload: bytes, clock: list[float]) -> None:
    """Even under our own signature: too short, no user id, a user id that is not UTF-8."""
    assert tokens().verify(signed(payload), appid="wx1") is None


def test_genuine_but_too_long_token_proves_nobody() -> None:
    """The length is checked, and before anything is computed from the token."""

    class Token(str):
        __slots__ = ()

        def encode(self, *_: object, **__: object) -> bytes:
            raise AssertionError("a token over 200 characters was decoded")

    payload = int(time.time()).to_bytes(5, "big") + b"x" * 113
    assert tokens().verify(Token(signed(payload)), appid="wx1") is None


@pytest.mark.parametrize(
    ("age_s", "user"),
    [
        (0, "alice"),
        (DAY_S, "alice"),
        (DAY_S + 300, "alice"),
        (DAY_S + 301, None),
        (-300, "alice"),
        (-301, None),
        (400 * DAY_S, None),
        (-400 * DAY_S, None),
    ],
)
def test_token_ends_with_its_age(clock: list[float], age_s: float, user: str | None) -> None:
    """Good for its maximum age, with five minutes of leeway on either side."""
    token = tokens().issue("alice", appid="wx1")
    clock[0] += age_s
    assert tokens().verify(token, appid="wx1") == user


def test_three_key_rotations_refuse_no_valid_token(
    make_app: Callable[..., Flask], ask: Callable[..., Response], prefetch: Prefetch
) -> None:
    """While old keys stand in SECRET_KEY_FALLBACKS every token keeps proving its user."""
    prefetch.pre_fetch()(lambda pull: {"user": pull.user_id})
    keys, minted = ["k0", "k1", "k2", "k3"], []
    for n, key in enumerate(keys):
        app = make_app(prefetch, SECRET_KEY=key, SECRET_KEY_FALLBACKS=keys[:n])
        with app.app_context():
            minted += [prefetch.issue_token(f"user{n}.{i}", appid="wx1") for i in range(10)]
        answers = [ask(app, token=token).json for token in minted]
        assert answers == [{"user": f"user{i // 10}.{i % 10}"} for i in range(len(minted))]


def test_key_taken_away_ends_its_tokens() -> None:
    """After a leak, leaving a key out of the fallbacks is enough."""
    token = tokens("leaked").issue("alice", appid="wx1")
    assert tokens("leaked", "fresh").verify(token, appid="wx1") == "alice"
    assert tokens("fresh").verify(token, appid="wx1") is None


@pytest.mark.parametrize("user_id", ["x" * 112, "中" * 37 + "x", "😀" * 28, "a"])
def test_longest_user_id_makes_200_characters(user_id: str) -> None:
    """112 bytes of UTF-8 fit, one more does not."""
    judge = tokens()
    token = judge.issue(user_id, appid="wx1")
    assert judge.verify(token, appid="wx1") == user_id
    assert len(token) <= 200
    if len(user_id.encode()) == 112:
        assert len(token) == 200
        with pytest.raises(UserIdError, match="at most 112 bytes of UTF-8, this one has 113"):
            judge.issue(user_id + "x", appid="wx1")


@settings(database=None, deadline=None)
@given(st.text(min_size=1, max_size=28))
def test_any_user_id_comes_back(user_id: str) -> None:
    """What was put into a token is what it proves, with control characters and all."""
    token = tokens().issue(user_id, appid="wx1")
    assert tokens().verify(token, appid="wx1") == user_id


@pytest.mark.parametrize("user_id", ["", "\ud800", None, 7, b"alice"])
def test_impossible_user_id_is_refused(user_id: str) -> None:
    """An empty, unwritable or untyped user id gets no token and its own error."""
    with pytest.raises(UserIdError):
        tokens().issue(user_id, appid="wx1")


@dataclass(frozen=True)
class Login:
    openid: str
    unionid: str | None = None


class WeChat:
    """Answers codes, and counts how often it was asked; `gate` holds the answers back."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer: Login | BaseException | None = Login("openid")
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, appid: str, code: Secret) -> Login | None:  # noqa: ARG002
        self.asked.append(appid)
        assert self.gate.wait(10)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


def logins_of(wechat: WeChat, *, wait_s: float = 30) -> CodeLogins:
    budget = LoginLimits(["wx1"], logger=SafeLogger(getLogger("shop")))
    return CodeLogins(wechat, limits=budget, wait_s=wait_s)


def test_concurrent_pulls_exchange_a_code_once() -> None:
    """Those who come while WeChat is asked wait for that one answer."""
    wechat = WeChat()
    logins = logins_of(wechat)
    wechat.gate.clear()
    with ThreadPoolExecutor(20) as pool:
        found = [pool.submit(logins.find, "wx1", Secret(CODE)) for _ in range(20)]
        time.sleep(0.05)  # long enough for a second one to ask, if it were let
        wechat.gate.set()
        assert {future.result() for future in found} == {Login("openid")}
    assert len(wechat.asked) == 1


@pytest.mark.parametrize("answer", [Login("openid", "unionid"), None])
def test_code_is_remembered_for_five_minutes(
    cache_clock: list[float], answer: Login | None
) -> None:
    """A good and a bad code alike are asked for again only after 300 seconds."""
    wechat = WeChat()
    wechat.answer = answer
    logins = logins_of(wechat)
    for at in (0.0, 299.9):
        cache_clock[0] = at
        assert logins.find("wx1", Secret(CODE)) == answer
    assert len(wechat.asked) == 1
    cache_clock[0] = 300.1
    assert logins.find("wx1", Secret(CODE)) == answer
    assert len(wechat.asked) == 2


def test_failure_is_not_remembered() -> None:
    """The pull after a failed exchange asks again."""
    wechat = WeChat()
    logins = logins_of(wechat)
    wechat.answer = ValueError("down")
    with pytest.raises(ValueError, match="down"):
        logins.find("wx1", Secret(CODE))
    wechat.answer = Login("openid")
    assert logins.find("wx1", Secret(CODE)) == Login("openid")


def test_waiting_for_anothers_exchange_ends() -> None:
    """Nobody waits for a stuck exchange longer than `wait_s`."""
    wechat = WeChat()
    logins = logins_of(wechat, wait_s=0.01)
    wechat.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(logins.find, "wx1", Secret(CODE))
        while not wechat.asked:
            time.sleep(0.001)
        started = time.monotonic()
        with pytest.raises(OutcomeUnknown, match="has none after"):
            logins.find("wx1", Secret(CODE))
        assert time.monotonic() - started < 4
        wechat.gate.set()
        assert first.result() == Login("openid")


def test_flood_of_codes_holds_few_threads() -> None:
    """While eight codes are asked about a ninth is turned away at once, and costs nothing."""
    wechat = WeChat()
    logins = logins_of(wechat)
    wechat.gate.clear()
    with ThreadPoolExecutor(MAX_ASKING) as pool:
        busy = [pool.submit(logins.find, "wx1", Secret(f"{CODE}{n}")) for n in range(MAX_ASKING)]
        while len(wechat.asked) < MAX_ASKING:
            time.sleep(0.001)
        with pytest.raises(OutcomeUnknown, match="8 other codes") as refusal:
            logins.find("wx1", Secret(f"{CODE}ninth"))
        wechat.gate.set()
        assert [future.result() for future in busy] == [Login("openid")] * MAX_ASKING
    assert not refusal.value.sent
    assert logins.find("wx1", Secret(f"{CODE}ninth")) == Login("openid")


def test_end_of_one_thread_does_not_end_those_that_wait() -> None:
    """SystemExit in the one who asks is an unknown outcome for the others."""
    wechat = WeChat()
    wechat.answer = SystemExit()
    logins = logins_of(wechat)
    wechat.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(logins.find, "wx1", Secret(CODE))
        while not wechat.asked:
            time.sleep(0.001)
        second = pool.submit(logins.find, "wx1", Secret(CODE))
        time.sleep(0.05)  # long enough for the second to come and wait
        wechat.gate.set()
        assert isinstance(first.exception(), SystemExit)
        assert isinstance(second.exception(), OutcomeUnknown)
    assert len(wechat.asked) == 1


def test_same_code_of_another_app_is_another_code() -> None:
    """Nobody becomes a user of one app by a code of another, however the two are spelled."""
    wechat = WeChat()
    logins = logins_of(wechat)
    for appid, code in (("wx1", CODE), ("wx2", CODE), ("wx", f"1{CODE}"), ("wx1", f"1{CODE}")):
        logins.find(appid, Secret(code))
    assert len(wechat.asked) == 4


@pytest.mark.slow
def test_remembered_codes_are_bounded() -> None:
    """A flood of made-up codes does not fill the memory."""
    logins = logins_of(WeChat())
    for n in range(10_100):
        logins.find("wx1", Secret(f"{CODE}{n}"))
    assert sum(isinstance(item, bytes) and len(item) == 32 for item in reachable(logins)) <= 10_002


def test_codes_themselves_are_not_kept() -> None:
    """What is remembered holds no code, not even of a failed exchange."""
    code = f"canary-{random.random()}"
    logins = logins_of(WeChat())
    logins.find("wx1", Secret(code))
    held = [item for item in reachable(logins) if isinstance(item, (str, bytes))]
    assert any(isinstance(item, bytes) for item in held)
    assert not any(code in (i if isinstance(i, str) else i.decode("latin-1")) for i in held)


def reachable(root: object) -> list[object]:
    """Everything held by an object, short of code and modules."""
    found, todo = {id(root): root}, [root]
    while todo:
        for item in gc.get_referents(todo.pop()):
            if id(item) not in found and not isinstance(item, (type, ModuleType, FunctionType)):
                found[id(item)] = item
                todo.append(item)
    return list(found.values())
