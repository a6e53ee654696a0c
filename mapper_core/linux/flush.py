"""Flush a block device whose storage may have gone away: a network, a cluster.

fsync(2) then waits for ever, in a state in which not even SIGKILL ends it. So a process of its own waits: it is given up after
its time and ends when the storage is back, or fails.
"""

from __future__ import annotations

import os

from mapper_core.errors import DeadlineExceeded
from mapper_core.linux import forked


def flush_within(device: str, seconds: float) -> bool:
    """Make sure that all that was written to a device is stored.

    :param seconds: how long to wait.
    :returns: whether it is; ``False`` when the device is gone or its storage reports errors.
    :raises DeadlineExceeded: the storage does not answer. The device is as it was.
    """
    answer = forked.answer_within(lambda: _flush(device), seconds)
    if answer is None:
        raise DeadlineExceeded(
            f"the storage of {device} has not answered within {seconds:g} s; the device is as it was",
            subject=device,
            hint="try again when the storage is back",
        )
    return answer == b"+"


def _flush(device: str) -> bytes:
    try:
        fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)  # before the answer: whoever gets that takes the device away
    except OSError:
        return b"-"
    return b"+"
