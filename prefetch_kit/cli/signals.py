"""What Ctrl-C, SIGTERM and SIGHUP do to a command: all three raise the same."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_NUMBERS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signalled(KeyboardInterrupt):
    """A signal came that ends the command."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(number)


def number_of(interrupt: KeyboardInterrupt) -> int:
    """Which signal it was."""
    return interrupt.number if isinstance(interrupt, Signalled) else signal.SIGINT


@contextmanager
def signals_raised() -> Iterator[None]:
    """Let each of the signals raise `Signalled` here, where it is not ignored, as nohup does."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only there Python lets handlers be set
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        raise Signalled(number)

    handled = [each for each in _NUMBERS if signal.getsignal(each) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
