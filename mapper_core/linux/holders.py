"""Who holds a block device or a mount, in words a person can act on.

Reads ``/proc`` and ``/sys`` only. What cannot be seen (processes of other users without privilege, processes that end
meanwhile) is left out, so an empty answer means "nothing visible".
"""

from __future__ import annotations

import enum
import os
import stat
from collections.abc import Iterator
from contextlib import suppress

from mapper_core.errors import MapperError
from mapper_core.frozen import dataclass
from mapper_core.linux import block, mountinfo


class HolderKind(enum.Enum):
    """What kind of thing holds a device."""

    MOUNT = "mount"  # a filesystem of the device is mounted
    FILESYSTEM = "filesystem"  # the kernel has the filesystem open, but no visible mount shows it
    PROCESS = "process"  # a process has the device, or a file of the mount, open
    DEVICE = "device-holder"  # another block device stands on it: device-mapper, RAID, loop
    SWAP = "swap"


@dataclass(frozen=True, slots=True)
class Holder:
    """One holder.

    :param device: kernel name of the device or partition that is held, such as ``loop0p1``.
    :param pid: the process; for a mount, one process that sees it. 0 when there is none.
    :param process: short name of the process.
    :param target: mount point as that process sees it, or the name of the device on top, or the open path.
    :param namespace: inode number of the mount namespace, 0 when it does not matter.
    """

    kind: HolderKind
    device: str
    pid: int = 0
    process: str = ""
    target: str = ""
    namespace: int = 0


def holders(device_path: str) -> tuple[Holder, ...]:
    """All visible holders of a block device and of its partitions.

    :param device_path: device node.
    :raises NotFound: when there is no such device.
    :raises Refused: when it is not a block device.
    """
    directory = block.sysfs_directory(block.device_number(device_path))
    devices = dict(_devices(directory))
    found = [*_devices_on_top(directory, devices), *_swaps(devices), *_mounts(devices)]
    held = {holder.device for holder in found}
    found += [holder for holder in _filesystems(devices) if holder.device not in held]
    found += _openers(devices)
    return tuple(found)


def mount_holders(target: str, observer: int | None = None) -> tuple[Holder, ...]:
    """What keeps the topmost mount on a directory from being unmounted: mounts below it, processes inside it.

    :param target: mount point, symbolic links resolved.
    :param observer: process that sees it so. Then also processes count that use a copy of the mount, as services in
        mount namespaces of their own have one: an unmount would reach those copies too.
    """
    seen_by = os.getpid() if observer is None else observer
    stacked = mountinfo.at(target, pid=seen_by)
    if not stacked:
        return ()
    top = stacked[-1]
    namespace = _namespace(seen_by)
    found = [
        Holder(HolderKind.MOUNT, entry.source, seen_by, _process_name(seen_by), entry.target, namespace)
        for entry in mountinfo.entries(seen_by)
        if entry.parent == top.id
    ]
    ids = {top.id} if observer is None else {top.id, *_copies(top)}
    for pid in _processes():
        opened = _open_in_mount(pid, ids)
        if opened:
            found.append(Holder(HolderKind.PROCESS, top.source, pid, _process_name(pid), opened))
    return tuple(found)


def _copies(mount: mountinfo.MountEntry) -> Iterator[int]:
    """Ids of the mounts of the same filesystem in all mount namespaces but our own."""
    own = _namespace("self")
    for pid, namespace in _namespaces():
        with suppress(MapperError):  # it has ended since the listing
            if namespace != own:
                yield from (entry.id for entry in mountinfo.entries(pid) if entry.device == mount.device)


def describe(found: tuple[Holder, ...]) -> str:
    """One line that names the holders."""
    if not found:
        return (
            "the kernel says it is in use, but no mount and no process shows it (a lazily unmounted filesystem, "
            "or a process that has ended meanwhile)"
        )
    return "; ".join(dict.fromkeys(_describe_one(holder) for holder in found))


def advise(found: tuple[Holder, ...]) -> str:
    """What a person can do to get the device free: commands, for a shell. Guests choose where they mount something."""
    import shlex

    advice = []
    own = _namespace("self")
    for holder in found:
        if holder.kind is HolderKind.MOUNT and holder.namespace not in (0, own):
            advice.append(f"nsenter -t {holder.pid} -m umount {shlex.quote(holder.target)}")
        elif holder.kind is HolderKind.MOUNT:
            advice.append(f"umount {shlex.quote(holder.target)}")
        elif holder.kind is HolderKind.PROCESS:
            advice.append(f"end process {holder.pid}")
        elif holder.kind is HolderKind.SWAP:
            advice.append(f"swapoff /dev/{holder.device}")
        elif holder.kind is HolderKind.DEVICE:
            advice.append(f"release {holder.target}")
    return "; ".join(dict.fromkeys(advice))


def _describe_one(holder: Holder) -> str:
    who = f"process {holder.pid} ({holder.process})"
    if holder.kind is HolderKind.MOUNT:
        if holder.namespace in (0, _namespace("self")):
            return f"{holder.device} is mounted on {holder.target}"
        return f"{holder.device} is mounted on {holder.target} in mount namespace {holder.namespace} of {who}"
    if holder.kind is HolderKind.FILESYSTEM:
        return f"{holder.device} has an open {holder.target} filesystem that no visible mount shows"
    if holder.kind is HolderKind.DEVICE:
        return f"{holder.device} is used by {holder.target}"
    if holder.kind is HolderKind.SWAP:
        return f"{holder.device} is used as swap"
    return f"{holder.device} is open in {who}" + (f" as {holder.target}" if holder.target else "")


def _devices(directory: str) -> Iterator[tuple[int, str]]:
    """(device number, kernel name) of a disk and its partitions."""
    candidates = [directory]
    with os.scandir(directory) as items:
        candidates += [item.path for item in items if item.is_dir(follow_symlinks=False)]
    for path in candidates:
        try:
            major, minor = block.read_attribute(f"{path}/dev").split(":")
        except (OSError, ValueError):
            continue  # no device (queue/, power/ ...), or it is gone
        yield os.makedev(int(major), int(minor)), os.path.basename(path)


def _devices_on_top(directory: str, devices: dict[int, str]) -> Iterator[Holder]:
    disk = os.path.basename(directory)
    for name in devices.values():
        path = directory if name == disk else f"{directory}/{name}"
        for on_top in _names(f"{path}/holders"):
            yield Holder(HolderKind.DEVICE, name, target=_label(on_top))
    # A loop device does not register itself as a holder of the device below it.
    for name in _names("/sys/block"):
        if not name.startswith("loop"):
            continue
        try:
            number = os.stat(block.read_attribute(f"/sys/block/{name}/loop/backing_file")).st_rdev
        except OSError:
            continue
        if number in devices:
            yield Holder(HolderKind.DEVICE, devices[number], target=name)


def _label(name: str) -> str:
    """How people know a device: device-mapper's ``dm-0`` by what stands in ``/dev/mapper``."""
    try:
        return f"/dev/mapper/{block.read_attribute(f'/sys/block/{name}/dm/name')}"
    except OSError:
        return name


def _swaps(devices: dict[int, str]) -> Iterator[Holder]:
    try:
        with open("/proc/swaps", encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()[1:]
    except OSError:
        return
    for line in lines:
        number = _node_number(line.split()[0])
        if number in devices:
            yield Holder(HolderKind.SWAP, devices[number])


def mounts(device_path: str) -> Iterator[tuple[int, str, mountinfo.MountEntry]]:
    """Every visible mount of a device and of its partitions: a process that sees it, the kernel name, the mount.

    :raises NotFound: when there is no such device.
    :raises Refused: when it is not a block device.
    """
    devices = dict(_devices(block.sysfs_directory(block.device_number(device_path))))
    for pid, _, name, entry in _mount_entries(devices):
        yield pid, name, entry


def filesystems(device_path: str) -> Iterator[tuple[str, str]]:
    """Every filesystem that the kernel has open on a device or its partitions, mounted visibly or not: name and type.

    :raises NotFound: when there is no such device.
    :raises Refused: when it is not a block device.
    """
    for holder in _filesystems(dict(_devices(block.sysfs_directory(block.device_number(device_path))))):
        yield holder.device, holder.target


def _mounts(devices: dict[int, str]) -> Iterator[Holder]:
    for pid, namespace, name, entry in _mount_entries(devices):
        yield Holder(HolderKind.MOUNT, name, pid, _process_name(pid), entry.target, namespace)


def _mount_entries(devices: dict[int, str]) -> Iterator[tuple[int, int, str, mountinfo.MountEntry]]:
    """(process, mount namespace, kernel name, mount)."""
    numbers: dict[str, int] = {}
    for pid, namespace in _namespaces():
        try:
            entries = mountinfo.entries(pid)
        except MapperError:
            continue  # it has ended since the listing
        for entry in entries:
            number = os.makedev(*entry.device)
            if entry.device[0] == 0 and entry.source.startswith("/dev/"):
                # btrfs has an anonymous device number; only the source names the device.
                if entry.source not in numbers:
                    numbers[entry.source] = _node_number(entry.source)
                number = numbers[entry.source]
            if number in devices:
                yield pid, namespace, devices[number], entry


def _filesystems(devices: dict[int, str]) -> Iterator[Holder]:
    """While mounted, ext4, xfs and others have /sys/fs/TYPE/DEVICE, and btrfs has /sys/fs/btrfs/UUID/devices/DEVICE."""
    for fstype in _names("/sys/fs"):
        for name in devices.values():
            if os.path.isdir(f"/sys/fs/{fstype}/{name}"):
                yield Holder(HolderKind.FILESYSTEM, name, target=fstype)
    for uuid in _names("/sys/fs/btrfs"):
        for name in devices.values():
            if os.path.lexists(f"/sys/fs/btrfs/{uuid}/devices/{name}"):
                yield Holder(HolderKind.FILESYSTEM, name, target="btrfs")


def _openers(devices: dict[int, str]) -> Iterator[Holder]:
    for pid in _processes():
        seen: set[int] = set()
        for fd in _names(f"/proc/{pid}/fd"):
            path = f"/proc/{pid}/fd/{fd}"
            try:
                if not os.readlink(path).startswith("/"):  # a socket, a pipe ...
                    continue
                # The name says nothing (a container has its own nodes), and stat() on a file of a dead FUSE or NFS
                # server hangs.
                number = block.number_without_asking(path)
            except OSError:
                continue
            if number in devices and number not in seen:
                seen.add(number)
                yield Holder(HolderKind.PROCESS, devices[number], pid, _process_name(pid))


def _open_in_mount(pid: int, mount_ids: set[int]) -> str:
    """The first path that a process has open in one of the mounts; empty when it has none."""
    for link in ("cwd", "root", "exe"):
        try:
            # O_PATH does not touch the filesystem, and fdinfo tells the mount id.
            fd = os.open(f"/proc/{pid}/{link}", os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            if _mount_id("self", fd) in mount_ids:
                return os.readlink(f"/proc/{pid}/{link}")
        except OSError:
            continue
        finally:
            os.close(fd)
    for name in _names(f"/proc/{pid}/fd"):
        try:
            if _mount_id(pid, int(name)) in mount_ids:
                return os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue
    return ""


def _mount_id(pid: int | str, fd: int) -> int:
    for line in block.read_attribute(f"/proc/{pid}/fdinfo/{fd}").splitlines():
        if line.startswith("mnt_id:"):
            return int(line[7:])
    return -1


def _processes() -> Iterator[int]:
    for name in _names("/proc"):
        if name.isdigit():
            yield int(name)


def _namespaces() -> Iterator[tuple[int, int]]:
    """(a process, mount namespace) for every mount namespace that has a process; our own first."""
    own = _namespace("self")
    seen = {own}
    yield os.getpid(), own
    for pid in _processes():
        namespace = _namespace(pid)
        if namespace and namespace not in seen:
            seen.add(namespace)
            yield pid, namespace


def _namespace(pid: int | str) -> int:
    try:
        return os.stat(f"/proc/{pid}/ns/mnt").st_ino
    except OSError:
        return 0


def _process_name(pid: int) -> str:
    try:
        return block.read_attribute(f"/proc/{pid}/comm")
    except OSError:
        return "?"


def _node_number(path: str) -> int:
    try:
        status = os.stat(path)
    except OSError:
        return -1
    return status.st_rdev if stat.S_ISBLK(status.st_mode) else -1


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []
