"""What stands in Redis, as bytes; whatever is not what we wrote there reads as None."""

import json
import struct
import time
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Final

from prefetch_kit.endpoint.pages import Registered
from prefetch_kit.endpoint.pull import USER_ID, Pull, ReadSet, is_read_set
from prefetch_kit.endpoint.store import Entry, Mark, Position

_MAGIC: Final = b"pfk2"
# Seconds fresh, stale and taken, the position of the last forget.
_HEADER: Final = struct.Struct("<4sdddQQ")
_CHECKSUM_BYTES: Final = 8
# A Redis script that keeps KEYS[1] = ARGV[1] for ARGV[2] ms, from a run that began ARGV[3] s ago.
# What stands there from a run that began later stays; what is not ours does not.
KEEP: Final = """
local head = redis.pcall('getrange', KEYS[1], 0, 27)
if type(head) == 'string' and #head == 28 and head:sub(1, 4) == 'pfk2' then
  local fresh, stale, took = struct.unpack('<ddd', head, 5)
  local ago = fresh + stale + took - redis.call('pttl', KEYS[1]) / 1000
  if ago >= 0 and ago < tonumber(ARGV[3]) then return end
end
redis.call('set', KEYS[1], ARGV[1], 'px', ARGV[2])
"""


def write_entry(name: bytes, entry: Entry) -> bytes:
    """An answer that is kept under a name."""
    head = _HEADER.pack(_MAGIC, entry.fresh_s, entry.stale_s, entry.took_s, *entry.begun)
    return head + _checksum(name, head, entry.body) + entry.body


def read_entry(
    name: bytes, value: object, left_ms: object, place: Registered, pull: Pull, read_set: ReadSet
) -> Entry | None:
    """What was kept, if it was written under this very name and has time left."""
    if not isinstance(value, bytes) or not isinstance(left_ms, int):
        return None
    head, rest = value[: _HEADER.size], value[_HEADER.size :]
    checksum, body = rest[:_CHECKSUM_BYTES], rest[_CHECKSUM_BYTES:]
    if checksum != _checksum(name, head, body) or not head.startswith(_MAGIC):
        return None
    _, fresh_s, stale_s, took_s, *begun = _HEADER.unpack(head)
    # By age and not by a clock, which two machines do not share.
    age_s = fresh_s + stale_s - left_ms / 1000
    if left_ms < 0 or age_s < 0:
        return None
    return Entry(
        body=body,
        made_at=time.monotonic() - age_s,
        took_s=took_s,
        fresh_s=fresh_s,
        stale_s=stale_s,
        begun=(begun[0], begun[1]),
        instance=place.instance,
        page=place.handler.page,
        appid=pull.appid,
        user_id=pull.user_id if USER_ID in read_set else None,
    )


def _checksum(*parts: bytes) -> bytes:
    return blake2b(b"".join(parts), digest_size=_CHECKSUM_BYTES).digest()


def write_read_set(names: ReadSet) -> str:
    return json.dumps(names)


def read_read_sets(raws: object) -> list[ReadSet]:
    """Those of the read sets that can be some."""
    loaded: list[Any] = [_loaded(raw) for raw in raws] if isinstance(raws, list) else []
    return [tuple(names) for names in loaded if is_read_set(names)]


def write_marks(marks: Sequence[Mark] | None) -> dict[str, str]:
    """The fields of one `forget`; None stands for everything."""
    return {"m": json.dumps(marks)}


def read_marks(fields: object) -> list[Mark] | None:
    """The marks of one `forget`; None for everything, which those may mean that make no sense."""
    marks = _loaded(fields.get(b"m")) if isinstance(fields, dict) else None
    if not isinstance(marks, list) or not all(map(_is_mark, marks)):
        return None
    return [(mark[0], mark[1], mark[2], mark[3]) for mark in marks]


def _is_mark(mark: object) -> bool:
    return (
        isinstance(mark, list)
        and len(mark) == 4
        and isinstance(mark[0], str)
        and all(part is None or isinstance(part, str) for part in mark)
    )


def _loaded(raw: object) -> object:
    # json and not orjson: a name or a user id may be no UTF-8.
    try:
        return json.loads(raw) if isinstance(raw, bytes) else None
    except (ValueError, RecursionError):
        return None


def read_stream(streams: object) -> list[tuple[object, object]] | None:
    """The entries of the one stream that was asked for."""
    match streams:
        case []:
            return []
        case [[_, list() as entries]]:
            return entries
    return None


def read_position(raw: object) -> Position | None:
    first, _, second = raw.partition(b"-") if isinstance(raw, bytes) else (b"", b"", b"")
    is_one = max(len(first), len(second)) <= 20 and first.isdigit() and second.isdigit()
    return (int(first), int(second)) if is_one else None


def write_position(position: Position) -> str:
    return f"{position[0]}-{position[1]}"
