"""Which mount options of an image's fstab reach the kernel.

The image decides how *its* files are treated (``noatime``, ``compress=zstd``); it must not decide anything about the
host. So there is a list of what is allowed, and everything else is dropped: what would crash the host
(``errors=panic``), take files of it (``loop``, ``journal_path``, ``device=``), weaken it (``suid``, ``dev``), give
files to its users (``uid=``), risk the data (``nobarrier``), or may not be known to this kernel at all.
"""

from __future__ import annotations

import re

from mapper_core.errors import UnsafePath
from mapper_core.frozen import dataclass
from mapper_core.model import Access

#: Filesystem types that are ever mounted; their drivers are the ones that get hardened and fuzzed.
ALLOWED_FILESYSTEMS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "vfat", "iso9660", "squashfs", "erofs"})

EXT_FAMILY = frozenset({"ext2", "ext3", "ext4"})

#: Types of which no driver can write.
READ_ONLY_FILESYSTEMS = frozenset({"iso9660", "squashfs", "erofs"})

#: Options in ``Mount.options`` that are attributes of one mount (mount_setattr(2)), not parameters of the filesystem.
MOUNT_ATTRIBUTES = frozenset(
    {"noatime", "nodiratime", "relatime", "strictatime", "nosuid", "nodev", "noexec", "nosymfollow"}
)

#: Options that every filesystem takes.
_COMMON = ("sync", "dirsync", "lazytime", "nolazytime")

_EXT = ("acl", "user_xattr", "errors=(continue|remount-ro)", "grpid", "bsdgroups", "nogrpid", "sysvgroups")
_EXT3 = (*_EXT, "commit=[0-9]{1,4}", "data=(ordered|journal)", "discard", "nodiscard")

#: Patterns of the options that are passed on, by type of filesystem.
_ALLOWED: dict[str, tuple[str, ...]] = {
    "ext2": _EXT,
    "ext3": _EXT3,
    "ext4": (*_EXT3, "delalloc", "nodelalloc", "auto_da_alloc", "noauto_da_alloc"),
    "xfs": ("nouuid", "discard", "nodiscard", "inode(32|64)", "largeio", "nolargeio", "allocsize=[0-9]{1,7}[kmg]?"),
    "btrfs": (
        "compress(-force)?(=(zlib|lzo|zstd|no|none)(:[0-9]{1,2})?)?",
        "(no)?autodefrag",
        "(no)?ssd",
        "(no)?datacow",
        "(no)?datasum",
        "(no)?acl",
        "discard(=(sync|async))?",
        "nodiscard",
        "commit=[0-9]{1,4}",
        "(no)?flushoncommit",
        "subvolid=[1-9][0-9]{0,18}",
    ),
    "vfat": (
        "[ufd]mask=[0-7]{1,4}",
        "shortname=(lower|win95|winnt|mixed)",
        "utf8(=(0|1|true|false|yes|no))?",
        "check=(r|n|s|relaxed|normal|strict)",
        "tz=UTC",
        "flush",
        "quiet",
        "discard",
    ),
    "iso9660": ("norock", "nojoliet"),
    "squashfs": (),
    "erofs": (),
}

#: Options that change nothing for us: they are the default, or they speak to mount(8), systemd and fsck.
_SILENT = re.compile(
    "defaults|rw|ro|auto|noauto|nofail|async|exec|nouser|_netdev|x-.*|X-.*|comment=.*|pri=.*"
    # Without it the kernel uses the kind of cache that is on the disk; another one it refuses, or converts to.
    "|space_cache(=v[12])?"
)

#: What a filesystem needs so that its journal is not replayed; without it a read-only mount writes, or is refused.
_NO_REPLAY = {"ext3": "noload", "ext4": "noload", "xfs": "norecovery", "btrfs": "rescue=nologreplay"}

#: ext3 and ext4 refuse these without a journal, and ``noload`` is the same as none (Linux 5.15 to 6.18).
_FOR_THE_JOURNAL = ("commit", "data")


@dataclass(frozen=True, slots=True)
class Filtered:
    """What remains of the options of an fstab line.

    :param options: to be passed on; those of :data:`MOUNT_ATTRIBUTES` as attributes of the mount.
    :param subvolume: btrfs: path of the subvolume without a leading slash, ``/`` for the top level, empty: the default.
    :param access: how it is mounted.
    :param dropped: those that a person should know about.
    """

    options: tuple[str, ...]
    subvolume: str
    access: Access
    dropped: tuple[str, ...]


def filter_options(options: tuple[str, ...], fstype: str, access: Access) -> Filtered:
    """Apply the list of allowed options, and add what a filesystem needs.

    :param options: as in fstab.
    :param fstype: of the superblock, one of :data:`ALLOWED_FILESYSTEMS`.
    :param access: what the caller allows at most.
    :raises UnsafePath: ``subvol=`` contains ``..``.
    """
    kept: dict[str, str] = {}  # by name: of two that contradict each other the last one counts, as for mount(8)
    dropped: list[str] = []
    subvolume = ""
    read_only = fstype in READ_ONLY_FILESYSTEMS
    for option in options:
        name, _, value = option.partition("=")
        if name in ("ro", "rw") and fstype not in READ_ONLY_FILESYSTEMS:
            read_only = name == "ro"
        if fstype == "btrfs" and name == "subvol" and value:
            subvolume = normalise_subvolume(value)
        elif fstype == "btrfs" and name == "subvolid" and value in ("0", "5"):
            subvolume = subvolume or "/"
        elif option in MOUNT_ATTRIBUTES or _allowed(option, fstype):
            kept.pop(name, None)
            kept[name] = option
        elif not _SILENT.fullmatch(option):
            dropped.append(option)
    if subvolume:  # the path decides; an id beside it is refused by the kernel when a snapshot was rolled back
        kept.pop("subvolid", None)
    if fstype == "xfs":  # clones of one image share the UUID, and XFS mounts only one of them without this
        kept["nouuid"] = "nouuid"
    if access is Access.READ_ONLY and fstype in _NO_REPLAY:
        kept["replay"] = _NO_REPLAY[fstype]
        for name in _FOR_THE_JOURNAL:
            kept.pop(name, None)
    mode = Access.READ_ONLY if read_only else access
    return Filtered(tuple(kept.values()), subvolume, mode, tuple(dropped))


def _allowed(option: str, fstype: str) -> bool:
    return any(re.fullmatch(pattern, option) for pattern in (*_COMMON, *_ALLOWED[fstype]))


def normalise_subvolume(path: str) -> str:
    """Return the path of a btrfs subvolume as it is compared: ``/@/`` and ``@`` are the same; ``/`` is the top level.

    :raises UnsafePath: it contains ``..``.
    """
    names = [name for name in path.strip('"').split("/") if name not in ("", ".")]
    if ".." in names:
        raise UnsafePath("the path of a btrfs subvolume contains '..'", subject=path[:80])
    return "/".join(names) or "/"


def driver(fstype: str, kernel_filesystems: frozenset[str]) -> str:
    """Return the type to hand to the kernel, or an empty string when this kernel, or our own list, has no driver for it.

    :param fstype: of the superblock.
    :param kernel_filesystems: that this kernel knows or can load.
    """
    if fstype not in ALLOWED_FILESYSTEMS:
        return ""
    if fstype in kernel_filesystems:
        return fstype
    return "ext4" if fstype in EXT_FAMILY and "ext4" in kernel_filesystems else ""
