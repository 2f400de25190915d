"""Threads that are bounded, shared out by name, and left behind at a deadline."""

import math
import threading
from collections.abc import Callable

import pytest

from prefetch_kit.concurrency.executor import Busy, Executor, Late, deadline_in


@pytest.fixture
def lost() -> list[BaseException]:
    return []


@pytest.fixture
def make_executor(lost: list[BaseException]) -> Callable[[int], Executor]:
    return lambda threads: Executor(threads, on_lost_error=lost.append)


@pytest.mark.parametrize("seconds", [math.inf, 60])
def test_a_call_returns_what_the_work_returns(
    make_executor: Callable[[int], Executor], seconds: float
) -> None:
    """Whatever it is, and not only bytes."""
    result = make_executor(1).call(lambda: {"any": "thing"}, ends_at=deadline_in(seconds))
    assert result == {"any": "thing"}


@pytest.mark.parametrize("error", [ValueError("mine"), TimeoutError("mine"), SystemExit(3)])
def test_a_call_raises_what_the_work_raises(
    make_executor: Callable[[int], Executor], error: BaseException, lost: list[BaseException]
) -> None:
    """Its TimeoutError, too, is not taken for a missed deadline; nobody else hears of it."""

    def work() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        make_executor(1).call(work, ends_at=deadline_in(60))
    assert caught.value is error
    assert lost == []


def test_a_late_call_is_left_behind(
    make_executor: Callable[[int], Executor], gate: threading.Event
) -> None:
    """The caller goes on at its deadline, and the thread is free again when the work ends."""
    executor = make_executor(1)
    with pytest.raises(Late):
        executor.call(gate.wait, ends_at=deadline_in(0.01))
    with pytest.raises(Busy):
        executor.call(int, ends_at=deadline_in(60))
    gate.set()
    while True:
        try:
            assert executor.call(int, ends_at=deadline_in(60)) == 0
        except Busy:
            continue
        break


def test_an_error_after_the_deadline_is_reported(
    make_executor: Callable[[int], Executor],
    gate: threading.Event,
    lost: list[BaseException],
    until: Callable[[Callable[[], bool]], None],
) -> None:
    """The caller is gone; the error is not."""

    def work() -> None:
        gate.wait()
        raise ValueError("too late")

    with pytest.raises(Late):
        make_executor(1).call(work, ends_at=deadline_in(0.01))
    gate.set()
    until(lambda: lost != [])
    assert [str(error) for error in lost] == ["too late"]


def test_more_work_than_threads_is_refused(
    make_executor: Callable[[int], Executor], gate: threading.Event
) -> None:
    """Nothing waits in a queue that nobody sees."""
    executor = make_executor(3)
    for _ in range(3):
        executor.submit(gate.wait)
    with pytest.raises(Busy):
        executor.submit(int)


def test_no_thread_left_in_the_system_is_busy(
    make_executor: Callable[[int], Executor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`can't start new thread` is not the caller's error, and no thread is counted for it."""

    def fail(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    executor = make_executor(1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(Busy):
            executor.submit(int)
    assert executor.submit(int).result(30) == 0


def test_a_share_leaves_half_of_the_threads(
    make_executor: Callable[[int], Executor], gate: threading.Event
) -> None:
    """One name gets half, the next half of the rest; work without a share gets every thread."""
    executor = make_executor(8)
    taken = {"one": 0, "two": 0, None: 0}
    for share in taken:
        try:
            while True:
                executor.submit(gate.wait, share=share)
                taken[share] += 1
        except Busy:
            pass
    assert taken == {"one": 4, "two": 2, None: 2}


def test_a_share_gets_its_threads_back(make_executor: Callable[[int], Executor]) -> None:
    """Work that ended does not count."""
    executor = make_executor(2)
    for _ in range(5):
        assert executor.call(int, ends_at=deadline_in(60), share="one") == 0


def test_threads_without_work_end(
    make_executor: Callable[[int], Executor],
    until: Callable[[Callable[[], bool]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the next work starts a new one."""
    monkeypatch.setattr("prefetch_kit.concurrency.executor._IDLE_S", 0.001)
    idle = make_executor(2)
    for _ in range(3):
        assert idle.call(threading.get_ident, ends_at=deadline_in(60)) != threading.get_ident()
        until(lambda: idle._threads == 0)
    assert idle._free == 0


def test_a_report_that_fails_costs_no_thread(
    gate: threading.Event,
    until: Callable[[Callable[[], bool]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is told on standard error."""

    def fail(_: BaseException) -> None:
        raise OSError("no log")

    def work() -> None:
        gate.wait()
        raise ValueError("too late")

    calls = Executor(1, on_lost_error=fail)

    with pytest.raises(Late):
        calls.call(work, ends_at=deadline_in(0.01))
    gate.set()
    until(lambda: calls._free == 1)
    assert calls.submit(int).result(30) == 0
    assert "no log" in capsys.readouterr().err
