"""What is to be done for one app of a fleet, or was found there, as a text to put down."""

import json
from collections.abc import Callable, Iterable

from prefetch_kit.fetch_setting import KINDS, FetchSetting, FetchSettings
from prefetch_kit.registrar.plan import Change, OffIfFrom, Plan, Wanted, plan_saved, plan_wanted
from prefetch_kit.registrar.plan_file import change_fields, read_changes

# From an app, its text, and what WeChat holds, to its plan.
Planned = Callable[[str, str, FetchSettings], Plan]


def wanted_text(wanted: Wanted) -> str:
    return json.dumps(
        {
            kind: {"off_if_from": each.setting.to_dict()}
            if isinstance(each, OffIfFrom)
            else each.to_dict()
            for kind, each in wanted.items()
        }
    )


def read_wanted(text: str) -> Wanted:
    return {
        kind: OffIfFrom(FetchSetting.from_dict(plain["off_if_from"]))
        if "off_if_from" in plain
        else FetchSetting.from_dict(plain)
        for kind, plain in json.loads(text).items()
    }


def changes_text(changes: Iterable[Change]) -> str:
    return json.dumps([change_fields(change) for change in changes])


def changes_of(text: str) -> tuple[Change, ...]:
    return read_changes(json.loads(text))


def settings_text(settings: FetchSettings) -> str:
    return json.dumps({kind: settings.for_kind(kind).to_dict() for kind in KINDS})


def read_settings(text: str) -> FetchSettings:
    both = json.loads(text)
    return FetchSettings(**{kind: FetchSetting.from_dict(both[kind]) for kind in KINDS})


def plan_of_wanted(appid: str, text: str, current: FetchSettings) -> Plan:
    return plan_wanted(appid, current, read_wanted(text))


def plan_of_changes(appid: str, text: str, current: FetchSettings) -> Plan:
    return plan_saved(appid, current, changes_of(text))
