"""Other processes that work on a disk at the same time, or are killed while they do."""

from __future__ import annotations

import os
import select
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

#: What a worker does must be done by then, seconds.
DEADLINE = 60


class Worker:
    """A copy of this process that does one thing and ends. Its result is a line of text.

    :param work: what it does; what it returns is its result. An exception is the result too, with its traceback.
    """

    def __init__(self, work: Callable[[], str]) -> None:
        self._result, tell = os.pipe()
        wait, self._go = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _be_worker(work, wait, tell, (self._result, self._go))
        os.close(tell)
        os.close(wait)
        self._pidfd = os.pidfd_open(self.pid)
        self._reaped = False

    def go(self) -> None:
        """Let it begin."""
        os.write(self._go, b"x")

    def wait(self) -> tuple[int, str]:
        """Wait for its end; return its exit status (negative: the signal that ended it) and its result.

        :raises TimeoutError: it is not done in time.
        """
        ready, _, _ = select.select([self._pidfd], [], [], DEADLINE)
        if not ready:
            raise TimeoutError(f"process {self.pid} is not done after {DEADLINE} s")
        _, status = os.waitpid(self.pid, 0)
        self._reaped = True
        with open(self._result, "rb", closefd=False) as file:
            return os.waitstatus_to_exitcode(status), file.read().decode(errors="replace")

    def close(self) -> None:
        """End it if it still runs."""
        if not self._reaped:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        for fd in (self._pidfd, self._result, self._go):
            os.close(fd)


def _be_worker(work: Callable[[], str], wait: int, tell: int, others: tuple[int, ...]) -> None:
    status = 1
    try:
        for fd in others:
            os.close(fd)
        os.read(wait, 1)
        os.write(tell, work().encode())
        status = 0
    except BaseException:
        os.write(tell, traceback.format_exc().encode()[:4000])
    finally:
        os._exit(status)


@contextmanager
def workers(*work: Callable[[], str]) -> Iterator[tuple[Worker, ...]]:
    """Start processes that wait for ``go``; they are gone after the block."""
    started: list[Worker] = []
    try:
        started.extend(map(Worker, work))  # one by one: what has started is ended when the next cannot
        yield tuple(started)
    finally:
        for worker in started:
            worker.close()


def kill_self() -> None:
    """End this process as ``kill -9`` and a power cut do: nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)
