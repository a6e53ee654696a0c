"""Run a program that takes something away for which it needs the cluster, without waiting for ever for its end.

``rbd device unmap`` waits inside of the kernel when the cluster goes away meanwhile. It must not be killed: the kernel's client
(``drivers/block/rbd.c``, Linux 6.1) then drops the image without giving back librbd's lock, and the next client to take that shuts
this host's client out of the cluster, with all the other images that it has mapped. So a process of its own runs the program, and
is left to itself when the time is over.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from typing import NoReturn

from mapper_core import errors
from mapper_core.errors import CommandFailed, DeadlineExceeded, KernelError, MapperError
from mapper_core.linux import forked
from mapper_core.process import run
from mapper_rbd import tool

#: What to do about an end that waits for the cluster.
HINT = "it ends by itself when the cluster is back (see: ceph -s); then run: mapper-cli reconcile"

#: The deadline of the program, seconds: nearly as long as poll(2) can wait.
_LEFT_SECONDS = 20 * 24 * 3600

#: What is kept of its output, bytes: what a pipe takes, so that nobody has to read it.
_LIMIT = 1 << 14


def run_or_leave(argv: tuple[str, ...], *, seconds: float, subject: str) -> None:
    """Run a program, and leave it to itself when it does not end in time.

    :param seconds: how long it is waited for.
    :param subject: the object that it works on, for the error.
    :raises DeadlineExceeded: it goes on, and ends when the cluster is back.
    :raises CommandFailed: it ended with an error.
    :raises MapperError: it could not be started.
    """
    with contextlib.ExitStack() as closing:
        answers, answer_to = os.pipe2(os.O_CLOEXEC)
        closing.callback(os.close, answers)
        try:
            child = forked.fork()
            if child == 0:
                _be_the_child(argv, answer_to)
        finally:
            os.close(answer_to)
        os.waitpid(child, 0)  # it has only made the process that waits
        answer = _read_within(answers, seconds)
    if answer is None:
        raise DeadlineExceeded(f"{argv[0]} still waits for the cluster after {seconds:g} s", subject=subject, hint=HINT)
    _raise(argv, answer, subject)


def _read_within(answers: int, seconds: float) -> bytes | None:
    """All of the answer; ``None`` when it does not come in time."""
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


def _raise(argv: tuple[str, ...], answer: bytes, subject: str) -> None:
    """Raise the error that an answer tells of; nothing when it tells of success."""
    if not answer:
        raise KernelError(f"{argv[0]} cannot be started: the process for it has ended", subject=subject)
    told = json.loads(answer)
    if "status" in told:
        raise CommandFailed(argv, told["status"], told["stderr"], subject=subject)
    if "type" in told:
        kind: type[MapperError] = getattr(errors, told["type"])
        raise kind(told["message"], subject=subject, hint=told["hint"])


# --- in the process that waits ------------------------------------------------------------------------------


def _be_the_child(argv: tuple[str, ...], answer_to: int) -> NoReturn:
    """Make a process that belongs to nobody, and be gone. It keeps no lock, and nothing of this program's, open."""
    try:
        if forked.fork() == 0:
            forked.close_all_but(answer_to)
            for number in {0, 1, 2} - {answer_to}:
                _open_as(number)
            os.setsid()
            for caught in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(caught, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            os.write(answer_to, json.dumps(_outcome(argv)).encode())
    finally:
        os._exit(0)


def _open_as(number: int) -> None:
    """Make a standard stream of nothing: the program's pipes must not get its number."""
    nothing = os.open(os.devnull, os.O_RDWR)
    if nothing != number:
        os.dup2(nothing, number)
        os.close(nothing)


def _outcome(argv: tuple[str, ...]) -> dict[str, str | int]:
    try:
        run(argv, timeout=_LEFT_SECONDS, limit=_LIMIT, capabilities=tool.CAPABILITIES)
    except CommandFailed as error:
        return {"status": error.status, "stderr": error.stderr}
    except MapperError as error:
        return {"type": type(error).__name__, "message": error.message, "hint": error.hint}
    return {}
