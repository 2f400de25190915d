"""Plans kept in a file: lines of JSON, the last of which tells whether all of them are there."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Final

from marshmallow import Schema, ValidationError, fields, validate

from prefetch_kit.concurrency.owned_files import whole_file
from prefetch_kit.errors import PlanUnusable, SourceRefused, UrlRefused
from prefetch_kit.fetch_setting import KINDS, FetchSetting
from prefetch_kit.quoting import harmless
from prefetch_kit.registrar.plan import Change, checked_changes
from prefetch_kit.weixin.authorizations import WRITTEN_APPID

_TYPE: Final = "prefetch_kit plan"
_VERSION: Final = 1
# One app's line, with two changes of the longest URLs, has a tenth of this.
_LONGEST_LINE: Final = 65_536

AppPlan = tuple[str, tuple[Change, ...]]


def change_fields(change: Change) -> dict[str, object]:
    """A change as plain JSON values; `guard` is the first of its guards."""
    return {
        "kind": change.kind,
        "before": change.before.to_dict(),
        "after": change.after.to_dict(),
        "guard": change.guards[0] if change.guards else None,
        "guards": list(change.guards),
        "note": change.note,
    }


def read_changes(plain: Any) -> tuple[Change, ...]:
    """What `change_fields` gave for each of several. Raises ValueError and `SourceRefused`."""
    try:
        loaded = _ChangeSchema(many=True).load(plain)
    except ValidationError as error:
        raise ValueError(str(error)) from None
    changes = []
    for each in loaded:
        before, after = (FetchSetting.from_dict(each[name]) for name in ("before", "after"))
        # What the file says of the guards is for people: who can write it could lift them.
        changes.append(Change(each["kind"], before, after, note=each["note"]))
    return tuple(checked_changes(changes))


def check_directory(path: Path) -> None:
    """Raises `PlanUnusable` where no plan can be saved, before anybody makes one."""
    if not path.parent.is_dir():
        raise PlanUnusable(str(path), "it cannot be written (its directory is not there)")


def write_plans(path: Path, plans: Iterable[AppPlan], *, wechat: str, unread: int = 0) -> str:
    """Write the plans of several apps, and return their fingerprint.

    `wechat` names the one they are for, `unread` counts the apps that could not be read. The
    file is there whole or not at all. Raises `PlanUnusable` where it cannot be written.
    """
    try:
        with whole_file(path) as written, written.open("w", encoding="utf-8") as file:
            fingerprint = _write(file, plans, wechat, unread)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise PlanUnusable(str(path), f"it cannot be written ({error.strerror})") from error
    return fingerprint


def read_plans(
    path: Path, *, wechat: str, at_end: Callable[[int], object] = lambda _: None
) -> Iterator[AppPlan]:
    """Each app's changes. Send nothing before the end: the file may be cut short.

    `at_end` is called there with the number of apps that could not be read for the plan. Raises
    `UrlRefused`, and `PlanUnusable` for a file that is damaged, cut short, or for another WeChat.
    """
    try:
        with path.open(encoding="utf-8") as file:
            yield from _read(file, path, wechat, at_end)
    except OSError as error:
        raise PlanUnusable(str(path), f"it cannot be read ({error.strerror})") from error
    except UnicodeDecodeError:
        raise PlanUnusable(str(path), "it is not text") from None


def _write(file: IO[str], plans: Iterable[AppPlan], wechat: str, unread: int) -> str:
    digest, apps = hashlib.sha256(), 0

    def put(record: dict[str, object]) -> None:
        line = json.dumps(record) + "\n"
        digest.update(line.encode())
        file.write(line)

    put({"type": _TYPE, "version": _VERSION, "place": wechat})
    for appid, changes in plans:
        put({"appid": appid, "changes": [change_fields(change) for change in changes]})
        apps += 1
    end = _end(digest, apps, unread)
    file.write(json.dumps(end) + "\n")
    return str(end["fingerprint"])


def _end(digest: "hashlib._Hash", apps: int, unread: object) -> dict[str, object]:
    """The closing line; its fingerprint is that of its numbers too."""
    numbers: dict[str, object] = {"apps": apps, "unread": unread}
    digest.update(json.dumps(numbers).encode())
    return numbers | {"fingerprint": digest.hexdigest()}


def _read(
    file: IO[str], path: Path, wechat: str, at_end: Callable[[int], object]
) -> Iterator[AppPlan]:
    first = file.readline(_LONGEST_LINE)
    header = _object(first)
    if header.get("type") != _TYPE or header.get("version") != _VERSION:
        raise PlanUnusable(str(path), "it is no plan of this version of prefetch_kit")
    if header.get("place") != wechat:
        raise PlanUnusable(str(path), f"it is for another WeChat, and this is {wechat}")
    digest, apps = hashlib.sha256(first.encode()), 0
    while line := file.readline(_LONGEST_LINE):
        record = _object(line)
        if "fingerprint" in record:
            unread = record.get("unread")
            if record != _end(digest, apps, unread) or type(unread) is not int or file.read(1):
                raise PlanUnusable(str(path), "its fingerprint is not that of its content")
            at_end(unread)
            return
        digest.update(line.encode())
        apps += 1
        yield _saved(record, path)
    raise PlanUnusable(str(path), "its end is missing")


def _object(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _saved(record: dict[str, Any], path: Path) -> AppPlan:
    appid = record.get("appid")
    if not isinstance(appid, str) or not WRITTEN_APPID.match(appid):
        raise PlanUnusable(str(path), "it is damaged")
    try:
        return appid, read_changes(record.get("changes"))
    except ValueError:
        raise PlanUnusable(str(path), f"what it says of {harmless(appid)} is damaged") from None
    except UrlRefused:
        raise
    except SourceRefused as error:
        raise PlanUnusable(str(path), f"for {harmless(appid)} it {error.problem}") from None


class _ChangeSchema(Schema):
    kind = fields.String(required=True, validate=validate.OneOf(KINDS))
    before = fields.Dict(required=True)
    after = fields.Dict(required=True)
    guard = fields.String(
        required=True, allow_none=True, validate=validate.OneOf(["disable", "takeover", None])
    )
    guards = fields.List(fields.String(), required=True)
    note = fields.String(required=True, allow_none=True)
