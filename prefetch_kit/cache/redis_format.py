"""What the cache writes into Redis, as bytes. Foreign or damaged bytes are read as None."""

import json
import struct
import time
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

from prefetch_kit.cache.entry import Entry
from prefetch_kit.cache.invalidation import Mark, Position
from prefetch_kit.cache.read_sets import ReadSet, is_read_set
from prefetch_kit.cache.scope import Scope

_MAGIC: Final = b"pfk2"
# Seconds fresh, stale and taken, and the position of the last invalidation known to the run.
_HEADER: Final = struct.Struct("<4sdddQQ")
_CHECKSUM_BYTES: Final = 8
# Keeps ARGV[1] under KEYS[1] for ARGV[2] ms, or drops what is there if ARGV[1] is empty; the run
# began ARGV[3] s ago. An answer of a run that began later stays; foreign bytes do not.
KEEP_OR_DROP: Final = """
local header = redis.pcall('getrange', KEYS[1], 0, 27)
if type(header) == 'string' and #header == 28 and header:sub(1, 4) == 'pfk2' then
  local fresh, stale, took = struct.unpack('<ddd', header, 5)
  local ago = fresh + stale + took - redis.call('pttl', KEYS[1]) / 1000
  if ago >= 0 and ago < tonumber(ARGV[3]) then return end
end
if ARGV[1] == '' then return redis.call('del', KEYS[1]) end
redis.call('set', KEYS[1], ARGV[1], 'px', ARGV[2])
"""


def write_entry(key: bytes, entry: Entry) -> bytes:
    """An answer that is kept under a key."""
    header = _HEADER.pack(_MAGIC, entry.fresh_s, entry.stale_s, entry.took_s, *entry.position)
    return header + _checksum(key, header, entry.body) + entry.body


def read_entry(
    key: bytes,
    value: object,
    left_ms: object,
    scope: Scope,
    *,
    appid: str,
    user_id: str | None,
) -> Entry | None:
    """The answer, if it was written under this very key and has time left."""
    if not isinstance(value, bytes) or not isinstance(left_ms, int):
        return None
    header, rest = value[: _HEADER.size], value[_HEADER.size :]
    checksum, body = rest[:_CHECKSUM_BYTES], rest[_CHECKSUM_BYTES:]
    if checksum != _checksum(key, header, body) or not header.startswith(_MAGIC):
        return None
    _, fresh_s, stale_s, took_s, first, second = _HEADER.unpack(header)
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
        position=(first, second),
        instance=scope.instance,
        page=scope.page,
        appid=appid,
        user_id=user_id,
    )


def _checksum(*parts: bytes) -> bytes:
    return blake2b(b"".join(parts), digest_size=_CHECKSUM_BYTES).digest()


def write_read_set(names: ReadSet) -> str:
    return json.dumps(names)


def read_read_sets(raws: object) -> list[ReadSet]:
    """The read sets in a reply; foreign ones are left out."""
    given = raws if isinstance(raws, list) else []
    read = [_read_set(raw) for raw in given if isinstance(raw, bytes)]
    return [names for names in read if names is not None]


@lru_cache(maxsize=256)  # each lookup of a handler reads the same few again
def _read_set(raw: bytes) -> ReadSet | None:
    names: Any = _loaded(raw)
    return tuple(names) if is_read_set(names) else None


def write_marks(marks: Sequence[Mark] | None) -> dict[str, str]:
    """The fields of one invalidation; None stands for everything."""
    return {"m": json.dumps(marks)}


def read_marks(fields: object) -> list[Mark] | None:
    """The marks of one invalidation; None for everything, which foreign fields mean too."""
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
    # json and not orjson: a name or a user id need not be UTF-8.
    try:
        return json.loads(raw) if isinstance(raw, bytes) else None
    except (ValueError, RecursionError):
        return None


def read_stream(streams: object) -> list[tuple[object, object]] | None:
    """The records of the one stream that was read."""
    match streams:
        case []:
            return []
        case [[_, list() as records]]:
            return records
    return None


def read_position(raw: object) -> Position | None:
    first, _, second = raw.partition(b"-") if isinstance(raw, bytes) else (b"", b"", b"")
    is_one = max(len(first), len(second)) <= 20 and first.isdigit() and second.isdigit()
    return (int(first), int(second)) if is_one else None


def write_position(position: Position) -> str:
    return f"{position[0]}-{position[1]}"
