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

There is no manager daemon: images, snapshots, clones, locks and the trash do without it; `ceph df` shows zeros.

Only the standard library of /usr/bin/python3 (3.11) and Ceph's own bindings are used.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shlex
import shutil
import signal
import socket
import sys
import time
import uuid
from dataclasses import replace

import cluster_daemons as daemons
from cluster_model import CLIENTS, POOLS, PORTS, Lab, keyring_entry, new_key
from common import NOT_RUNNING, SUN_PATH_MAX, LabError, end, ignore_interrupts, locked, run

DEFAULT_DIR = "/var/lib/mapper-lab/ceph"
START_SECONDS = 60.0
ANSWER_SECONDS = 5.0
STOP_SECONDS = 15.0


def up(directory: str) -> int:
    """Start the lab: build a new one, or start those daemons of a complete one that do not run."""
    for tool in ("ceph-mon", "ceph-osd"):
        if shutil.which(tool) is None:
            packages = "ceph-mon ceph-osd python3-rados python3-rbd"
            raise LabError(f"{tool} is missing: apt-get install --no-install-recommends {packages}")
    if len(f"{directory}/ceph-osd.0.asok") > SUN_PATH_MAX:
        raise LabError(f"{directory}: too long for the path of a unix socket, take a shorter directory")
    began = time.monotonic()
    lab = Lab.load(directory)
    if lab is not None and lab.complete:
        found = daemons.running(lab)
        missing = [name for name in ("mon", "osd") if name not in found]
        if not missing:
            print(f"already up: CEPH_CONF={lab.conf}", file=sys.stderr)
            return 0
        found |= {name: daemons.launch(lab, name) for name in missing}
        daemons.ask(lab, list(found.values()), START_SECONDS, daemons.touch_pools)
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


def free_port() -> int:
    """Two neighbouring ports on which nobody listens; the first one."""
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as first, socket.socket() as second, contextlib.suppress(OSError):
            first.bind(("127.0.0.1", port))
            second.bind(("127.0.0.1", port + 1))
            return port
    raise LabError(f"no two free ports between {PORTS.start} and {PORTS.stop}")


def build(lab: Lab) -> None:
    """Make the daemons' data, start them, and create pools. The monitor comes up while the OSD's data are made."""
    for name in ("mon", "osd", "crash"):
        os.mkdir(f"{lab.dir}/{name}")
    write(lab.conf, lab.configuration())
    entries = [keyring_entry("mon.", new_key(), {"mon": "allow *"})]
    for client, caps in CLIENTS.items():
        key = new_key()
        entries.append(keyring_entry(f"client.{client}", key, caps))
        write(lab.keyring(client), keyring_entry(f"client.{client}", key, {}))
    initial = f"{lab.dir}/initial.keyring"
    write(initial, "".join(entries))
    run(*daemons.argv(lab, "mon"), "--mkfs", f"--keyring={initial}")
    os.unlink(initial)
    mon = daemons.launch(lab, "mon")
    osd_uuid, osd_key = str(uuid.uuid4()), new_key()
    write(f"{lab.dir}/osd/keyring", keyring_entry("osd.0", osd_key, {}))
    run(*daemons.argv(lab, "osd"), "--mkfs", "--osd-uuid", osd_uuid, "--no-mon-config", seconds=START_SECONDS)
    daemons.ask(lab, [mon], START_SECONDS, daemons.register_osd, osd_uuid, osd_key)
    osd = daemons.launch(lab, "osd")
    daemons.ask(lab, [mon, osd], START_SECONDS, daemons.make_pools)


def write(path: str, text: str) -> None:
    """Write a file that only root may read."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


def existing(directory: str) -> Lab:
    """The lab in a directory."""
    lab = Lab.load(directory)
    if lab is None or not lab.complete:
        raise LabError(f"no lab is up in {directory}: labs/ceph up {directory}")
    return lab


def start(directory: str, name: str) -> int:
    """Start one daemon again, and return when it answers: an OSD answers only while the monitor runs."""
    lab = existing(directory)
    found = daemons.running(lab)
    if name not in found:
        found[name] = daemons.launch(lab, name)
    if "mon" in found:
        question = daemons.touch_pools if "osd" in found else daemons.connect_only
        daemons.ask(lab, list(found.values()), START_SECONDS, question)
    return 0


def stop(directory: str, name: str) -> int:
    """End one daemon."""
    if daemon := daemons.running(existing(directory)).get(name):
        signal.pidfd_send_signal(daemon.pidfd, signal.SIGCONT)
        if not any(end(daemon.pidfd, number, STOP_SECONDS) for number in (signal.SIGTERM, signal.SIGKILL)):
            raise LabError(f"ceph-{name}, process {daemon.pid}, does not end")
    return 0


def tell(directory: str, name: str, number: signal.Signals) -> int:
    """Send a signal to one daemon."""
    daemon = daemons.running(existing(directory)).get(name)
    if daemon is None:
        raise LabError(f"ceph-{name} does not run: labs/ceph start {name} {directory}")
    signal.pidfd_send_signal(daemon.pidfd, number)
    return 0


def mapped(lab: Lab) -> list[str]:
    """Kernel devices on images of this cluster (Documentation/ABI/testing/sysfs-bus-rbd)."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for number in os.listdir("/sys/bus/rbd/devices"):
            path = f"/sys/bus/rbd/devices/{number}/cluster_fsid"
            with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
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
    for daemon in daemons.running(lab).values():
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
    if lab is None:
        print(f"down {directory}")
        return NOT_RUNNING
    if not lab.complete:
        print(f"incomplete {directory} (labs/ceph down cleans up)")
        return NOT_RUNNING
    found = daemons.running(lab)
    words = [f"monitor at 127.0.0.1:{lab.port}"]
    for name in ("mon", "osd"):
        daemon = found.get(name)
        words.append(f"{name} {daemon.pid}{' paused' if daemon.paused else ''}" if daemon else f"{name} stopped")
    state = "dead"
    if len(found) == 2:
        try:
            daemons.ask(lab, list(found.values()), ANSWER_SECONDS, daemons.touch_pools)
            state = "up"
        except LabError:
            state = "stuck"
    print(f"{state} {directory} {', '.join(words)}")
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
    for name in [name for name in os.environ if name.startswith("CEPH_")]:
        del os.environ[name]  # they would make Ceph's programs and libraries talk to another cluster
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
