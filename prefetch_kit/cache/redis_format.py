"""What the cache writes into Redis, as bytes. Foreign or damaged bytes are read as None.

Whoever can write to Redis is not believed: all of it carries a keyed digest, which also covers
the key in Redis that it was written under.
"""

import json
import secrets
import struct
import time
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final

from prefetch_kit.cache.digests import DIGEST_BYTES, Digests
from prefetch_kit.cache.entry import Entry
from prefetch_kit.cache.invalidation import Mark, Position
from prefetch_kit.cache.read_sets import ReadSet, is_read_set
from prefetch_kit.cache.scope import Scope

_MAGIC: Final = b"pfk3"
# Seconds fresh, stale and taken, the wall-clock time at which it was made, the position of the last
# invalidation known to the run, and the digest of the body.
_HEADER: Final = struct.Struct(f"<4sddddQQ{sha256().digest_size}s")
# A header and its keyed digest, which can be verified without the body.
PREFIX_BYTES: Final = _HEADER.size + DIGEST_BYTES
# A random token, and when the lease ends by the wall clock.
_LEASE: Final = struct.Struct("<16sd")
LEASE_BYTES: Final = _LEASE.size + DIGEST_BYTES
# A lease that lasts longer is not believed: a clock is wrong.
_LONGEST_LEASE_S: Final = 120.0
_READ_SETS: Final = 8
_READ_SET_CHARS: Final = 2048
READ_SETS_BYTES: Final = DIGEST_BYTES + _READ_SETS * (_READ_SET_CHARS + 2)
# The positions of a stream are milliseconds of the clock, and a number within one. What is beyond
# the year 33658, or as large within it, is a stranger's, who would leave no room for later ones.
_LAST_MS: Final = 10**15

# Each script is refused or obeyed as a whole, whatever commands the user of the URL may send.
#
# Keeps ARGV[1] under KEYS[1] for ARGV[2] ms, or drops what is there if ARGV[1] is empty, unless
# its first ARGV[3] bytes are not ARGV[4] any more.
KEEP_OR_DROP: Final = """
local prefix = redis.pcall('getrange', KEYS[1], 0, ARGV[3] - 1)
if type(prefix) == 'string' and prefix ~= ARGV[4] then return 0 end
if ARGV[1] == '' then redis.call('del', KEYS[1])
else redis.call('set', KEYS[1], ARGV[1], 'px', ARGV[2]) end
return 1
"""
# Takes the lease KEYS[1] with ARGV[1] for ARGV[2] ms, if nobody has it or it begins with ARGV[3];
# else returns what it begins with. It needs no command that RELEASE does not need, and the other
# way round: no lease is taken that cannot be given back.
LEASE: Final = f"""
local held = redis.pcall('get', KEYS[1])
if type(held) == 'table' then
  if not string.find(held.err, 'WRONGTYPE') then return held end
  held = ''
end
if held and held:sub(1, {LEASE_BYTES}) ~= ARGV[3] then return held:sub(1, {LEASE_BYTES}) end
redis.call('set', KEYS[1], ARGV[1], 'px', ARGV[2])
return 1
"""
RELEASE: Final = """
if redis.call('get', KEYS[1]) == ARGV[1] then redis.call('set', KEYS[1], '', 'px', 1) end
"""


class RedisFormat:
    """Writes and reads under the keys of one app. It reads no larger answer than `max_bytes`.

    `at` is always the key in Redis.
    """

    def __init__(self, digests: Digests, *, max_bytes: int) -> None:
        self._digests = digests
        # A larger answer is cut there, and does not fit the digest of its body any more.
        self.entry_bytes: Final = PREFIX_BYTES + max_bytes

    def write_entry(self, at: bytes, key: bytes, entry: Entry) -> bytes:
        """An answer that is kept under a key of the cache."""
        age_s = time.monotonic() - entry.made_at
        header = _HEADER.pack(
            _MAGIC,
            entry.fresh_s,
            entry.stale_s,
            entry.took_s,
            time.time() - age_s,
            *entry.position,
            sha256(entry.body).digest(),
        )
        return header + self._digests.sign(b"answer", at, key, header) + entry.body

    def read_entry(
        self,
        at: bytes,
        key: bytes,
        value: object,
        left_ms: object,
        scope: Scope,
        *,
        appid: str,
        user_id: str | None,
    ) -> Entry | None:
        """The answer, if it was written under this very key, has time left, and is small enough."""
        header = self._read_header(at, key, value, left_ms)
        if header is None or not isinstance(value, bytes):
            return None
        made_at, took_s, fresh_s, stale_s, position, digest = header
        body = value[PREFIX_BYTES:]
        if sha256(body).digest() != digest:
            return None
        return Entry(
            body=body,
            made_at=made_at,
            took_s=took_s,
            fresh_s=fresh_s,
            stale_s=stale_s,
            position=position,
            instance=scope.instance,
            page=scope.page,
            appid=appid,
            user_id=user_id,
        )

    def began_at(self, at: bytes, key: bytes, prefix: object, left_ms: object) -> float | None:
        """When the run of an answer began, in monotonic seconds, by its first `PREFIX_BYTES`."""
        header = self._read_header(at, key, prefix, left_ms)
        return header and header[0] - header[1]

    def _read_header(
        self, at: bytes, key: bytes, value: object, left_ms: object
    ) -> tuple[float, float, float, float, Position, bytes] | None:
        if not isinstance(value, bytes) or not isinstance(left_ms, int):
            return None
        header, digest = value[: _HEADER.size], value[_HEADER.size : PREFIX_BYTES]
        if not self._digests.verify(digest, b"answer", at, key, header):
            return None
        _, fresh_s, stale_s, took_s, made_at, first, second, body_digest = _HEADER.unpack(header)
        # By its age in Redis, because two machines do not share a clock; but anybody may have
        # stretched that one, and nobody the wall clock.
        age_s = fresh_s + stale_s - left_ms / 1000
        if left_ms < 0 or age_s < 0:
            return None
        age_s = max(age_s, time.time() - made_at)
        if age_s >= fresh_s + stale_s:
            return None
        made_at = time.monotonic() - age_s
        return made_at, took_s, fresh_s, stale_s, (first, second), body_digest

    def write_read_sets(self, at: bytes, read_sets: Sequence[ReadSet]) -> bytes:
        """The first 8 of these, without very long ones."""
        written = [json.dumps(names) for names in read_sets]
        short = [each for each in written if len(each) <= _READ_SET_CHARS]
        raw = f"[{', '.join(short[:_READ_SETS])}]".encode()
        return self._digests.sign(b"reads", at, raw) + raw

    def read_read_sets(self, at: bytes, value: object) -> list[ReadSet]:
        """The read sets in a value; none where it is foreign."""
        if not isinstance(value, bytes) or not value:
            return []
        digest, raw = value[:DIGEST_BYTES], value[DIGEST_BYTES:]
        return list(_read_sets(raw)) if self._digests.verify(digest, b"reads", at, raw) else []

    def write_marks(self, stream: bytes, marks: Sequence[Mark] | None) -> dict[bytes, bytes]:
        """The fields of one invalidation; None stands for everything."""
        raw = json.dumps(marks).encode()
        return {b"m": raw, b"d": self._digests.sign(b"marks", stream, raw)}

    def is_ours(self, stream: bytes, fields: object) -> bool:
        """Whether the fields of an invalidation are what one of our processes wrote."""
        return self._verified(stream, fields) is not None

    def read_marks(self, stream: bytes, fields: object) -> list[Mark] | None:
        """The marks of one invalidation; None for everything, which foreign fields mean too."""
        raw = self._verified(stream, fields)
        marks = None if raw is None else _loaded(raw)
        if not isinstance(marks, list) or not all(map(_is_mark, marks)):
            return None
        return [(mark[0], mark[1], mark[2], mark[3]) for mark in marks]

    def _verified(self, stream: bytes, fields: object) -> bytes | None:
        raw, digest = (
            (fields.get(b"m"), fields.get(b"d")) if isinstance(fields, dict) else (None, None)
        )
        if not isinstance(raw, bytes) or not isinstance(digest, bytes):
            return None
        return raw if self._digests.verify(digest, b"marks", stream, raw) else None

    def write_lease(self, at: bytes, seconds: float) -> bytes:
        lease = _LEASE.pack(secrets.token_bytes(16), time.time() + seconds)
        return lease + self._digests.sign(b"lease", at, lease)

    def is_lease(self, at: bytes, value: object) -> bool:
        """Whether some process has this lease; it may be kept in Redis for longer."""
        if not isinstance(value, bytes):
            return False
        lease, digest = value[: _LEASE.size], value[_LEASE.size :]
        if not self._digests.verify(digest, b"lease", at, lease):
            return False
        _, ends_at = _LEASE.unpack(lease)
        return bool(0 < ends_at - time.time() <= _LONGEST_LEASE_S)


@lru_cache(maxsize=256)  # each lookup of a handler reads the same few again
def _read_sets(raw: bytes) -> tuple[ReadSet, ...]:
    given: Any = _loaded(raw)
    if not isinstance(given, list):
        return ()
    return tuple(tuple(names) for names in given if is_read_set(names))


def _is_mark(mark: object) -> bool:
    return (
        isinstance(mark, list)
        and len(mark) == 4
        and isinstance(mark[0], str)
        and all(part is None or isinstance(part, str) for part in mark)
    )


def _loaded(raw: bytes) -> object:
    # json and not orjson: a name or a user id need not be UTF-8.
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):  # without a key anybody can sign anything
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
    """A position; None for one that is no time, or too far in the future to be one of ours."""
    first, _, second = raw.partition(b"-") if isinstance(raw, bytes) else (b"", b"", b"")
    is_one = max(len(first), len(second)) <= 20 and first.isdigit() and second.isdigit()
    position = (int(first), int(second)) if is_one else None
    return position if position is not None and max(position) <= _LAST_MS else None


def write_position(position: Position) -> str:
    return f"{position[0]}-{position[1]}"
