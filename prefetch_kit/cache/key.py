"""Under which key an answer is kept: a digest of exactly the inputs that its run read."""

from hashlib import blake2b
from typing import Final, Protocol

from prefetch_kit.cache.read_sets import USER_ID, ReadSet

_KEY_BYTES: Final = 24
# Twice as many as a handler has read sets to look up, and only short ones.
_MAX_PREFIXES: Final = 16
_MAX_PREFIX_CHARS: Final = 256


class Asked(Protocol):
    """What a request asks for. All requests that ask for the same may share one object."""

    @property
    def appid(self) -> str: ...

    @property
    def names(self) -> ReadSet:
        """All inputs but the user and the time."""

    @property
    def key_prefixes(self) -> dict[tuple[bytes, ReadSet], bytes]:
        """A memo of this module: the part of a key that does not depend on the user."""

    def encoded(self, name: str) -> bytes:
        """One input, but for the user, as bytes that say its type and length."""


class Request(Protocol):
    """What the cache needs to know of a request."""

    @property
    def asked(self) -> Asked: ...

    def user_id(self) -> str | None:
        """The user that the request proves; the same at every call."""

    def digest_of_credentials(self) -> bytes:
        """A digest of what the request says of its user, proved or not."""


def answer_key(request: Request, scope: bytes, names: ReadSet) -> bytes:
    """The key of an answer that depends on these inputs of the request, and on no other.

    Every part says its type and length, so that no two sets of inputs are written alike. The
    user comes last and is proved only if `names` has it: all the rest is the same for all
    requests that ask for the same.
    """
    asked = request.asked
    prefix = asked.key_prefixes.get((scope, names))
    if prefix is None:
        prefix = _prefix(asked, scope, names)
    return prefix + _user(request.user_id()) if USER_ID in names else prefix


def _prefix(asked: Asked, scope: bytes, names: ReadSet) -> bytes:
    parts = [encoded(name) for name in names]
    parts += [asked.encoded(name) for name in names if name != USER_ID]
    prefix = _digest(scope, encoded(asked.appid), *parts)
    if sum(map(len, names)) <= _MAX_PREFIX_CHARS:
        if len(asked.key_prefixes) >= _MAX_PREFIXES:
            asked.key_prefixes.clear()
        asked.key_prefixes[scope, names] = prefix
    return prefix


def exact_key(request: Request, scope: bytes) -> bytes:
    """A key that a request shares with those alike in everything but the timestamp."""
    return _digest(answer_key(request, scope, request.asked.names), request.digest_of_credentials())


def _digest(*parts: bytes) -> bytes:
    return blake2b(b"".join(parts), digest_size=_KEY_BYTES).digest()


def _user(user_id: str | None) -> bytes:
    # Without its length, since nothing follows.
    return b"-" if user_id is None else b"s" + user_id.encode(errors="surrogatepass")


def encoded(value: str | int | None) -> bytes:
    """A value as bytes that say its type and length."""
    if value is None:
        return b"-"
    raw = str(value).encode(errors="surrogatepass")  # a verifier's user id may hold anything
    return b"%c%d:%b" % (b"i" if isinstance(value, int) else b"s", len(raw), raw)


def encoded_list(values: list[str]) -> bytes:
    return b"l%d:%b" % (len(values), b"".join(map(encoded, values)))
