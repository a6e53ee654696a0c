"""The processes of a lab's cluster, and questions to them that cannot hang."""

from __future__ import annotations

import contextlib
import ctypes
import json
import multiprocessing
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from cluster_model import NAMESPACE, POOLS, Lab
from common import LabError

PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Daemon:
    """A process of the lab.

    :param name: ``mon``, ``osd``, or ``mkfs`` for one that only prepares data.
    :param pidfd: an open descriptor of the process, which is kept until this program ends.
    """

    name: str
    pid: int
    pidfd: int

    @property
    def paused(self) -> bool:
        """Whether it is stopped by a signal."""
        try:
            with open(f"/proc/{self.pid}/stat", encoding="utf-8", errors="replace") as file:
                return file.read().rpartition(") ")[2].startswith("T")
        except OSError:
            return False


def running(lab: Lab) -> dict[str, Daemon]:
    """The lab's processes that run now, by name.

    Its configuration is in their arguments, which identifies them better than a recorded number: that can be
    missing after a kill, and belong to another process later. Zombies have no arguments.
    """
    found: dict[str, Daemon] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and _name(lab, int(entry)):
            with contextlib.suppress(ProcessLookupError):
                pidfd = os.pidfd_open(int(entry))
                if name := _name(lab, int(entry)):  # still that process, now that it is held
                    found[name] = Daemon(name, int(entry), pidfd)
    return found


def _name(lab: Lab, pid: int) -> str:
    """Which daemon of this lab a process is; empty when it is none."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            argv = [os.fsdecode(word) for word in file.read().split(b"\0")]
    except OSError:
        return ""
    program = os.path.basename(argv[0])
    if program not in ("ceph-mon", "ceph-osd") or f"--conf={lab.conf}" not in argv:
        return ""
    return "mkfs" if "--mkfs" in argv else program.removeprefix("ceph-")


def argv(lab: Lab, name: str) -> list[str]:
    """Command line of a daemon, without what is to be done."""
    return [f"ceph-{name}", f"--conf={lab.conf}", "--id", "a" if name == "mon" else "0"]


def launch(lab: Lab, name: str) -> Daemon:
    """Start a daemon in the foreground of a session of its own, its output going to its log."""
    with open(lab.log(name), "ab") as log:
        process = subprocess.Popen(
            [*argv(lab, name), "-f"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )
    process.returncode = 0  # it is meant to outlive us: no warning from Popen
    return Daemon(name, process.pid, os.pidfd_open(process.pid))


def _log_tail(lab: Lab, daemon: Daemon) -> str:
    try:
        with open(lab.log(daemon.name), encoding="utf-8", errors="replace") as file:
            return "".join(file.readlines()[-15:])
    except OSError:
        return ""


# --- questions ----------------------------------------------------------------------------------------------


def ask(lab: Lab, daemons: Sequence[Daemon], seconds: float, question: Callable[..., None], *arguments: object) -> None:
    """Call a function with a connection of client.admin, in a process of its own: calls of librados cannot be interrupted.

    :param daemons: those that are needed for it; when one of them ends meanwhile, this fails at once.
    :param question: is called with the connection and the arguments.
    :raises LabError: the function failed, a daemon has ended or the time is over; with the ends of the daemons' logs.
    """
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    child = fork.Process(target=_answer, args=(sender, lab, seconds, question, arguments))
    child.start()
    sender.close()
    try:
        by_fd = {daemon.pidfd: daemon for daemon in daemons}
        ready = wait([receiver, *by_fd], seconds)
        died = [by_fd[fd] for fd in ready if isinstance(fd, int)]
        if died:
            raise LabError(f"ceph-{died[0].name} has ended:\n{_log_tail(lab, died[0])}")
        if not ready:
            logs = "\n".join(_log_tail(lab, daemon) for daemon in daemons)
            raise LabError(f"no answer from the cluster for {seconds:.0f} s:\n{logs}")
        problem = "the process that asked the cluster has died"
        with contextlib.suppress(EOFError):
            problem = receiver.recv()
        if problem:
            raise LabError(problem)
    finally:
        child.kill()
        child.join()
        receiver.close()


def _answer(
    sender: Connection, lab: Lab, seconds: float, question: Callable[..., None], arguments: tuple[object, ...]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))  # it may be killed, and then nobody waits for us
    timeouts = ("client_mount_timeout", "rados_mon_op_timeout", "rados_osd_op_timeout")
    problem = ""
    try:
        import rados

        settings = {name: str(int(seconds)) for name in timeouts}
        # seconds until a request without an answer is looked at, and until the client asks where the OSD is now; 5 and 10
        settings |= {"objecter_tick_interval": "0.2", "objecter_timeout": "0.5"}
        with rados.Rados(conffile=lab.conf, name="client.admin", conf=settings) as connection:
            question(connection, *arguments)
    except Exception as error:  # whatever it is, the parent reports it
        problem = f"{type(error).__name__}: {error}"
    sender.send(problem)


def _command(connection: Any, prefix: str, body: bytes = b"", **arguments: object) -> None:
    """Let the monitor run a command."""
    status, _, problem = connection.mon_command(json.dumps({"prefix": prefix, **arguments}), body)
    if status != 0:
        raise LabError(f"{prefix}: {problem} ({os.strerror(-status)})")


def register_osd(connection: Any, osd_uuid: str, key: str) -> None:
    """Tell the monitor about the OSD, which gets the number 0."""
    _command(connection, "osd new", json.dumps({"cephx_secret": key}).encode(), uuid=osd_uuid)


def make_pools(connection: Any) -> None:
    """Create the pools, which waits for the OSD."""
    import rbd

    for pool in POOLS:
        _command(connection, "osd pool create", pool=pool)
        _command(connection, "osd pool application enable", pool=pool, app="rbd")
    for pool in POOLS:
        with connection.open_ioctx(pool) as ioctx:
            rbd.RBD().pool_init(ioctx, False)
            rbd.RBD().namespace_create(ioctx, NAMESPACE)


def touch_pools(connection: Any) -> None:
    """Ask the OSD something about each pool."""
    import rbd

    for pool in POOLS:
        with connection.open_ioctx(pool) as ioctx:
            rbd.RBD().namespace_list(ioctx)


def connect_only(connection: Any) -> None:
    """Be content with the connection, for which the monitor suffices."""
    del connection
