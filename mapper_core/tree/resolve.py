r"""Which volume of a disk an fstab line means.

Only the volumes of one disk are searched, never the host's ``/dev/disk/by-*``: every clone of an image carries the same
UUIDs and labels, and an image may carry the host's on purpose.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from mapper_core.frozen import dataclass
from mapper_core.model import Volume
from mapper_core.partitions.reader import text
from mapper_core.tree.targets import shown

#: A disk and its partition, as Linux names them.
_DEVICE = re.compile(
    r"/dev/(?:(?P<disk>(?:sd|vd|hd|xvd)[a-z]{1,3})(?P<number>[0-9]{1,3})?"
    r"|(?P<pdisk>nvme[0-9]{1,3}n[0-9]{1,3}|mmcblk[0-9]{1,3}|nbd[0-9]{1,3}|loop[0-9]{1,3})(?:p(?P<pnumber>[0-9]{1,3}))?)"
)

#: What the first disk of a machine is called.
FIRST_DISKS = frozenset({"sda", "vda", "hda", "xvda", "nvme0n1", "mmcblk0"})

#: A link that udev makes; only its suffix tells something.
_LINK = re.compile(r"/dev/disk/(?P<disk>by-(?:path|id)/[^/]+?)(?:-part(?P<number>[0-9]{1,3}))?")

_UDEV_ESCAPE = re.compile(rb"\\x([0-9a-fA-F]{2})")


@dataclass(frozen=True, slots=True)
class Match:
    """The answer: a volume, or the reason why there is none."""

    volume: Volume | None
    reason: str = ""


def own_disks(specs: list[str], root_spec: str) -> frozenset[str]:
    """Guess the names that this disk has in the guest.

    The line for ``/`` tells. Without it (``UUID=``) the first disk of the machine is meant, if only one such name is
    used: an image that mounts both ``/dev/sda2`` and ``/dev/vda3`` talks about two disks. A link of udev is made of the
    host's hardware; it is taken for this disk if no other link of its kind is used.

    :param specs: first fields of all lines.
    :param root_spec: the first field of the line for ``/``; empty without one.
    :returns: names as :func:`split_device` gives them.
    """
    root_disk = split_device(root_spec)[0]
    disks = {disk for spec in specs if (disk := split_device(spec)[0])}
    own = {root_disk} if root_disk else set()
    for kind in ("", "by-path", "by-id"):
        used = {disk for disk in disks if disk.rpartition("/")[0] == kind and (kind or disk in FIRST_DISKS)}
        if len(used) == 1 and not (root_disk and root_disk.rpartition("/")[0] == kind):
            own |= used
    return frozenset(own)


def split_device(spec: str) -> tuple[str, int]:
    """Split the name of a device into its disk and the number of the partition, 0 for the whole disk.

    ``/dev/sda1`` is ``sda`` and 1, ``/dev/disk/by-path/pci-0000:00:05.0-part2`` is ``by-path/pci-0000:00:05.0`` and 2;
    the disk is empty for anything else.
    """
    if match := _DEVICE.fullmatch(spec):
        return match["disk"] or match["pdisk"], int(match["number"] or match["pnumber"] or 0)
    if match := _LINK.fullmatch(spec):
        return match["disk"], int(match["number"] or 0)
    return "", 0


def resolve(spec: str, volumes: tuple[Volume, ...], disks: frozenset[str], root: Volume | None = None) -> Match:
    """Find the volume that the first field of an fstab line means.

    :param spec: such as ``UUID="..."``, ``/dev/vda2``, ``/dev/disk/by-label/data``.
    :param volumes: of this disk.
    :param disks: names of this disk in the guest, see :func:`own_disks`.
    :param root: what ``/dev/root`` means.
    """
    if any(spec in volume.partition.names for volume in volumes):
        return _unique(spec, volumes, lambda volume: spec in volume.partition.names)
    name, equals, value = spec.partition("=")
    if equals and name in _TAGS:
        return _unique(spec, volumes, _by_tag(name, _unquote(value)))
    if spec == "/dev/root" and root is not None:
        return Match(root)
    kind, _, link = spec.removeprefix("/dev/disk/by-").partition("/")
    if spec.startswith("/dev/disk/by-") and kind.islower() and kind.upper() in _TAGS:
        raw = _UDEV_ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), os.fsencode(link))
        return _unique(spec, volumes, _by_tag(kind.upper(), os.fsdecode(raw)))
    disk, number = split_device(spec)
    if disk and disk in disks:
        return _unique(spec, volumes, lambda volume: volume.partition.number == number)
    if disk:
        return Match(None, f"{shown(spec)} is on another disk than the root, or it is not known on which")
    if spec.startswith(("/dev/mapper/", "/dev/dm-", "/dev/md")):
        return Match(
            None, f"{shown(spec)} is no logical volume of this disk that can be used; LUKS and RAID are not opened"
        )
    return Match(None, f"{shown(spec)} names nothing on this disk")


def _unquote(value: str) -> str:
    return value[1:-1] if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'" else value


def _unique(spec: str, volumes: tuple[Volume, ...], wanted: Callable[[Volume], bool]) -> Match:
    found = [volume for volume in volumes if wanted(volume)]
    if len(found) == 1:
        return Match(found[0])
    if not found:
        return Match(None, f"{shown(spec)} is not on this disk")
    numbers = ", ".join(str(volume.partition.number) for volume in found)
    return Match(None, f"{shown(spec)} matches partitions {numbers}")


def _by_tag(name: str, value: str) -> Callable[[Volume], bool]:
    attribute, any_case = _TAGS[name]
    # Names read from the image went through the same function.
    value = text(os.fsencode(value))
    if any_case:
        value = value.lower()
        return lambda volume: bool(value) and attribute(volume).lower() == value
    return lambda volume: bool(value) and attribute(volume) == value


#: What each tag compares, and whether its letters are hexadecimal digits, which tools write in either case.
_TAGS: dict[str, tuple[Callable[[Volume], str], bool]] = {
    "UUID": (lambda volume: volume.filesystem.uuid, True),
    "LABEL": (lambda volume: volume.filesystem.label, False),
    "PARTUUID": (lambda volume: volume.partition.uuid, True),
    "PARTLABEL": (lambda volume: volume.partition.label, False),
}


def resolve_hint(hint: str, volumes: tuple[Volume, ...]) -> Match:
    """Find the volume that a person names: ``2``, ``p2``, ``vda2``, ``/dev/sdb2``, ``LABEL=root``, or a UUID.

    The disk's name does not count: it is the one in the guest, and the person has pointed at this disk already.
    """
    if hint.removeprefix("p").isascii() and hint.removeprefix("p").isdigit() and len(hint) <= 4:
        number = int(hint.removeprefix("p"))
        return _unique(hint, volumes, lambda volume: volume.partition.number == number)
    device = hint if hint.startswith("/dev/") else f"/dev/{hint}"
    disk, _ = split_device(device)
    if disk:
        return resolve(device, volumes, frozenset({disk}))
    if "=" not in hint and not hint.startswith("/"):
        wanted = hint.lower()
        return _unique(hint, volumes, lambda volume: wanted in _uuids(volume))
    return resolve(hint, volumes, frozenset())


def _uuids(volume: Volume) -> tuple[str, ...]:
    return tuple(uuid.lower() for uuid in (volume.filesystem.uuid, volume.partition.uuid) if uuid)
