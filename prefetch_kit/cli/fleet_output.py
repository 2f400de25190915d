"""The output of the fleet commands: text, or one JSON object per line."""

import sys
import time
from dataclasses import asdict
from importlib.util import find_spec
from math import ceil
from typing import Final, get_args

import click

from prefetch_kit.cli.errors import CHANGES_FOUND
from prefetch_kit.cli.output import change_record, counted, print_json, print_table
from prefetch_kit.cli.progress import Speed, left_text, rate_text, remaining_s
from prefetch_kit.fleet.results import FleetOutcome, Result, Tally
from prefetch_kit.fleet.run import Begun
from prefetch_kit.fleet.workers import Summary
from prefetch_kit.registrar.journal import FleetRun
from prefetch_kit.registrar.plan_file import change_fields
from prefetch_kit.version import __version__

_LINE_EVERY_S: Final = 5.0
_MOST_NAMED: Final = 20
_OUTCOMES: Final[tuple[FleetOutcome, ...]] = get_args(FleetOutcome)


class Printer:
    """Prints the progress and the outcome of a fleet, as text or as JSON lines."""

    def __init__(self, *, as_json: bool) -> None:
        self.counts = dict.fromkeys(_OUTCOMES, 0)
        self.has_changes = False
        # Whether the exit code tells that something is to be set.
        self.tells_changes = False
        # The first of those that were not done.
        self.not_done: list[str] = []
        self.as_json = as_json
        self._begun = Begun("", 0)
        self._listing = _Lines()
        self._progress: _Lines | _Bar | None = None
        self._speed = Speed(0)
        if as_json:
            program = {"program": "prefetch-kit", "version": __version__}
            print_json({"type": "version", "format": 1, **program})

    def listed(self, merchants: int, total: int) -> None:
        self._listing.step(f"{merchants} of {total} merchants of the platform read.")

    def stopping(self) -> None:
        # The second Ctrl-C may come as soon as this is read, so it is not for the first one's
        # handler to say: the two would become one.
        says = "Stopping: what is under way is finished. Once more ends at once."
        click.echo(says, err=True)

    @property
    def sends(self) -> bool:
        """Whether it is about a run that may have sent something."""
        return self._begun.run is not None

    def begun(self, begun: Begun) -> None:
        self._begun = begun
        if self.as_json:
            print_json({"type": "begun", **asdict(begun)})
            return
        what = "continues" if begun.resumed else "is"
        run = f"Run {begun.run} {what} {begun.action}" if begun.run else begun.action.capitalize()
        if begun.returns_from is not None:
            run += f" of run {begun.returns_from}"
        click.echo(f"{run}: {counted(begun.apps, 'mini program')}.", err=True)
        if begun.unread:
            click.echo(
                f"The plan lacks {begun.unread} that could not be read when it was made.", err=True
            )
        if begun.unlisted:
            some = ", ".join(begun.unlisted[:3]) + (", …" if len(begun.unlisted) > 3 else "")
            click.echo(
                f"{len(begun.unlisted)} of the plan are left out, because they are not on the list "
                f"any more: {some}",
                err=True,
            )
        self._speed = Speed(begun.apps)
        is_bar = sys.stderr.isatty() and find_spec("rich") is not None
        self._progress = _Bar(begun.apps) if is_bar else _Lines()

    def app(self, result: Result) -> None:
        self.counts[result.outcome] += 1
        if result.outcome not in ("done", "skipped") and len(self.not_done) < _MOST_NAMED:
            self.not_done.append(result.appid)
        changes = result.plan.changes if result.plan is not None else ()
        self.has_changes |= bool(changes)
        if self.as_json:
            is_plan = self._begun.run is None
            print_json(
                {
                    "type": "app",
                    "appid": result.appid,
                    "outcome": result.outcome,
                    "cause": result.cause,
                    "errcode": result.errcode,
                    "changes": [
                        change_record(result.appid, change)
                        if is_plan
                        else change_fields(change) | {"outcome": result.outcomes.get(change.kind)}
                        for change in changes
                    ],
                }
            )
        if self._progress is not None:
            counted = ", ".join(f"{n} {name}" for name, n in self.counts.items() if n)
            through = sum(self.counts.values())
            speed = self._speed.reach(through)
            self._progress.step(f"{through} of {self._begun.apps}: {counted}{speed}")

    def end(self) -> None:
        """Take the progress off the terminal."""
        if self._progress is not None:
            self._progress.end()

    def exit_code(self, summary: Summary) -> int:
        is_found = self.tells_changes and self.has_changes and not summary.exit_code
        return CHANGES_FOUND if is_found else summary.exit_code

    def summary(self, summary: Summary) -> None:
        if self.as_json:
            print_json(
                {
                    "type": "summary",
                    "action": self._begun.action,
                    "run": self._begun.run,
                    "apps": summary.apps,
                    **_counts(summary.tally),
                    "unreached": summary.unreached,
                    "stopped_because": summary.stopped_because,
                    "causes": [asdict(group) for group in summary.tally.groups()],
                    "exit_code": self.exit_code(summary),
                }
            )
            return
        _print_tally(summary.tally, summary.apps, verb="done" if self.sends else "read")
        if self._begun.left_by is not None:
            run, count = self._begun.left_by
            click.echo(
                f"{counted(count, 'mini program')} that it did not change will keep what run {run} "
                f"set; fleet rollback --to {run} undoes that too.",
                err=True,
            )
        if summary.stopped_because is not None:
            click.echo(f"Stopped: {summary.stopped_because}.", err=True)
        if summary.exit_code and self.sends:
            click.echo(f"{summary.next_step}.", err=True)


class _Lines:
    """A line of progress on standard error every five seconds."""

    def __init__(self) -> None:
        self._next_at = time.monotonic() + _LINE_EVERY_S

    def step(self, says: str) -> None:
        if time.monotonic() >= self._next_at:
            click.echo(says, err=True)
            self._next_at = time.monotonic() + _LINE_EVERY_S

    def end(self) -> None: ...


class _Bar:
    """A progress bar of the rich library, on standard error."""

    def __init__(self, total: int) -> None:
        # Imported here, because it is slow to import and may not be installed.
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._progress = Progress(
            BarColumn(),
            TextColumn("{task.description}", markup=False),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("", total=total)
        self._progress.start()

    def step(self, says: str) -> None:
        self._progress.update(self._task, advance=1, description=says)

    def end(self) -> None:
        self._progress.stop()


def print_status(
    record: FleetRun, tally: Tally, *, holder: str | None, rate: float, as_json: bool
) -> None:
    """Print the newest run of a fleet, from the journal.

    `holder` is the process that runs a fleet now, `rate` how many apps a second this run does.
    """
    is_running = holder is not None and not record.ended
    open_apps = record.apps - tally.total + tally["sent"]
    left_s = remaining_s(open_apps, rate) if is_running else None
    if as_json:
        print_json(
            {
                "type": "status",
                "run": record.id,
                "at": record.at,
                "action": record.action,
                "returns_from": record.returns_from,
                "ended": record.ended,
                "running": is_running,
                "holder": holder,
                "rate_per_s": round(rate, 3) if is_running else None,
                "eta_s": None if left_s is None else ceil(left_s),
                "apps": record.apps,
                **_counts(tally),
                "unreached": record.apps - tally.total,
                "causes": [asdict(group) for group in tally.groups()],
            }
        )
        return
    state = "ended" if record.ended else "not ended: the same command continues it"
    if is_running:
        state = f"running in {holder}: {rate_text(rate)}, {left_text(left_s)}"
    of = f" of run {record.returns_from}" if record.returns_from is not None else ""
    click.echo(f"Run {record.id}, {record.action}{of}, begun {record.at}, {state}.")
    if holder is not None and record.ended:
        click.echo(f"Another fleet begins in {holder}; it has sent nothing yet.")
    _print_tally(tally, record.apps, verb="done")


def _counts(tally: Tally) -> dict[str, int]:
    return {outcome: tally[outcome] for outcome in _OUTCOMES}


def _print_tally(tally: Tally, apps: int, *, verb: str) -> None:
    """Print how many apps had which outcome, and a table of the causes."""
    parts = [f"{tally['done']} of {apps} {verb}"]
    parts += [f"{tally[outcome]} {outcome}" for outcome in _OUTCOMES[1:] if tally[outcome]]
    if apps > tally.total:
        parts.append(f"{apps - tally.total} not reached")
    click.echo(f"{', '.join(parts)}.")
    rows = [
        (str(g.count), verb if g.outcome == "done" else g.outcome, ", ".join(g.examples), g.cause)
        for g in tally.groups()
    ]
    if rows:
        print_table([("APPS", "OUTCOME", "SUCH AS", "CAUSE"), *rows])
