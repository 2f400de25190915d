"""The report of a fleet's run: one row an app, as CSV or JSON."""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from prefetch_kit.cli.errors import CommandFailed
from prefetch_kit.cli.usage import WrongUsage
from prefetch_kit.fetch_setting import KINDS, FetchSetting
from prefetch_kit.fleet.results import FleetOutcome
from prefetch_kit.quoting import harmless
from prefetch_kit.registrar.records import AppRecord

Row = tuple[AppRecord, FleetOutcome, str]
_Cells = Mapping[str, str]

_COLUMNS: Final = (
    *("run", "appid", "outcome", "cause", "at"),
    *(f"{kind}{what}" for kind in KINDS for what in ("", "_before", "_outcome", "_detail")),
)
# What a spreadsheet takes for the beginning of a formula.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n")
_FORMATS: Final = (".csv", ".json", ".jsonl")


def check_name(out: Path) -> None:
    """Raises `WrongUsage` for a file whose name does not say what it is."""
    if str(out) != "-" and out.suffix not in _FORMATS:
        raise WrongUsage(f"--out: a report is one of {', '.join(_FORMATS)}, or - for CSV.")


def write_report(rows: Iterable[Row], run: int, out: Path, *, as_json: bool) -> int:
    """Write a row for each app; how many there were.

    `out` is .csv, .json (an array), .jsonl (a line an app), or - for standard output: CSV, or with
    `as_json` lines of JSON.
    """
    cells = (_cells(run, *row) for row in rows)
    suffix = out.suffix if str(out) != "-" else (".jsonl" if as_json else ".csv")
    with _opened(out) as file:
        return _WRITERS[suffix](file, cells)


def _cells(run: int, record: AppRecord, outcome: FleetOutcome, cause: str) -> _Cells:
    ends = [record.at, *(change.at for change in record.changes)]
    cells = {
        "run": str(run),
        "appid": record.appid,
        "outcome": outcome,
        "cause": cause,
        "at": max(filter(None, ends)),
    }
    for change in record.changes:
        cells |= {
            change.kind: _source(change.wanted),
            f"{change.kind}_before": _source(change.before),
            f"{change.kind}_outcome": change.outcome,
            f"{change.kind}_detail": change.detail,
        }
    return {column: cells.get(column, "") for column in _COLUMNS}


def _source(setting: FetchSetting) -> str:
    """A setting as a list has it; empty where nothing was configured."""
    if setting.source is None:
        return ""
    if not setting.open:
        return FetchSetting.off().to_text()
    return setting.of_its_source().to_text()


def _write_csv(file: IO[str], rows: Iterable[_Cells]) -> int:
    writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    count = 0
    for cells in rows:
        writer.writerow({column: _not_formula(text) for column, text in cells.items()})
        count += 1
    return count


def _write_lines(file: IO[str], rows: Iterable[_Cells]) -> int:
    count = 0
    for cells in rows:
        record = {"type": "result", **cells}
        file.write(json.dumps(record) + "\n")
        count += 1
    return count


def _write_array(file: IO[str], rows: Iterable[_Cells]) -> int:
    count = 0
    for cells in rows:
        file.write(("[\n" if not count else ",\n") + json.dumps(cells))
        count += 1
    file.write("\n]\n" if count else "[]\n")
    return count


_WRITERS: Final[Mapping[str, Callable[[IO[str], Iterable[_Cells]], int]]] = {
    ".csv": _write_csv,
    ".json": _write_array,
    ".jsonl": _write_lines,
}


def _not_formula(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


@contextmanager
def _opened(out: Path) -> Iterator[IO[str]]:
    if str(out) == "-":
        yield sys.stdout
        return
    try:
        with out.open("w", encoding="utf-8", newline="") as file:
            yield file
    except OSError as error:
        problem = f"{harmless(out)} cannot be written ({error.strerror})"
    else:
        return
    raise CommandFailed(f"{problem}. Name another file with --out.")
