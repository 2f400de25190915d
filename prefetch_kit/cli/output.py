"""The output of the commands: text, or one JSON object per line."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Final, NamedTuple

import click

from prefetch_kit.cache.read_sets import ReadSet
from prefetch_kit.cli.streams import shows_every_character
from prefetch_kit.fetch_setting import KINDS, FetchSetting, FetchSettings, Kind
from prefetch_kit.registrar.domains import DomainStatus
from prefetch_kit.registrar.plan import Change, Plan
from prefetch_kit.registrar.plan_file import change_fields
from prefetch_kit.registrar.probe import Probed, Verdict

_NO_PAGE: Final = {"pre_fetch": "every other page", "period_fetch": "(periodic)"}


def print_json(record: dict[str, object]) -> None:
    """Print one line, from which nothing is lost where the encoding lacks a character."""
    click.echo(json.dumps(record, ensure_ascii=not shows_every_character()))


def counted(count: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _describe(setting: FetchSetting) -> str:
    """The setting of one kind of pull in a few words."""
    if setting.open is None and setting.source is None:
        return "never configured"
    state = "on" if setting.open else "off"
    if setting.source == "cloud_function":
        return f"{state}, cloud function {setting.function_name} in {setting.env}"
    return f"{state}, {setting.url or 'no URL'}"


def print_settings(appid: str, settings: FetchSettings, *, as_json: bool) -> None:
    if as_json:
        print_json({"appid": appid, **asdict(settings)})
        return
    click.echo(appid)
    for kind in KINDS:
        click.echo(f"  {kind:12}  {_describe(settings.for_kind(kind))}")
    click.echo(
        "WeChat's console may also send a share of pulls to a second URL (灰度); no API shows it.",
        err=True,
    )


def print_plan(plan: Plan, *, as_json: bool = False, applied: bool = False) -> None:
    if as_json:
        for change in plan.changes:
            print_json(change_record(plan.appid, change))
        count = len(plan.changes)
        print_json({"type": "summary", "appid": plan.appid, "changes": count, "applied": applied})
        return
    if not plan.changes:
        click.echo(f"{plan.appid}: nothing to do.")
    for change in plan.changes:
        click.echo(f"{plan.appid} {change.kind}")
        click.echo(f"  - {_describe(change.before)}")
        click.echo(f"  + {_describe(change.after)}")
        if change.cause != "change":
            click.echo("  ! drift: WeChat no longer holds what was read back last")
        for guard in change.guards:
            click.echo(f"  ! needs --allow-{guard}")
        if change.note:
            click.echo(f"  ! {change.note}")


def change_record(appid: str, change: Change) -> dict[str, object]:
    return {"type": "change", "appid": appid, **change_fields(change), "cause": change.cause}


def print_probe(probed: Probed, *, as_json: bool = False, err: bool = False) -> None:
    if as_json:
        print_json(
            {
                "type": "probe",
                "url": probed.url,
                "status": probed.status,
                "bytes": probed.bytes,
                "ms": probed.ms,
                "ok": not probed.problems,
                "verdicts": [_verdict_record(verdict) for verdict in probed.verdicts],
            }
        )
        return
    click.echo(probed.url, err=err)
    for verdict in probed.verdicts:
        _print_verdict(verdict, err=err)


def print_standing(standing: DomainStatus, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "type": "domain",
                "appid": standing.appid,
                "host": standing.host,
                "ok": not standing.broken,
                "verdicts": [_verdict_record(verdict) for verdict in standing.verdicts],
            }
        )
        return
    click.echo(f"{standing.appid} {standing.host}")
    for verdict in standing.verdicts:
        _print_verdict(verdict)


def _print_verdict(verdict: Verdict, *, err: bool = False) -> None:
    mark = "ok  " if verdict.kept else ("FAIL" if verdict.failure else "warn")
    remedy = f". {verdict.remedy}." if verdict.remedy and not verdict.kept else ""
    click.echo(f"  {mark} {verdict.rule}: {verdict.says}{remedy}", err=err)


def _verdict_record(verdict: Verdict) -> dict[str, object]:
    return {
        "rule": verdict.rule,
        "kept": verdict.kept,
        "failure": verdict.failure,
        "says": verdict.says,
        "remedy": None if verdict.kept else verdict.remedy,
    }


class HandlerRow(NamedTuple):
    """One handler at one URL; `reads` are the sets of names that its runs have read."""

    endpoint: str
    rule: str
    kind: Kind
    page: str | None
    handler: str
    login_required: bool
    cached: bool
    reads: Sequence[ReadSet]


def print_handlers(rows: Iterable[HandlerRow], *, as_json: bool) -> None:
    if as_json:
        for row in rows:
            print_json(row._asdict())
        return
    cells = [
        (
            row.endpoint,
            row.rule,
            row.page or _NO_PAGE[row.kind],
            row.handler,
            "required" if row.login_required else "",
            "yes" if row.cached else "",
            " or ".join(", ".join(names) or "nothing" for names in row.reads),
        )
        for row in rows
    ]
    print_table([("ENDPOINT", "RULE", "PAGE", "HANDLER", "LOGIN", "CACHED", "READS"), *cells])


def print_table(rows: Iterable[tuple[str, ...]]) -> None:
    """Left-aligned columns, as wide as their widest cell."""
    listed = list(rows)
    widths = [max(map(len, column)) for column in zip(*listed, strict=True)]
    for row in listed:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
