"""A WeChat that shows later what was set, or takes effect later than it answers."""

import json
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefetch_kit.errors import GuardRefused, MayBeSet, NotConfirmed, PlanStale
from prefetch_kit.fetch_setting import FetchSetting, Kind
from prefetch_kit.registrar.registrar import Registrar
from prefetch_kit.sandbox import Fault, Sandbox
from prefetch_kit.weixin.transport import Transport

if TYPE_CHECKING:
    from tests.registrar.conftest import Row

APPID = "wx01"
OLD = {
    "is_pre_fetch_open": True,
    "pre_fetch_type": 0,
    "pre_fetch_url": "https://shop.example/old",
}
NEW = {**OLD, "pre_fetch_url": "https://shop.example/new"}
OTHER = {**OLD, "pre_fetch_url": "https://shop.example/other"}
WANTED: Mapping[Kind, FetchSetting] = {"pre_fetch": FetchSetting.server("https://shop.example/new")}
WANTED_OTHER: Mapping[Kind, FetchSetting] = {
    "pre_fetch": FetchSetting.server("https://shop.example/other")
}


class Played:
    """A registrar, and what happens in the pauses between its calls."""

    def __init__(self, wx: Sandbox, transport: Transport, root: Path) -> None:
        self.wx = wx
        self.pauses: list[float] = []
        self.in_pause: dict[int, Callable[[], object]] = {}
        self._made = transport, root, wx.access_token(APPID)

    def registrar(self, *, wait_s: float = 60.0) -> Registrar:
        transport, root, token = self._made
        return Registrar(
            APPID,
            tokens=lambda: token,
            state_dir=root,
            transport=transport,
            sleep=self._sleep,
            wait_s=wait_s,
        )

    def show(self, settings: Mapping[str, object], *, reads: int | None, after: int = 0) -> None:
        """Let WeChat answer so to these reads, whatever it holds."""
        body = json.dumps({"errcode": 0, "errmsg": "ok", **settings})
        self.wx.inject(Fault(kind="raw", body=body, action="get", times=reads, after=after))

    def holds(self) -> object:
        return self.wx.settings(APPID).get("pre_fetch_url")

    def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.in_pause.pop(len(self.pauses), lambda: None)()


@pytest.fixture
def played(wx: Sandbox, transport: Transport, root: Path) -> Played:
    wx.put_settings(APPID, OLD)
    return Played(wx, transport, root)


def test_what_is_shown_later_is_waited_for(played: Played) -> None:
    """It is sent once, and looked at with growing pauses."""
    played.show(OLD, reads=6, after=2)
    played.registrar().apply(WANTED)
    assert played.wx.count(action="set_pre_fetch") == 1
    assert len(played.pauses) == 6
    assert played.pauses[0] < 1 < played.pauses[3] <= 5


@pytest.mark.parametrize("wait_s", [0.0, 60.0])
def test_what_is_not_shown_in_time_is_not_confirmed(
    played: Played, rows: "Callable[[], list[Row]]", wait_s: float
) -> None:
    """Whether it is done is not known, and so not said."""
    played.show(OLD, reads=None, after=2)
    with pytest.raises(NotConfirmed, match="set, not yet confirmed"):
        played.registrar(wait_s=wait_s).apply(WANTED)
    assert sum(played.pauses) == pytest.approx(wait_s)
    assert [row.outcome for row in rows()] == ["sent"]
    assert played.holds() == NEW["pre_fetch_url"]


def test_the_same_command_confirms_it_later(
    played: Played, rows: "Callable[[], list[Row]]"
) -> None:
    """By sending it again while WeChat still shows the old one."""
    played.show(OLD, reads=4, after=2)
    with pytest.raises(NotConfirmed):
        played.registrar(wait_s=0).apply(WANTED)
    played.registrar().apply(WANTED)
    assert [row.outcome for row in rows()] == ["sent", "confirmed"]


def test_a_rollback_sends_what_is_shown_already(played: Played) -> None:
    """WeChat still shows what was there before the apply."""
    played.show(OLD, reads=None, after=2)
    with pytest.raises(NotConfirmed):
        played.registrar(wait_s=0).apply(WANTED)
    assert played.holds() == NEW["pre_fetch_url"]
    played.registrar().rollback()
    assert played.holds() == OLD["pre_fetch_url"]


def test_a_rollback_is_not_done_by_an_old_read(played: Played) -> None:
    """WeChat answered nothing to it; that it shows the right thing proves nothing."""
    played.show(OLD, reads=None, after=2)
    with pytest.raises(NotConfirmed):
        played.registrar(wait_s=0).apply(WANTED)
    played.wx.inject(Fault(kind="close", action="set_pre_fetch", times=None))
    with pytest.raises(MayBeSet):
        played.registrar().rollback()
    assert played.holds() == NEW["pre_fetch_url"]


def test_an_old_read_is_no_proof_of_a_set_without_answer(played: Played) -> None:
    """WeChat took nothing, and shows what it had before the apply."""
    played.registrar().apply(WANTED)
    for kind in ({"kind": "errcode", "errcode": -1}, {"kind": "reset"}):
        played.wx.inject(Fault(action="set_pre_fetch", **kind))
        played.show(OLD, reads=1, after=2)
        played.registrar().rollback()
        assert played.holds() == OLD["pre_fetch_url"]
        played.registrar().apply(WANTED)


def test_what_is_old_lifts_the_guard_of_a_rollback(played: Played) -> None:
    """Just set, it may not be shown yet; what is shown is of an earlier run, not of others."""
    played.registrar().apply(WANTED)
    played.registrar().apply(WANTED_OTHER)
    played.show(OLD, reads=2)
    played.registrar().rollback()
    assert played.holds() == NEW["pre_fetch_url"]


@pytest.mark.parametrize(
    "shown",
    [
        {},
        {"is_pre_fetch_open": False},
        {"is_pre_fetch_open": False, "pre_fetch_type": 0, "pre_fetch_url": ""},
        {"is_pre_fetch_open": False, "pre_fetch_type": 1, "pre_fetch_url": "https://x.example/"},
    ],
)
def test_an_odd_read_lifts_no_guard(played: Played, shown: Mapping[str, object]) -> None:
    """That there is nothing to replace must be said more often."""
    foreign = {**OLD, "pre_fetch_url": "https://other.example/x"}
    played.wx.put_settings(APPID, foreign)
    played.show(shown, reads=3)
    with pytest.raises(GuardRefused, match="--allow-takeover"):
        played.registrar().apply(WANTED)
    assert played.holds() == foreign["pre_fetch_url"]


def test_a_source_that_was_read_back_is_not_forgotten(played: Played) -> None:
    """Where WeChat shows none, to set another is a takeover."""
    played.registrar().apply(WANTED)
    played.show({"is_pre_fetch_open": False}, reads=None)
    with pytest.raises(GuardRefused, match="--allow-takeover"):
        played.registrar(wait_s=0).apply(WANTED_OTHER)
    assert played.holds() == NEW["pre_fetch_url"]


def test_a_flag_that_is_left_out_is_off(played: Played) -> None:
    """So it can be rolled back to."""
    shown = {name: value for name, value in OLD.items() if name != "is_pre_fetch_open"}
    played.wx.put_settings(APPID, shown)
    played.show(shown, reads=5)
    played.registrar().apply(WANTED)
    played.registrar().rollback()
    assert played.wx.settings(APPID) == OLD | {"is_pre_fetch_open": False}


def test_a_clock_that_was_set_back(played: Played, state_dir: Path) -> None:
    """What was set in the future was set just now: its effect is waited for."""
    played.registrar().apply(WANTED)
    with closing(sqlite3.connect(state_dir / "journal.sqlite3")) as db, db:
        db.execute("UPDATE changes SET at = '2099-01-01T00:00:00+00:00'")
    played.show(OLD, reads=3)
    played.registrar().apply(WANTED_OTHER)
    played.registrar().rollback()
    assert played.holds() == NEW["pre_fetch_url"]


def test_a_rollback_that_was_not_confirmed_can_be_run_again(played: Played) -> None:
    """It counts as done only once it is confirmed."""
    played.registrar().apply(WANTED)
    played.show(NEW, reads=3)
    with pytest.raises(NotConfirmed):
        played.registrar(wait_s=0).rollback()
    played.registrar().rollback()
    assert played.holds() == OLD["pre_fetch_url"]


def test_another_apply_waits_to_know_what_it_replaces(played: Played) -> None:
    """Else a rollback of it would bring back what was there before both."""
    played.show(OLD, reads=6, after=2)
    with pytest.raises(NotConfirmed):
        played.registrar(wait_s=0).apply(WANTED)
    played.registrar().apply(WANTED_OTHER)
    assert played.holds() == OTHER["pre_fetch_url"]
    played.registrar().rollback()
    assert played.holds() == NEW["pre_fetch_url"]


def test_an_apply_does_not_take_an_old_read_for_done(played: Played) -> None:
    """What it wants is shown, but something else was set since."""
    played.show(OLD, reads=4, after=2)
    with pytest.raises(NotConfirmed):
        played.registrar(wait_s=0).apply(WANTED)
    played.registrar().apply({"pre_fetch": FetchSetting.server("https://shop.example/old")})
    assert played.holds() == OLD["pre_fetch_url"]


def test_after_the_wait_a_read_is_believed(played: Played, age: Callable[[], None]) -> None:
    """Somebody set something else, long after us."""
    played.registrar().apply(WANTED)
    played.wx.put_settings(APPID, OTHER)
    age()
    assert played.registrar().apply(WANTED_OTHER).changes == ()
    assert played.pauses == []


def test_a_saved_plan_is_stale_only_for_sure(played: Played) -> None:
    """While WeChat may show something old, it is waited for."""
    saved = played.registrar().plan(WANTED_OTHER)
    played.registrar().apply(WANTED)
    with pytest.raises(PlanStale):
        played.registrar().apply_changes(saved.changes)
    played.show(OTHER, reads=2)
    with pytest.raises(PlanStale):
        played.registrar().apply_changes(saved.changes)


@pytest.mark.parametrize("errcode", [-1, 9410099])
def test_what_takes_effect_after_a_no_is_done(
    played: Played, rows: "Callable[[], list[Row]]", errcode: int
) -> None:
    """And can be rolled back."""
    played.wx.inject(Fault(kind="errcode", errcode=errcode, action="set_pre_fetch", times=3))
    played.in_pause[3] = lambda: played.wx.put_settings(APPID, NEW)
    played.registrar().apply(WANTED)
    assert [row.outcome for row in rows()] == ["confirmed"]
    played.registrar().rollback()
    assert played.holds() == OLD["pre_fetch_url"]


def test_what_was_never_shown_is_said_with_its_cause(
    played: Played, rows: "Callable[[], list[Row]]"
) -> None:
    """It was set again and again; the journal keeps it as unknown."""
    played.wx.inject(Fault(kind="errcode", errcode=-1, action="set_pre_fetch", times=None))
    with pytest.raises(MayBeSet, match=r"pre_fetch may have been set, or not: .*-1"):
        played.registrar().apply(WANTED)
    assert played.wx.count(action="set_pre_fetch") > 5
    assert [row.outcome for row in rows()] == ["unknown"]


def test_a_call_that_may_still_arrive_is_waited_for(played: Played) -> None:
    """Unanswered, it took effect only twenty seconds after the rollback began."""
    played.wx.inject(Fault(kind="close", action="set_pre_fetch"))
    played.registrar().apply(WANTED)
    pauses = len(played.pauses)
    late = {pauses + 10: lambda: played.wx.put_settings(APPID, NEW)}
    played.in_pause |= late
    played.registrar().rollback()
    assert played.holds() == OLD["pre_fetch_url"]
    assert 28 <= sum(played.pauses[pauses:]) <= 31


def test_a_refusal_after_an_unknown_answer_leaves_it_open(
    played: Played, rows: "Callable[[], list[Row]]"
) -> None:
    """The first call took effect, which is shown later than the second is refused."""
    played.wx.inject(Fault(kind="lose", action="set_pre_fetch"))
    played.wx.inject(Fault(kind="errcode", errcode=45009, action="set_pre_fetch", times=None))
    played.show(OLD, reads=5, after=2)
    played.registrar().apply(WANTED)
    assert [row.outcome for row in rows()] == ["confirmed"]
    assert played.wx.count(action="set_pre_fetch") == 2


def test_the_other_half_waits_until_the_first_is_known(played: Played) -> None:
    """One unanswered call is enough to find out about."""
    both: dict[Kind, FetchSetting] = {
        "pre_fetch": WANTED["pre_fetch"],
        "period_fetch": FetchSetting.server("https://shop.example/period"),
    }
    played.wx.inject(Fault(kind="close", action="set_pre_fetch", times=2))
    played.registrar().apply(both)
    sets = [str(r.action) for r in played.wx.requests() if str(r.action).startswith("set_")]
    assert sets == ["set_pre_fetch"] * 3 + ["set_period_fetch"]
