"""The lock that no fork finds held: it is free in the child whatever happens there."""

import os
import subprocess
import sys

PROGRAM = """
import os
from prefetch_kit.concurrency.fork_lock import ForkLock

def fail():
    raise ValueError("the child could not put it away")

lock = ForkLock(fail)
if not (child := os.fork()):
    with lock:
        os._exit(7)
with lock:
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_it_is_free_in_a_child_that_failed() -> None:
    """Python prints what failed there, and goes on; so must the child."""
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(
        command, env=dict(os.environ), capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "7\n"
    assert "could not put it away" in done.stderr
