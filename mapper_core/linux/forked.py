"""Processes that are forks of this one, for system calls that only a process of its own can make or wait for.

They run a few lines of Python and end by ``os._exit``. They must not hold what this process holds: a descriptor of a lock or
a device that they keep open would outlive this process when that is killed.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from typing import NoReturn


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


def answer_within(work: Callable[[], bytes], seconds: float) -> bytes | None:
    """Let a process that belongs to nobody do what may have to wait for ever, and wait for its answer.

    When the time is over it is given up and not ended: it goes on, and ends when it can.

    :param work: what is done in that process, which has nothing open, and :file:`/dev/null` as its standard streams.
    :returns: its answer, empty when it raised something; ``None`` when it is late.
    """
    answers, answer_to = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            child = fork()
            if child == 0:
                _leave(work, answer_to)
        finally:
            os.close(answer_to)
        os.waitpid(child, 0)  # it has only made the process that works, so that nobody has to wait for that one
        return _read_within(answers, seconds)
    finally:
        os.close(answers)


def _read_within(answers: int, seconds: float) -> bytes | None:
    """All that is written until the other end is closed; ``None`` when that is not in time."""
    until, answer = time.monotonic() + seconds, b""
    poll = select.poll()
    poll.register(answers, select.POLLIN)
    while True:
        left = until - time.monotonic()
        if not poll.poll(max(0, int(left * 1000))):
            if left <= 0:
                return None
        elif piece := os.read(answers, 1 << 16):
            answer += piece
        else:
            return answer


def _leave(work: Callable[[], bytes], answer_to: int) -> NoReturn:
    """Make a process that belongs to nobody, and be gone."""
    try:
        if fork() == 0:
            # neither a lock, which would be held as long as it waits, nor this program's output, for whose end somebody may wait
            close_all_but(answer_to)
            for number in {0, 1, 2} - {answer_to}:
                _open_as(number)
            os.setsid()
            for caught in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(caught, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())  # who wants to end it, can
            os.write(answer_to, work())
    finally:
        os._exit(0)


def _open_as(number: int) -> None:
    """Make a standard stream of nothing: no other descriptor must get its number."""
    nothing = os.open(os.devnull, os.O_RDWR)
    if nothing != number:
        os.dup2(nothing, number)
        os.close(nothing)
