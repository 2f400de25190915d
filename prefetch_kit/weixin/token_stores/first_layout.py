"""Records in the layout of the first version: one JSON file each, with a lock file beside it.

`STATE/<wechat>/<account>/<name>.json`. Processes of that version still write there while a new
version is rolled out, so the files are read, never changed, and locked as those processes do.
"""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import reduce
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import quote

from prefetch_kit.addresses import first_layout_names
from prefetch_kit.concurrency.file_ranges import hold_file
from prefetch_kit.concurrency.owned_files import check_file
from prefetch_kit.errors import TokenSourceError
from prefetch_kit.weixin.token_stores.records import Codec, lock_held, unusable

_MAX_BYTES: Final = 8192

_T = TypeVar("_T")


class FirstLayout:
    """The old files of one record, in the directory of this WeChat and of its other hosts."""

    def __init__(self, directory: Path, account: str, name: str) -> None:
        file = Path(quote(account, safe=""), f"{name}.json")
        names = first_layout_names(directory.name)
        self._paths = [directory.with_name(each) / file for each in names]

    def load(self, codec: Codec[_T]) -> _T | None:
        """The record in these files, None without one. Raises TokenSourceError."""
        read = (_read(path, codec) for path in self._paths)
        found = [record for record in read if record is not None]
        return reduce(codec.merge, found) if found else None

    @contextmanager
    def lock(self, *, wait_s: float) -> Iterator[None]:
        """Hold the locks of those files that exist. Raises TokenSourceError."""
        with ExitStack() as held:
            for path in self._paths:
                if os.path.lexists(path):
                    _lock(path, wait_s, held)
            yield


def _lock(path: Path, wait_s: float, held: ExitStack) -> None:
    lock = path.with_name(f"{path.name}.lock")
    try:
        held.enter_context(hold_file(lock, ends_at=time.monotonic() + wait_s))
    except TimeoutError:
        problem = lock_held(str(path), wait_s)
    except OSError as error:
        problem = unusable(TokenSourceError, lock, error)
    else:
        return
    raise problem


def _read(path: Path, codec: Codec[_T]) -> _T | None:
    try:
        with open(path, "rb", opener=_open_plain_file) as file:
            check_file(path, os.fstat(file.fileno()), secret=True)
            return codec.read(file.read(_MAX_BYTES))
    except FileNotFoundError:
        return None
    except OSError as error:
        problem = unusable(TokenSourceError, path, error)
    raise problem


def _open_plain_file(path: str, flags: int) -> int:
    # O_NONBLOCK: a pipe with the file's name must not block.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
