"""Cleans up after a demo that was killed by SIGKILL, and can do nothing itself any more.

It waits for the end of a pipe whose other end only the demo has, in a session of its own, so that ^C and a closed terminal
don't reach it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time

from cleanup import clean_up
from commands import Commands
from console import Console
from place import DemoError, Place

_DISMISSED = b"dismissed\n"


class Watchdog:
    """The watchdog, as the demo sees it."""

    def __init__(self, place: Place, lock_fd: int) -> None:
        """Start it.

        :param lock_fd: the lock of the directory; it is shared, so that no other demo begins there before both have ended.
        """
        self._process = subprocess.Popen(
            [sys.executable, __file__, place.dir, str(lock_fd)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            # a pipe would not end before the watchdog does
            stderr=None if os.isatty(2) else subprocess.DEVNULL,
            pass_fds=(lock_fd,),
            start_new_session=True,
            cwd="/",
        )

    def dismiss(self) -> None:
        """End it without a clean-up."""
        with contextlib.suppress(OSError):
            self._process.communicate(_DISMISSED, timeout=10)


def main() -> int:
    """Wait, and clean up when the demo has died."""
    place, lock_fd = Place(sys.argv[1]), int(sys.argv[2])
    if sys.stdin.buffer.read() == _DISMISSED or not place.owns(lock_fd):
        return 0
    began = time.monotonic()
    with open(f"{place.dir}/watchdog.log", "a", encoding="utf-8") as log:
        try:
            clean_up(place, Commands(place, Console(log, verbose=True)))
            place.remove()
        except DemoError as error:
            log.write(f"{error}\n")
            _tell(f"the demo was killed, and not everything could be cleaned up: {error}\nTry: scripts/demo --down")
            return 1
    _tell(f"the demo was killed; its daemon, disks and files are gone ({time.monotonic() - began:.1f} s)")
    return 0


def _tell(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(f"\ndemo: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
