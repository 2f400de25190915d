"""The output of the fleet commands: text, or one JSON object per line."""

from collections.abc import Iterable
from importlib.metadata import version
from typing import Final

import click

from prefetch_kit.cli.output import change_record, print_json, print_table
from prefetch_kit.cli.progress import Progress, Silent, progress_of
from prefetch_kit.fleet.results import Group, Result, Tally
from prefetch_kit.fleet.run import Begun
from prefetch_kit.fleet.workers import Summary
from prefetch_kit.registrar.journal import FleetRun
from prefetch_kit.registrar.plan_file import change_fields

_FORMAT: Final = 1
_OUTCOMES: Final = ("done", "failed", "deferred", "left")


class Printer:
    """Prints the progress and the outcome of a fleet, as text or as JSON lines."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._begun = Begun("", 0)
        self._through = 0
        self._changed = False
        self._counts = dict.fromkeys(_OUTCOMES, 0)
        self._progress: Progress = Silent()
        if as_json:
            print_version()

    @property
    def changed(self) -> bool:
        """Whether any app had something to be changed."""
        return self._changed

    @property
    def done(self) -> int:
        """How many apps were done so far."""
        return self._counts["done"]

    def begun(self, begun: Begun) -> None:
        self._begun = begun
        if self._as_json:
            print_json(
                {
                    "type": "begun",
                    "action": begun.action,
                    "apps": begun.apps,
                    "run": begun.run,
                    "resumed": begun.resumed,
                    "unread": begun.unread,
                }
            )
            return
        what = "continues" if begun.resumed else "is"
        run = f"Run {begun.run} {what} {begun.action}" if begun.run else begun.action.capitalize()
        click.echo(f"{run}: {begun.apps} mini programs.", err=True)
        if begun.unread:
            click.echo(
                f"The plan lacks {begun.unread} that could not be read when it was made.", err=True
            )
        self._progress = progress_of(begun.apps)

    def app(self, result: Result) -> None:
        self._through += 1
        self._counts[result.outcome] += 1
        self._changed |= result.plan is not None and bool(result.plan.changes)
        if self._as_json:
            print_json(self._app_record(result))
        counted = ", ".join(f"{n} {name}" for name, n in self._counts.items() if n)
        self._progress.step(f"{self._through} of {self._begun.apps}: {counted}")

    def end(self) -> None:
        """Take the progress off the terminal."""
        self._progress.end()

    def summary(self, summary: Summary) -> None:
        if self._as_json:
            print_json(
                {
                    "type": "summary",
                    "action": self._begun.action,
                    "run": self._begun.run,
                    "apps": summary.apps,
                    **counts(summary.tally),
                    "unreached": summary.unreached,
                    "stopped_because": summary.stopped_because,
                    "causes": causes(summary.tally),
                    "exit_code": summary.exit_code,
                }
            )
            return
        verb = "read" if self._begun.run is None else "done"
        click.echo(_counted(summary.tally, summary.apps, summary.unreached, verb=verb))
        print_causes(summary.tally.groups(), verb=verb)
        if summary.stopped_because is not None:
            click.echo(f"Stopped: {summary.stopped_because}.", err=True)
        if summary.exit_code and self._begun.run is not None:
            click.echo(f"{summary.way_on}.", err=True)

    def _app_record(self, result: Result) -> dict[str, object]:
        plan, is_plan = result.plan, self._begun.run is None
        changes = plan.changes if plan is not None else ()
        return {
            "type": "app",
            "appid": result.appid,
            "outcome": result.outcome,
            "cause": result.cause,
            "errcode": result.errcode,
            "changes": [
                change_record(result.appid, change) if is_plan else change_fields(change)
                for change in changes
            ],
        }


def print_version() -> None:
    print_json(
        {
            "type": "version",
            "format": _FORMAT,
            "program": "prefetch-kit",
            "version": version("prefetch-kit"),
        }
    )


def counts(tally: Tally) -> dict[str, object]:
    return {outcome: tally[outcome] for outcome in _OUTCOMES}


def causes(tally: Tally) -> list[dict[str, object]]:
    return [
        {
            "outcome": group.outcome,
            "cause": group.cause,
            "count": group.count,
            "examples": group.examples,
        }
        for group in tally.groups()
    ]


def print_causes(groups: Iterable[Group], *, verb: str = "done") -> None:
    rows = [
        (str(g.count), verb if g.outcome == "done" else g.outcome, ", ".join(g.examples), g.cause)
        for g in groups
    ]
    if rows:
        print_table([("APPS", "OUTCOME", "SUCH AS", "CAUSE"), *rows])


def print_status(record: FleetRun, tally: Tally, *, holder: str | None, as_json: bool) -> None:
    """Print the newest run of a fleet, from the journal; `holder` is the process that runs one."""
    is_running = holder is not None and not record.ended
    unreached = record.apps - sum(group.count for group in tally.groups())
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
                "apps": record.apps,
                **counts(tally),
                "unreached": unreached,
                "causes": causes(tally),
            }
        )
        return
    state = "ended" if record.ended else "not ended: the same command continues it"
    if is_running:
        state = f"running in {holder}"
    of = f" of run {record.returns_from}" if record.returns_from is not None else ""
    click.echo(f"Run {record.id}, {record.action}{of}, begun {record.at}, {state}.")
    click.echo(_counted(tally, record.apps, unreached))
    print_causes(tally.groups())


def _counted(tally: Tally, apps: int, unreached: int, *, verb: str = "done") -> str:
    parts = [f"{tally['done']} of {apps} {verb}"]
    parts += [f"{tally[outcome]} {outcome}" for outcome in _OUTCOMES[1:] if tally[outcome]]
    if unreached:
        parts.append(f"{unreached} not reached")
    return f"{', '.join(parts)}."
