"""Measure the kit and what people would use instead."""

import argparse
import json
import signal
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Final

from benchmarks.report import Table, machine, show

# The name on the command line, and the module; a module cannot be named `import`.
_MODULES: Final = {
    "pull": "pull",
    "encode": "encode",
    "stampede": "stampede",
    "scale": "scale",
    "memory": "memory",
    "workers": "workers",
    "import": "imports",
    "server": "server",
    "fleet": "fleet",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("benchmark", nargs="*", help=f"of {', '.join(_MODULES)}; else all of them")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each row")
    parser.add_argument(
        "--seconds", type=float, help="the length of one measurement, or of the handler in stampede"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.benchmark) - set(_MODULES):
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    how = {"rounds": arguments.rounds}
    if arguments.seconds is not None:
        how["seconds"] = arguments.seconds
    # Its servers end with it in any case.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    described = machine()
    rows = []
    for name in arguments.benchmark or _MODULES:
        run: Callable[..., Iterable[Table]] = import_module(f"benchmarks.{_MODULES[name]}").run
        for table in run(**how):
            show(table)
            rows += table.rows()
    if arguments.json:
        print(json.dumps({"machine": described, "rounds": arguments.rounds, "rows": rows}))


if __name__ == "__main__":
    main()
