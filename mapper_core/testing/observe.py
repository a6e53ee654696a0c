"""What the kernel says is in use now: the eyes of the leak oracle (:mod:`mapper_core.testing.leaks`).

Only sysfs and procfs are read, no program is started and nothing is changed. Everything can vanish between two
reads: what has gone while we looked is not there. Without root, other people's processes and namespaces stay unseen.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

#: Programs that serve block devices or filesystems, or hold a container; a process of one of these is a resource.
DAEMONS = (
    *("qemu-nbd", "qemu-storage-daemon", "nbdkit", "nbdfuse", "fuse2fs", "bindfs"),
    *("rbd-nbd", "rbd-fuse", "ceph-fuse", "ceph-mon", "ceph-osd", "ceph-mgr"),
)
#: LXC's monitor renames itself to ``[lxc monitor] PATH CONTAINER``.
LXC_MONITOR = "[lxc monitor]"

#: Entries of the temporary directory that are ours, and those that Python's tempfile names by default.
TEMPORARY = ("mapper*", ".mapper*", "tmp????????")


@dataclass(frozen=True, slots=True)
class Item:
    """One resource in use.

    :param kind: ``loop``, ``partition``, ``nbd``, ``rbd``, ``dm``, ``mount``, ``fuse``, ``process``, ``child`` (of this
        process), ``fd``, ``file`` or ``temporary``.
    :param key: its identity, unchanged as long as it is the same resource. Words; the first is the sort of thing,
        and the second of a device is its name.
    :param text: how a person recognises it.
    :param touches: paths and command lines by which it belongs to somebody.
    :param alias: equal for the copies of one mount in several namespaces; otherwise empty.
    :param namespace: inode of the mount namespace of a mount.
    :param pid: of a process its number, of a mount that of a task that lives in the namespace.
    """

    kind: str
    key: str
    text: str
    touches: tuple[str, ...] = ()
    alias: str = ""
    namespace: int = 0
    pid: int = 0


def block_devices() -> Iterator[Item]:
    """Loop, nbd, rbd and device-mapper devices in use, and partitions known to the kernel on any of them."""
    for name in _names("/sys/block"):
        directory = f"/sys/block/{name}"
        touches = _backing(name)
        sequence = _read(f"{directory}/diskseq")  # kernel 5.15: a new number for each new content of a device
        if name.startswith("loop"):
            if touches:
                yield Item("loop", f"loop {name} {sequence} {touches[0]}", f"/dev/{name} on {touches[0]}", touches)
        elif name.startswith("nbd"):
            pid = _read(f"{directory}/pid")
            if pid or _read(f"{directory}/size") not in ("", "0"):
                yield Item("nbd", f"nbd {name} {pid}", f"/dev/{name} served by pid {pid or 'unknown'}", touches)
        elif name.startswith("dm-"):
            label = _read(f"{directory}/dm/name")
            yield Item("dm", f"dm {name} {label} {_read(f'{directory}/dm/uuid')}", f"/dev/{name} ({label})", touches)
        if name.startswith(("loop", "nbd", "rbd")):
            # a loop device keeps partitions that were added by BLKPG when it is detached without LO_FLAGS_PARTSCAN
            for part in _names(directory):
                if part.startswith(name) and os.path.exists(f"{directory}/{part}/partition"):
                    yield Item("partition", f"partition {part} {sequence}", f"/dev/{part}", touches)
    for number in _names("/sys/bus/rbd/devices"):
        directory = f"/sys/bus/rbd/devices/{number}"
        # Documentation/ABI/testing/sysfs-bus-rbd; the client is another one for each mapping, unless it is shared
        image = "/".join(_read(f"{directory}/{file}") for file in ("pool", "pool_ns", "name", "current_snap"))
        client = _read(f"{directory}/client_id")
        yield Item("rbd", f"rbd {number} {image} {client}", f"/dev/rbd{number} ({image})", (image,))


def mounts() -> Iterator[Item]:
    """The mounts of all mount namespaces in which a process or thread lives (proc(5), ``/proc/PID/mountinfo``).

    A namespace that is kept only by a bind mount of its ``/proc/PID/ns/mnt`` is seen as that bind mount. FUSE
    filesystems are of the kind ``fuse``; so are FUSE connections without a mount, which something still holds open.
    """
    fuse_devices = set()
    for namespace, task in _mount_namespaces().items():
        for line in _read(f"{task}/mountinfo").splitlines():
            before, _, after = line.partition(" - ")
            fields, tail = before.split(" "), after.split(" ")
            if len(fields) < 6 or len(tail) < 2:
                continue
            device, root, target = fields[2], _unescape(fields[3]), _unescape(fields[4])
            fstype, source = tail[0], _unescape(tail[1])
            is_fuse = fstype.startswith("fuse") and fstype != "fusectl"
            if is_fuse:
                fuse_devices.add(device.partition(":")[2])
            yield Item(
                kind="fuse" if is_fuse else "mount",
                key=f"mount {namespace} {fields[0]}",
                text=f"{source} on {target} type {fstype}",
                touches=(target, source, root, *_backing(source.removeprefix("/dev/"))),
                alias=f"{device} {root} {target} {fstype} {source}",
                namespace=namespace,
                pid=int(os.path.basename(task)),
            )
    for minor in _names("/sys/fs/fuse/connections"):
        if minor not in fuse_devices:
            yield Item("fuse", f"fuse {minor}", f"FUSE connection {minor}, not mounted anywhere")


def processes(mentioning: tuple[str, ...] = ()) -> Iterator[Item]:
    """Storage daemons, container monitors, children of this process, and whoever names one of these directories.

    A zombie holds nothing and is not counted, and neither is this process, which may name such a directory to ask.

    :param mentioning: directories; a process whose command line names one of them counts.
    """
    for pid in _pids():
        status = _read(f"/proc/{pid}/stat")
        command = _read(f"/proc/{pid}/cmdline").replace("\0", " ").strip()
        _, _, fields = status.rpartition(") ")  # the name in parentheses may hold anything (proc(5))
        state, parent, *rest = fields.split(" ") if fields else ("Z", "0")
        if state in "ZX" or not command or len(rest) < 18 or pid == os.getpid():
            continue
        name = os.path.basename(command.split(" ", 1)[0])
        is_child = int(parent) == os.getpid()
        is_daemon = name in DAEMONS or command.startswith(LXC_MONITOR)
        if is_child or is_daemon or any(lies_in(command, directory) for directory in mentioning):
            shown = command if len(command) <= 300 else f"{command[:300]}..."
            kind = "child" if is_child else "process"
            yield Item(kind, f"process {pid} {rest[17]}", f"pid {pid}: {shown}", (command,), pid=pid)


def descriptors() -> Iterator[Item]:
    """The open file descriptors of this process."""
    for fd in _names("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{fd}")
            # the descriptor by which the directory itself is being listed
            if target != f"/proc/{os.getpid()}/fd":
                yield Item("fd", f"fd {fd} {target}", f"descriptor {fd} -> {target}", (target,))


def files(runtime_dir: str) -> Iterator[Item]:
    """What lies below a runtime directory, mounted filesystems left out.

    Not counted: its immediate sub-directories, which are its structure, and lock files that nobody holds: a lock file
    cannot be removed without a race, so they stay until the next boot.
    """
    try:
        device = os.lstat(runtime_dir).st_dev
    except OSError:
        return
    locked = {line.split()[5].rpartition(":")[2] for line in _read("/proc/locks").splitlines() if "->" not in line}
    for directory, names, leaves in os.walk(runtime_dir, followlinks=False):
        for name in [*names]:
            path = os.path.join(directory, name)
            with contextlib.suppress(OSError):
                if os.lstat(path).st_dev != device:
                    names.remove(name)  # a mount; whatever is in there is not ours to look at
                elif directory == runtime_dir and not os.path.islink(path):
                    continue
            yield Item("file", f"file {path}", f"{path}/", (path,))
        for name in leaves:
            path = os.path.join(directory, name)
            with contextlib.suppress(OSError):
                found = os.lstat(path)
                is_lock = stat.S_ISREG(found.st_mode) and os.path.basename(directory) == "locks"
                if not is_lock or str(found.st_ino) in locked:
                    yield Item("file", f"file {path}", f"{path}{' (lock held)' if is_lock else ''}", (path,))


def temporary() -> Iterator[Item]:
    """Entries of the temporary directory that look like ours or like Python's."""
    directory = tempfile.gettempdir()
    for name in _names(directory):
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in TEMPORARY):
            path = os.path.join(directory, name)
            yield Item("temporary", f"file {path}", path, (path,))


def lies_in(text: str, directory: str) -> bool:
    """Say whether a path lies in a directory, or a command line names a path that does."""
    return f"{directory}/" in text or text.endswith(directory)


def _backing(name: str, depth: int = 0) -> tuple[str, ...]:
    """Files and commands behind a block device: of a loop device its file, of the others what they stand on."""
    directory = os.path.realpath(f"/sys/class/block/{name}") if name and "/" not in name else ""
    if not directory or depth > 8 or not os.path.isdir(directory):
        return ()
    if os.path.exists(f"{directory}/partition"):
        return _backing(os.path.basename(os.path.dirname(directory)), depth + 1)
    file = _read(f"{directory}/loop/backing_file")
    if file:
        return (file.removesuffix(" (deleted)"),)
    pid = _read(f"{directory}/pid")
    if pid:
        return (_read(f"/proc/{pid}/cmdline").replace("\0", " ").strip(),)
    return tuple(path for slave in _names(f"{directory}/slaves") for path in _backing(slave, depth + 1))


def _mount_namespaces() -> dict[int, str]:
    """Inode of each mount namespace -> the ``/proc`` directory of one task in it.

    Tasks, not processes: a thread can have a namespace of its own (unshare(2), setns(2)).
    """
    found: dict[int, str] = {}
    for pid in _pids():
        for task in _names(f"/proc/{pid}/task"):
            directory = f"/proc/{pid}/task/{task}"
            with contextlib.suppress(OSError):
                inode = int(os.readlink(f"{directory}/ns/mnt").removeprefix("mnt:[").removesuffix("]"))
                found.setdefault(inode, directory)
    return found


def _pids() -> Iterator[int]:
    yield from (int(name) for name in _names("/proc") if name.isdigit())


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n")
    except OSError:
        return ""


def _unescape(field: str) -> str:
    """Undo the octal escapes of space, tab, newline and backslash in mountinfo."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
