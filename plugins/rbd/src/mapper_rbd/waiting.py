"""Run a program that takes something away for which it needs the cluster, without waiting for ever for its end.

``rbd device unmap`` waits inside of the kernel when the cluster goes away meanwhile. It must not be killed: the kernel's client
(``drivers/block/rbd.c``, Linux 6.1) then drops the image without giving back librbd's lock, and the next client to take that shuts
this host's client out of the cluster, with all the other images that it has mapped. So a process of its own runs the program, and
is left to itself when the time is over.
"""

from __future__ import annotations

import json

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
    answer = forked.answer_within(lambda: _outcome(argv), seconds)
    if answer is None:
        raise DeadlineExceeded(f"{argv[0]} still waits for the cluster after {seconds:g} s", subject=subject, hint=HINT)
    _raise(argv, answer, subject)


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


def _outcome(argv: tuple[str, ...]) -> bytes:
    """Run the program, in the process that waits."""
    told: dict[str, str | int] = {}
    try:
        run(argv, timeout=_LEFT_SECONDS, limit=_LIMIT, capabilities=tool.CAPABILITIES)
    except CommandFailed as error:
        told = {"status": error.status, "stderr": error.stderr}
    except MapperError as error:
        told = {"type": type(error).__name__, "message": error.message, "hint": error.hint}
    return json.dumps(told).encode()
