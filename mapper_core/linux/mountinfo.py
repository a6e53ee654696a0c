"""The mount table of a process, from ``/proc/PID/mountinfo`` (:manpage:`proc_pid_mountinfo(5)`)."""

from __future__ import annotations

import errno
import os
import re
import struct

from mapper_core.errors import KernelError, ProcessGone
from mapper_core.frozen import dataclass
from mapper_core.linux.files import read_bytes
from mapper_core.linux.syscalls import AT_FDCWD, kernel_error, statx_of_name

#: struct statx: the attributes of the file, and which of them this kernel can tell; the device of its filesystem.
_STATX_ATTRIBUTES = struct.Struct("=8xQ40xQ")
_STATX_DEVICE = struct.Struct("=136xII")
_MOUNT_ROOT = 0x2000  # STATX_ATTR_MOUNT_ROOT, kernel 5.8

# The kernel escapes blank, tab, newline, backslash and '#' as three octal digits (fs/proc_namespace.c: mangle()).
_ESCAPE = re.compile(rb"\\([0-3][0-7]{2})")


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One mount, as the process that was asked sees it.

    :param id: mount id, unique in the whole system while the mount lives.
    :param parent: mount id of the parent.
    :param device: (major, minor) of the filesystem; btrfs, overlay and others have an anonymous major 0 here.
    :param root: which directory of the filesystem is the root of this mount.
    :param target: mount point, relative to the root directory of the process.
    :param options: per-mount options (``rw``, ``nosuid``, ``idmapped`` ...).
    :param propagation: optional fields such as ``shared:12``, ``master:3``; empty for a private mount.
    :param source: what the filesystem was mounted from; text chosen by who mounted it.
    :param super_options: options of the filesystem itself.
    """

    id: int
    parent: int
    device: tuple[int, int]
    root: str
    target: str
    options: tuple[str, ...]
    propagation: tuple[str, ...]
    fstype: str
    source: str
    super_options: tuple[str, ...]


def _plain(field: bytes) -> str:
    if b"\\" in field:
        field = _ESCAPE.sub(lambda match: bytes((int(match[1], 8),)), field)
    return os.fsdecode(field)


def parse_line(line: bytes) -> MountEntry:
    """Parse one line, without its newline.

    :raises KernelError: when it does not have the documented form.
    """
    # Fields are separated by exactly one blank; a source can be the empty string, so split() without argument is wrong.
    fields = line.split(b" ")
    try:
        end = fields.index(b"-", 6)
        fstype, source, super_options = fields[end + 1 : end + 4]
        major, minor = fields[2].split(b":")
        return MountEntry(
            id=int(fields[0]),
            parent=int(fields[1]),
            device=(int(major), int(minor)),
            root=_plain(fields[3]),
            target=_plain(fields[4]),
            options=tuple(_plain(fields[5]).split(",")),
            propagation=tuple(_plain(item) for item in fields[6:end]),
            fstype=_plain(fstype),
            source=_plain(source),
            super_options=tuple(_plain(super_options).split(",")),
        )
    except (ValueError, IndexError) as error:
        raise KernelError(f"a line of mountinfo cannot be understood: {os.fsdecode(line)!r}") from error


def parse(text: bytes) -> tuple[MountEntry, ...]:
    """Parse a whole mountinfo text, in its order: of mounts stacked on one directory the topmost comes last."""
    return tuple(parse_line(line) for line in text.split(b"\n") if line)


def entries(pid: str | int = "self") -> tuple[MountEntry, ...]:
    """All mounts that a process sees.

    :raises ProcessGone: when there is no such process.
    """
    return parse(_read(pid))


def _read(pid: str | int) -> bytes:
    try:
        return read_bytes(f"/proc/{pid}/mountinfo")
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessGone("there is no such process", subject=f"process {pid}") from error
    except OSError as error:
        if error.errno == errno.EINVAL:  # the process is a zombie and has no namespaces any more
            raise ProcessGone("the process has ended", subject=f"process {pid}") from error
        raise kernel_error(error, "cannot read the mounts", subject=f"process {pid}") from error


def _entries_with(path: str, pid: str | int) -> tuple[MountEntry, ...]:
    """The mounts whose line contains a path; a host with a hundred containers has thousands of others to skip."""
    needle = b" " + b"".join(b"\\%03o" % byte if byte in b" \t\n\\" else bytes((byte,)) for byte in os.fsencode(path))
    text = _read(pid)
    return tuple(parse_line(line) for line in text.split(b"\n") if needle in line) if needle in text else ()


def is_below(path: str, directory: str) -> bool:
    """Whether ``path`` lies strictly below ``directory``.

    Whole components are compared: ``/x/disk.10`` is not below ``/x/disk.1``.
    """
    prefix = "/" if directory == "/" else directory + "/"
    return path != directory and path.startswith(prefix)


def at(path: str, *, pid: str | int = "self") -> tuple[MountEntry, ...]:
    """The mounts stacked on exactly this directory, the topmost (visible) one last; empty when it is no mount point.

    :param path: absolute path; it is compared as text, so symbolic links must have been resolved.
    """
    path = os.path.normpath(path)
    return tuple(entry for entry in _entries_with(path, pid) if entry.target == path)


def below(path: str, *, pid: str | int = "self") -> tuple[MountEntry, ...]:
    """The mounts strictly below a directory, in the order of the mount table (parents before children).

    :param path: absolute path; it is compared as text, so symbolic links must have been resolved.
    """
    path = os.path.normpath(path)
    return tuple(entry for entry in _entries_with(path, pid) if is_below(entry.target, path))


def under(path: str, *, pid: str | int = "self") -> tuple[MountEntry, ...]:
    """The mounts on a directory and below it, in the order of the mount table.

    :param path: as for :func:`at`.
    """
    path = os.path.normpath(path)
    return tuple(entry for entry in _entries_with(path, pid) if entry.target == path or is_below(entry.target, path))


# --- without the mount table ----------------------------------------------------------------------------
#
# The table has a line for every mount of every container of the host. What is asked about one directory, the kernel can
# answer in constant time.


def device_on(name: str, *, parent_fd: int = AT_FDCWD) -> int | None:
    """The device number (``st_dev``) of what is mounted on exactly this directory, the topmost; ``None`` when nothing is.

    :param name: a path, or a name in the directory ``parent_fd``; a final symbolic link is not followed.
    :raises OSError: there is no such directory.
    """
    status = statx_of_name(name, parent_fd)
    attributes, known = _STATX_ATTRIBUTES.unpack_from(status)
    if not attributes & known & _MOUNT_ROOT:
        return None
    return os.makedev(*_STATX_DEVICE.unpack_from(status))


def is_clear(directory: str) -> bool:
    """Whether nothing is mounted on a directory or below it, or there is no such directory.

    Below an empty directory nothing can be: a mount needs a name to be mounted on.

    :param directory: as for :func:`at`.
    """
    try:
        if device_on(directory) is not None:
            return False
        with os.scandir(directory) as names:
            if next(names, None) is None:
                return True
    except FileNotFoundError:
        return True
    return not below(directory)
