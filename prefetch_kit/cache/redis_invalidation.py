"""The log of invalidations that the processes of a deployment share: a stream in Redis.

It is a log and not a counter, because a counter would empty every cache at each invalidation.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from itertools import chain
from typing import Any, Final

from prefetch_kit.cache.invalidation import Invalidations, Mark, Position
from prefetch_kit.cache.redis_breaker import RedisBreaker, run_budget
from prefetch_kit.cache.redis_format import (
    RedisFormat,
    read_position,
    read_stream,
    write_position,
)
from prefetch_kit.concurrency.redis_client import Commands
from prefetch_kit.logs import SafeLogger

# How many invalidations the stream holds, and how many a run takes in within its budget.
_RECORDS: Final = 10_000
_RECORDS_IN_A_RUN: Final = 100
# Each run reads the last record once more, so it should not be larger.
_LARGE_BYTES: Final = 64 * 1024
# A stream of ours has a tenth of this. A larger one may take Redis too long to read out.
_LARGEST_STREAM_BYTES: Final = 16 * 1024 * 1024
# How many wait for Redis to be back.
_UNSENT: Final = 10_000
_START: Final[Position] = (0, 0)

_Records = list[tuple[object, object]]


class RedisInvalidations:
    """Reads and writes the stream; what it reads goes into the log of this process.

    `read_to` is the position of the last record that was read.
    """

    def __init__(
        self,
        stream: bytes,
        *,
        format: RedisFormat,  # noqa: A002 (it is one)
        log: Invalidations,
        logger: SafeLogger,
    ) -> None:
        self._stream = stream
        self._format = format
        self._log = log
        self._logger = logger
        self.read_to = _START
        self._listening = threading.Lock()
        self._lock = threading.Lock()
        self._unsent: deque[Sequence[Mark] | None] = deque()
        self._has_failed = False

    def request_news(self, pipe: Any, since: Position) -> None:
        """Ask for the invalidations after this position, and for the one at it."""
        pipe.xread({self._stream: _just_before(since)}, count=_RECORDS_IN_A_RUN)

    def take_news(self, reply: object, since: Position) -> bool:
        """Take in the reply; False where it may lack some: no shared answer is safe then."""
        records = _after(since, read_stream(reply))
        if records is None or len(records) >= _RECORDS_IN_A_RUN - 1 or _have_no_room(records):
            return False  # `listen` will soon see to it
        if not all(self._format.is_ours(self._stream, fields) for _, fields in records):
            return False  # strangers may write any number, and `listen` takes them all at once
        self._take(records)
        return True

    def add(self, marks: Sequence[Mark], redis: RedisBreaker) -> None:
        """Invalidate here at once, and in every process as soon as it hears of it."""
        self._log.add(marks)
        reply = redis.call(lambda pipe: self._append(pipe, marks), run_budget())
        at = read_position(reply[0]) if reply else None
        if at is not None:
            self._log.add(marks, at=at)
            return
        with self._lock:
            if len(self._unsent) >= _UNSENT:
                self._unsent.clear()
                self._unsent.append(None)  # too many to keep: everything will be invalidated
            else:
                self._unsent.append(marks)
        self._logger.error(
            "Redis %s an invalidation; until it takes it, other processes serve what was forgotten",
            "did not take" if reply is None else "refused",
        )

    def news_after(self, since: Position) -> Callable[[Any, int], object]:
        """The command that waits, so many milliseconds, for a record after this position."""
        asked = {self._stream: write_position(since)}
        return lambda pipe, block_ms: pipe.xread(asked, count=1, block=block_ms)

    def listen(self, redis: RedisBreaker) -> bool:
        """Read what other processes invalidated, and send what could not be sent before.

        False where everything had to be invalidated, which strangers can bring about at once again.
        """
        with self._listening:
            return self._listen(redis)

    def _listen(self, redis: RedisBreaker) -> bool:
        since = self.read_to  # a run may read more while this one waits
        records = self._records_since(since, redis)
        if records == [] and since == _START:
            # With a first record in it, an emptied stream can be told from a new one.
            redis.probe(lambda pipe: self._append(pipe, []))
            records = self._records_since(since, redis)
        if records is None:
            return True
        if _have_no_room(records):
            self._begin_anew(redis)
            return False
        before = self._log.last
        if len(records) >= _RECORDS and (oldest := read_position(records[0][0])):
            self._log.add(None, at=oldest)  # older records are gone
            since = _START
        new = _after(since, records)
        self._take(records if new is None else new)
        is_everything = self._are_everything(records, after=before)
        if new is None and not is_everything:
            self._invalidate_everything(redis)
        elif records and _is_large(records[-1]):
            redis.probe(lambda pipe: self._append(pipe, []))
        self._send_unsent(redis)
        return new is not None and not is_everything

    def _records_since(self, since: Position, redis: RedisBreaker) -> _Records | None:
        """The records after this position; the last `_RECORDS` at the start, and of more."""
        if since == _START:
            return self._last_records(redis)
        # The record at `since` too: where it is missing, others may be missing.
        asked = {self._stream: _just_before(since)}
        reply = self._read(lambda pipe: pipe.xread(asked, count=_RECORDS), redis)
        records = read_stream(reply)
        return self._last_records(redis) if records and len(records) >= _RECORDS else records

    def _last_records(self, redis: RedisBreaker) -> _Records | None:
        reply = self._read(lambda pipe: pipe.xrevrange(self._stream, count=_RECORDS), redis)
        return reply[::-1] if isinstance(reply, list) else None

    def _read(self, command: Commands, redis: RedisBreaker) -> object:
        """The reply, or None. What is no stream, or too large to be read, is begun anew."""
        if self._has_failed:
            # First how large it is: another try would only keep Redis from answering.
            size = redis.probe(lambda pipe: pipe.memory_usage(self._stream, samples=0))
            if size is None:
                return None
            self._has_failed = False
            if isinstance(size[0], int) and size[0] > _LARGEST_STREAM_BYTES:
                self._begin_anew(redis)
                return None
        reply = redis.probe(command)
        if reply is None:
            self._has_failed = True
            return None
        if _is_no_stream(reply[0]):
            self._begin_anew(redis)
        return reply[0]

    def _invalidate_everything(self, redis: RedisBreaker) -> None:
        """Invalidate everything in all processes: nobody knows what was lost in Redis."""
        self._log.add(None)
        at = None
        # The clock of Redis may have gone back, and positions must not.
        for position in ("*", write_position(self._log.last)):
            reply = redis.probe(partial(self._append, marks=None, at=position))
            if reply is None:
                return  # the next `listen` finds the same and tries again
            at = read_position(reply[0])
            if at is None or at >= self._log.last:
                break
        if at is not None:
            self._log.add(None, at=at)
        self.read_to = at or _START

    def _begin_anew(self, redis: RedisBreaker) -> None:
        """Replace what is no stream of ours: too large, without room, or something else."""
        redis.probe(lambda pipe: pipe.delete(self._stream))
        self._invalidate_everything(redis)

    def _are_everything(self, records: Iterable[tuple[object, object]], *, after: Position) -> bool:
        """Whether one of the records invalidates everything."""
        read = ((read_position(raw_id), fields) for raw_id, fields in records)
        return any(
            at is not None and at > after and self._format.read_marks(self._stream, fields) is None
            for at, fields in read
        )

    def _send_unsent(self, redis: RedisBreaker) -> None:
        while self._unsent:
            marks = self._unsent[0]
            reply = redis.probe(partial(self._append, marks=marks))
            if reply is None:
                return
            if read_position(reply[0]) is None:
                if _is_exhausted(reply[0]):
                    self._begin_anew(redis)
                return
            with self._lock:
                if self._unsent[0] is marks:  # else `add` gave up on all of them meanwhile
                    self._unsent.popleft()

    def _take(self, records: Iterable[tuple[object, object]]) -> None:
        for raw_id, fields in records:
            at = read_position(raw_id)
            if at is not None and at > self.read_to:
                if (marks := self._format.read_marks(self._stream, fields)) != []:
                    self._log.add(marks, at=at)
                self.read_to = at

    def _append(self, pipe: Any, marks: Sequence[Mark] | None, *, at: str = "*") -> None:
        fields = self._format.write_marks(self._stream, marks)
        pipe.xadd(self._stream, fields, id=at, maxlen=_RECORDS, approximate=True)


@lru_cache(maxsize=8)  # mostly asked for the last position again
def _just_before(position: Position) -> str:
    first, second = position
    if second:
        return write_position((first, second - 1))
    return write_position((first - 1, 2**64 - 1) if first else _START)


def _after(since: Position, records: _Records | None) -> _Records | None:
    """The records after the last one read; None where that one is gone, and maybe others."""
    if since == _START or records is None:
        return records
    return records[1:] if records and read_position(records[0][0]) == since else None


def _have_no_room(records: Iterable[tuple[object, object]]) -> bool:
    """Whether one of the records is so far in the future that nothing comes after it."""
    return any(read_position(raw_id) is None for raw_id, _ in records)


def _is_large(record: tuple[object, object]) -> bool:
    fields = record[1]
    return isinstance(fields, dict) and sum(map(len, chain(*fields.items()))) > _LARGE_BYTES


def _is_no_stream(refusal: object) -> bool:
    return isinstance(refusal, Exception) and "WRONGTYPE" in str(refusal)


def _is_exhausted(refusal: object) -> bool:
    # "The stream has exhausted the last possible ID": that record may be deleted by now.
    return isinstance(refusal, Exception) and "exhausted" in str(refusal)
