"""Flights: which attempt ends one, and how many may hang."""

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from prefetch_kit.cache.entry import Entry
from prefetch_kit.cache.single_flight import Outcome, SingleFlight
from prefetch_kit.concurrency.executor import Executor, deadline_in

Run = Callable[[], Outcome]
Hold = Callable[[Outcome | Exception], tuple[Run, threading.Event]]
LATE = -math.inf


@pytest.fixture
def flights() -> SingleFlight:
    return SingleFlight(Executor(8, on_lost_error=lambda _: None))


@pytest.fixture
def hold() -> Iterator[Hold]:
    """`hold(outcome)`: a run that ends so once its event is set, at the latest after the test."""
    gates: list[threading.Event] = []

    def hold(outcome: Outcome | Exception) -> tuple[Run, threading.Event]:
        gates.append(gate := threading.Event())

        def run() -> Outcome:
            gate.wait()
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        return run, gate

    yield hold
    for gate in gates:
        gate.set()


@pytest.fixture
def made(make_entry: Callable[..., Entry]) -> Outcome:
    return Outcome(b"data", key=b"key", entry=make_entry())


def test_success_of_an_older_attempt_ends_a_flight(
    flights: SingleFlight, hold: Hold, made: Outcome
) -> None:
    """Nobody waits for the newer one, which may hang as well."""
    (older, end_older), (newer, _) = hold(made), hold(made)
    flight, _ = flights.enter(b"a")
    first = flights.start(flight, older, late_at=LATE, share="page")
    assert flights.start_another(flight, newer, late_at=deadline_in(60), share="page") is not None
    end_older.set()
    assert flight.wait(deadline_in(30))
    assert flight.answered_by is first


def test_failure_of_an_older_attempt_ends_no_flight(
    flights: SingleFlight, hold: Hold, made: Outcome
) -> None:
    """The newer one may still succeed."""
    (older, end_older), (newer, end_newer) = hold(ValueError()), hold(made)
    flight, _ = flights.enter(b"a")
    first = flights.start(flight, older, late_at=LATE, share="page")
    second = flights.start_another(flight, newer, late_at=deadline_in(60), share="page")
    end_older.set()
    first.future.result(30)
    assert not flight.wait(deadline_in(0))
    end_newer.set()
    assert flight.wait(deadline_in(30))
    assert flight.answered_by is second


def test_failure_of_the_newest_attempt_ends_a_flight(flights: SingleFlight, hold: Hold) -> None:
    """Those who wait get its error."""
    run, end = hold(ValueError("broken"))
    flight, _ = flights.enter(b"a")
    attempt = flights.start(flight, run, late_at=deadline_in(60), share="page")
    end.set()
    assert flight.wait(deadline_in(30))
    assert flight.answered_by is attempt
    with pytest.raises(ValueError, match="broken"):
        attempt.outcome.result()


def test_a_flight_that_ends_without_an_answer_lets_all_go_on(flights: SingleFlight) -> None:
    """Those who wait hear of it at once, and the next request begins a new one."""
    flight, is_new = flights.enter(b"a")
    assert is_new
    assert flights.enter(b"a") == (flight, False)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(flight.wait, deadline_in(30)) for _ in range(2)]
        flights.end(flight)
        assert [each.result() for each in waiting] == [True, True]
    assert flight.answered_by is None
    assert flights.enter(b"a")[1]


def test_another_attempt_is_for_late_ones(flights: SingleFlight, hold: Hold, made: Outcome) -> None:
    """One that is in time, or that has ended, is enough."""
    run, end = hold(made)
    flight, _ = flights.enter(b"a")
    first = flights.start(flight, run, late_at=deadline_in(60), share="page")
    assert flights.start_another(flight, run, late_at=deadline_in(60), share="page") is None
    end.set()
    first.future.result(30)
    first.late_at = LATE
    assert flights.start_another(flight, run, late_at=deadline_in(60), share="page") is None


def test_late_attempts_get_half_of_their_share(
    flights: SingleFlight, hold: Hold, made: Outcome
) -> None:
    """More of them start only when one has ended; those in time, and of others, do not count."""
    run, end = hold(made)
    both = [flights.enter(name)[0] for name in (b"a", b"b")]
    attempts = [
        flights.start(flight, run, late_at=deadline_in(60), share="page") for flight in both
    ]
    assert flights.start_unawaited(b"c", run, share="page") is not None
    attempts[0].late_at = LATE
    assert flights.start_another(both[0], run, late_at=deadline_in(60), share="page") is None
    assert flights.start_unawaited(b"d", run, share="page") is None
    assert flights.start_unawaited(b"e", run, share="other page") is not None
    end.set()
    for attempt in attempts:
        attempt.future.result(30)
    assert flights.start_unawaited(b"d", run, share="page") is not None


def test_runs_that_nobody_waits_for_get_half_of_their_share(
    flights: SingleFlight, hold: Hold, made: Outcome
) -> None:
    """One of each name; the rest of the share is for requests that wait."""
    run, _ = hold(made)
    names = [b"a", b"a", b"b", b"c", b"d"]
    started = [flights.start_unawaited(name, run, share="page") is not None for name in names]
    assert started == [True, False, True, False, False]
    flight, _ = flights.enter(b"awaited")
    assert (
        flights.start(flight, lambda: made, late_at=deadline_in(60), share="page").future.result(30)
        is None
    )
