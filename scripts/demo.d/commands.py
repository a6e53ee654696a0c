"""Runs the public commands of the project, and nothing behind their back."""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import subprocess
import time
from dataclasses import dataclass

from console import Console
from place import BIN, ROOT, DemoError, Place

MARKER = "MAPPER_DEMO"  # in the environment of every command of a demo: its directory
LAB_MARKER = b"MAPPER_LAB="  # what labs/lxd gives to its daemon, and to nothing else
#: Have the marker by inheritance, and an orderly way to end.
_DAEMONS = ("lxd", "unshare", "qemu-storage-daemon", "qemu-nbd")
_GRACE_SECONDS = 30.0


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    status: int
    stdout: str
    stderr: str
    seconds: float


class Commands:
    """Runs commands for one demo."""

    def __init__(self, place: Place, console: Console) -> None:
        self.place = place
        self.console = console

    def environment(self) -> dict[str, str]:
        """Variables of every command. None of LXD's: Mapper asks the daemon of the host, as it does for its user."""
        foreign = ("LXD_", "INCUS_", "MAPPER_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        if "MAPPER_RUNTIME_DIR" in os.environ:
            kept["MAPPER_RUNTIME_DIR"] = os.environ["MAPPER_RUNTIME_DIR"]
        path = f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"
        return {**kept, "PATH": path, "LC_ALL": "C.UTF-8", MARKER: self.place.dir}

    def run(
        self, *argv: str, text: str = "", timeout: float = 60.0, accept: tuple[int, ...] = (0,), **variables: str
    ) -> Done:
        """Run a command in a session of its own, so that ^C on the terminal is ours to pass on.

        :param text: its standard input.
        :param timeout: seconds.
        :raises DemoError: it ended with another status, or not in time.
        """
        self.console.command((*(f"{name}={value}" for name, value in variables.items()), *argv))
        began = time.monotonic()
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**self.environment(), **variables},
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            stdout, stderr = self._communicate(process, text, timeout)
        except BaseException:
            _end(process)
            raise
        self.console.output(stdout + stderr)
        if process.returncode not in accept:
            message = stderr.strip() or stdout.strip() or f"exit status {process.returncode}"
            raise DemoError(f"{shlex.join(argv)}: {message}")
        return Done(process.returncode, stdout, stderr, time.monotonic() - began)

    def mapper(self, *arguments: str, accept: tuple[int, ...] = (0,)) -> Done:
        """Run ``mapper-cli``."""
        return self.run(f"{BIN}/mapper-cli", *arguments, accept=accept)

    def lab(self, command: str) -> Done:
        """Run ``labs/lxd``."""
        return self.run(f"{ROOT}/labs/lxd", command, self.place.lab, timeout=180)

    def _communicate(self, process: subprocess.Popen[str], text: str, timeout: float) -> tuple[str, str]:
        until = time.monotonic() + timeout
        first: str | None = text
        while True:
            try:
                return process.communicate(first, timeout=0.1)
            except subprocess.TimeoutExpired:
                first = None
                self.console.tick()
            if time.monotonic() > until:
                raise DemoError(f"{shlex.join(map(str, _argv(process)))}: not done after {timeout:g} s")


def _argv(process: subprocess.Popen[str]) -> tuple[str, ...]:
    return tuple(process.args) if isinstance(process.args, (list, tuple)) else (str(process.args),)


def _end(process: subprocess.Popen[str]) -> None:
    """Interrupt a command as the terminal would, and let it undo what it has begun; kill it when it takes too long."""
    for number, seconds in ((signal.SIGINT, _GRACE_SECONDS), (signal.SIGKILL, 10.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=seconds)
            return


def end_orphans(place: Place) -> None:
    """Kill the commands that a killed demo has left running.

    A crash of the demo is then a crash of what it did, wherever that was: nothing goes on in secret while we clean up. The
    lab's daemon and its containers are not touched (``labs/lxd down`` ends them), and neither are storage daemons
    (``mapper-cli reconcile`` does).

    :raises DemoError: they do not end.
    """
    until = time.monotonic() + 30.0
    while found := _orphans(place):  # one that was forked meanwhile is found by the next look
        for fd in found:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        for fd in found:
            select.select([fd], [], [], max(0.0, until - time.monotonic()))
            os.close(fd)
        if time.monotonic() > until:
            raise DemoError("commands of the killed demo do not end")


def _orphans(place: Place) -> list[int]:
    """Descriptors (pidfd_open(2)) of commands with our marker."""
    wanted = f"{MARKER}={place.dir}".encode()
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            fd = os.pidfd_open(int(name))  # before the look: then the look is at this very process
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    variables = file.read().split(b"\0")
                program = os.path.basename(os.readlink(f"/proc/{name}/exe"))
                from_lab = any(variable.startswith(LAB_MARKER) for variable in variables)
                if wanted in variables and not from_lab and program not in _DAEMONS:
                    found.append(os.dup(fd))
            finally:
                os.close(fd)
    return found
