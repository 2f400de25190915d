"""Thousands of mini programs against a slow WeChat: P8."""

import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import local
from typing import Any, Final

import requests

from benchmarks.report import Goal, Table
from benchmarks.timing import Measure, Sample, interleaved
from benchmarks.wechat import played, wanted_url
from prefetch_kit.fleet.project import load_project
from prefetch_kit.fleet.results import Result
from prefetch_kit.fleet.run import Begun, Fleet, Limits
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.settings import SettingsApi
from prefetch_kit.weixin.tokens import StaticToken
from prefetch_kit.weixin.transport import Transport

ANSWER_S: Final = 0.1
WORKERS: Final = 32
FEW: Final = 1_000
MANY: Final = 100_000
_CALLS: Final = 3  # get, set, get
_MB: Final = 1e6

_KIT = "kit, 32 threads"
_CONVERGED = "kit, 32 threads, nothing to do"
_FEW_ROW = f"kit, {FEW:,} apps"
_MANY_ROW = f"kit, {MANY:,} apps"
_TOML = """
api_base_url = "{base_url}"
[apps]
list = "apps.csv"
[urls]
pre_fetch = "https://shop.example/p/{{appid}}/pre_fetch"
[tokens]
command = ["nobody-asks", "{{appid}}"]
"""


class Quiet:
    """A report that discards everything."""

    def begun(self, begun: Begun) -> None: ...

    def stopping(self) -> None: ...

    def listed(self, merchants: int, total: int) -> None: ...

    def app(self, result: Result) -> None: ...


class CountedTransport(Transport):
    """Counts its calls."""

    def __init__(self, base_url: str) -> None:
        super().__init__(base_url=base_url)
        self._numbers = count(1)
        self.calls = 0

    def call(self, *args: Any, **kwargs: Any) -> dict[str, object]:
        answer = super().call(*args, **kwargs)
        self.calls = next(self._numbers)
        return answer


@contextmanager
def fleet(base_url: str, appids: Iterable[str]) -> Iterator[tuple[Fleet, CountedTransport]]:
    """A fleet with ready tokens, and a counter of its calls."""
    with TemporaryDirectory() as folder, CountedTransport(base_url) as transport:
        with Path(folder, "apps.csv").open("w") as file:
            file.write("appid\n")
            file.writelines(f"{appid}\n" for appid in appids)
        Path(folder, "prefetch.toml").write_text(_TOML.format(base_url=base_url))

        def settings_of(appid: str) -> SettingsApi:
            return SettingsApi(transport, StaticToken(Secret(appid)), max_wait_s=0)

        project = load_project(Path(folder, "prefetch.toml"))
        yield Fleet(project, Quiet(), settings_of=settings_of), transport


class Apps:
    """Appids that were not used before."""

    def __init__(self) -> None:
        self._numbers = count()

    def new(self, number: int) -> list[str]:
        return [f"wx{next(self._numbers):07}" for _ in range(number)]


def run(*, rounds: int, seconds: float = 20) -> Iterator[Table]:
    apps, many = Apps(), round(seconds * WORKERS / ANSWER_S / _CALLS)
    with played(ANSWER_S) as url:
        settled = apps.new(many)
        _measure(url, settled)
        measures: dict[str, Measure | None] = {
            _KIT: lambda: _measure(url, apps.new(many)),
            _CONVERGED: lambda: _measure(url, settled),
            "requests in 32 threads, nothing checked": lambda: _threads(url, apps.new(many)),
            "requests in a loop": lambda: _loop(url, apps.new(max(1, many // WORKERS))),
        }
        goals = (
            Goal(name="P8", row=_KIT, figure="share_of_possible", at_least=0.9),
            Goal(name="P8", row=_CONVERGED, figure="calls_per_app", at_most=1, of=max),
        )
        note = f"{many} apps, an answer after {ANSWER_S * 1000:g} ms; one loop has one thread"
        yield Table("fleet", interleaved(measures, rounds=rounds), goals, note=note)
    with played(0) as url:
        samples = {
            row: [_memory(url, number) for _ in range(times)]
            for row, number, times in ((_FEW_ROW, FEW, 1), (_MANY_ROW, MANY, 1))
        }
    goals = (
        Goal(name="P8", row=_MANY_ROW, figure="most_mb", at_most=100),
        Goal(name="P8", row=_MANY_ROW, figure="most_mb", at_most=1.2, rival=_FEW_ROW),
    )
    note = "a tenth to be set, answers at once; the whole process's memory at its most"
    yield Table("fleet, memory", samples, goals, note=note)


def _measure(url: str, appids: list[str]) -> Sample:
    with fleet(url, appids) as (made, transport):
        started = time.perf_counter()
        summary = made.apply(Limits())
        seconds = time.perf_counter() - started
        if summary.exit_code:
            raise RuntimeError(f"not all were done: {summary.tally.groups()}")
        return _sample(transport.calls, len(appids), seconds, threads=WORKERS)


def _sample(calls: int, apps: int, seconds: float, *, threads: int) -> Sample:
    rate = calls / seconds
    return {
        "share_of_possible": rate * ANSWER_S / threads,
        "calls_per_s": rate,
        "calls_per_app": calls / apps,
    }


def _threads(url: str, appids: list[str]) -> Sample:
    kept = local()

    def register(appid: str) -> None:
        if not hasattr(kept, "session"):
            kept.session = requests.Session()
        _register(kept.session, url, appid)

    started = time.perf_counter()
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(register, appids))
    seconds = time.perf_counter() - started
    return _sample(_CALLS * len(appids), len(appids), seconds, threads=WORKERS)


def _loop(url: str, appids: list[str]) -> Sample:
    started = time.perf_counter()
    with requests.Session() as session:
        for appid in appids:
            _register(session, url, appid)
    seconds = time.perf_counter() - started
    return _sample(_CALLS * len(appids), len(appids), seconds, threads=1)


def _register(session: requests.Session, url: str, appid: str) -> None:
    address = f"{url}/wxa/fetchdatasetting?access_token={appid}"
    new = {"is_pre_fetch_open": True, "pre_fetch_type": 0, "pre_fetch_url": wanted_url(appid)}
    for body in ({"action": "get"}, {"action": "set_pre_fetch", **new}, {"action": "get"}):
        session.post(address, json=body, timeout=5).json()


def _memory(url: str, apps: int) -> Sample:
    """The memory of a fleet in a separate process."""
    command = [sys.executable, "-m", "benchmarks.fleet", url, str(apps)]
    said = subprocess.check_output(command, cwd=Path(__file__).parent.parent)
    sample: Sample = json.loads(said)
    return sample


def _whole(url: str, apps: int) -> Sample:
    with fleet(url, (f"done{number}" for number in range(apps))) as (made, transport):
        started = time.perf_counter()
        summary = made.apply(Limits())
        seconds = time.perf_counter() - started
    if summary.exit_code:
        raise RuntimeError(f"not all were done: {summary.tally.groups()}")
    return {
        "most_mb": _most_mb(),
        "apps_per_s": apps / seconds,
        "calls_per_app": transport.calls / apps,
    }


def _most_mb() -> float:
    """Not ru_maxrss, which begins with the memory of the parent at the fork."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / _MB


if __name__ == "__main__":
    print(json.dumps(_whole(sys.argv[1], int(sys.argv[2]))))
