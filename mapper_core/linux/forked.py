"""Processes that are forks of this one, for system calls that only a process of its own can make or wait for.

They run a few lines of Python and end by ``os._exit``. They must not hold what this process holds: a descriptor of a lock or
a device that they keep open would outlive this process when that is killed.
"""

from __future__ import annotations

import os
import signal


def fork() -> int:
    """As :func:`os.fork`; no handler of Python's ever runs in the child."""
    old = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    pid = -1
    try:
        pid = os.fork()
        return pid
    finally:
        if pid != 0:
            signal.pthread_sigmask(signal.SIG_SETMASK, old)


def close_all_but(*kept: int) -> None:
    """Close every descriptor but these."""
    start = 0
    for fd in sorted(kept):
        os.closerange(start, fd)
        start = fd + 1
    os.closerange(start, os.sysconf("SC_OPEN_MAX"))
