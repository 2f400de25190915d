"""The mini programs of a fleet: read from a list, or from the platform's merchants."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

from prefetch_kit.errors import (
    ConfigError,
    ListRefused,
    SourceRefused,
    TokenSourceError,
    WeixinError,
)
from prefetch_kit.fetch_setting import FetchSetting, Kind
from prefetch_kit.fleet.project import Project
from prefetch_kit.fleet.targets import Targets, wanted_text
from prefetch_kit.quoting import harmless
from prefetch_kit.registrar.plan import OffIfFrom
from prefetch_kit.weixin.authorizations import APPID_SHAPE, WRITTEN_APPID
from prefetch_kit.weixin.authorizers import Authorizers
from prefetch_kit.weixin.token_sources import source_of

_LONGEST_LINE: Final = 65_536
_SHOWN: Final = 10

# Where an app is named, and what is said of it, or what is wrong there.
Listed = tuple[str, Mapping[str, str] | str]
# Is told how many of the platform's merchants were read, and how many there are.
Shown = Callable[[int, int], object]


def fill_targets(
    project: Project,
    authorizers: Authorizers | None,
    targets: Targets,
    *,
    shown: Shown = lambda _read, _total: None,
) -> None:
    """Add what is wanted of each app's pulls.

    All of it is read and checked before anything is sent. Raises `ListRefused`, which names the
    lines, and what the platform's list raises.
    """
    if not project.pulls:
        raise ConfigError(
            f"{project.path}: [urls] pre_fetch",
            "is missing",
            remedy="Say where at least one kind of pull comes from, here or in [cloud.pre_fetch]",
        )
    if project.apps is not None:
        listed = read_list(project.apps)
    else:
        listed = ((appid, {"appid": appid}) for appid in merchants(authorizers, shown))
    problems: list[str] = []
    for where, cells in listed:
        problem = cells if isinstance(cells, str) else _add(project, cells, targets)
        if problem and len(problems) <= _SHOWN:
            problems.append(f"{where}: {problem}")
    if not problems and not len(targets):
        problems = ["it names no mini program"]
    if len(problems) > _SHOWN:
        problems[_SHOWN:] = ["and more"]
    if problems:
        raise ListRefused(source_of_apps(project), problems)


def recover_tokens(
    project: Project, authorizers: Authorizers | None, targets: Targets, *, shown: Shown
) -> None:
    """Have the refresh tokens of those apps that get their tokens through the platform."""
    if project.apps is not None and authorizers is not None:
        served = (appid for appid, _ in targets if source_of(project, appid) == "platform")
        # A merchant without a refresh token after that is asked for alone, and says what is wrong.
        with suppress(WeixinError, TokenSourceError):
            authorizers.recover(served, shown=shown)


def source_of_apps(project: Project) -> str:
    """Where the mini programs of a project are listed, in words."""
    return "the platform's list of merchants" if project.apps is None else harmless(project.apps)


def listed_appids(project: Project, authorizers: Authorizers | None, shown: Shown) -> set[str]:
    """All that are on the list now. Raises `ListRefused` where a line cannot be read."""
    if project.apps is None:
        return set(merchants(authorizers, shown))
    lines = list(read_list(project.apps))
    if problems := [f"{where}: {cells}" for where, cells in lines if isinstance(cells, str)]:
        raise ListRefused(harmless(project.apps), problems[:_SHOWN])
    return {cells.get("appid", "") for _, cells in lines if not isinstance(cells, str)}


def merchants(authorizers: Authorizers | None, shown: Shown) -> Iterator[str]:
    """The appids of all who authorized the platform. Raises `ConfigError` without a platform.

    The refresh token of each is kept first if it is missing here, so that it need not be asked for.
    """
    if authorizers is None:
        raise ConfigError(
            "component_appid",
            "is missing, so there is no list of merchants",
            remedy="Name the third-party platform",
        )
    read = 0
    for total, page in authorizers.listing.pages():
        read += len(page)
        shown(read, total)
        for merchant in page:
            authorizers.keep_missing(merchant)
            yield merchant.appid


def _add(project: Project, cells: Mapping[str, str], targets: Targets) -> str | None:
    """Add one app; what is wrong with it otherwise."""
    appid = cells.get("appid", "")
    shape = APPID_SHAPE if project.apps is None else WRITTEN_APPID
    if not shape.match(appid):
        return "it names no appid"
    if source_of(project, appid) is None:
        return f"there is no AppSecret for {harmless(appid)} where [tokens] app_secrets leads"
    wanted: dict[Kind, FetchSetting | OffIfFrom] = {}
    try:
        for kind, pull in project.pulls.items():
            if (filled := pull.fill(cells)) is not None:
                wanted[kind] = filled
    except SourceRefused as error:
        return f"{error.subject} {error.problem}"
    except ValueError as error:
        return str(error)
    is_new = targets.add(appid, wanted_text(wanted))
    # Merchants who authorize while the platform's list is read move others to the next page.
    return None if is_new or project.apps is None else f"{harmless(appid)} is there twice"


def read_list(path: Path) -> Iterator[Listed]:
    """Each line of a .csv or .jsonl list: its number, and its cells or what is wrong with it.

    The first line of CSV names the columns. Raises `ListRefused` for a file that is no list.
    """
    read = _read_csv if path.suffix == ".csv" else _read_jsonl
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from read(file)
    except OSError as error:
        raise ListRefused(harmless(path), [f"it cannot be read ({error.strerror})"]) from error
    except UnicodeDecodeError:
        raise ListRefused(harmless(path), ["it is not UTF-8 text"]) from None
    except ValueError:  # a NUL in it
        raise ListRefused(harmless(path), ["no file can have that name"]) from None
    except csv.Error as error:
        raise ListRefused(harmless(path), [f"it is not CSV ({error})"]) from None


def _lines(file: IO[str]) -> Iterator[str]:
    while line := file.readline(_LONGEST_LINE + len("\r\n")):
        if len(line.rstrip("\r\n")) > _LONGEST_LINE:
            raise csv.Error(f"a line is longer than {_LONGEST_LINE} characters")
        yield line


def _read_csv(file: IO[str]) -> Iterator[Listed]:
    reader = csv.reader(_lines(file), strict=True)
    columns = [name.strip() for name in next(reader, [])]
    if "appid" not in columns or len(set(columns)) != len(columns):
        yield "line 1", "it does not name each column once, appid among them"
        return
    for cells in reader:
        where = f"line {reader.line_num}"
        if len(cells) == len(columns):
            yield where, dict(zip(columns, map(str.strip, cells), strict=True))
        elif cells:
            yield where, f"it has {len(cells)} cells for {len(columns)} columns"


def _read_jsonl(file: IO[str]) -> Iterator[Listed]:
    for number, line in enumerate(_lines(file), start=1):
        if line.strip():
            yield f"line {number}", _object(line)


def _object(line: str) -> Mapping[str, str] | str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return "it is not JSON"
    if not isinstance(record, dict) or not all(isinstance(v, str | None) for v in record.values()):
        return "it is no object of strings"
    return {name: (value or "").strip() for name, value in record.items()}
