"""The daemon of a lab: its processes, its API, how it starts and how it ends."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

from common import LabError, run
from containers_model import MARKER, Lab, Product

START_SECONDS = 60.0
STOP_SECONDS = 90.0
ROUNDS = 3  # a monitor that loses its container starts hooks; the script that starts a daemon becomes the daemon
HERE = os.path.dirname(os.path.abspath(__file__))

# --- processes ----------------------------------------------------------------------------------------


def starttime(pid: int) -> int:
    """Start time of a live process in clock ticks; 0 when there is none, or only a zombie is left."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def daemon_alive(lab: Lab) -> bool:
    """Whether the recorded daemon still runs, and is not another process with its number."""
    return lab.pid > 0 and lab.starttime > 0 and starttime(lab.pid) == lab.starttime


def ended(pid: int, seconds: float) -> bool:
    """Wait for the end of any process, not only of a child: pidfd_open(2)."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], seconds)[0])
    finally:
        os.close(fd)


def marked(lab: Lab) -> tuple[list[int], list[int]]:
    """Processes of the lab: the daemon and the LXC monitors it started, which run its program; and others.

    Others inherited their environment through a hook of LXC, and are not the lab's to kill, or are about to become the
    daemon. Incus starts LXC with its own variable and without ours.
    """
    marker, home = f"{MARKER}={lab.dir}", f"{lab.product.prefix}_DIR={lab.home}"
    programs = (os.path.basename(lab.product.daemon), "unshare")
    ours: list[int] = []
    others: list[int] = []
    for pid, program, variables in _processes():
        if program in programs and (marker in variables or home in variables):
            ours.append(pid)
        elif marker in variables or (home in variables and any(text.startswith("LXC_NAME=") for text in variables)):
            others.append(pid)
    return ours, others


def running(product: Product) -> list[str]:
    """Own directories of all daemons of a kind that run, or of whose containers one runs."""
    name, program = f"{product.prefix}_DIR", os.path.basename(product.daemon)
    found = (text.partition("=") for _, at, variables in _processes() if at == program for text in variables)
    return sorted({value for key, _, value in found if key == name})


def _processes() -> Iterator[tuple[int, str, list[str]]]:
    """Number, program and environment of each process."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                program = os.path.basename(os.readlink(f"/proc/{name}/exe"))
                with open(f"/proc/{name}/environ", encoding="utf-8", errors="surrogateescape") as file:
                    variables = file.read().split("\0")
                yield int(name), program, variables


def inits(monitors: list[int]) -> list[int]:
    """First processes of containers: children of an LXC monitor in a pid namespace of their own."""
    here = os.readlink("/proc/self/ns/pid")
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                parent = int(file.read().rpartition(")")[2].split()[1])
                if parent in monitors and os.readlink(f"/proc/{name}/ns/pid") != here:
                    found.append(int(name))
    return found


def kill_left_over(lab: Lab) -> None:
    """Kill what an orderly stop left: first the containers, so that their monitors can clean up, then the rest.

    Hooks of LXC outlive a monitor that is killed. They may be about to mount something, so nothing is unmounted before they have
    ended, which takes less than a second.
    """
    for _ in range(ROUNDS):
        ours, others = marked(lab)
        if not ours and not others:
            return
        for group in (inits(ours), ours):
            for pid in group:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for pid in group:
                ended(pid, 10.0)
        for pid in marked(lab)[1]:
            ended(pid, 5.0)


# --- the daemon's API ---------------------------------------------------------------------------------


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket instead of a host."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def request(lab: Lab, method: str, path: str, body: object = None, seconds: float = 60.0) -> dict[str, object]:
    """One call; an operation is waited for. Returns the metadata."""
    connection = UnixConnection(lab.socket, seconds)
    with contextlib.closing(connection):
        connection.request(method, path, None if body is None else json.dumps(body))
        answer = json.loads(connection.getresponse().read())
    if answer.get("type") == "async":
        wait = f"{answer['operation']}/wait?timeout={int(seconds)}"
        answer = request(lab, "GET", wait, None, seconds + 5)
        if answer["status_code"] != 200:
            raise LabError(f"{method} {path}: {answer['err'] or answer['status']}")
        return answer
    if answer.get("type") == "error":
        raise LabError(f"{method} {path}: {answer['error']}")
    metadata = answer["metadata"]
    return metadata if isinstance(metadata, dict) else {"items": metadata}


def socket_owner(lab: Lab) -> int:
    """Process id of the daemon that listens on the lab's socket; 0 when nobody answers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer, contextlib.suppress(OSError):
        peer.connect(lab.socket)
        pid: int = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        return pid
    return 0


# --- start and stop -----------------------------------------------------------------------------------


def start_daemon(lab: Lab, private_mounts: bool) -> Lab:
    """Start the daemon and return when its API answers.

    All programs on the way there replace each other by exec, so the pid is the daemon's.

    :param private_mounts: it gets a mount namespace of its own, as the snap's LXD has. One with a root directory of its own has
        one always.
    """
    argv = [lab.product.daemon, "--group", "root"]
    if lab.tree:
        argv = ["/bin/sh", f"{HERE}/debian13.sh", lab.tree, lab.dir, *argv]
    if lab.tree or private_mounts:
        argv = ["unshare", "--mount", "--propagation", "private", "--", *argv]
    with open(lab.log_file, "ab") as log:
        daemon = subprocess.Popen(
            argv,
            env=lab.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if lab.tree else log,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )
    lab = replace(lab, pid=daemon.pid, starttime=starttime(daemon.pid))
    lab.save()
    if daemon.stdout is not None:
        with daemon.stdout:
            select.select([daemon.stdout], [], [], START_SECONDS)  # its end: the daemon is in its root, or has failed
    argv = [*lab.inside, lab.product.daemon, "waitready", "--timeout", str(int(START_SECONDS))]
    null = subprocess.DEVNULL
    waiter = subprocess.Popen(argv, env=lab.environment, stdin=null, stdout=null, stderr=null)
    fds = [os.pidfd_open(daemon.pid), os.pidfd_open(waiter.pid)]
    try:
        ready = select.select(fds, [], [], START_SECONDS + 5)[0]
        if fds[0] in ready or not ready or waiter.wait() != 0:
            with open(lab.log_file, encoding="utf-8", errors="replace") as file:
                raise LabError(f"the daemon did not come up:\n{''.join(file.readlines()[-15:])}")
    finally:
        waiter.kill()
        for fd in fds:
            os.close(fd)
    daemon.returncode = 0  # it is meant to outlive us: no warning from Popen
    waiter.wait()
    return lab


def stop_containers(lab: Lab) -> None:
    """Stop all at once, by force: a lab's container has nothing to save, its disks are flushed by umount."""
    listed = request(lab, "GET", "/1.0/instances?recursion=1&all-projects=true")["items"]
    running = [one for one in listed if one["status"] != "Stopped"] if isinstance(listed, list) else []
    for one in running:
        state = f"/1.0/instances/{one['name']}/state?project={one.get('project', 'default')}"
        request(lab, "PUT", state, {"action": "stop", "force": True, "timeout": 30}, STOP_SECONDS)


def stop_daemon(lab: Lab) -> None:
    """Ask the daemon to stop its containers and to end."""
    if not daemon_alive(lab):
        return
    try:
        stop_containers(lab)
        ask_to_end(lab)
    except (OSError, LabError, http.client.HTTPException) as error:
        print(f"the daemon does not answer, it gets a signal: {error}", file=sys.stderr)
        with contextlib.suppress(ProcessLookupError):
            os.kill(lab.pid, signal.SIGTERM)
    if not ended(lab.pid, 15.0):
        print(f"daemon {lab.pid} did not stop when asked, it is killed", file=sys.stderr)


def ask_to_end(lab: Lab) -> None:
    """Let the daemon unmount what it mounted and end; the command returns when it has."""
    argv = (*lab.inside, lab.product.daemon, "shutdown", "--force", "--timeout", "30")
    run(*argv, env=lab.environment, seconds=STOP_SECONDS)
