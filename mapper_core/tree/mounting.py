"""The mounts of a tree, as a plan has them; and all of them away again.

They are made detached, get their flags and id map, and are then attached to an open directory of the tree: no path of the image is
ever resolved on the host.
"""

from __future__ import annotations

import contextlib
import os
import shlex

from mapper_core.errors import DeviceBusy, MapperError, NotFound, NotSupported, UnsafePath
from mapper_core.linux import beneath, mountinfo, mounts, unmounting
from mapper_core.linux.files import open_directory
from mapper_core.model import Access, IdMap, Mount, MountPlan
from mapper_core.tree.options import MOUNT_ATTRIBUTES

#: Flags of every mount on the host: what is in an image is for containers, not for the host's users (S-17).
ATTRIBUTES = mounts.MountAttribute.NOSUID | mounts.MountAttribute.NODEV

#: fstab options that are flags of the mount; ``nosuid`` and ``nodev`` are set anyway, ``relatime`` is the default.
_OPTIONS = {
    "noatime": mounts.MountAttribute.NOATIME,
    "nodiratime": mounts.MountAttribute.NODIRATIME,
    "noexec": mounts.MountAttribute.NOEXEC,
    "nosymfollow": mounts.MountAttribute.NOSYMFOLLOW,
}


def carry_out(plan: MountPlan, directory: str, idmap: IdMap | None) -> None:
    """Mount all that a plan has. After a failure some of it can be mounted.

    :param idmap: show the owners of files by this map.
    :raises NotSupported: a filesystem cannot be idmapped.
    :raises MapperError: something that is not optional cannot be mounted, or not there.
    """
    with contextlib.ExitStack() as stack:
        root_fd = -1
        for mount in plan.mounts:
            try:
                mount_fd = _detached(mount)
                stack.callback(os.close, mount_fd)
                target_fd = open_directory(directory) if mount.target == "/" else _target(root_fd, mount)
                try:
                    mounts.attach(mount_fd, target_fd)
                finally:
                    os.close(target_fd)
                if mount.target == "/":
                    root_fd = mount_fd
            except MapperError as error:
                if not mount.optional or mount.target == "/":
                    if isinstance(error, (UnsafePath, NotFound)):
                        error.hint = error.hint or f"it is the mount point {mount.target} of the image's fstab"
                    raise
    if idmap is not None:
        _map_owners(plan, directory, idmap)


def _map_owners(plan: MountPlan, directory: str, idmap: IdMap) -> None:
    """Put a clone of the tree with mapped owners in its place.

    Not done mount by mount: in an idmapped mount root of the host owns nothing, and could make no missing mount point
    (EOVERFLOW).
    """
    from mapper_core.linux.idmap import user_namespace

    with contextlib.ExitStack() as stack:
        userns = user_namespace(idmap)
        stack.callback(os.close, userns)
        clone = mounts.clone_tree(directory, recursive=True)
        stack.callback(os.close, clone)
        try:
            # private, else the unmounts below would reach the clone
            private = mounts.Propagation.PRIVATE
            mounts.set_attributes(clone, recursive=True, propagation=private, userns_fd=userns)
        except NotSupported as error:
            kinds = ", ".join(sorted({mount.fstype for mount in plan.mounts}))
            raise NotSupported(
                f"this kernel cannot idmap all filesystems of the tree ({kinds})",
                subject=directory,
                hint="mount it without an id map",
            ) from error
        unmount_all(directory, tuple(mount.volume.partition.device for mount in plan.mounts), [])
        target_fd = open_directory(directory)
        stack.callback(os.close, target_fd)
        mounts.attach(clone, target_fd)


def _detached(mount: Mount) -> int:
    """A detached mount with its flags; closing it without attaching it unmounts it."""
    options = tuple(option for option in mount.options if option not in MOUNT_ATTRIBUTES)
    if mount.subvolume:
        options = (*options, f"subvol={mount.subvolume}")
    attributes = ATTRIBUTES
    for name in set(mount.options) & _OPTIONS.keys():
        attributes |= _OPTIONS[name]
    return mounts.new_filesystem(
        mount.fstype, mount.volume.partition.device, options=options, access=mount.access, attributes=attributes
    )


def _target(root_fd: int, mount: Mount) -> int:
    """Open a mount point inside the tree; a missing one is made when the tree is writable, as an init system
    would.
    """
    writable = mount.access is Access.READ_WRITE
    return beneath.open_directory_in_root(root_fd, mount.target, create=0o755 if writable else None)


def unmount_all(directory: str, devices: tuple[str, ...], unmounted: list[str]) -> None:
    """Unmount all mounts at and below the directory, the deepest and newest first.

    :param devices: what may be mounted there.
    :param unmounted: gets the mount points as they go, also when one then fails.
    """
    if _unmount_single(directory, devices):
        return
    found = mountinfo.under(directory)
    for entry in sorted(found, key=lambda entry: (entry.target.count("/"), entry.id), reverse=True):
        if entry.source not in devices:
            raise DeviceBusy(
                f"{entry.source} ({entry.fstype}) is mounted on {entry.target} and does not belong to the tree",
                subject=directory,
                hint=f"unmount it first: umount {shlex.quote(entry.target)}",
            )
        parent, name = os.path.split(entry.target)
        parent_fd = _open_parent(directory, parent)
        try:
            unmounting.unmount(name, parent_fd=parent_fd)
        finally:
            os.close(parent_fd)
        unmounted.append(entry.target)


def _unmount_single(directory: str, devices: tuple[str, ...]) -> bool:
    """Unmount a tree that is a single mount; the device of the filesystem tells that it is ours.

    :returns: whether that was all: the directory is no mount point any more. The kernel unmounts nothing that has other
        mounts below it.
    """
    parent, name = os.path.split(directory)
    with contextlib.suppress(FileNotFoundError):  # after a crash: directory or device are gone, or were never made
        ours = {os.stat(device).st_rdev for device in set(devices) if device.startswith("/dev/")}
        parent_fd = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if mountinfo.device_on(name, parent_fd=parent_fd) in ours and unmounting.try_unmount(
                name, parent_fd=parent_fd
            ):
                return mountinfo.device_on(name, parent_fd=parent_fd) is None
        finally:
            os.close(parent_fd)
    return False


def _open_parent(directory: str, parent: str) -> int:
    """Open the directory that has a mount point; inside of the tree no link can lead out of it."""
    if parent != directory and not mountinfo.is_below(parent, directory):
        return os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    root_fd = open_directory(directory)
    try:
        return beneath.open_in_root(root_fd, parent[len(directory) :] or "/", os.O_PATH | os.O_DIRECTORY)
    finally:
        os.close(root_fd)
