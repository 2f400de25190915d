"""What became of each app in a run of a fleet, and how fast it goes: from the journal alone."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final, cast

from prefetch_kit.fleet.results import FleetOutcome, Tally
from prefetch_kit.registrar.journal import FleetRun, Journal
from prefetch_kit.registrar.records import UNSENT, AppRecord, app_records, results_since

_RATE_OVER: Final = timedelta(seconds=60)


def results_of(
    journal: Journal, run: int, *, is_running: bool
) -> Iterator[tuple[AppRecord, FleetOutcome, str]]:
    """Each app that the run came to, with its outcome and cause, also where it was killed there."""
    for record in app_records(journal, run):
        if record.outcome is not None:
            # The journal has what a Result had.
            yield record, cast("FleetOutcome", record.outcome), record.cause or ""
        else:
            yield record, *_without_result(record, is_running=is_running)


def tally_of(journal: Journal, run: int, *, is_running: bool) -> Tally:
    tally = Tally()
    for record, outcome, cause in results_of(journal, run, is_running=is_running):
        tally.add(record.appid, outcome, cause)
    return tally


def rate_of(journal: Journal, run: FleetRun) -> float:
    """How many apps a second the run has come through in its last minute."""
    now = datetime.now(UTC)
    since = max(now - _RATE_OVER, datetime.fromisoformat(run.at))
    count = results_since(journal, run.id, since.isoformat(timespec="seconds"))
    return count / max(1.0, (now - since).total_seconds())


def _without_result(record: AppRecord, *, is_running: bool) -> tuple[FleetOutcome, str]:
    outcomes = {change.outcome for change in record.changes}
    if outcomes == {"confirmed"}:
        return "done", "set and read back"
    if is_running:
        return "sent", "under way"
    if outcomes <= UNSENT:
        return "left", "the run ended before anything was sent"
    return "sent", "the run ended in the middle of it: it may have been set, or not"
