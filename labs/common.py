"""What the labs that run daemons share. Only the standard library of /usr/bin/python3 (3.11) is used."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping

SUN_PATH_MAX = 107  # sizeof(sockaddr_un.sun_path) - 1, unix(7)
NOT_RUNNING = 3  # LSB: "program is not running"


class LabError(Exception):
    """Is raised when a lab cannot do what was asked."""


def run(*argv: str, seconds: float = 30.0, env: Mapping[str, str] | None = None) -> None:
    """Run a program; its error output becomes the exception.

    :param env: its environment; ours by default.
    """
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=seconds, check=False, stdin=subprocess.DEVNULL, env=env
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{shlex.join(argv)}: not done after {seconds:.0f} s") from error
    if done.returncode != 0:
        raise LabError(f"{shlex.join(argv)}: {done.stderr.strip() or done.returncode}")


def end(pidfd: int, number: signal.Signals, seconds: float) -> bool:
    """Send a signal to any process, not only to a child, and wait for its end.

    :param pidfd: from pidfd_open(2); unlike a number it never comes to mean another process.
    :return: whether it has ended.
    """
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)
    return bool(select.select([pidfd], [], [], seconds)[0])


@contextlib.contextmanager
def locked(directory: str) -> Iterator[None]:
    """One command at a time for one lab. The lock is the parent directory, which leaves no file behind."""
    parent = os.path.dirname(directory)
    while True:
        os.makedirs(parent, mode=0o711, exist_ok=True)
        try:
            fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # the last lab in it has just been taken down
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.path.isdir(parent) and os.path.samestat(os.fstat(fd), os.stat(parent)):
                yield
                return
        finally:
            os.close(fd)


def ignore_interrupts() -> None:
    """From here on ^C and SIGTERM wait: cleaning up is not to be interrupted."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
