"""Which mini programs of a list a command is for."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prefetch_kit.errors import ListRefused, NotListed
from prefetch_kit.fleet.app_list import Listed, read_list
from prefetch_kit.fleet.targets import Targets
from prefetch_kit.quoting import harmless
from prefetch_kit.weixin.authorizations import WRITTEN_APPID

_LISTS: Final = (".csv", ".jsonl")


@dataclass(frozen=True, slots=True)
class Selection:
    """Those named in `only`, or all where that is None, without those in `exclude`."""

    only: frozenset[str] | None = None
    exclude: frozenset[str] = frozenset()

    @property
    def is_all(self) -> bool:
        return self.only is None and not self.exclude

    def reduce(self, targets: Targets, source: str) -> None:
        """Take all others out of the targets, which came from `source`.

        Raises `NotListed` for a name that is not among them: it may be mistyped, and then another
        app would be set, or not left out.
        """
        if self.is_all:
            return
        named = (self.only or frozenset()) | self.exclude
        if unknown := sorted(appid for appid in named if appid not in targets):
            raise NotListed(unknown, source)
        for appid, _ in targets:
            if appid in self.exclude or (self.only is not None and appid not in self.only):
                targets.drop(appid)
        if not len(targets):
            raise ListRefused(source, ["--only and --exclude leave no mini program"])


EVERY_APP: Final = Selection()


def read_names(values: Iterable[str]) -> frozenset[str]:
    """The appids that these values name: each is an appid, or a file that lists some.

    A file is a list of mini programs (.csv, .jsonl), or has appids with white space between them.
    Raises `ListRefused`.
    """
    return frozenset(appid for value in values for appid in _read(value))


def _read(value: str) -> Iterator[str]:
    path = Path(value)
    if not path.is_file() and WRITTEN_APPID.match(value):
        yield value
        return
    is_list = path.suffix in _LISTS
    count = 0
    for where, cells in read_list(path) if is_list else _names(path):
        appid = "" if isinstance(cells, str) else cells.get("appid", "")
        if not WRITTEN_APPID.match(appid):
            problem = cells if isinstance(cells, str) else "it is no appid"
            raise ListRefused(harmless(value), [f"{where}: {problem}"])
        count += 1
        yield appid
    if not count:
        raise ListRefused(harmless(value), ["it names no mini program"])


def _names(path: Path) -> Iterator[Listed]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        problem = f"it is neither an appid nor a file that can be read ({error.strerror})"
        raise ListRefused(harmless(path), [problem]) from error
    except ValueError:  # no text, or a NUL in the name
        raise ListRefused(harmless(path), ["it is not UTF-8 text"]) from None
    return ((f"name {number}", {"appid": name}) for number, name in enumerate(text.split(), 1))
