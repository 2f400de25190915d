"""The settings of thousands of mini programs: `Fleet`, of a project that `load_project` reads.

The names load when they are first used, so that nobody loads an HTTP client without need.
"""

from typing import TYPE_CHECKING

from prefetch_kit.lazy_names import lazy_names

if TYPE_CHECKING:
    from prefetch_kit.fleet.project import Pace, Project, load_project
    from prefetch_kit.fleet.results import Group, Result, Tally
    from prefetch_kit.fleet.run import Begun, Fleet, Limits, Report
    from prefetch_kit.fleet.workers import Summary

__all__ = [
    "Begun",
    "Fleet",
    "Group",
    "Limits",
    "Pace",
    "Project",
    "Report",
    "Result",
    "Summary",
    "Tally",
    "load_project",
]

if not TYPE_CHECKING:  # where it is, a wrong name is an error
    __getattr__ = lazy_names(
        __name__,
        {
            "prefetch_kit.fleet.workers": ("Summary",),
            "prefetch_kit.fleet.run": ("Begun", "Fleet", "Limits", "Report"),
            "prefetch_kit.fleet.project": ("Pace", "Project", "load_project"),
            "prefetch_kit.fleet.results": ("Group", "Result", "Tally"),
        },
    )
