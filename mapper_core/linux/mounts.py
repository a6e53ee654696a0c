"""Mounts by descriptor: fsopen, fsmount, open_tree, move_mount, mount_setattr (kernel 5.2 and later, idmap 5.12).

A mount is made detached, gets its flags, and is attached to a directory that is open already. No path is
resolved in between, so there is none to race, and a mount is never visible without its flags.
"""

from __future__ import annotations

import enum
import errno
import functools
import os
import struct

from mapper_core.errors import (
    CorruptImage,
    DeviceBusy,
    KernelError,
    MapperError,
    NotFound,
    NotSupported,
    ReadOnlyImage,
    UnknownFilesystem,
)
from mapper_core.linux.syscalls import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    AT_SYMLINK_NOFOLLOW,
    FSCONFIG,
    FSMOUNT,
    FSOPEN,
    FSPICK,
    MOUNT_SETATTR,
    MOVE_MOUNT,
    OPEN_TREE,
    kernel_error,
    syscall,
)
from mapper_core.model import Access, IdMap, IdRange

_FSOPEN_CLOEXEC = 1
_FSMOUNT_CLOEXEC = 1
_FSPICK_CLOEXEC = 1
_FSPICK_EMPTY_PATH = 8
_SET_FLAG = 0
_SET_STRING = 1
_CMD_CREATE = 6
_CMD_RECONFIGURE = 7
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 0x04
_MOVE_MOUNT_T_EMPTY_PATH = 0x40


class MountAttribute(enum.IntFlag):
    """Per-mount flags (MOUNT_ATTR_*, include/uapi/linux/mount.h)."""

    NONE = 0
    READ_ONLY = 0x01
    NOSUID = 0x02
    NODEV = 0x04
    NOEXEC = 0x08
    NOATIME = 0x10
    NODIRATIME = 0x80
    IDMAP = 0x100000
    NOSYMFOLLOW = 0x200000


class Propagation(enum.IntFlag):
    """What happens to mounts made below (MS_*, :manpage:`mount_namespaces(7)`)."""

    UNCHANGED = 0
    UNBINDABLE = 1 << 17
    PRIVATE = 1 << 18
    SLAVE = 1 << 19
    SHARED = 1 << 20


def new_filesystem(
    fstype: str,
    source: str,
    *,
    options: tuple[str, ...] = (),
    access: Access,
    attributes: MountAttribute = MountAttribute.NONE,
) -> int:
    """Mount a filesystem without attaching it anywhere.

    When the device is mounted already, the kernel gives a second mount of the same filesystem and ignores ``options``.

    :param fstype: kernel name; nothing is detected.
    :param source: block device node, or whatever the filesystem takes; empty for none.
    :param options: ``name`` or ``name=value``, handed to the filesystem as they are.
    :param access: read-only makes both the filesystem and the mount read-only.
    :param attributes: flags of the mount.
    :returns: descriptor of the detached mount; closing it without :func:`attach` unmounts it.
    :raises UnknownFilesystem: when this kernel does not know ``fstype``.
    :raises DeviceBusy: naming the holders.
    :raises ReadOnlyImage: when the device cannot be written and write access was asked for or is needed.
    :raises CorruptImage: when the filesystem says that it is damaged.
    :raises NotFound: when there is no such device.
    :raises KernelError: for all else; the text has the kernel's own reason.
    """
    if access is Access.READ_ONLY:
        attributes |= MountAttribute.READ_ONLY
    try:
        context = syscall(FSOPEN, fstype.encode(), _FSOPEN_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise UnknownFilesystem(f"this kernel cannot mount {fstype}", subject=source or fstype) from error
        raise kernel_error(error, f"cannot mount {fstype}", subject=source) from error
    try:
        try:
            if source:
                _set(context, "source", source)
            if access is Access.READ_ONLY:
                _set(context, "ro", None)
            for option in options:
                name, equals, value = option.partition("=")
                _set(context, name, value if equals else None)
            syscall(FSCONFIG, context, _CMD_CREATE, None, None, 0)
            return syscall(FSMOUNT, context, _FSMOUNT_CLOEXEC, int(attributes))
        except OSError as error:
            raise _mount_error(error, _log(context), fstype, source, access) from error
    finally:
        os.close(context)


def is_known(fstype: str) -> bool:
    """Whether this kernel can mount a type of filesystem; its module is loaded for that if there is one.

    :raises KernelError: it does not tell, for want of privilege.
    """
    try:
        _find_driver(fstype)
    except UnknownFilesystem:
        return False
    return True


@functools.cache  # answers, not refusals: a driver that was there once is there, or is loaded again by the mount
def _find_driver(fstype: str) -> None:
    try:
        os.close(syscall(FSOPEN, fstype.encode(), _FSOPEN_CLOEXEC))
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise UnknownFilesystem(f"this kernel cannot mount {fstype}", subject=fstype) from error
        raise kernel_error(error, f"cannot ask for the filesystem {fstype}") from error


def clone_tree(source: int | str, *, recursive: bool) -> int:
    """A detached copy of a mount (a bind mount that is not attached anywhere yet).

    :param source: descriptor of a directory or file (``O_PATH`` is enough), or a path whose last component is not
        followed if it is a symbolic link.
    :param recursive: with all mounts below.
    :raises NotFound: when there is no such path.
    :raises KernelError: EINVAL when the mount is unbindable or belongs to another mount namespace.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (AT_RECURSIVE if recursive else 0)
    try:
        if isinstance(source, int):
            return syscall(OPEN_TREE, source, b"", flags | AT_EMPTY_PATH)
        return syscall(OPEN_TREE, AT_FDCWD, os.fsencode(source), flags | AT_SYMLINK_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise NotFound("there is no such directory", subject=str(source)) from error
        raise kernel_error(error, "cannot clone the mount", subject=_name(source)) from error


def attach(mount_fd: int, target_fd: int) -> None:
    """Attach a detached mount to an open directory (or a file to a file). No path is resolved.

    :param mount_fd: from :func:`new_filesystem` or :func:`clone_tree`.
    :param target_fd: from :func:`mapper_core.linux.beneath.open_directory_in_root` or the like (``O_PATH``).
    :raises KernelError: ENOENT when the directory has been deleted; EINVAL when ``mount_fd`` is attached already or the
        target is in another mount namespace.
    """
    try:
        syscall(MOVE_MOUNT, mount_fd, b"", target_fd, b"", _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH)
    except OSError as error:
        raise kernel_error(error, "cannot attach the mount", subject=_name(target_fd)) from error


def set_attributes(
    mount_fd: int,
    *,
    set: MountAttribute = MountAttribute.NONE,
    clear: MountAttribute = MountAttribute.NONE,
    recursive: bool = False,
    propagation: Propagation = Propagation.UNCHANGED,
    userns_fd: int | None = None,
) -> None:
    """Change the flags of a mount (:manpage:`mount_setattr(2)`).

    :param mount_fd: detached mount, or any descriptor of the root of an attached one. Not an open file of it.
    :param recursive: also of all mounts below it.
    :param userns_fd: map owners by this user namespace; only on a detached mount that is not mapped yet.
    :raises NotSupported: when a filesystem cannot be idmapped; the text names it.
    :raises KernelError: for all else.
    """
    if userns_fd is not None:
        set |= MountAttribute.IDMAP
    # struct mount_attr { __u64 attr_set, attr_clr, propagation, userns_fd; }
    attributes = struct.pack("=QQQQ", int(set), int(clear), int(propagation), 0 if userns_fd is None else userns_fd)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    try:
        syscall(MOUNT_SETATTR, mount_fd, b"", flags, attributes, len(attributes))
    except OSError as error:
        if userns_fd is not None and error.errno in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise NotSupported(
                "the filesystem, or one mounted in it, cannot be idmapped", subject=_name(mount_fd)
            ) from error
        raise kernel_error(error, "cannot change the flags of the mount", subject=_name(mount_fd)) from error


def reconfigure(mount_fd: int, options: tuple[str, ...]) -> None:
    """Change options of a mounted filesystem, for all its mounts (fspick(2)).

    :param mount_fd: any descriptor of the root of one of its mounts.
    :param options: ``name`` or ``name=value``; what is not named stays as it is, where the filesystem does it so (tmpfs).
    :raises KernelError: the filesystem refuses; the text has its reason.
    """
    try:
        context = syscall(FSPICK, mount_fd, b"", _FSPICK_CLOEXEC | _FSPICK_EMPTY_PATH)
    except OSError as error:
        raise kernel_error(error, "cannot pick the filesystem", subject=_name(mount_fd)) from error
    try:
        for option in options:
            name, equals, value = option.partition("=")
            _set(context, name, value if equals else None)
        syscall(FSCONFIG, context, _CMD_RECONFIGURE, None, None, 0)
    except OSError as error:
        why = f": {log}" if (log := _log(context)) else ""
        raise kernel_error(error, f"cannot change its options{why}", subject=_name(mount_fd)) from error
    finally:
        os.close(context)


def filesystem_supports_idmap(source: int | str, *, userns_fd: int | None = None) -> bool:
    """Whether the filesystem of a directory can be idmapped, found out by doing it on a detached clone.

    Never decided by kernel version: that depends on filesystem, kernel, and what is stacked (overlay, FUSE).

    :param source: descriptor or path of a directory.
    :param userns_fd: user namespace to try with; ``None`` makes one.
    """
    from mapper_core.linux import idmap

    own = None
    try:
        if userns_fd is None:
            ids = (IdRange(inside=0, host=100000, count=65536),)
            userns_fd = own = idmap.user_namespace(IdMap(ids, ids))
        clone = clone_tree(source, recursive=False)
        try:
            set_attributes(clone, userns_fd=userns_fd)
        except NotSupported:
            return False
        except KernelError as error:
            if error.errno == errno.EPERM:  # mounted from another user namespace, or idmapped already
                return False
            raise
        finally:
            os.close(clone)
        return True
    finally:
        if own is not None:
            os.close(own)


def _set(context: int, name: str, value: str | None) -> None:
    if value is None:
        syscall(FSCONFIG, context, _SET_FLAG, name.encode(), None, 0)
    else:
        syscall(FSCONFIG, context, _SET_STRING, name.encode(), os.fsencode(value), 0)


def _log(context: int) -> str:
    """The messages of a filesystem context: one per read(), "e text" for errors, ENODATA at the end."""
    lines = []
    for _ in range(64):
        try:
            message = os.read(context, 8192)
        except OSError:
            break
        lines.append(message.decode(errors="replace").strip()[2:])
    return "; ".join(lines)


def _mount_error(error: OSError, log: str, fstype: str, source: str, access: Access) -> MapperError:
    why = f": {log}" if log else ""
    number = error.errno
    if number == errno.EBUSY:
        return _busy_source(source, fstype, why)
    if number in (errno.EROFS, errno.EACCES):
        if access is Access.READ_WRITE:
            return ReadOnlyImage(
                f"{fstype} cannot be mounted for writing: the device is read-only{why}", subject=source
            )
        return ReadOnlyImage(
            f"{fstype} must replay its journal and the device is read-only{why}",
            subject=source,
            hint="skip the journal by mount option (ext4: noload, xfs: norecovery, btrfs: rescue=nologreplay)",
        )
    if number == errno.ENODEV:
        return UnknownFilesystem(f"this kernel cannot mount {fstype}{why}", subject=source)
    if number in (errno.ENOENT, errno.ENXIO):
        return NotFound(f"there is no such device{why}", subject=source)
    if number in (errno.EUCLEAN, errno.EBADMSG):  # EFSCORRUPTED and EFSBADCRC inside of the kernel
        return CorruptImage(f"{fstype} is damaged{why}", subject=source)
    hint = "" if log else "wrong type, bad superblock or an option it does not know; the kernel log may have the reason"
    failure = kernel_error(error, f"cannot mount {fstype}", subject=source, hint=hint)
    return KernelError(failure.message + why, errno=failure.errno, subject=source, hint=hint)


def _busy_source(source: str, fstype: str, why: str) -> DeviceBusy:
    from mapper_core.linux import holders  # only needed on failure

    try:
        found = holders.holders(source)
    except MapperError:
        found = ()
    text = f"cannot mount {fstype}: {source} is in use: {holders.describe(found)}{why}"
    return DeviceBusy(text, subject=source, hint=holders.advise(found))


def _name(source: int | str) -> str:
    if isinstance(source, str):
        return source
    try:
        return os.readlink(f"/proc/self/fd/{source}")
    except OSError:
        return f"descriptor {source}"
