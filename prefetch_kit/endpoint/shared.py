"""Answers shared by all processes of a deployment through Redis; what fails there is a miss."""

import secrets
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial
from hashlib import blake2b
from typing import Any, Final
from urllib.parse import quote

from prefetch_kit.endpoint.line import Line, Visit
from prefetch_kit.endpoint.logs import SteadyLogger
from prefetch_kit.endpoint.pages import Registered
from prefetch_kit.endpoint.pull import Pull, ReadSet, key
from prefetch_kit.endpoint.records import (
    KEEP,
    read_entry,
    read_marks,
    read_position,
    read_read_sets,
    read_stream,
    write_entry,
    write_marks,
    write_position,
    write_read_set,
)
from prefetch_kit.endpoint.store import Entry, Forgotten, Mark, Position
from prefetch_kit.secret import Secret

# How soon a waiting process asks again; the longer it waited, the later.
_POLL_S: Final = 0.02
_LONGEST_POLL_S: Final = 0.2
_READ_SETS: Final = 8
_READ_SETS_KEPT_S: Final = 86_400
# How many calls of `forget` are kept, and how many a run takes in within its budget.
_MARKS: Final = 10_000
_MARKS_AT_ONCE: Final = 100
# How many wait for Redis to be back.
_UNTOLD: Final = 10_000
_NOTHING: Final[Position] = (0, 0)
_RELEASE: Final = "if redis.call('get',KEYS[1])==ARGV[1] then redis.call('del',KEYS[1]) end"


class SharedTier:
    """One deployment's answers in Redis, under a namespace, for one release of the app.

    Everything live is made on first use.
    """

    def __init__(
        self,
        url: Secret,
        *,
        namespace: str,
        release: str,
        forgotten: Forgotten,
        logger: SteadyLogger,
    ) -> None:
        self._url = url
        # With a colon in one of them, two deployments could have the same keys.
        namespace, release = _quoted(namespace), _quoted(release)
        self._marks = f"{namespace}:forgotten".encode()
        self._prefix = f"{namespace}:{release}:".encode()
        self._forgotten = forgotten
        self._logger = logger
        self._lock = threading.Lock()
        self._made_line: Line | None = None
        self._heard = _NOTHING
        self._untold: deque[Sequence[Mark] | None] = deque()

    def look(
        self, place: Registered, pull: Pull, visit: Visit
    ) -> tuple[ReadSet, bytes, Entry] | None:
        """An answer that some process made for a pull like this."""
        tried, heard = place.read_sets.for_lookup, self._heard
        names = [key(pull, place.name, read_set) for read_set in tried]

        def ask(pipe: Any) -> None:
            self._ask_for_marks(pipe, heard, count=_MARKS_AT_ONCE)
            pipe.zrevrange(self._reads_at(place), 0, _READ_SETS - 1)
            self._ask_for(pipe, names)

        reply = self._line.ask(ask, visit)
        # Without all that was forgotten nothing may be taken; `listen` will soon know it.
        marks = None if reply is None else _after(heard, read_stream(reply[0]))
        if reply is None or marks is None or len(marks) >= _MARKS_AT_ONCE - 1:
            return None
        self._hear(marks)
        if found := self._first(place, pull, tried, names, reply[2:]):
            return found
        told = [read_set for read_set in read_read_sets(reply[1]) if read_set not in tried]
        names = [key(pull, place.name, read_set) for read_set in told]
        reply = self._line.ask(lambda pipe: self._ask_for(pipe, names), visit) if told else None
        return self._first(place, pull, told, names, reply or ())

    def keep(self, place: Registered, names: ReadSet, entry: Entry, name: bytes) -> None:
        """Give an answer to the others, unless they have one of a run that began later."""
        value, now = write_entry(name, entry), time.monotonic()
        left_s = entry.fresh_s + entry.stale_s - (now - entry.made_at)
        began_ago_s = now - entry.began_at

        def ask(pipe: Any) -> None:
            pipe.eval(KEEP, 1, self._answer_at(name), value, _ms(left_s), began_ago_s)
            pipe.zadd(self._reads_at(place), {write_read_set(names): time.time()})
            pipe.zremrangebyrank(self._reads_at(place), 0, -_READ_SETS - 1)
            pipe.expire(self._reads_at(place), _READ_SETS_KEPT_S)

        self._line.ask(ask, Visit())

    def drop(self, name: bytes) -> None:
        """Take an answer from the others, because there is no data any more."""
        self._line.ask(lambda pipe: pipe.delete(self._answer_at(name)), Visit())

    def read_sets(self, place: Registered) -> list[ReadSet]:
        """What runs of a handler were seen to read, anywhere, the latest first."""
        at = self._reads_at(place)
        reply = self._line.ask(lambda pipe: pipe.zrevrange(at, 0, _READ_SETS - 1), Visit())
        return read_read_sets(reply and reply[0])

    def lease(self, name: bytes, seconds: float, visit: Visit) -> bytes | None:
        """A token for the right to make an answer; None while another process has it.

        Without Redis everyone has it. It ends by itself if its process does.
        """
        at, token = self._lease_at(name), secrets.token_bytes(8)
        reply = self._line.ask(lambda pipe: pipe.set(at, token, nx=True, px=_ms(seconds)), visit)
        return None if reply is not None and reply[0] is None else token

    def release(self, name: bytes, token: bytes) -> None:
        """Give the right back, unless it ended and another process has it by now."""
        at = self._lease_at(name)
        self._line.ask(lambda pipe: pipe.eval(_RELEASE, 1, at, token), Visit())

    def wait_for_other(
        self, place: Registered, pull: Pull, name: bytes, until: float
    ) -> tuple[ReadSet, bytes, Entry] | None:
        """What the process that has the lease makes; None where it ended without."""
        at, began = self._lease_at(name), time.monotonic()
        while (now := time.monotonic()) < until:
            time.sleep(min(_POLL_S + (now - began) / 8, _LONGEST_POLL_S, until - now))
            held = self._line.ask(lambda pipe: pipe.exists(at), Visit())
            if held is None or held[0] != 1:
                break
        return self.look(place, pull, Visit())

    def forget(self, marks: Sequence[Mark]) -> None:
        """Make answers unreachable, here at once and in every process as soon as it hears."""
        self._forgotten.add(marks)
        reply = self._line.ask(lambda pipe: self._tell(pipe, marks), Visit())
        at = read_position(reply[0]) if reply else None
        if at is not None:
            self._forgotten.add(marks, at=at)
        else:
            if len(self._untold) >= _UNTOLD:
                self._untold.clear()
                self._untold.append(None)  # too many to keep: tell them to forget everything
            else:
                self._untold.append(marks)
            self._logger.error(
                "Redis is away: until it is back, other processes keep what was to be forgotten"
            )

    def listen(self) -> None:
        """Hear once of what other processes forgot, and tell them what they could not be told."""
        line, heard = self._line, self._heard  # a run may hear more while this asks
        marks = self._marks_since(heard, line)
        if marks == [] and heard == _NOTHING:
            # So that there is something to hear of, and to miss where Redis is emptied.
            line.check(lambda pipe: self._tell(pipe, []))
            marks = self._marks_since(heard, line)
        if marks is not None:
            before = self._forgotten.at
            if len(marks) >= _MARKS and (oldest := read_position(marks[0][0])):
                self._forgotten.add(None, at=oldest)  # what came before is not kept any more
                heard = _NOTHING
            new = _after(heard, marks)
            self._hear(marks if new is None else new)
            if new is None and not _forgets_all(marks, after=before):
                self._forget_all(line)
            self._tell_late(line)

    def _marks_since(self, heard: Position, line: Line) -> list[tuple[object, object]] | None:
        reply = line.check(lambda pipe: self._ask_for_marks(pipe, heard))
        return None if reply is None else read_stream(reply[0])

    def _forget_all(self, line: Line) -> None:
        """Forget everything, here and in all processes: nobody knows what was lost in Redis."""
        self._forgotten.add(None)
        at = None
        # Its clock may have gone back, and positions must not.
        for position in ("*", write_position(self._forgotten.at)):
            reply = line.check(partial(self._tell, marks=None, at=position))
            if reply is None:
                return
            at = read_position(reply[0])
            if at is None or at >= self._forgotten.at:
                break
        if at is not None:
            self._forgotten.add(None, at=at)
        self._heard = at or _NOTHING

    def _tell_late(self, line: Line) -> None:
        while self._untold:
            reply = line.check(lambda pipe: self._tell(pipe, self._untold[0]))
            if reply is None or read_position(reply[0]) is None:
                return
            self._untold.popleft()

    @property
    def _line(self) -> Line:
        if self._made_line is None:
            with self._lock:
                if self._made_line is None:
                    line = Line(self._url, self._logger)
                    threading.Thread(
                        target=_listen,
                        args=[weakref.ref(self), line],
                        name="prefetch_kit",
                        daemon=True,
                    ).start()
                    self._made_line = line
        return self._made_line

    def _hear(self, marks: Iterable[tuple[object, object]]) -> None:
        for raw_id, fields in marks:
            at = read_position(raw_id)
            if at is not None and at > self._heard:
                if (said := read_marks(fields)) != []:
                    self._forgotten.add(said, at=at)
                self._heard = at

    def _ask_for_marks(self, pipe: Any, heard: Position, *, count: int | None = None) -> None:
        """Ask for what was forgotten since, and for the last one heard of: is it there still?"""
        pipe.xread({self._marks: write_position(_before(heard))}, count=count)

    def _tell(self, pipe: Any, marks: Sequence[Mark] | None, *, at: str = "*") -> None:
        pipe.xadd(self._marks, write_marks(marks), id=at, maxlen=_MARKS, approximate=True)

    def _first(
        self,
        place: Registered,
        pull: Pull,
        tried: Iterable[ReadSet],
        names: Sequence[bytes],
        replies: Sequence[Any],
    ) -> tuple[ReadSet, bytes, Entry] | None:
        values = zip(tried, names, replies[::2], replies[1::2], strict=False)
        for read_set, name, left_ms, value in values:
            entry = read_entry(name, value, left_ms, place, pull, read_set)
            if entry is not None and not self._forgotten.has(entry):
                return read_set, name, entry
        return None

    def _ask_for(self, pipe: Any, names: Iterable[bytes]) -> None:
        for name in names:
            # The time first: of an answer that is replaced in between, it may be too little.
            pipe.pttl(self._answer_at(name))
            pipe.get(self._answer_at(name))

    def _answer_at(self, name: bytes) -> bytes:
        return self._prefix + b"answer:" + _short(name)

    def _lease_at(self, name: bytes) -> bytes:
        return self._prefix + b"run:" + _short(name)

    def _reads_at(self, place: Registered) -> bytes:
        return self._prefix + b"reads:" + _short(place.name)


def _listen(tier: "weakref.ref[SharedTier]", line: Line) -> None:
    while (found := tier()) is not None:
        try:
            found.listen()
        except Exception:  # noqa: BLE001 (without it nobody would hear of a `forget` any more)
            traceback.print_exc(chain=False)
        del found
        line.rest()


def _before(position: Position) -> Position:
    first, second = position
    if second:
        return first, second - 1
    return (first - 1, 2**64 - 1) if first else _NOTHING


def _after(
    heard: Position, marks: list[tuple[object, object]] | None
) -> list[tuple[object, object]] | None:
    """What follows on the last one heard of; None where that is gone, and maybe others with it."""
    if heard == _NOTHING or marks is None:
        return marks
    return marks[1:] if marks and read_position(marks[0][0]) == heard else None


def _forgets_all(marks: Iterable[tuple[object, object]], *, after: Position) -> bool:
    told = ((read_position(raw_id), read_marks(fields)) for raw_id, fields in marks)
    return any(at is not None and at > after and said is None for at, said in told)


def _quoted(name: str) -> str:
    return quote(name, safe="/", errors="surrogatepass")


def _short(name: bytes) -> bytes:
    return blake2b(name, digest_size=16).digest()


def _ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))
