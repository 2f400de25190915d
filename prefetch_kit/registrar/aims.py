"""What is to be done for one app of a fleet, or was found there, as a text to put down."""

import json
from collections.abc import Callable, Iterable

from prefetch_kit.registrar.plan import Change, Plan, Target, plan_saved, plan_targets
from prefetch_kit.registrar.saved import change_fields, read_changes
from prefetch_kit.weixin.settings import KINDS, FetchSetting, FetchSettings

# From an app, its text, and what WeChat holds, to its plan.
Planned = Callable[[str, str, FetchSettings], Plan]


def targets_text(targets: Iterable[Target]) -> str:
    return json.dumps([[target.kind, target.url, target.served] for target in targets])


def read_targets(text: str) -> list[Target]:
    return [Target(kind, url, served=served) for kind, url, served in json.loads(text)]


def changes_text(changes: Iterable[Change]) -> str:
    return json.dumps([change_fields(change) for change in changes])


def changes_of(text: str) -> tuple[Change, ...]:
    return read_changes(json.loads(text))


def settings_text(settings: FetchSettings) -> str:
    return json.dumps({kind: settings.for_kind(kind).to_dict() for kind in KINDS})


def read_settings(text: str) -> FetchSettings:
    both = json.loads(text)
    return FetchSettings(**{kind: FetchSetting.from_dict(both[kind]) for kind in KINDS})


def plan_of_targets(appid: str, text: str, current: FetchSettings) -> Plan:
    return plan_targets(appid, current, read_targets(text))


def plan_of_changes(appid: str, text: str, current: FetchSettings) -> Plan:
    return plan_saved(appid, current, changes_of(text))
