"""Which partition of a disk is the root: a hint, what the partition table says, then what is in the filesystems.

Nothing is guessed. Where two partitions fit equally well, a person has to say which one it is.
"""

from __future__ import annotations

from mapper_core.errors import AmbiguousRoot, BadImage, NoRootFound, UnknownFilesystem
from mapper_core.frozen import dataclass
from mapper_core.model import Volume
from mapper_core.partitions.reader import escape_controls
from mapper_core.tree import dps
from mapper_core.tree.options import ALLOWED_FILESYSTEMS
from mapper_core.tree.resolve import resolve_hint

HINT = "name the partition: its number, or PARTUUID=, UUID=, LABEL= or PARTLABEL= and the value"

#: Filesystems that can hold a Linux system; the others lack owners and modes, or are for boot loaders and CDs.
_LINUX = ALLOWED_FILESYSTEMS - {"vfat", "iso9660"}


@dataclass(frozen=True, slots=True)
class RootEvidence:
    """What somebody saw who mounted a candidate read-only.

    :param has_fstab: there is a regular file ``/etc/fstab``.
    :param has_init: there is ``/sbin/init`` or what takes its place.
    :param has_etc: there is a directory ``/etc``.
    :param os_release: ``ID`` of ``/etc/os-release``; empty without it.
    :param subvolume: btrfs: path of the subvolume in which it was seen, empty: the default one.
    """

    volume: Volume
    has_fstab: bool = False
    has_init: bool = False
    has_etc: bool = False
    os_release: str = ""
    subvolume: str = ""

    @property
    def rank(self) -> tuple[bool, bool, bool]:
        """The larger, the more it looks like a root: a whole system, then one with an fstab, then one with a name."""
        return (self.has_init and self.has_etc, self.has_fstab, bool(self.os_release))


def choose_root(
    volumes: tuple[Volume, ...], contents: tuple[RootEvidence, ...], hint: str = "", *, architecture: str
) -> Volume:
    """Choose the root filesystem of a disk.

    :param volumes: all partitions of the disk, in table order.
    :param contents: what was seen inside those that could be mounted. May be empty: then only the table decides.
    :param hint: what a person asked for, see :func:`mapper_core.tree.resolve.resolve_hint`.
    :param architecture: machine name as in :manpage:`uname(2)`.
    :raises NoRootFound: nothing fits; the message lists what is on each partition.
    :raises AmbiguousRoot: several fit.
    :raises UnknownFilesystem: the hint leads to something that is never mounted.
    """
    if hint:
        return _hinted(volumes, hint)
    mountable = tuple(volume for volume in volumes if volume.filesystem.type in ALLOWED_FILESYSTEMS)
    if len(volumes) == 1 and volumes[0].partition.number == 0:
        if mountable:
            return volumes[0]
        raise no_root(volumes)
    candidates = tuple(volume for volume in mountable if volume.partition.type not in dps.BOOT_TYPES)
    guid = dps.ROOT_BY_MACHINE.get(architecture)
    typed = tuple(volume for volume in candidates if guid and volume.partition.type == guid)
    if len(typed) == 1:
        return typed[0]
    candidates = tuple(volume for volume in typed or candidates if volume.filesystem.type in _LINUX)
    best = _best(tuple(item for item in contents if item.volume in candidates))
    if len(best) > 1:
        raise _ambiguous(best)
    if best:
        return best[0]
    if len(candidates) == 1:
        seen = [item for item in contents if item.volume == candidates[0]]
        if not seen or any(item.has_init or item.has_etc for item in seen):
            return candidates[0]
    if len(candidates) > 1 and not contents:
        raise _ambiguous(candidates)
    raise no_root(volumes)


def root_subvolume(root: Volume, contents: tuple[RootEvidence, ...]) -> str:
    """Return the btrfs subvolume in which the chosen root was seen; empty: the default one.

    Of several that look the same the default one is right: it is often one of the others as well.

    :raises AmbiguousRoot: several subvolumes look equally like a root, and none of them is the default one.
    """
    seen = [item for item in contents if item.volume == root]
    top = max((item.rank for item in seen), default=())
    found = sorted({item.subvolume for item in seen if item.rank == top and any(top)})
    if not found or "" in found:
        return ""
    if len(found) > 1:
        names = ", ".join(map(escape_controls, found))
        raise AmbiguousRoot(f"{describe(root)}, with several subvolumes that look like a root filesystem: {names}")
    return found[0]


def _best(contents: tuple[RootEvidence, ...]) -> tuple[Volume, ...]:
    """Return the volumes that look most like a root, in the order given, each once."""
    like_root = [item for item in contents if item.has_init or (item.has_etc and (item.has_fstab or item.os_release))]
    if not like_root:
        return ()
    top = max(item.rank for item in like_root)
    return tuple(dict.fromkeys(item.volume for item in like_root if item.rank == top))


def _hinted(volumes: tuple[Volume, ...], hint: str) -> Volume:
    match = resolve_hint(hint, volumes)
    if match.volume is None:
        raise no_root(volumes, f"{match.reason}; ")
    if match.volume.filesystem.type not in ALLOWED_FILESYSTEMS:
        raise UnknownFilesystem(f"{describe(match.volume)} cannot be mounted", hint=HINT)
    return match.volume


def no_root(volumes: tuple[Volume, ...], reason: str = "no partition looks like a root filesystem; ") -> NoRootFound:
    """Make the error that lists what is on the disk."""
    what = "; ".join(map(describe, volumes)) or "the disk has no partitions"
    wrapped = any(volume.filesystem.type in ("LVM2_member", "crypto_LUKS", "linux_raid_member") for volume in volumes)
    hint = "LVM inside of an image needs the plugin mapper-lvm; LUKS and RAID are not opened" if wrapped else HINT
    return NoRootFound(f"{reason}found: {what}", hint=hint)


def _ambiguous(volumes: tuple[Volume, ...]) -> BadImage:
    what = "; ".join(map(describe, volumes))
    return AmbiguousRoot(f"several partitions look like the root filesystem: {what}", hint=HINT)


def describe(volume: Volume) -> str:
    """Say in a few words what a volume is, for messages."""
    number, filesystem = volume.partition.number, volume.filesystem
    where = f"partition {number}" if number else "the whole disk"
    if not filesystem.type:
        return f"{where}: nothing recognised"
    label = f" labelled {filesystem.label!r}" if filesystem.label else ""
    return f"{where}: {filesystem.type}{label}"
