"""The list of a platform's merchants: read page by page, once for all who look for somebody."""

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from prefetch_kit.errors import OutcomeUnknown
from prefetch_kit.sandbox import Fault, Sandbox
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.authorizations import AUTHORIZATION_CODEC, Authorization
from prefetch_kit.weixin.merchant_list import ListedMerchant, MerchantList
from prefetch_kit.weixin.third_party import ThirdParty, record_name
from prefetch_kit.weixin.token_stores.file import FileStores
from prefetch_kit.weixin.token_stores.records import Store
from tests.weixin.chain.conftest import APPID, COMPONENT
from tests.weixin.conftest import Clock

LIST = "api_get_authorizer_list"
PATH = f"/cgi-bin/component/{LIST}"
Calls = Callable[[str], int]


@pytest.fixture
def listing(provider: ThirdParty, clock: Clock) -> MerchantList:
    return MerchantList(provider.calls, clock=clock, sleep=clock.sleep)


@pytest.fixture
def many(wx: Sandbox) -> list[str]:
    """A platform of 598 merchants, three pages, whose refresh tokens are shown.

    Each page but the first begins with the last merchant of the one before.
    """
    wx.switches.listed_refresh_tokens = "always"
    appids = [f"wx1{number:04}" for number in range(598)]
    for appid in appids:
        wx.add_app(appid, secret="s")
        wx.authorize(COMPONENT, appid)
    return appids


def shown(found: ListedMerchant | None) -> Secret | None:
    return None if found is None else found.refresh_token


def test_the_list_is_read_to_its_end(
    wx: Sandbox, listing: MerchantList, authorize: Callable[..., str], calls: Calls
) -> None:
    """1,100 merchants are six calls; those whose code was exchanged come with a token."""
    for n in range(1099):
        wx.add_app(f"wx1{n:04}", secret="s")
        wx.authorize(COMPONENT, f"wx1{n:04}")
    authorize()
    listed = [each for _, page in listing.pages() for each in page]
    assert (len({each.appid for each in listed}), calls(LIST)) == (1100, 6)
    assert [each.appid for each in listed if each.refresh_token] == [APPID]


def test_a_page_of_refresh_tokens_can_be_read(
    wx: Sandbox, listing: MerchantList, many: list[str]
) -> None:
    """However long they are here, no page is longer than what is read of an answer."""
    pages = [page for _, page in listing.pages()]
    assert sum(each.refresh_token is not None for page in pages for each in page) == len(many)


def test_a_search_ends_where_the_merchant_is_found(
    wx: Sandbox, listing: MerchantList, many: list[str], calls: Calls
) -> None:
    """The next one goes on from there, and what was read stays known."""
    listing.find(many[0])
    assert calls(LIST) == 1
    listing.find(many[597])
    assert calls(LIST) == 3
    for appid in many:
        assert shown(listing.find(appid)) == Secret(wx.refresh_token(COMPONENT, appid))
    assert calls(LIST) == 3


def test_all_who_search_read_one_list(
    wx: Sandbox, listing: MerchantList, many: list[str], calls: Calls
) -> None:
    """Each finds its own, in three calls for all."""
    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(listing.find, many))
    assert [shown(each) for each in found] == [
        Secret(wx.refresh_token(COMPONENT, appid)) for appid in many
    ]
    assert calls(LIST) == 3


def test_who_is_missing_is_looked_for_once_a_minute(
    wx: Sandbox, listing: MerchantList, clock: Clock, calls: Calls
) -> None:
    """Many that look at once share one reading; a minute later it is read again.

    That there is nobody at all is one answer twice.
    """
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(listing.find, [APPID] * 8))
    wx.authorize(COMPONENT, APPID)
    assert (*found, listing.find(APPID)) == (None,) * 9
    assert calls(LIST) == 2
    clock.now += 61
    assert listing.find(APPID) is not None


def test_a_refused_token_is_looked_for_in_a_new_reading(
    wx: Sandbox, listing: MerchantList, many: list[str], clock: Clock, calls: Calls
) -> None:
    """The token of a healthy merchant was rotated after the list was read, a moment ago."""
    old = shown(listing.find(many[0]))
    assert old is not None
    wx.replace_refresh_token(COMPONENT, many[0])
    clock.now += 1
    again = shown(listing.find(many[0], refused={old}))
    assert again == Secret(wx.refresh_token(COMPONENT, many[0]))


def test_a_token_that_is_shown_and_refused_is_handed_back(
    listing: MerchantList, many: list[str], clock: Clock, calls: Calls
) -> None:
    """Read since it was refused, the list has nothing better."""
    found = listing.find(many[0])
    token = shown(found)
    assert token is not None
    clock.now += 1
    assert shown(listing.find(many[0], refused={token})) == token
    assert calls(LIST) == 4


def test_a_reading_that_was_left_for_long_begins_anew(
    wx: Sandbox, listing: MerchantList, many: list[str], clock: Clock, calls: Calls
) -> None:
    """Merchants have come and gone, and moved others to other pages."""
    listing.find(many[0])
    clock.now += 61
    wx.revoke(COMPONENT, many[0])
    assert listing.find("wx02") is None
    assert calls(LIST) == 4
    assert listing.find(many[0]) is None


def test_a_search_is_bounded(wx: Sandbox, provider: ThirdParty, many: list[str]) -> None:
    """Nobody waits longer, also not for the page that another one reads; the next goes on."""
    listing = MerchantList(provider.calls)
    wx.inject(Fault(kind="delay", path=PATH, delay_s=1.0, times=1))
    reader = threading.Thread(target=listing.find, args=(many[0],))
    reader.start()
    while not listing._turn.locked():
        time.sleep(0.001)
    with pytest.raises(OutcomeUnknown, match=r"not found within 0\.01 s") as caught:
        listing.find(many[597], wait_s=0.01)
    assert "goes on from there" in caught.value.remedy
    reader.join()
    assert listing.find(many[597]) is not None


@pytest.mark.parametrize(
    "body",
    [
        "{}",
        '{"total_count": "1", "list": []}',
        '{"total_count": 1, "list": [{"authorizer_appid": "../x"}]}',
        '{"total_count": 1, "list": [7]}',
        '{"total_count": 1, "list": {}}',
    ],
)
def test_an_unreadable_list_is_said_to_be(wx: Sandbox, listing: MerchantList, body: str) -> None:
    """No merchant is taken for one who left, and no name for a path."""
    wx.inject(Fault(kind="raw", path=PATH, body=body))
    with pytest.raises(OutcomeUnknown, match="no list of merchants"):
        listing.find(APPID)


def test_one_odd_merchant_does_not_hide_the_others(wx: Sandbox, listing: MerchantList) -> None:
    """What else is said of it may be anything."""
    body = """{"total_count": 2, "list": [
        {"authorizer_appid": "wx02", "refresh_token": 7, "auth_time": "yesterday"},
        {"authorizer_appid": "wx01", "refresh_token": "good", "auth_time": null}]}"""
    wx.inject(Fault(kind="raw", path=PATH, body=body))
    assert listing.find(APPID) == ListedMerchant(APPID, Secret("good"), 0)


@pytest.fixture
def lost(stores: FileStores, many: list[str]) -> Callable[[str], Store[Authorization]]:
    """The store of each merchant, in which nothing is."""
    return lambda appid: stores.open(appid, record_name(COMPONENT), AUTHORIZATION_CODEC)


def test_a_lost_store_is_filled_from_the_list(
    wx: Sandbox,
    provider: ThirdParty,
    many: list[str],
    lost: Callable[[str], Store[Authorization]],
    calls: Calls,
) -> None:
    """One call for 200 merchants brings back all that are missing, and only those."""
    pages: list[tuple[int, int]] = []
    told = lambda *page: pages.append(page)  # noqa: E731
    assert provider.authorizers.recover(many[:399], shown=told) == 399
    assert provider.authorizers.recover(many[:399], shown=told) == 0
    assert (pages, calls("api_authorizer_token")) == ([(200, 598), (399, 598)], 0)
    for appid in many[:399]:
        kept = lost(appid).load()
        assert kept is not None
        assert kept.refresh_tokens == (Secret(wx.refresh_token(COMPONENT, appid)),)
    assert lost(many[400]).load() is None


def test_a_few_that_are_missing_are_asked_for_alone(
    provider: ThirdParty, many: list[str], calls: Calls
) -> None:
    """The list of a large platform takes longer than that."""
    assert provider.authorizers.recover(many[:10], shown=print) == 0
    assert calls(LIST) == 0


def test_the_list_is_left_where_it_would_take_longer(
    wx: Sandbox, provider: ThirdParty, calls: Calls
) -> None:
    """Eleven are missing, and there are a hundred pages: the first one tells."""
    body = '{"total_count": 20000, "list": [{"authorizer_appid": "wx1", "auth_time": 1}]}'
    wx.inject(Fault(kind="raw", path=PATH, body=body))
    provider.authorizers.recover([f"wx{number}" for number in range(11)], shown=lambda *_: None)
    assert calls(LIST) == 1


def raw_page(wx: Sandbox, total: int, *appids: str) -> None:
    """Let the next page be this, whatever was asked for."""
    rows = [{"authorizer_appid": appid, "auth_time": 1} for appid in appids]
    body = json.dumps({"total_count": total, "list": rows})
    wx.inject(Fault(kind="raw", path=PATH, body=body, times=1))


def test_shorter_pages_than_were_asked_for(wx: Sandbox, listing: MerchantList) -> None:
    """All are read, each once."""
    raw_page(wx, 4, "wx1", "wx2")
    raw_page(wx, 4, "wx2", "wx3")
    raw_page(wx, 4, "wx3", "wx4")
    assert [each.appid for _, page in listing.pages() for each in page] == [
        "wx1",
        "wx2",
        "wx3",
        "wx4",
    ]


def test_a_page_that_is_empty_too_early_is_read_again(
    wx: Sandbox, listing: MerchantList, many: list[str]
) -> None:
    """It is not the end of the list."""
    raw_page(wx, len(many))
    assert len([each for _, page in listing.pages() for each in page]) == len(many)
    for _ in range(3):
        raw_page(wx, len(many))
    with pytest.raises(OutcomeUnknown, match="ends after"):
        next(listing.pages())
    raw_page(wx, len(many))
    with pytest.raises(OutcomeUnknown, match="ends after"):
        listing.find(many[0])
    assert listing.find(many[0]) is not None


@pytest.fixture
def leave(wx: Sandbox, many: list[str]) -> Callable[[], None]:
    """`leave()`: two merchants of the first page do, and so the 201st moves up to it."""

    def leave() -> None:
        for appid in many[5:7]:
            wx.revoke(COMPONENT, appid)

    return leave


def test_a_list_that_moves_is_read_again(
    listing: MerchantList, many: list[str], leave: Callable[[], None]
) -> None:
    """Else who moved up would be passed over."""
    pages = listing.pages()
    read = [each.appid for each in next(pages)[1]]
    leave()
    read += [each.appid for _, page in pages for each in page]
    assert sorted(read) == sorted(many)


def test_who_is_missing_in_a_list_that_moved_may_be_there(
    listing: MerchantList, many: list[str], leave: Callable[[], None]
) -> None:
    """So it is read once more before that is said."""
    listing.find(many[0])
    leave()
    assert listing.find(many[200]) is not None
    assert listing.find("wx02") is None


def test_a_list_that_never_stops_moving(wx: Sandbox, listing: MerchantList) -> None:
    """That is an error, not the end."""
    for _ in range(3):
        raw_page(wx, 3, "wx1", "wx2")
        raw_page(wx, 3, "wx3", "wx4")
    with pytest.raises(OutcomeUnknown, match="changed each time"):
        list(listing.pages())


def test_who_took_it_back_is_not_brought_back(
    wx: Sandbox, provider: ThirdParty, authorize: Callable[..., str], stores: FileStores
) -> None:
    """A list that was read before is no reason to forget that."""
    authorize()
    (listed,) = next(provider.authorizers.listing.pages())[1]
    provider.authorizers.drop(APPID, since=wx.revoke(COMPONENT, APPID).at + 1)
    assert not provider.authorizers.keep_missing(listed)
