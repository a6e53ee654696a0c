"""Flush a block device whose storage may have gone away: a network, a cluster.

fsync(2) then waits for ever, in a state in which not even SIGKILL ends it. So a process of its own waits: it is given up after
its time and ends when the storage is back, or fails.
"""

from __future__ import annotations

import os
import select
import signal
import time

from mapper_core.errors import DeadlineExceeded
from mapper_core.linux import forked


def flush_within(device: str, seconds: float) -> bool:
    """Make sure that all that was written to a device is stored.

    :param seconds: how long to wait.
    :returns: whether it is; ``False`` when the device is gone or its storage reports errors.
    :raises DeadlineExceeded: the storage does not answer. The device is as it was.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        child = forked.fork()
        if child == 0:
            _be_the_child(device, writer)
        os.waitpid(child, 0)  # it has only made the process that waits, so that nobody has to wait for that one
        os.close(writer)
        writer = -1
        answer = _read_within(reader, seconds)
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
    if answer is None:
        raise DeadlineExceeded(
            f"the storage of {device} has not answered within {seconds:g} s; the device is as it was",
            subject=device,
            hint="try again when the storage is back",
        )
    return answer == b"+"


def _read_within(reader: int, seconds: float) -> bytes | None:
    """The answer; ``None`` when there is none in time."""
    until = time.monotonic() + seconds
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    while not poll.poll(max(0, int((until - time.monotonic()) * 1000))):
        if time.monotonic() >= until:
            return None
    return os.read(reader, 1)


def _be_the_child(device: str, writer: int) -> None:
    """Make a process that belongs to nobody, and be gone; never returns.

    It keeps nothing open: neither a lock, which would be held as long as it waits, nor the output of this program, for whose end
    somebody may be waiting.
    """
    try:
        if forked.fork() == 0:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())  # who wants to end it, can
            os.setsid()
            forked.close_all_but(writer)
            os.write(writer, _flush(device))
    finally:
        os._exit(0)


def _flush(device: str) -> bytes:
    try:
        fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        os.fsync(fd)
    except OSError:
        return b"-"
    return b"+"
