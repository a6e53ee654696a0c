"""``exec`` and ``exec_cancel``: a command runs inside of a container on behalf of its owner (OpenNebula 7.2).

OpenNebula wants it to be started, and asks its probe for the result later. A daemon forgets an operation soon after its end,
with the exit status, but keeps the recorded output; so a shell in the guest writes the status behind the command's standard
error. Which command it was stands in the container's configuration, and goes with it.

The guest can tell what it likes as output and status: they are its own.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import re
import shlex
import signal
import uuid
from dataclasses import dataclass

from mapper_core.errors import Busy, Refused, UsageError
from mapper_core.linux import process_info
from mapper_core.linux.process_info import ProcessInfo
from mapper_driver.actions.node import Node
from mapper_driver.errors import InstanceNotRunning
from mapper_driver.lxd.client import LxdClient
from mapper_driver.lxd.model import ExecResult, Status
from mapper_driver.opennebula.fields import Fields
from mapper_driver.opennebula.xml import Document

KEY = "user.mapper_exec"
"""The daemon's operation, and the mark of the command's processes."""

MARK = "MAPPER_EXEC"
"""Variable by which all processes of a command are found; they inherit it."""

MAX_BYTES = 96 * 1024
"""Of command or input: each is one argument (MAX_ARG_STRLEN is 128 KiB)."""

MAX_OUTPUT = 16 * 1024
"""Of each stream that is told, bytes: all of the answer travels in one datagram of at most 64 KiB, compressed."""

_SHELL = 'i=$1; shift; if [ -n "$i" ]; then printf %s "$i" | base64 -d | "$@"; else "$@" </dev/null; fi; '
_SHELL += "printf '\\nexit %s\\n' $? >&2"
_STATUS = re.compile(rb"\nexit ([0-9]{1,3})\n\Z")
_VALUE = re.compile(r"([0-9a-f-]{36}) ([0-9a-f]{32})")
_STATUS_BYTES = len("\nexit 255\n")
_KILLED = 128 + signal.SIGKILL


@dataclass(frozen=True, slots=True)
class Command:
    """What is to be run.

    :param argv: program and arguments.
    :param stdin: base64, as OpenNebula has it; empty: nothing.
    """

    argv: tuple[str, ...]
    stdin: str = ""


def parse_command(document: Document) -> Command:
    """Read ``QEMU_GA_EXEC``, as OpenNebula calls it for all drivers.

    :raises UsageError: there is no command, or it cannot be split into words.
    :raises Refused: it is too long.
    """
    vm = Fields(document.vm, "VM")
    template = vm.needed("TEMPLATE", vm.child("TEMPLATE"))
    section = template.needed("QEMU_GA_EXEC", template.child("QEMU_GA_EXEC"))
    line, stdin = section.multiline("COMMAND"), "".join(section.multiline("STDIN").split())
    if max(len(line.encode()), len(stdin)) > MAX_BYTES:
        raise Refused(f"a command or its input has more than {MAX_BYTES} bytes", subject="QEMU_GA_EXEC")
    try:
        argv = tuple(shlex.split(line))
        base64.b64decode(stdin, validate=True)
    except (ValueError, binascii.Error) as error:
        raise UsageError(f"the command cannot be understood: {error}", subject="QEMU_GA_EXEC") from error
    if not argv:
        raise UsageError("there is no command", subject="QEMU_GA_EXEC/COMMAND")
    return Command(argv, stdin)


def start(container: str, command: Command, node: Node) -> None:
    """Start a command. What is left of an earlier one is forgotten.

    :raises InstanceNotRunning: the container does not run.
    :raises Busy: an earlier command still runs.
    """
    found = node.client.instance(container)
    if found.status is not Status.RUNNING:
        raise InstanceNotRunning(f"the container is {found.status.name.lower()}", subject=container)
    operation, mark = _of(found.config.get(KEY, ""))
    if mark and _processes(mark):
        raise Busy("another command still runs in it", subject=container, hint="wait for its end, or cancel it")
    if operation:
        node.client.forget_output(container, operation)
    mark = uuid.uuid4().hex
    argv = ("/bin/sh", "-c", _SHELL, "sh", command.stdin, *command.argv)
    with contextlib.ExitStack() as undo:
        undo.callback(_kill, mark)
        operation = node.client.begin(container, argv, {MARK: mark})
        node.client.set_config(container, {KEY: f"{operation} {mark}"})
        undo.pop_all()


def cancel(container: str, node: Node) -> None:
    """End the command that runs, with all processes it has started. None is a success."""
    _kill(_of(node.client.instance(container).config.get(KEY, ""))[1])


def result(container: str, client: LxdClient) -> ExecResult | None:
    """How the last command ended, with the beginning of what it wrote; ``None`` while it runs, or when there was none."""
    operation, mark = _of(client.instance(container).config.get(KEY, ""))
    if not operation or _processes(mark):
        return None
    stdout, stderr = (client.output(container, operation, name, f"0-{MAX_OUTPUT - 1}") for name in ("stdout", "stderr"))
    match = _STATUS.search(client.output(container, operation, "stderr", f"-{_STATUS_BYTES}").data)
    if match is None:
        return ExecResult(_KILLED, stdout.data, stderr.data)
    written = stderr.total - len(match.group())  # no process is left that could write more
    return ExecResult(int(match.group(1)), stdout.data, stderr.data[:written])


def forget(container: str, client: LxdClient) -> None:
    """Forget the last command, with its output."""
    operation, _ = _of(client.instance(container).config.get(KEY, ""))
    client.set_config(container, {KEY: None})
    if operation:
        client.forget_output(container, operation)


def _of(value: str) -> tuple[str, str]:
    """Operation and mark; both become parts of requests and searches, so what :func:`start` has not written is nothing."""
    match = _VALUE.fullmatch(value)
    return (match[1], match[2]) if match else ("", "")


def _kill(mark: str) -> None:
    """Kill all; again, until none is left that was started meanwhile."""
    for _ in range(100):
        found = _processes(mark) if mark else ()
        if not found:
            return
        for process in found:
            process_info.terminate(process.pid, process.start_time, signal.SIGKILL)
        for process in found:
            process_info.wait_gone(process.pid, process.start_time, 5)
    raise Busy("the command starts new processes faster than they can be ended")


def _processes(mark: str) -> tuple[ProcessInfo, ...]:
    wanted, found = f"{MARK}={mark}".encode(), []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            with open(f"/proc/{name}/environ", "rb") as file:
                if wanted not in file.read().split(b"\0"):
                    continue
            process = process_info.info(int(name))
            if process is not None and not process.gone:
                found.append(process)
    return tuple(found)
