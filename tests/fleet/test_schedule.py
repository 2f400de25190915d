"""Which app is next: canaries, retries under a budget, and nothing that grows with the fleet."""

import threading
from collections.abc import Iterator

import pytest

from prefetch_kit.fleet.results import FleetOutcome, Result, Tally
from prefetch_kit.fleet.schedule import _MOST_WAITING, Schedule, Task
from prefetch_kit.fleet.targets import Targets

DONE = Result("wx", "done", "set and read back")
FAILED = Result("wx", "failed", "it cannot be")
DEFERRED = Result("wx", "deferred", "another process is changing it")
SENT = Result("wx", "sent", "set, not yet confirmed")


class Apps:
    """A number of apps, and how many of them were taken."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.taken = 0

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for number in range(self.count):
            self.taken += 1
            yield f"wx{number}", ""


def schedule(apps: Apps, *, canary: int = 0, stop_at: float = 2) -> Schedule:
    stopping = threading.Event()
    return Schedule(apps, total=apps.count, canary=canary, stop_at=stop_at, stopping=stopping)


def following(made: Schedule) -> Task:
    task = made.next()
    assert task is not None
    return task


class Following(threading.Thread):
    """A worker that takes one task, once there is one."""

    def __init__(self, made: Schedule) -> None:
        super().__init__(daemon=True)
        self._made = made
        self.task: Task | None = None
        self.start()

    def run(self) -> None:
        self.task = self._made.next()


def test_each_app_has_its_turn_and_then_it_is_over() -> None:
    """In the order of the list."""
    made = schedule(Apps(3))
    for number in range(3):
        task = following(made)
        assert task.appid == f"wx{number}"
        made.finish(task, DONE)
    assert made.next() is None


def test_an_app_that_may_try_again_comes_before_new_ones() -> None:
    """As soon as its time has come, with one try behind it."""
    made = schedule(Apps(3))
    assert made.again(following(made), delay_s=0)
    again = following(made)
    assert (again.appid, again.tries) == ("wx0", 1)


def test_four_tries_and_no_more() -> None:
    """Whatever the budget has left."""
    made = schedule(Apps(1))
    for _ in range(3):
        assert made.again(following(made), delay_s=0)
    assert not made.again(following(made), delay_s=0)


def test_the_retries_of_all_apps_have_one_budget() -> None:
    """A hundred, and one more for each five apps that were begun."""
    made = schedule(Apps(1000))
    retried = sum(made.again(following(made), delay_s=3600) for _ in range(1000))
    assert retried == 300


def test_a_fleet_that_is_stopping_tries_nothing_again() -> None:
    """What is not done then is for the next run."""
    made = schedule(Apps(2))
    task = following(made)
    made.stop("enough")
    assert not made.again(task, delay_s=0)
    assert made.next() is None


def test_only_so_many_wait_for_their_next_try() -> None:
    """Then nobody new is taken from the list: what waits is bounded, not the fleet."""
    apps = Apps(100_000)
    made = schedule(apps)
    waiting = 0
    while waiting < _MOST_WAITING:
        task = following(made)
        if made.again(task, delay_s=3600):
            waiting += 1
        else:
            made.finish(task, DONE)
    taken = apps.taken
    waiter = threading.Thread(target=made.next)
    waiter.start()
    waiter.join(0.2)
    assert waiter.is_alive()
    assert apps.taken == taken
    made.stop("enough")
    waiter.join(10)
    assert not waiter.is_alive()


def test_a_canary_that_failed_is_named_with_its_flag() -> None:
    """It is said how to continue without it; also where the fleet is smaller."""
    made = schedule(Apps(3), canary=5)
    made.finish(following(made), FAILED)
    assert made.next() is None
    said = "wx0 is one of the first (--canary 5), and was not done"
    assert made.stopped_because == said
    assert "--canary 0" in made.next_step


def test_a_deferred_canary_needs_nothing_but_time() -> None:
    """The same command later."""
    made = schedule(Apps(3), canary=1)
    made.finish(following(made), DEFERRED)
    assert "wx0 is one of the first" in str(made.stopped_because)
    assert made.next_step.startswith("Run the same command again")


def own(made: Schedule) -> None:
    """The next one fails for a reason that lies in its account."""
    made.finish(following(made), FAILED, says_of="account")


def test_a_canary_whose_account_is_bad_is_replaced() -> None:
    """By the next one, up to as many as there are canaries."""
    made = schedule(Apps(10), canary=2)
    own(made)
    own(made)
    assert made.stopped_because is None
    assert following(made).is_canary
    own(made)
    assert "wx3 is one of the first" in str(made.stopped_because)


def test_bad_accounts_alone_come_to_an_end() -> None:
    """Where no other is left to replace them."""
    made = schedule(Apps(2), canary=5)
    own(made)
    own(made)
    assert made.next() is None
    assert made.stopped_because is None


def test_who_has_nothing_to_do_proves_nothing() -> None:
    """Others begin, and only one of them has anything sent until it is done."""
    made = schedule(Apps(4), canary=1)
    made.finish(following(made), DONE)
    first, second = following(made), following(made)
    assert made.may_send(first)
    assert not made.may_send(second)
    assert made.hold(second)
    waiter = Following(made)
    waiter.join(0.2)
    assert waiter.is_alive()
    made.finish(first, DONE)
    waiter.join(10)
    assert waiter.task is second
    assert made.may_send(second)


def test_who_tries_again_lets_others_go_first() -> None:
    """Else all would wait for one that itself waits for an hour."""
    made = schedule(Apps(3), canary=1)
    made.finish(following(made), DONE)
    task, other = following(made), following(made)
    assert made.may_send(task)
    assert made.hold(other)
    assert made.again(task, delay_s=3600)
    assert following(made) is other
    assert made.may_send(other)


def test_no_other_begins_while_some_are_held() -> None:
    """They would only be held too."""
    apps = Apps(10)
    made = schedule(apps, canary=1)
    made.finish(following(made), DONE)
    first, second = following(made), following(made)
    assert made.may_send(first)
    assert made.hold(second)
    waiter = Following(made)
    waiter.join(0.2)
    assert waiter.is_alive()
    assert apps.taken == 3
    made.stop("enough")
    waiter.join(10)
    assert waiter.task is None


def test_what_is_sent_waits_without_counting_as_a_try() -> None:
    """However often it is looked at; others begin meanwhile."""
    made = schedule(Apps(3))
    sent = following(made)
    for _ in range(10):
        assert made.later(sent, delay_s=0)
        assert following(made) is sent
    assert made.later(sent, delay_s=3600)
    assert following(made).appid == "wx1"
    assert sent.tries == 0


def test_what_is_sent_has_one_more_turn_when_the_fleet_stops() -> None:
    """At once, whenever it was due; what only waits for another try has none."""
    made = schedule(Apps(3))
    sent, tried = following(made), following(made)
    sent.is_open = True
    assert made.again(tried, delay_s=0)
    assert made.later(sent, delay_s=3600)
    made.stop("enough")
    assert following(made) is sent
    assert not made.later(sent, delay_s=0)
    assert made.next() is None


def test_a_canary_that_is_not_confirmed_only_takes_time() -> None:
    """It did not fail."""
    made = schedule(Apps(3), canary=1)
    made.finish(following(made), SENT)
    assert "is not yet confirmed" in str(made.stopped_because)
    assert made.is_deferred


def test_what_every_app_would_meet_stops_the_fleet_at_once() -> None:
    """Whatever the share of failures may be."""
    made = schedule(Apps(1000))
    made.finish(following(made), FAILED, says_of="all")
    assert made.stopped_because == "each app would end so: it cannot be"


def test_the_same_quota_twenty_times_in_a_row_stops_the_fleet() -> None:
    """Once another app is done between them, the count begins anew."""
    quota = Result("wx", "deferred", "45009, the daily quota is used up", errcode=45009)
    made = schedule(Apps(1000))
    for result in [*[quota] * 19, DONE, *[quota] * 19]:
        made.finish(following(made), result)
    assert made.stopped_because is None
    made.finish(following(made), quota)
    assert "20 apps in a row" in str(made.stopped_because)
    assert made.is_deferred


def test_the_first_that_is_sent_stops_the_fleet_as_well() -> None:
    """However many had nothing to do before it; who waited is told not to send."""
    made = schedule(Apps(3), canary=1)
    made.finish(following(made), DONE)
    first, second = following(made), following(made)
    assert made.may_send(first)
    made.finish(first, FAILED)
    assert "wx1 is one of the first" in str(made.stopped_because)
    assert not made.may_send(second)


def test_nobody_but_the_canaries_is_taken_before_they_are_fine() -> None:
    """The list is not even read further."""
    apps = Apps(10)
    made = schedule(apps, canary=2)
    first, second = following(made), following(made)
    made.finish(first, DONE)
    waiter = threading.Thread(target=made.next)
    waiter.start()
    waiter.join(0.2)
    assert waiter.is_alive()
    assert apps.taken == 2
    made.finish(second, DONE)
    waiter.join(10)
    assert apps.taken == 3


@pytest.mark.parametrize(("failures", "stops"), [(1, False), (2, True)])
def test_a_share_counts_twenty_at_least(failures: int, stops: bool) -> None:
    """Of the first few, one failure is a large share and says little."""
    made = schedule(Apps(1000), stop_at=0.1)
    for _ in range(failures):
        made.finish(following(made), FAILED)
    assert (made.next() is None) is stops


def test_a_small_fleet_counts_as_it_is() -> None:
    """One of five is more than a tenth."""
    made = schedule(Apps(5), stop_at=0.1)
    made.finish(following(made), FAILED)
    assert made.next() is None
    assert "1 of 1 failed" in str(made.stopped_because)
    assert "larger --stop-at" in made.next_step


def test_targets_keep_order_and_find_doubles() -> None:
    """Page by page, and no appid twice."""
    with Targets() as targets:
        for number in range(1000):
            assert targets.add(f"wx{number}", str(number))
        assert not targets.add("wx5", "")
        targets.note("wx7", "x")
        assert [target for _, target in targets] == [str(number) for number in range(1000)]
        assert list(targets.found()) == [("wx7", "x")]
        assert len(targets) == 1000


def test_the_tally_has_a_bounded_number_of_causes() -> None:
    """However many different sentences come."""
    tally = Tally()
    for number in range(10_000):
        tally.add(f"wx{number}", "failed", f"cause {number}")
    assert len(tally.groups()) == 101
    assert tally["failed"] == 10_000
    assert max(len(group.examples) for group in tally.groups()) == 3


def test_the_tally_does_not_tell_who_was_quicker() -> None:
    """The same fleet prints the same lines, in whatever order its apps came through."""
    came: list[tuple[str, FleetOutcome, str]] = [
        ("wx2", "done", "b"),
        ("wx1", "done", "b"),
        ("wx3", "failed", "a"),
        ("wx4", "done", "a"),
    ]
    tallies = Tally(), Tally()
    for tally, order in zip(tallies, (came, reversed(came)), strict=True):
        for each in order:
            tally.add(*each)
    assert tallies[0].groups() == tallies[1].groups()
    assert [group.count for group in tallies[0].groups()] == [2, 1, 1]


def test_a_replaced_canary_is_no_failure_of_the_fleet() -> None:
    """Five of the first six say something of their own accounts alone; then it goes on."""
    made = schedule(Apps(100), canary=5, stop_at=0.1)
    for _ in range(5):
        made.finish(following(made), FAILED, says_of="account")
    for _ in range(95):
        made.finish(following(made), DONE)
    assert (made.next(), made.stopped_because) == (None, None)


def test_what_is_wrong_with_single_accounts_stops_no_fleet() -> None:
    """Nine of ten that are no mini programs, say; a tenth of those that count stops it."""
    made = schedule(Apps(1000), stop_at=0.1)
    for _ in range(90):
        made.finish(following(made), FAILED, says_of="account")
    for _ in range(18):
        made.finish(following(made), DONE)
    assert made.stopped_because is None
    for _ in range(2):
        made.finish(following(made), FAILED)
    assert made.stopped_because == "2 of 20 failed, and --stop-at is 10%"
