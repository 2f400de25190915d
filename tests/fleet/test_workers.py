"""The threads of a fleet, and Ctrl-C while they work."""

import _thread
import threading
import time

from prefetch_kit.fetch_setting import FetchSetting, FetchSettings
from prefetch_kit.fleet.results import Result
from prefetch_kit.fleet.schedule import Schedule, Task
from prefetch_kit.fleet.workers import Workers
from prefetch_kit.registrar.plan import Plan

NOTHING = FetchSettings(FetchSetting(), FetchSetting())


def test_ctrl_c_waits_for_the_slowest_app() -> None:
    """Also where the interrupt comes while that very thread is waited for."""
    reports: list[Result] = []
    others_are_done = threading.Event()

    def work(task: Task) -> Plan:
        if task.appid == "wx1":
            assert others_are_done.wait(30)
            time.sleep(0.2)  # by now the other thread has ended, and this one is waited for
            _thread.interrupt_main()
            time.sleep(0.3)
        return Plan(task.appid, NOTHING, ())

    def report(result: Result) -> None:
        reports.append(result)
        if result.appid == "wx2":
            others_are_done.set()

    schedule = Schedule(
        [("wx1", ""), ("wx2", "")],
        total=2,
        canary=0,
        stop_at=1.0,
        stopping=threading.Event(),
    )
    summary = Workers(
        schedule, work, report, stopping=lambda: None, sent=False, skips_others=False
    ).run(2, apps=2)
    assert summary.stopped_because == "interrupted"
    assert {result.appid for result in reports} == {"wx1", "wx2"}
    assert summary.tally["done"] == 2
