"""What a fleet saves: all of it, or nothing, and how many it could not read."""

import signal
from typing import TYPE_CHECKING

import pytest

from prefetch_kit.errors import PlanUnusable
from prefetch_kit.fleet.results import Result
from prefetch_kit.fleet.run import Fleet, Limits
from tests.fleet.conftest import Told

if TYPE_CHECKING:
    from tests.fleet.conftest import Merchants


def interrupted(merchants: "Merchants", monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """A fleet that gets Ctrl-C after its first app, before it begins another."""
    fleet = merchants.fleet(workers=1)

    def app(_: Told, result: Result) -> None:
        signal.raise_signal(signal.SIGINT)
        assert fleet._stopping.wait(60)

    monkeypatch.setattr(Told, "app", app)
    return fleet


def test_an_interrupted_plan_is_not_saved(
    merchants: "Merchants", monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of it would pass for the whole; what was saved before stays."""
    merchants.add(3)
    path = merchants.folder / "plan.jsonl"
    path.write_text("older")
    summary = interrupted(merchants, monkeypatch).plan(out=path)
    assert (summary.unreached, summary.stopped_because) == (2, "interrupted")
    assert path.read_text() == "older"


def test_an_interrupted_import_takes_nothing(
    merchants: "Merchants", monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is a part of what WeChat has all of it."""
    merchants.add(3)
    taken: list[object] = []
    assert interrupted(merchants, monkeypatch).read(merchants.appids, taken.append).unreached == 2
    assert taken == []


def test_a_saved_plan_tells_who_could_not_be_read(merchants: "Merchants") -> None:
    """When it is executed, it is said how many it lacks."""
    first, *_ = merchants.add(3)
    merchants.spoil([first], 61003)
    path = merchants.folder / "plan.jsonl"
    assert merchants.fleet().plan(out=path).exit_code == 1
    assert merchants.fleet().apply(Limits(), saved=path).exit_code == 0
    assert (merchants.told.fleets[0].apps, merchants.told.fleets[0].unread) == (2, 1)


def test_a_plan_that_could_not_be_saved_is_not_made(merchants: "Merchants") -> None:
    """Nobody is asked."""
    merchants.add(1)
    with pytest.raises(PlanUnusable, match="its directory is not there"):
        merchants.fleet().plan(out=merchants.folder / "none" / "plan.jsonl")
    assert merchants.wx.requests() == []
