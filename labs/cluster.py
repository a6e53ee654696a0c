#!/usr/bin/python3
"""Starts and stops a private, real Ceph cluster: one monitor and one OSD, on 127.0.0.1 only.

    labs/ceph up     [DIR]            start it (does nothing when it runs; goes on with the data of a stopped one)
    labs/ceph env    [DIR]            print shell exports: eval "$(labs/ceph env)"
    labs/ceph status [DIR]            one line; exit status 0: up, 3: not up
    labs/ceph stop   mon|osd [DIR]    end one daemon; its data stay
    labs/ceph start  mon|osd [DIR]    start it again
    labs/ceph pause  mon|osd [DIR]    SIGSTOP: it keeps its connections and answers nobody
    labs/ceph resume mon|osd [DIR]    SIGCONT
    labs/ceph down   [DIR]            kill the daemons, remove everything

Needs root, the packages ceph-mon, ceph-osd, python3-rados and python3-rbd, and no systemd. Several labs can run side by
side in different directories. DIR defaults to /var/lib/mapper-lab/ceph: the OSD needs a filesystem with O_DIRECT and
room, which the tmpfs /run does not have. It must be short enough for a unix socket in it (unix(7): 107 bytes).

There is no manager daemon: images, snapshots, clones, locks and the trash do without it; `ceph df` and `rbd du` over a
whole pool show zeros.

Only the standard library of /usr/bin/python3 (3.11) and Ceph's own bindings are used.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import multiprocessing.connection
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from common import NOT_RUNNING, SUN_PATH_MAX, LabError, end, ignore_interrupts, locked, run

DEFAULT_DIR = "/var/lib/mapper-lab/ceph"
START_SECONDS = 60.0
ANSWER_SECONDS = 5.0
STOP_SECONDS = 15.0
#: Ports of the monitor are looked for here: below the range from which the kernel takes ports for connections
#: (ip_local_port_range, 32768 and up), so that a stopped monitor finds its ports free when it comes back.
PORTS = range(20000, 30000, 2)
#: The file behind the OSD is sparse.
OSD_BYTES = 8 << 30

POOLS = ("one", "two")
NAMESPACE = "ns"  # in each pool
#: What each client may do, by its name: capabilities for the monitor and for the OSD.
CLIENTS = {
    "admin": {"mon": "allow *", "osd": "allow *", "mgr": "allow *"},
    "oneadmin": {"mon": "profile rbd", "osd": "profile rbd pool=one"},
    "libvirt": {"mon": "profile rbd", "osd": "profile rbd pool=one, profile rbd pool=two"},
    "nobody": {"mon": "allow r"},  # may connect, and nothing else
}

CONFIGURATION = """\
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{port},v1:127.0.0.1:{port_v1}]
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
auth_allow_insecure_global_id_reclaim = false
ms_bind_ipv6 = false
run_dir = {dir}
crash_dir = {dir}/crash
keyring = {dir}/ceph.$name.keyring
[mon]
mon_data = {dir}/mon
keyring = {dir}/mon/keyring
mon_initial_members = a
mon_cluster_log_to_file = false
mon_allow_pool_delete = true
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
mon_data_avail_warn = 2
mon_data_avail_crit = 1
paxos_propose_interval = 0.05
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
log_file =
log_to_stderr = true
[osd]
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
osd_data = {dir}/osd
keyring = {dir}/osd/keyring
osd_objectstore = bluestore
bluestore_block_size = {osd_bytes}
bluestore_fsck_on_mkfs = false
bluestore_cache_autotune = false
bluestore_cache_size = 134217728
osd_class_update_on_start = false
osd_client_watch_timeout = 15
log_file =
log_to_stderr = true
[client]
# rbd-nbd is a client that Ceph treats as a daemon: without these it would write to /var/log and /run
log_file =
admin_socket =
"""


@dataclass(frozen=True)
class Lab:
    """What identifies a lab; kept in its directory. Its daemons are not recorded: they are found by their arguments.

    :param dir: everything of the lab is below.
    :param fsid: the cluster's identity.
    :param port: the monitor's port for protocol version 2; that for version 1 is the next one.
    :param complete: whether `up` came to its end, so that the data are worth keeping.
    """

    dir: str
    fsid: str = ""
    port: int = 0
    complete: bool = False

    @property
    def conf(self) -> str:
        """The configuration, for CEPH_CONF."""
        return f"{self.dir}/ceph.conf"

    def keyring(self, client: str) -> str:
        """File with a client's key."""
        return f"{self.dir}/ceph.client.{client}.keyring"

    def log(self, name: str) -> str:
        """What a daemon prints."""
        return f"{self.dir}/{name}.log"

    def save(self) -> None:
        """Replace the record on disk in one step."""
        temporary = f"{self.dir}/lab.json.new"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(asdict(self), file)
        os.replace(temporary, f"{self.dir}/lab.json")

    @staticmethod
    def load(directory: str) -> Lab | None:
        """Read the record; ``None`` when there is none."""
        try:
            with open(f"{directory}/lab.json", encoding="utf-8") as file:
                return Lab(**json.load(file))
        except FileNotFoundError:
            return None


# --- daemons ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Daemon:
    """A running process of the lab.

    :param name: ``mon``, ``osd``, or ``mkfs`` for one that only prepares data.
    :param pidfd: an open descriptor of the process.
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


def named(lab: Lab, pid: int) -> str:
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


@contextlib.contextmanager
def daemons(lab: Lab) -> Iterator[dict[str, Daemon]]:
    """The lab's processes that run now, by name.

    Its configuration is in their arguments, which identifies them better than a recorded number: that can be
    missing after a kill, and belong to another process later. Zombies have no arguments.
    """
    with contextlib.ExitStack() as stack:
        found: dict[str, Daemon] = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit() and named(lab, int(entry)):
                with contextlib.suppress(ProcessLookupError):
                    pidfd = os.pidfd_open(int(entry))
                    stack.callback(os.close, pidfd)
                    if name := named(lab, int(entry)):  # still that process, now that it is held
                        found[name] = Daemon(name, int(entry), pidfd)
        yield found


def daemon_argv(lab: Lab, name: str) -> list[str]:
    """Command line of a daemon, without what is to be done."""
    return [f"ceph-{name}", f"--conf={lab.conf}", "--id", "a" if name == "mon" else "0"]


def launch(lab: Lab, name: str) -> None:
    """Start a daemon in the foreground of a session of its own, its output going to its log."""
    with open(lab.log(name), "ab") as log:
        argv = [*daemon_argv(lab, name), "-f"]
        null = subprocess.DEVNULL
        daemon = subprocess.Popen(
            argv, stdin=null, stdout=log, stderr=log, start_new_session=True, cwd="/", env=clean()
        )
    daemon.returncode = 0  # it is meant to outlive us: no warning from Popen


def clean() -> dict[str, str]:
    """The environment without variables that would make Ceph's programs talk to another cluster."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CEPH_")}


def log_tail(lab: Lab, name: str) -> str:
    """The end of a daemon's log."""
    try:
        with open(lab.log(name), encoding="utf-8", errors="replace") as file:
            return "".join(file.readlines()[-15:])
    except OSError:
        return ""


# --- asking the cluster -------------------------------------------------------------------------------------


def ask(lab: Lab, question: Callable[..., object], *arguments: object, seconds: float, needs: tuple[str, ...]) -> None:
    """Call a function with a connection of client.admin, in a process of its own: calls of librados cannot be interrupted.

    :param question: is called with the connection and the arguments.
    :param needs: daemons; when one of them ends meanwhile, this fails at once with its log.
    """
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    child = fork.Process(target=_asked, args=(sender, lab, question, arguments, seconds))
    with daemons(lab) as running, contextlib.closing(receiver):
        for name in needs:
            if name not in running:
                raise LabError(f"ceph-{name} did not come up:\n{log_tail(lab, name)}")
        child.start()
        sender.close()
        try:
            watched = {running[name].pidfd: name for name in needs}
            ready = multiprocessing.connection.wait([receiver, *watched], seconds)
            died = [watched[fd] for fd in ready if isinstance(fd, int)]
            if died:
                raise LabError(f"ceph-{died[0]} has ended:\n{log_tail(lab, died[0])}")
            if not ready:
                logs = "\n".join(log_tail(lab, name) for name in needs)
                raise LabError(f"the cluster has not answered for {seconds:.0f} s:\n{logs}")
            try:
                problem = receiver.recv()
            except EOFError:
                problem = "the process that asked has died"
            if problem:
                raise LabError(problem)
        finally:
            child.kill()
            child.join()
            child.close()


def _asked(
    sender: Any, lab: Lab, question: Callable[..., object], arguments: tuple[object, ...], seconds: float
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        import rados

        bounds = {
            # whole seconds; the process ends soon even when the parent was killed
            name: str(int(seconds))
            for name in ("client_mount_timeout", "rados_mon_op_timeout", "rados_osd_op_timeout")
        }
        with rados.Rados(conffile=lab.conf, name="client.admin", conf=bounds) as connection:
            question(connection, *arguments)
    except Exception as error:  # whatever it is, the parent reports it
        sender.send(f"{type(error).__name__}: {error}")
    else:
        sender.send("")
    sys.stdout.flush()
    os._exit(0)


def command(connection: Any, prefix: str, body: bytes = b"", **arguments: object) -> None:
    """Let the monitor run a command."""
    status, _, problem = connection.mon_command(json.dumps({"prefix": prefix, **arguments}), body)
    if status != 0:
        raise LabError(f"{prefix}: {problem} ({os.strerror(-status)})")


def register_osd(connection: Any, osd_uuid: str, key: str) -> None:
    """Tell the monitor about the OSD, which gets the number 0."""
    command(connection, "osd new", json.dumps({"cephx_secret": key}).encode(), uuid=osd_uuid)


def make_pools(connection: Any) -> None:
    """Create the pools, which waits for the OSD."""
    import rbd

    for pool in POOLS:
        command(connection, "osd pool create", pool=pool)
        command(connection, "osd pool application enable", pool=pool, app="rbd")
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


def nothing(connection: Any) -> None:
    """Be content with the connection, for which the monitor suffices."""
    del connection


# --- building -----------------------------------------------------------------------------------------------


def new_key() -> str:
    """A secret as cephx has it: type AES, time of creation, length and 16 random bytes (src/auth/Crypto.cc, CryptoKey::encode)."""
    import base64
    import struct

    return base64.b64encode(struct.pack("<HIIH", 1, int(time.time()), 0, 16) + os.urandom(16)).decode()


def keyring_entry(entity: str, key: str, caps: dict[str, str]) -> str:
    """An entry of a keyring file."""
    lines = [f"[{entity}]", f"\tkey = {key}", *(f'\tcaps {service} = "{text}"' for service, text in caps.items())]
    return "\n".join(lines) + "\n"


def write(path: str, text: str) -> None:
    """Write a file that only root may read."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


def free_port() -> int:
    """Two neighbouring ports on which nobody listens; the first one."""
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as first, socket.socket() as second, contextlib.suppress(OSError):
            first.bind(("127.0.0.1", port))
            second.bind(("127.0.0.1", port + 1))
            return port
    raise LabError(f"no two free ports between {PORTS.start} and {PORTS.stop}")


def build(lab: Lab) -> None:
    """Make the daemons' data, start them, and create pools. The monitor runs while the OSD's data are made."""
    os.mkdir(f"{lab.dir}/mon")
    os.mkdir(f"{lab.dir}/osd")
    os.mkdir(f"{lab.dir}/crash")
    write(
        lab.conf,
        CONFIGURATION.format(dir=lab.dir, fsid=lab.fsid, port=lab.port, port_v1=lab.port + 1, osd_bytes=OSD_BYTES),
    )
    entries = [keyring_entry("mon.", new_key(), {"mon": "allow *"})]
    for client, caps in CLIENTS.items():
        key = new_key()
        entries.append(keyring_entry(f"client.{client}", key, caps))
        write(lab.keyring(client), keyring_entry(f"client.{client}", key, {}))
    write(f"{lab.dir}/initial.keyring", "".join(entries))
    run(*daemon_argv(lab, "mon"), "--mkfs", f"--keyring={lab.dir}/initial.keyring")
    os.unlink(f"{lab.dir}/initial.keyring")
    launch(lab, "mon")
    osd_uuid, osd_key = str(uuid.uuid4()), new_key()
    write(f"{lab.dir}/osd/keyring", keyring_entry("osd.0", osd_key, {}))
    run(*daemon_argv(lab, "osd"), "--mkfs", "--osd-uuid", osd_uuid, "--no-mon-config", seconds=START_SECONDS)
    ask(lab, register_osd, osd_uuid, osd_key, seconds=START_SECONDS, needs=("mon",))
    launch(lab, "osd")
    ask(lab, make_pools, seconds=START_SECONDS, needs=("mon", "osd"))


# --- commands -----------------------------------------------------------------------------------------------


def existing(directory: str) -> Lab:
    """The lab in a directory."""
    lab = Lab.load(directory)
    if lab is None or not lab.complete:
        raise LabError(f"no lab is up in {directory}: labs/ceph up {directory}")
    return lab


def up(directory: str) -> int:
    """Start the lab: build a new one, or start those daemons of a complete one that do not run."""
    for tool in ("ceph-mon", "ceph-osd"):
        if shutil.which(tool) is None:
            raise LabError(
                f"{tool} is missing: apt-get install --no-install-recommends ceph-mon ceph-osd python3-rados python3-rbd"
            )
    if len(f"{directory}/ceph-osd.0.asok") > SUN_PATH_MAX:
        raise LabError(f"{directory}: too long for the path of a unix socket, take a shorter directory")
    began = time.monotonic()
    lab = Lab.load(directory)
    if lab is not None and lab.complete:
        with daemons(lab) as running:
            missing = [name for name in ("mon", "osd") if name not in running]
        if not missing:
            print(f"already up: CEPH_CONF={lab.conf}", file=sys.stderr)
            return 0
        for name in missing:
            launch(lab, name)
        ask(lab, touch_pools, seconds=START_SECONDS, needs=("mon", "osd"))
    else:
        if os.path.lexists(directory):
            down(directory)
        with contextlib.ExitStack() as undo:
            undo.callback(clean_up, directory)
            os.makedirs(directory, mode=0o700)
            lab = Lab(directory, fsid=str(uuid.uuid4()), port=free_port())
            lab.save()
            build(lab)
            lab = replace(lab, complete=True)
            lab.save()
            undo.pop_all()
    print(f"up in {time.monotonic() - began:.1f} s: CEPH_CONF={lab.conf}", file=sys.stderr)
    return 0


def start(directory: str, name: str) -> int:
    """Start one daemon again, and return when it answers."""
    lab = existing(directory)
    with daemons(lab) as running:
        others = [other for other in ("mon", "osd") if other in running and other != name]
        if name not in running:
            launch(lab, name)
    if name == "osd" and "mon" not in others:  # it waits for the monitor, and we do not
        return 0
    question = touch_pools if name == "osd" or "osd" in others else nothing
    ask(lab, question, seconds=START_SECONDS, needs=(name, *others))
    return 0


def stop(directory: str, name: str) -> int:
    """End one daemon."""
    with daemons(existing(directory)) as running:
        if daemon := running.get(name):
            signal.pidfd_send_signal(daemon.pidfd, signal.SIGCONT)
            if not end(daemon.pidfd, signal.SIGTERM, STOP_SECONDS) and not end(
                daemon.pidfd, signal.SIGKILL, STOP_SECONDS
            ):
                raise LabError(f"ceph-{name}, process {daemon.pid}, does not end")
    return 0


def tell(directory: str, name: str, number: signal.Signals) -> int:
    """Send a signal to one daemon."""
    with daemons(existing(directory)) as running:
        if name not in running:
            raise LabError(f"ceph-{name} does not run: labs/ceph start {name} {directory}")
        signal.pidfd_send_signal(running[name].pidfd, number)
    return 0


def mapped(lab: Lab) -> list[str]:
    """Kernel devices on images of this cluster: Documentation/ABI/testing/sysfs-bus-rbd."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for number in os.listdir("/sys/bus/rbd/devices"):
            with (
                contextlib.suppress(OSError),
                open(f"/sys/bus/rbd/devices/{number}/cluster_fsid", encoding="ascii") as file,
            ):
                if file.read().strip() == lab.fsid:
                    found.append(f"/dev/rbd{number}")
    return found


def down(directory: str) -> int:
    """Undo `up`, whatever state it is in. Does nothing when there is no lab."""
    lab = Lab.load(directory)
    if lab is None:
        if os.path.lexists(directory) and not set(os.listdir(directory)) <= {"lab.json.new"}:
            raise LabError(f"{directory} is not a lab: it has no lab.json, and is left alone")
        lab = Lab(directory)
    if left := mapped(lab):  # without its cluster such a device can neither be used nor removed
        raise LabError(f"still mapped, nothing is stopped: {', '.join(left)} (rbd unmap DEVICE)")
    with daemons(lab) as running:
        for daemon in running.values():
            if not end(daemon.pidfd, signal.SIGKILL, STOP_SECONDS):
                raise LabError(f"process {daemon.pid} does not end, nothing is deleted")
    if os.path.lexists(directory):
        shutil.rmtree(directory)
    with contextlib.suppress(OSError):
        os.rmdir(os.path.dirname(DEFAULT_DIR))
    return 0


def clean_up(directory: str) -> None:
    """Take a half-started lab down; a second ^C does not interrupt that."""
    ignore_interrupts()
    down(directory)


def env(directory: str) -> int:
    """Print what a shell needs to use the lab."""
    lab = existing(directory)
    exports = {
        "CEPH_CONF": lab.conf,
        "CEPH_ARGS": "--id oneadmin",
        "MAPPER_LAB_CEPH": lab.dir,
        "MAPPER_LAB_POOL": POOLS[0],
    }
    for name, value in exports.items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


def status(directory: str) -> int:
    """Print one line about the lab."""
    lab = Lab.load(directory)
    if lab is None or not lab.complete:
        print(f"down {directory}" if lab is None else f"incomplete {directory} (labs/ceph down cleans up)")
        return NOT_RUNNING
    with daemons(lab) as running:
        words = [
            f"{name} {running[name].pid}{' paused' if running[name].paused else ''}"
            if name in running
            else f"{name} stopped"
            for name in ("mon", "osd")
        ]
    state = "up"
    try:
        ask(lab, touch_pools, seconds=ANSWER_SECONDS, needs=("mon", "osd"))
    except LabError:
        state = "not-answering"
    print(f"{state} {directory}: {', '.join(words)}; monitor at 127.0.0.1:{lab.port}")
    return 0 if state == "up" else NOT_RUNNING


def main() -> int:
    """Run one command."""
    parser = argparse.ArgumentParser(
        prog="labs/ceph", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in ("up", "env", "status", "down", "stop", "start", "pause", "resume"):
        subparser = commands.add_parser(name)
        if name in ("stop", "start", "pause", "resume"):
            subparser.add_argument("daemon", choices=("mon", "osd"))
        subparser.add_argument("dir", nargs="?", default=DEFAULT_DIR, metavar="DIR")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("must run as root")
    directory = os.path.realpath(options.dir)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if options.command in ("env", "status"):
            return {"env": env, "status": status}[options.command](directory)
        with locked(directory):
            if options.command in ("up", "down"):
                return {"up": up, "down": down}[options.command](directory)
            if options.command in ("start", "stop"):
                return {"start": start, "stop": stop}[options.command](directory, options.daemon)
            number = signal.SIGSTOP if options.command == "pause" else signal.SIGCONT
            return tell(directory, options.daemon, number)
    except (LabError, OSError) as error:
        print(f"labs/ceph: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
