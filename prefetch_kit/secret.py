"""A value that may be used but never shown."""

import hmac
from typing import NoReturn, Self


class Secret:
    """Holds a secret string and hides it in every textual form.

    `repr`, `str`, formatting and interpolation print `Secret(***)`; pickling and JSON encoding
    refuse. `reveal()` is the only way to the value: call it inside the expression that sends the
    value, so that no local variable of a traceback holds it.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        if not value:
            raise ValueError("a secret cannot be empty")
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        # surrogatepass: an encoding error would quote the value.
        ours, theirs = (s._value.encode(errors="surrogatepass") for s in (self, other))
        return hmac.compare_digest(ours, theirs)

    def __hash__(self) -> int:
        return hash(self._value)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Secret cannot be pickled")
