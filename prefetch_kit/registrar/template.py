"""A URL with gaps: the appid and whatever else differs from mini program to mini program."""

import re
from collections.abc import Mapping
from string import Formatter
from typing import Final

from prefetch_kit.addresses import public_url_problem

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
# Nothing that could end a host name or a path: what fills a gap stays in it.
_FILLING: Final = re.compile(r"[A-Za-z0-9._~-]+\Z")


class _Any(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return "x"


class Template:
    """`https://shop.example/p/{appid}/pre_fetch`. Raises ValueError for what is none."""

    def __init__(self, text: str) -> None:
        try:
            parts = list(Formatter().parse(text))
        except ValueError:
            raise ValueError("has a brace without its other one") from None
        for _, name, spec, conversion in parts:
            if name is not None and (spec or conversion or not _NAME.match(name)):
                raise ValueError("has a placeholder that is not a plain {name}")
        self.text = text
        self.names = frozenset(name for _, name, _, _ in parts if name is not None)
        self._is_whole = [part[:2] for part in parts] == [("", next(iter(self.names), None))]

    def problem(self) -> tuple[str, str] | None:
        """Why WeChat could pull no URL made of this, and the remedy, as far as can be told."""
        return None if self._is_whole else public_url_problem(self.fill(_Any()) or "")

    def fill(self, cells: Mapping[str, str]) -> str | None:
        """The URL; None where a cell is empty, which says that there is none for this app.

        A template that is one placeholder takes whole URLs; elsewhere a cell is of letters,
        digits and `._~-`. Raises ValueError, KeyError for a cell that is missing.
        """
        values = {name: cells[name] for name in self.names}
        if not all(values.values()):
            return None
        for name, value in values.items():
            if not self._is_whole and (not _FILLING.match(value) or value in (".", "..")):
                raise ValueError(f"{name} is not made of letters, digits and ._~- only")
        return self.text.format_map(values)
