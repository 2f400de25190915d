"""The progress of a fleet: a bar on a terminal, else a line every five seconds."""

import sys
import time
from importlib.util import find_spec
from typing import Final

import click

_LINE_EVERY_S: Final = 5.0


class Lines:
    """A line on standard error every five seconds."""

    def __init__(self) -> None:
        self._next_at = time.monotonic() + _LINE_EVERY_S

    def step(self, says: str) -> None:
        if time.monotonic() >= self._next_at:
            click.echo(says, err=True)
            self._next_at = time.monotonic() + _LINE_EVERY_S

    def end(self) -> None: ...


class Bar:
    """A bar of the rich library, on standard error."""

    def __init__(self, total: int) -> None:
        # Imported here, because it is slow to import and may not be installed.
        from rich.console import Console
        from rich.progress import Progress

        self._progress = Progress(console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task("", total=total)
        self._progress.start()

    def step(self, says: str) -> None:
        self._progress.update(self._task, advance=1, description=says)

    def end(self) -> None:
        self._progress.stop()


def progress_of(total: int) -> Lines | Bar:
    """The bar on a terminal if rich is installed, else lines."""
    if sys.stderr.isatty() and find_spec("rich") is not None:
        return Bar(total)
    return Lines()
