"""What is wanted of a pull, with gaps: the appid and whatever else differs from app to app."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Final

from prefetch_kit.addresses import BRACE
from prefetch_kit.errors import SourceRefused
from prefetch_kit.fetch_setting import FetchSetting, Kind
from prefetch_kit.quoting import harmless
from prefetch_kit.registrar.plan import OffIfFrom

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
# Nothing that could end a host name or a path: what fills a gap stays in it.
_FILLING: Final = re.compile(r"[A-Za-z0-9._~-]+\Z")


class Template:
    """`https://shop.example/p/{appid}/pre_fetch`, `cloud:{env}/login`, `off`, or `{column}`.

    Raises ValueError for what is no template, `SourceRefused` for one that can be filled with
    nothing that WeChat could be told.
    """

    def __init__(self, text: str) -> None:
        try:
            parts = list(Formatter().parse(text))
        except ValueError:
            raise ValueError("has a brace without its other one") from None
        for literal, name, spec, conversion in parts:
            if BRACE.search(literal):
                raise ValueError("has doubled or encoded braces, which nothing would fill")
            if name is not None and (spec or conversion or not _NAME.match(name)):
                raise ValueError("has a placeholder that is not a plain {name}")
        self._text = text
        self._names = frozenset(name for _, name, _, _ in parts if name is not None)
        self._is_whole = [part[:2] for part in parts] == [("", next(iter(self._names), None))]
        if not self._is_whole:
            FetchSetting.parse(text.format_map(defaultdict(lambda: "x")))

    @property
    def columns(self) -> frozenset[str]:
        """What differs from app to app beside the appid; without any it is never left out."""
        return self._names - {"appid"}

    def fill(self, cells: Mapping[str, str]) -> FetchSetting | None:
        """What a line of the list says; None where its cells are empty.

        A template that is one placeholder takes all that `FetchSetting.parse` reads; elsewhere a
        cell is of letters, digits and `._~-`. Raises ValueError and `SourceRefused`.
        """
        if absent := self._names - cells.keys():
            name = harmless(min(absent), among=cells)
            raise ValueError(f"there is no column {name}, which a placeholder names")
        values = {name: cells[name] for name in self._names}
        missing = sorted(name for name, value in values.items() if not value)
        if missing and (not self._text.startswith("cloud:") or self.columns <= set(missing)):
            return None
        if missing:
            raise ValueError(f"column {missing[0]} is empty, which the cloud function needs")
        for name, value in values.items():
            if not self._is_whole and (not _FILLING.match(value) or value in (".", "..")):
                raise ValueError(f"{name} is not made of letters, digits and ._~- only")
        try:
            return FetchSetting.parse(self._text.format_map(values))
        except SourceRefused as error:
            columns = ", ".join(sorted(self._names))
            raise error.of(f"column {columns}" if columns else "prefetch.toml") from None


@dataclass(frozen=True, slots=True)
class PullTemplate:
    """What prefetch.toml wants of one kind of pull: of its templates one is filled at most.

    With `is_off` the pull is only to be switched off where it comes from there.
    """

    templates: tuple[Template, ...]
    is_off: bool = False

    def fill(self, cells: Mapping[str, str]) -> FetchSetting | OffIfFrom | None:
        """What is wanted for one app; None where the pull is left alone. Raises as a template."""
        filled = [found for each in self.templates if (found := each.fill(cells)) is not None]
        if len(filled) > 1:
            columns = ", ".join(sorted(set().union(*(each.columns for each in self.templates))))
            raise ValueError(f"there are two sources at once (columns {columns})")
        if not filled:
            return None
        return OffIfFrom(filled[0]) if self.is_off and filled[0].source else filled[0]


# By kind; a kind that is missing is left alone.
PullTemplates = Mapping[Kind, PullTemplate]
