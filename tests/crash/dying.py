"""``mapper-driver`` in a process that dies at a certain moment: ``python -m tests.crash.dying`` instead of it.

``CRASH_MOMENT`` is the number of the moment (negative: none, and all are told), ``CRASH_HELPERS`` the directory by which those are
known that die with it (empty: nobody), and the file ``CRASH_REPORT`` says where it died.
"""

from __future__ import annotations

import os
import sys

from .points import Victim


def is_step(point: str) -> bool:
    """The core's own small steps are gone through elsewhere (test_core.py): of writing a record only what makes it valid counts."""
    place, _, what = point.partition(": ")
    if what == "fsync" or place.endswith(("open_lock", "locks.remove", "sync_directory", "_remove_if_left")):
        return False
    return not place.endswith(".write_json") or what == "rename"


def main() -> int:
    report = os.environ["CRASH_REPORT"]
    append = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    write = os.write
    victim = Victim(
        int(os.environ["CRASH_MOMENT"]),
        os.environ["CRASH_HELPERS"],
        lambda text: write(append, text.encode()),
        is_step,
        only_own=True,
    )
    victim.arm()
    from mapper_driver.main import main as driver

    return driver(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
