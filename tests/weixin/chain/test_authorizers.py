"""The chain from the ticket to a merchant's token, and the refresh token that is never lost."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from prefetch_kit.errors import OutcomeUnknown, Refused, TokenRejected, TokenSourceError
from prefetch_kit.fetch_setting import FetchSetting
from prefetch_kit.sandbox import Fault, Sandbox
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.authorizations import AUTHORIZATION_CODEC, Authorization
from prefetch_kit.weixin.authorizers import AuthorizerToken
from prefetch_kit.weixin.component import Tickets
from prefetch_kit.weixin.settings import SettingsApi
from prefetch_kit.weixin.third_party import ThirdParty, record_name
from prefetch_kit.weixin.token_stores import redis as redis_store
from prefetch_kit.weixin.token_stores.file import FileStores
from prefetch_kit.weixin.token_stores.records import TOKEN_CODEC, Store, StoredToken
from prefetch_kit.weixin.token_stores.redis import RedisStores
from prefetch_kit.weixin.transport import Transport

if TYPE_CHECKING:
    from tests.weixin.conftest import Clock

APPID, COMPONENT = "wx01", "wxplatform"
REFRESH = "api_authorizer_token"

AuthorizationStore = Store[Authorization]
Authorize = Callable[..., str]
Calls = Callable[[str], int]


@pytest.fixture
def store(stores: FileStores) -> AuthorizationStore:
    """Where the merchant's authorization is kept."""
    return stores.open(APPID, record_name(COMPONENT), AUTHORIZATION_CODEC)


@pytest.fixture
def forget_access(store: AuthorizationStore) -> Callable[[], None]:
    """Take the access token out of the store, so that the next one has to be asked for."""

    def forget() -> None:
        with store.lock():
            store.save(replace(kept(store), access=None))

    return forget


def kept(store: AuthorizationStore) -> Authorization:
    found = store.load()
    assert found is not None
    return found


def test_a_merchants_settings_are_set_with_its_token(
    wx: Sandbox, transport: Transport, provider: ThirdParty, authorize: Authorize
) -> None:
    """The whole chain, where WeChat takes no token but the platform's for the merchant."""
    wx.switches.own_token_accepted = False
    wx.add_domain(APPID, "shop.example")
    assert authorize() == APPID
    api = SettingsApi(transport, provider.authorizers.token(APPID), sleep=lambda _: None)
    api.put("pre_fetch", FetchSetting(True, "server", "https://shop.example/p"))
    assert wx.settings(APPID)["pre_fetch_url"] == "https://shop.example/p"


def test_tokens_are_asked_for_once_and_kept(
    provider: ThirdParty, authorize: Authorize, calls: Calls, forget_access: Callable[[], None]
) -> None:
    """One component token for all, and the merchant's own token until it ends."""
    authorize()
    forget_access()
    tokens = {provider.authorizers.token(APPID).get() for _ in range(5)}
    assert (len(tokens), calls("api_component_token"), calls(REFRESH)) == (1, 1, 1)


def test_an_expired_component_token_is_renewed_on_the_way(
    wx: Sandbox, provider: ThirdParty, authorize: Authorize, calls: Calls
) -> None:
    """WeChat rejects the platform's token inside a merchant's renewal: one renewal of each."""
    authorize()
    token = provider.authorizers.token(APPID).get()
    wx.expire_tokens(COMPONENT)
    assert provider.authorizers.token(APPID).renew(token) != token
    assert (calls("api_component_token"), calls(REFRESH)) == (2, 2)


def test_a_rejected_component_token_is_not_renewed_without_end(
    wx: Sandbox, provider: ThirdParty, authorize: Authorize, calls: Calls
) -> None:
    """Rejected again right after its renewal: the caller hears of it."""
    authorize()
    token = provider.authorizers.token(APPID).get()
    wx.inject(Fault(kind="errcode", path=f"/cgi-bin/component/{REFRESH}", errcode=40001, times=9))
    with pytest.raises(TokenRejected):
        provider.authorizers.token(APPID).renew(token)
    assert (calls("api_component_token"), calls(REFRESH)) == (2, 2)


def test_a_rotated_refresh_token_is_saved(
    wx: Sandbox, provider: ThirdParty, authorize: Authorize, store: AuthorizationStore
) -> None:
    """The new one and the one before it stand in the store when the token is handed out."""
    authorize()
    (first,) = kept(store).refresh_tokens
    source = provider.authorizers.token(APPID)
    token = source.renew(source.get())
    rotated = Secret(wx.refresh_token(COMPONENT, APPID))
    assert kept(store).refresh_tokens == (rotated, first)
    source.renew(token)
    newest = Secret(wx.refresh_token(COMPONENT, APPID))
    assert kept(store).refresh_tokens == (newest, rotated)


def test_a_refresh_token_that_stays_is_kept_once(
    wx: Sandbox, provider: ThirdParty, authorize: Authorize, store: AuthorizationStore
) -> None:
    """Where WeChat gives the same again, there is nothing older to keep."""
    wx.switches.refresh_token_rotates = False
    authorize()
    source = provider.authorizers.token(APPID)
    source.renew(source.get())
    assert kept(store).refresh_tokens == (Secret(wx.refresh_token(COMPONENT, APPID)),)


def test_an_answer_without_a_refresh_token_changes_none(
    wx: Sandbox, provider: ThirdParty, authorize: Authorize, store: AuthorizationStore
) -> None:
    """What was used goes on being used."""
    authorize()
    before = kept(store).refresh_tokens
    body = '{"authorizer_access_token": "abc", "expires_in": 7200}'
    wx.inject(Fault(kind="raw", path=f"/cgi-bin/component/{REFRESH}", body=body))
    source = provider.authorizers.token(APPID)
    assert source.renew(source.get()) == Secret("abc")
    assert kept(store).refresh_tokens == before


def test_the_previous_refresh_token_is_tried_when_the_newest_is_refused(
    wx: Sandbox,
    provider: ThirdParty,
    authorize: Authorize,
    store: AuthorizationStore,
    calls: Calls,
) -> None:
    """The newest stored one is no good, the one before it still is: no list is asked for."""
    authorize()
    (good,) = kept(store).refresh_tokens
    with store.lock():
        store.save(replace(kept(store), refresh_tokens=(Secret("no-good"), good), access=None))
    provider.authorizers.token(APPID).get()
    assert (calls(REFRESH), calls("api_get_authorizer_list")) == (2, 0)
    assert kept(store).refresh_tokens == (Secret(wx.refresh_token(COMPONENT, APPID)), good)


def test_a_lost_rotated_refresh_token_is_rescued_from_the_list(
    wx: Sandbox,
    provider: ThirdParty,
    authorize: Authorize,
    store: AuthorizationStore,
    calls: Calls,
) -> None:
    """WeChat rotated it and the answer never came: the next renewal finds it again."""
    wx.switches.info_shows_refresh_token = False
    authorize()
    source = provider.authorizers.token(APPID)
    token = source.get()
    wx.inject(Fault(kind="lose", path=f"/cgi-bin/component/{REFRESH}"))
    with pytest.raises(OutcomeUnknown):
        source.renew(token)
    assert kept(store).access is not None  # the old one stays until there is a new one
    assert source.renew(token) != token
    assert calls("api_get_authorizer_list") == 1
    assert kept(store).refresh_tokens[0] == Secret(wx.refresh_token(COMPONENT, APPID))


def test_what_a_process_of_the_first_version_renewed_meanwhile_is_tried(
    wx: Sandbox,
    provider: ThirdParty,
    authorize: Authorize,
    stores: FileStores,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It holds another lock, so its new refresh token may come between our reading and asking."""
    wx.switches.listed_refresh_tokens = "never"
    authorize()
    merchants, refreshed = provider.authorizers, provider.authorizers.refreshed
    token = merchants.token(APPID).get()

    def renewed_elsewhere(*given: Any) -> Authorization:
        wx.replace_refresh_token(COMPONENT, APPID)
        path = stores.directory / APPID / f"{record_name(COMPONENT)}.json"
        path.parent.mkdir(mode=0o700)
        tokens = [wx.refresh_token(COMPONENT, APPID)]
        path.write_text(json.dumps({"refresh_tokens": tokens, "since": wx.now()}))
        path.chmod(0o600)
        monkeypatch.undo()
        return refreshed(*given)

    monkeypatch.setattr(merchants, "refreshed", renewed_elsewhere)
    assert merchants.token(APPID).renew(token) != token


@pytest.fixture
def machine(
    wx: Sandbox, transport: Transport, redis_server: Any, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., ThirdParty]:
    """`machine()`: the platform and its merchant, as one more machine has them in a Redis."""
    for limit in ("_SILENCE_S", "_ANSWER_S"):
        monkeypatch.setattr(redis_store, limit, 30.0)

    def machine(*, lease_s: float = 30.0) -> ThirdParty:
        stores = RedisStores(Secret(redis_server.url), prefix="kit", lease_s=lease_s)
        return ThirdParty(transport, COMPONENT, Secret("canary-component-secret"), stores)

    with wx.lock:
        ticket = wx.component(COMPONENT).issue_ticket(now=wx.now())
    machine().tickets.keep(Secret(ticket), pushed_at=wx.now())
    since = wx.authorize(COMPONENT, APPID).at
    machine().authorizers.accept(Secret(*wx.component(COMPONENT).codes), since=since)
    return machine


@pytest.fixture
def in_redis(redis_server: Any) -> Callable[[], Authorization]:
    """What the machines keep of the merchant."""
    stores = RedisStores(Secret(redis_server.url), prefix="kit")
    store = stores.open(APPID, record_name(COMPONENT), AUTHORIZATION_CODEC)
    return lambda: kept(store)


@pytest.fixture
def outrun(wx: Sandbox, machine: Callable[..., ThirdParty]) -> Callable[..., None]:
    """`outrun(meanwhile)`: a machine pauses past its lease, then refreshes all the same."""
    wx.switches.refresh_token_grace_s = 300.0
    wx.switches.listed_refresh_tokens = "never"
    old = machine().authorizers.token(APPID).get()

    def run(meanwhile: Callable[[AuthorizerToken], object]) -> None:
        late = machine(lease_s=0.05).authorizers
        refreshed = late.refreshed

        def paused(*given: Any) -> Authorization:
            time.sleep(0.1)
            with ThreadPoolExecutor(1) as elsewhere:
                elsewhere.submit(meanwhile, machine().authorizers.token(APPID)).result(60)
            return refreshed(*given)

        late.refreshed = paused  # type: ignore[method-assign, assignment]
        late.token(APPID).renew(old)

    def renewed(source: AuthorizerToken) -> None:
        source.renew(old)

    return lambda meanwhile=renewed: run(meanwhile)


def test_a_refresh_token_that_came_late_is_kept_too(
    wx: Sandbox,
    machine: Callable[..., ThirdParty],
    outrun: Callable[..., None],
    in_redis: Callable[[], Authorization],
) -> None:
    """From then on WeChat takes no other, and no list shows it."""
    outrun()
    wx.advance(301)
    stored = in_redis().access
    assert stored is not None
    assert machine().authorizers.token(APPID).renew(stored.value) != stored.value


def test_refresh_tokens_that_come_late_do_not_pile_up(
    wx: Sandbox, outrun: Callable[..., None], in_redis: Callable[[], Authorization]
) -> None:
    """Two machines that paused: the last of them has the one that counts."""
    outrun(lambda _: outrun())
    assert len(in_redis().refresh_tokens) == 3
    assert Secret(wx.refresh_token(COMPONENT, APPID)) in in_redis().refresh_tokens


def test_what_comes_late_brings_no_merchant_back(
    wx: Sandbox,
    machine: Callable[..., ThirdParty],
    outrun: Callable[..., None],
    in_redis: Callable[[], Authorization],
) -> None:
    """Who took the authorization back meanwhile has taken it back."""
    with pytest.raises(TokenSourceError, match="taken away meanwhile"):
        outrun(lambda _: machine().authorizers.drop(APPID, since=wx.now() + 1))
    assert in_redis().refresh_tokens == ()


def test_a_lease_that_is_lost_while_a_merchant_leaves(
    wx: Sandbox, machine: Callable[..., ThirdParty], in_redis: Callable[[], Authorization]
) -> None:
    """Another machine saves a renewed token meanwhile: that one is forgotten too."""
    late = machine(lease_s=0.05).authorizers
    store_of, other = late._store_of, machine().authorizers.token(APPID)
    old = other.get()

    def paused(appid: str) -> AuthorizationStore:
        store = store_of(appid)
        load = store.load

        def load_slowly() -> Authorization | None:
            found, store.load = load(), load  # type: ignore[method-assign]
            time.sleep(0.1)
            with ThreadPoolExecutor(1) as elsewhere:
                elsewhere.submit(other.renew, old).result(60)
            return found

        store.load = load_slowly  # type: ignore[method-assign]
        return store

    late._store_of = paused
    assert late.drop(APPID, since=wx.now() + 1)
    assert in_redis().refresh_tokens == ()


def test_what_the_list_does_not_show_is_lost(
    wx: Sandbox, provider: ThirdParty, authorize: Authorize
) -> None:
    """Then only the merchant can help, and the error says so."""
    authorize()
    source = provider.authorizers.token(APPID)
    wx.replace_refresh_token(COMPONENT, APPID)
    wx.switches.listed_refresh_tokens = "never"
    wx.switches.info_shows_refresh_token = False
    with pytest.raises(TokenSourceError, match="no refresh token is kept here") as caught:
        source.renew(source.get())
    assert caught.value.remedy.startswith("api_get_authorizer_info and api_get_authorizer_list")
    assert "`prefetch-kit platform authorize-url`" in caught.value.remedy


def test_a_list_that_helps_nothing(
    wx: Sandbox, provider: ThirdParty, authorize: Authorize, calls: Calls
) -> None:
    """It shows what was just refused: that is not tried again without end."""
    authorize()
    path = f"/cgi-bin/component/{REFRESH}"
    wx.inject(Fault(kind="errcode", path=path, errcode=61023, times=None))
    source = provider.authorizers.token(APPID)
    with pytest.raises(TokenSourceError, match="the very refresh token that it shows"):
        source.renew(source.get())
    assert calls(REFRESH) == 1


def test_a_code_that_could_not_be_exchanged_is_with_the_next_token(
    wx: Sandbox, provider: ThirdParty, store: AuthorizationStore
) -> None:
    """It came before anything else could be done: no list would show what it gives."""
    since = wx.authorize(COMPONENT, APPID).at
    (code,) = map(Secret, wx.component(COMPONENT).codes)
    provider.authorizers.note(APPID, code, since=since)
    assert not provider.authorizers.holds(APPID, since=since)
    provider.authorizers.token(APPID).get()
    assert provider.authorizers.holds(APPID, since=since)
    assert kept(store).refresh_tokens == (Secret(wx.refresh_token(COMPONENT, APPID)),)


def test_a_code_of_another_merchant_gives_nothing(wx: Sandbox, provider: ThirdParty) -> None:
    """One merchant's settings are never written with another's token."""
    since = wx.authorize(COMPONENT, APPID).at
    (code,) = map(Secret, wx.component(COMPONENT).codes)
    provider.authorizers.note("wx02", code, since=since)
    with pytest.raises(TokenSourceError, match="wx02: the merchant has not authorized"):
        provider.authorizers.token("wx02").get()


def test_a_code_that_is_spent_is_passed_over(
    wx: Sandbox, provider: ThirdParty, authorize: Authorize, store: AuthorizationStore
) -> None:
    """Exchanged by a process that was killed before it kept what came: the list has it."""
    authorize()
    (code,) = map(Secret, wx.component(COMPONENT).codes)
    with store.lock():
        store.save(Authorization((), None, kept(store).since, code))
    provider.authorizers.token(APPID).get()
    assert kept(store).code is None


def test_a_merchant_who_never_authorized(provider: ThirdParty, calls: Calls) -> None:
    """It is not in the list; the error names it and what to do."""
    with pytest.raises(TokenSourceError, match="wx01: the merchant has not authorized"):
        provider.authorizers.token(APPID).get()
    assert calls(REFRESH) == 0


def test_a_merchant_nobody_asked_about_yet(wx: Sandbox, provider: ThirdParty) -> None:
    """It is in the list without a refresh token, since its code was never exchanged."""
    wx.switches.info_shows_refresh_token = False
    wx.authorize(COMPONENT, APPID)
    with pytest.raises(TokenSourceError, match="WeChat shows none"):
        provider.authorizers.token(APPID).get()


def test_a_merchant_takes_it_back(
    wx: Sandbox, provider: ThirdParty, authorize: Authorize, store: AuthorizationStore
) -> None:
    """The tokens are gone at once; a new authorization is a new beginning."""
    authorize()
    assert provider.authorizers.drop(APPID, since=wx.revoke(COMPONENT, APPID).at)
    assert kept(store).refresh_tokens == ()
    with pytest.raises(TokenSourceError, match="has not authorized"):
        provider.authorizers.token(APPID).get()
    authorize()
    provider.authorizers.token(APPID).get()


def test_late_news_of_an_earlier_end_ends_nothing(
    provider: ThirdParty, authorize: Authorize, store: AuthorizationStore
) -> None:
    """Taken back, given again, and only then told of the first: the new one stays."""
    authorize()
    assert not provider.authorizers.drop(APPID, since=kept(store).since - 1)
    assert kept(store).refresh_tokens


def test_pushes_that_come_out_of_order_keep_the_newer_authorization(
    wx: Sandbox, provider: ThirdParty, store: AuthorizationStore
) -> None:
    """WeChat repeats the earlier push once the later one was dealt with."""
    earlier = wx.authorize(COMPONENT, APPID).at
    wx.advance(60)
    later = wx.authorize(COMPONENT, APPID).at
    old_code, new_code = map(Secret, wx.component(COMPONENT).codes)
    provider.authorizers.accept(new_code, since=later)
    before = kept(store)
    provider.authorizers.note(APPID, old_code, since=earlier)
    assert kept(store) == before
    provider.authorizers.accept(old_code, since=earlier)
    assert kept(store) == before


def test_a_late_40001_about_a_merchants_old_token_keeps_the_fresh_one(
    provider: ThirdParty, authorize: Authorize, calls: Calls
) -> None:
    """Eight callers that failed with the old token at once: one renewal, one token for all."""
    authorize()
    old = provider.authorizers.token(APPID).get()
    with ThreadPoolExecutor(8) as pool:
        fresh = set(pool.map(lambda _: provider.authorizers.token(APPID).renew(old), range(8)))
    assert (len(fresh), calls(REFRESH)) == (1, 1)
    assert provider.authorizers.token(APPID).renew(old) in fresh


def test_a_merchants_old_token_stays_until_the_new_one_exists(
    wx: Sandbox, provider: ThirdParty, authorize: Authorize, store: AuthorizationStore
) -> None:
    """A reader during a renewal finds the old one, then the new one, never none."""
    authorize()
    source = provider.authorizers.token(APPID)
    old = source.get()
    wx.inject(Fault(kind="delay", path=f"/cgi-bin/component/{REFRESH}", delay_s=0.2))
    seen = [old]
    with ThreadPoolExecutor(1) as pool:
        renewal = pool.submit(source.renew, old)
        while not renewal.done():
            seen.append((kept(store).access or StoredToken(Secret("none"), 0)).value)
    assert list(dict.fromkeys([*seen, source.get()])) == [old, renewal.result()]


def test_no_ticket_yet(started: ThirdParty) -> None:
    """Nothing is asked; the error says where tickets come from."""
    with pytest.raises(TokenSourceError, match="no component_verify_ticket came yet"):
        started.token.get()


def test_the_newest_ticket_is_kept(wx: Sandbox, started: ThirdParty) -> None:
    """Pushed again late, an older one changes nothing."""
    started.tickets.keep(Secret("second"), pushed_at=wx.now())
    started.tickets.keep(Secret("first"), pushed_at=wx.now() - 600)
    assert started.tickets.newest() == Secret("second")


def test_a_ticket_from_the_future_shuts_out_no_real_one(
    wx: Sandbox, provider: ThirdParty, stores: FileStores
) -> None:
    """Neither the one that is pushed next, nor the one that was pushed just before."""
    tickets = provider.tickets
    real = tickets.newest()
    tickets.keep(Secret("future"), pushed_at=wx.now() + 10 * 366 * 86_400)
    assert tickets.newest() == real
    tickets.keep(Secret("next"), pushed_at=wx.now() + 1)
    assert tickets.newest() == Secret("next")


def test_the_first_ticket_is_from_the_future(wx: Sandbox, started: ThirdParty) -> None:
    """It is kept, since there is no other, and the next real one replaces it."""
    started.tickets.keep(Secret("future"), pushed_at=wx.now() + 86_400)
    assert started.tickets.newest() == Secret("future")
    started.tickets.keep(Secret("real"), pushed_at=wx.now() - 60)
    assert started.tickets.newest() == Secret("real")


def test_on_a_machine_whose_clock_is_behind_each_ticket_replaces_the_one_before(
    stores: FileStores, clock: "Clock"
) -> None:
    """All of them are from the future there."""
    tickets = Tickets(stores.open(COMPONENT, "ticket", TOKEN_CODEC), clock=clock)
    for number in range(3):
        tickets.keep(Secret(f"ticket-{number}"), pushed_at=clock.now + 86_400)
        assert tickets.newest() == Secret(f"ticket-{number}")
        clock.now += 600


def test_what_a_moved_clock_left_behind_shuts_out_nothing(
    wx: Sandbox, provider: ThirdParty, stores: FileStores
) -> None:
    """A ticket of a sandbox that was moved a month ahead, kept by an earlier version."""
    store = stores.open(COMPONENT, "ticket", TOKEN_CODEC)
    with store.lock():
        store.save(StoredToken(Secret("moved"), wx.now() + 30 * 86_400))
    provider.tickets.keep(Secret("real"), pushed_at=wx.now())
    assert provider.tickets.newest() == Secret("real")


def test_an_authorization_from_the_future_shuts_out_no_later_one(
    wx: Sandbox, provider: ThirdParty, store: AuthorizationStore
) -> None:
    """Nor does one that was kept by a clock that was moved: the merchant's new tokens count."""
    ahead = wx.now() + 366 * 86_400
    wx.authorize(COMPONENT, APPID)
    (code,) = map(Secret, wx.component(COMPONENT).codes)
    provider.authorizers.accept(code, since=ahead)
    for since in (None, ahead):
        if since is not None:
            with store.lock():
                store.save(replace(kept(store), since=since))
        wx.authorize(COMPONENT, APPID)
        *_, code = map(Secret, wx.component(COMPONENT).codes)
        provider.authorizers.accept(code, since=wx.now())
        assert kept(store).refresh_tokens == (Secret(wx.refresh_token(COMPONENT, APPID)),)
    assert provider.authorizers.drop(APPID, since=wx.now())


def test_a_ticket_that_is_too_old_is_named(wx: Sandbox, provider: ThirdParty) -> None:
    """WeChat says 61005, and the remedy says where the next one comes from."""
    wx.advance(12 * 3600)
    with pytest.raises(Refused, match="too old") as caught:
        provider.token.get()
    assert (caught.value.errcode, "each ten minutes" in caught.value.remedy) == (61005, True)


AUTHORIZATIONS = [
    Authorization((Secret("a"), Secret("b")), StoredToken(Secret("c"), 7.5), 7.0),
    Authorization((Secret("a"),), None, 7.0),
    Authorization((), None, 0.0),
    Authorization((), None, 1.0, Secret("code")),
]


@pytest.mark.parametrize("authorization", AUTHORIZATIONS)
def test_what_is_kept_is_read_as_it_was_written(
    store: AuthorizationStore, authorization: Authorization
) -> None:
    """With and without an access token, and once all is taken back."""
    with store.lock():
        assert store.save(authorization) == authorization
    assert store.load() == authorization


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"refresh_tokens": "ab", "since": 1},
        {"refresh_tokens": [7], "since": 1},
        {"refresh_tokens": ["a b"], "since": 1},
        {"refresh_tokens": ["a"], "since": "1"},
    ],
)
def test_what_is_no_authorization_is_none(plain: dict[str, object]) -> None:
    """It counts as lost, and what is lost is rescued."""
    assert AUTHORIZATION_CODEC.decode(plain) is None
