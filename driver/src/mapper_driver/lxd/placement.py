"""Placing the tree of a disk where LXD expects a container's own files.

LXD up to 5.0 unmounts whatever is on a container's root directory at every start (``umount2(rootfs, MNT_DETACH)`` in its
startCommon(), left over from shiftfs); later versions and Incus do not. So the tree is not mounted there once: LXC calls
our hook (:mod:`mapper_driver.lxd.hook`) before each start, after that unmount, and the hook places a clone of the staged
tree if there is none. A guest's reboot, ``lxc restart`` and stop/start all come by the hook. After a stop the clone stays
where it is until :func:`unplace`.

The daemon may have a mount namespace of its own (the snap, a container). The clone is made detached in the namespace of the
staged tree and attached in the daemon's; a descriptor can be carried from one to the other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass

from mapper_core.errors import DeviceBusy, KernelError, MapperError, NotFound, NotMapped
from mapper_core.linux import mountinfo, namespaces, unmounting
from mapper_core.linux.mounts import MountAttribute
from mapper_core.runtime import Runtime, boot_id
from mapper_core.state_files import corrupt, read_json, remove_json, write_json
from mapper_driver.errors import TreeNotPlaced, TreeStillPlaced
from mapper_driver.lxd import clones
from mapper_driver.lxd.model import check_name

VERSION = 1

#: Processes that live in the first mount namespace, if it can be entered at all: init, and kthreadd which never dies.
_HOST_PROCESSES = (1, 2)

#: This thread, not this process: setns(2) moves a thread.
_HERE = "thread-self"

#: Mounts that are peeled off one directory at most; more are no accident (U-10).
_STACK_LIMIT = 16

#: The staged tree is nosuid for the users of the host; in the container sudo has to work (L-09). It stays nodev: a container
#: gets its devices from LXD.
_CLEAR = MountAttribute.NOSUID


@dataclass(frozen=True, slots=True)
class Placement:
    """A staged tree and the container it belongs to.

    :param container: name of the instance.
    :param rootfs: the container's root directory, as the daemon sees it (:meth:`LxdClient.rootfs`).
    :param staging: directory on which the tree is mounted; canonical.
    :param device: (major, minor) of the filesystem on it, as mountinfo shows it.
    :param root: directory of that filesystem which is its root (btrfs subvolumes).
    :param namespace: mount namespace in which it is mounted (inode number).
    :param boot: boot in which that was.
    :param idmapped: whether it is an idmapped mount. It is not when the container is privileged, or when LXD shifts the files.
    """

    container: str
    rootfs: str
    staging: str
    device: tuple[int, int]
    root: str
    namespace: int
    boot: str
    idmapped: bool


def describe(container: str, rootfs: str, staging: str) -> Placement:
    """Look at a staged tree in the caller's mount namespace.

    :raises NotMapped: nothing is mounted there.
    """
    staging = os.path.realpath(staging)
    stack = mountinfo.at(staging, pid=_HERE)
    if not stack:
        raise NotMapped("no tree is mounted there", subject=staging)
    top = stack[-1]
    here = namespaces.mount_namespace_id(_HERE)
    idmapped = "idmapped" in top.options
    return Placement(check_name(container), rootfs, staging, top.device, top.root, here, boot_id(), idmapped)


# --- the record ---------------------------------------------------------------------------------------


def record_path(runtime: Runtime, container: str) -> str:
    """The file with a container's placement; the hook gets it as argument."""
    return f"{runtime.root}/driver/{check_name(container)}.json"


def write(runtime: Runtime, placement: Placement) -> None:
    """Make a placement durable (as durable as /run: until the next boot, as the mounts are)."""
    path = record_path(runtime, placement.container)
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    write_json(path, {"version": VERSION, **dataclasses.asdict(placement)})


def read(path: str) -> Placement | None:
    """The placement in a file; ``None`` when there is none.

    :raises StateCorrupt: it is damaged.
    """
    data = read_json(path, VERSION)
    if data is None:
        return None
    try:
        values = {field.name: data[field.name] for field in dataclasses.fields(Placement)}
        values["device"] = tuple(values["device"])
    except (KeyError, TypeError) as error:
        raise corrupt(path, f"misses or garbles a field: {error!r}") from error
    return Placement(**values)


def forget(runtime: Runtime, container: str) -> None:
    """Remove the record, what is left of writing it, the hook's last word and the mark of one that is off; what is not there is
    removed already.

    For those who have the lock of the container, or know that it is gone: nobody else writes the record.
    """
    path = record_path(runtime, container)
    directory, name = os.path.split(path)
    with contextlib.suppress(FileNotFoundError):
        for found in os.listdir(directory):
            if found.startswith((f".{name}.", f".{os.path.basename(off_path(path))}.")):  # write_json() was killed
                remove_json(f"{directory}/{found}")
    remove_json(failure_path(path))
    remove_json(off_path(path))
    remove_json(path)


def failure_path(record: str) -> str:
    """Where the hook leaves the reason of a failure."""
    return record.removesuffix(".json") + ".failed"


def off_path(record: str) -> str:
    """Where it is written since when the container is off (:mod:`mapper_driver.poweroff`)."""
    return record.removesuffix(".json") + ".off"


# --- placing ------------------------------------------------------------------------------------------


def prepare_rootfs(rootfs: str, daemon_pid: int) -> None:
    """Make the container's root directory: LXD makes none for a container without a source.

    :raises TreeNotPlaced: the container has no directory, or something else is in the way.
    """
    with namespaces.in_mount_namespace(daemon_pid):
        try:
            os.mkdir(rootfs, 0o755)
        except FileExistsError as error:
            if os.path.islink(rootfs) or not os.path.isdir(rootfs):
                raise TreeNotPlaced("is not a directory", subject=rootfs) from error
        except OSError as error:
            raise TreeNotPlaced(f"cannot be made: {error.strerror}", subject=rootfs) from error


def is_placed(placement: Placement, daemon_pid: int) -> bool:
    """Whether the top of the container's root directory, as a process sees it, is a clone of the staged tree."""
    return any(_is_clone(placement, entry) for entry in mountinfo.at(placement.rootfs, pid=daemon_pid)[-1:])


def place(placement: Placement, daemon_pid: int) -> bool:
    """Place a clone of the staged tree; does nothing when there is one. It appears in one step, with all mounts below it.

    :param daemon_pid: any process in the mount namespace of the daemon.
    :returns: whether it had to be placed.
    :raises TreeNotPlaced: the staged tree is gone, or something else is mounted in its place.
    """
    stack = mountinfo.at(placement.rootfs, pid=daemon_pid)
    if stack and _is_clone(placement, stack[-1]):
        return False
    if stack:
        text = f"something else is mounted on the container's root directory: {stack[-1].source} ({stack[-1].fstype})"
        raise TreeNotPlaced(text, subject=placement.rootfs)
    _attach_clone(placement, daemon_pid)
    return True


def place_twice(placement: Placement, daemon_pid: int) -> None:
    """Place two clones on each other, for the first start of a container whose files LXD itself is to shift.

    LXD up to 5.0 first takes one off and then walks over what it finds, which has to be the tree (L-06). A later LXD walks over
    the upper one: the files are the same.
    """
    for _ in range(2 - len(mountinfo.at(placement.rootfs, pid=daemon_pid))):
        _attach_clone(placement, daemon_pid)


def unplace(placement: Placement, daemon_pid: int) -> None:
    """Unmount the clone in the daemon's mount namespace, and what that namespace has copied of the staged tree.

    A namespace that was made while the tree was staged has a copy of it, which keeps the disk in use (L-18). The staged tree in
    its own namespace stays. Nothing happens when nothing is there.

    :raises DeviceBusy: naming those who use it; what is unmounted by then stays so.
    :raises TreeStillPlaced: something is still mounted afterwards.
    """
    targets = [placement.rootfs]
    if namespaces.mount_namespace_id(daemon_pid) != placement.namespace:
        targets.append(placement.staging)
    for target in targets:
        peel(target, daemon_pid)
    check_clear(os.path.dirname(placement.rootfs), daemon_pid)


def check_clear(directory: str, daemon_pid: int) -> None:
    """Make sure that nothing is mounted below a container's directory, in the daemon's mount namespace.

    :raises TreeStillPlaced: naming what is.
    """
    left = mountinfo.below(directory, pid=daemon_pid)
    if left:
        raise TreeStillPlaced(
            f"still mounted: {', '.join(entry.target for entry in left[:4])}",
            subject=directory,
            hint="nothing was deleted; unmount it first, in the mount namespace of the daemon",
        )


def host_process(namespace: int) -> int:
    """A process that never ends and is in this mount namespace; 0 when there is none that can be entered."""
    for pid in _HOST_PROCESSES:
        with contextlib.suppress(NotFound, KernelError):
            if namespaces.mount_namespace_id(pid) == namespace:
                return pid
    return 0


# --- helpers ------------------------------------------------------------------------------------------


def _is_clone(placement: Placement, entry: mountinfo.MountEntry) -> bool:
    found = (entry.device, entry.root, "idmapped" in entry.options)
    return found == (placement.device, placement.root, placement.idmapped)


def _attach_clone(placement: Placement, daemon_pid: int) -> None:
    if placement.boot != boot_id():
        raise _gone(placement, "the host was booted since its disks were mounted")
    with contextlib.ExitStack() as stack:
        with _staging_namespace(placement):
            top = mountinfo.at(placement.staging, pid=_HERE)[-1:]
            if not any(_is_clone(placement, entry) for entry in top):
                raise _gone(placement, "its disk is not mounted any more")
            clone = stack.enter_context(clones.detached(placement.staging, clear=_CLEAR))
        clones.attach_in(daemon_pid, clone, lambda: _open_rootfs(placement.rootfs))


def _open_rootfs(path: str) -> int:
    try:
        return os.open(path, clones.DIRECTORY)
    except OSError as error:
        raise TreeNotPlaced(f"cannot be opened: {error.strerror}", subject=path) from error


@contextlib.contextmanager
def _staging_namespace(placement: Placement) -> Iterator[None]:
    """Work where the staged tree is mounted: exactly in the recorded namespace, a copy may show an older tree."""
    if namespaces.mount_namespace_id(_HERE) == placement.namespace:
        yield
        return
    pid = host_process(placement.namespace) or _any_process_in(placement.namespace)
    if not pid:
        raise _gone(placement, "no process is left in the mount namespace in which its disk is mounted")
    with namespaces.in_mount_namespace(pid):
        yield


def _any_process_in(namespace: int) -> int:
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(MapperError):
                if namespaces.mount_namespace_id(int(name)) == namespace:
                    return int(name)
    return 0


def peel(target: str, pid: int) -> None:
    """Unmount all that is stacked on a directory, with what is mounted below it, in the mount namespace of a process.

    :raises DeviceBusy: naming those who use it; what is unmounted by then stays so.
    """
    for _ in range(_STACK_LIMIT):
        points = [entry.target for entry in (*mountinfo.at(target, pid=pid), *mountinfo.below(target, pid=pid))]
        if not points:
            return
        for point in reversed(points):
            with contextlib.suppress(NotMapped):
                unmounting.unmount_in(pid, point)
    raise DeviceBusy("new mounts appear while it is being unmounted", subject=target)


def _gone(placement: Placement, why: str) -> TreeNotPlaced:
    return TreeNotPlaced(
        f"the tree of container {placement.container} cannot be placed: {why}",
        subject=placement.staging,
        hint="let OpenNebula deploy the virtual machine again",
    )
