"""Applies and rollbacks of a fleet and of one of its apps alone, in any order."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import pytest

from prefetch_kit.errors import NothingToRollBack
from prefetch_kit.fetch_setting import FetchSetting
from prefetch_kit.fleet import Fleet, load_project
from prefetch_kit.registrar import Registrar, Secret, StaticToken, Transport
from prefetch_kit.weixin.settings import SettingsApi
from tests.fleet.conftest import ALL_LIFTED

if TYPE_CHECKING:
    from tests.fleet.conftest import Merchants

pytestmark = pytest.mark.slow

BEFORE = {
    "is_pre_fetch_open": True,
    "pre_fetch_type": 0,
    "pre_fetch_url": "https://shop.example/before",
    "is_period_fetch_open": False,
    "period_fetch_type": 0,
    "period_fetch_url": "https://shop.example/before/period",
}


class Found(NamedTuple):
    """What an apply found for one app."""

    appid: str
    version: int
    of_fleet: bool
    settings: dict[str, object]


class Mixed:
    """A fleet of two, and a registrar of the first of them; each apply wants another URL."""

    def __init__(self, merchants: "Merchants", transport: Transport) -> None:
        self.merchants = merchants
        self.transport = transport
        self.appids = merchants.add(2)
        self.tokens = {a: StaticToken(Secret(merchants.wx.access_token(a))) for a in self.appids}
        self.version = 0
        self.reset(0)

    def reset(self, number: int) -> None:
        """What WeChat held before, and no journal."""
        self.found: dict[str, list[Found]] = {appid: [] for appid in self.appids}
        for appid in self.appids:
            self.merchants.wx.put_settings(appid, BEFORE)
        self.state_dir = self.merchants.folder / f"state{number}"
        self.registrar = Registrar(
            self.appids[0],
            tokens=self.tokens[self.appids[0]],
            state_dir=self.state_dir,
            transport=self.transport,
        )

    def fleet(self) -> Fleet:
        path = self.merchants.write(version=f"v{self.version}")
        path.write_text(path.read_text().replace('"state"', f'"{self.state_dir}"'))
        return Fleet(load_project(path), settings_of=self.settings_of)

    def settings_of(self, appid: str) -> SettingsApi:
        return SettingsApi(self.transport, self.tokens[appid], max_wait_s=0)

    def apply(self) -> None:
        self.expect(self.appids[:1])
        url = f"https://shop.example/alone/v{self.version}"
        self.registrar.apply({"pre_fetch": FetchSetting.server(url)})

    def fleet_apply(self) -> None:
        self.expect(self.appids)
        assert self.fleet().apply(ALL_LIFTED).exit_code == 0

    def rollback(self) -> bool:
        found = self.found[self.appids[0]]
        return self.undo(found[-1:], lambda: self.registrar.rollback())

    def fleet_rollback(self) -> bool:
        fleets = [each for found in self.found.values() for each in found if each.of_fleet]
        newest = max((each.version for each in fleets), default=None)
        of_it = {each.appid: each for each in fleets if each.version == newest}
        return self.undo(list(of_it.values()), lambda: self.fleet().rollback())

    def expect(self, appids: Sequence[str]) -> None:
        """Remember what an apply of these finds."""
        self.version += 1
        for appid in appids:
            now = self.merchants.wx.settings(appid)
            self.found[appid].append(Found(appid, self.version, len(appids) > 1, now))

    def undo(self, oldest: Sequence[Found], rollback: Callable[[], object]) -> bool:
        """Each app is brought to what its oldest undone apply found; no other is touched."""
        if not oldest:
            with pytest.raises(NothingToRollBack):
                rollback()
            return False
        expected = dict(zip(self.appids, self.settings(), strict=True))
        expected |= {each.appid: each.settings for each in oldest}
        rollback()
        assert dict(zip(self.appids, self.settings(), strict=True)) == expected
        for each in oldest:
            del self.found[each.appid][self.found[each.appid].index(each) :]
        return True

    def settings(self) -> list[dict[str, object]]:
        return [self.merchants.wx.settings(appid) for appid in self.appids]


@pytest.fixture
def mixed(merchants: "Merchants", transport: Transport) -> Mixed:
    return Mixed(merchants, transport)


ACTIONS = ("apply", "fleet_apply", "rollback", "fleet_rollback")


def orders(first: str, second: str) -> list[Sequence[str]]:
    """All of four actions that begin so: shorter ones are how these begin."""
    return [(first, second, *rest) for rest in product(ACTIONS, repeat=2)]


@pytest.mark.parametrize("second", ACTIONS)
@pytest.mark.parametrize("first", ACTIONS[:2])
def test_all_of_it_can_be_rolled_back(mixed: Mixed, first: str, second: str) -> None:
    """In any order: each rollback undoes what it should, and in the end WeChat holds the first."""
    for number, order in enumerate(orders(first, second)):
        mixed.reset(number)
        for action in order:
            getattr(mixed, action)()
        for rollback in (mixed.rollback, mixed.fleet_rollback)[:: 1 - number % 2 * 2]:
            while rollback():
                pass
        assert mixed.settings() == [BEFORE, BEFORE], order
