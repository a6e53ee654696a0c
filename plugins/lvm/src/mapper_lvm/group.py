"""Volume groups as their metadata describe them, and where their volumes lie on one device."""

from __future__ import annotations

import re

from mapper_core.errors import BadPartitionTable
from mapper_core.frozen import dataclass
from mapper_core.partitions.layout import Extent, check_overlaps
from mapper_lvm.label import PhysicalVolume
from mapper_lvm.names import is_name
from mapper_lvm.text import Section, Value

#: Extents and places are counted in sectors of 512 bytes on all disks.
SECTOR = 512

_UUID = re.compile(r"[A-Za-z0-9]{6}(-[A-Za-z0-9]{4}){5}-[A-Za-z0-9]{6}", re.ASCII)

#: Most of each that one group may have here.
MAX_VOLUMES = 256
MAX_SEGMENTS = 1024


@dataclass(frozen=True, slots=True)
class LogicalVolume:
    """A volume that the guest sees.

    :param uuid: with dashes, as lvs(8) prints it.
    :param pieces: (first byte on the device, bytes), in the order of the volume; neighbours are one piece.
    :param obstacle: why it is more than the bytes of its pieces; then it has none.
    """

    name: str
    uuid: str
    pieces: tuple[tuple[int, int], ...] = ()
    obstacle: str = ""


@dataclass(frozen=True, slots=True)
class VolumeGroup:
    """A group.

    :param uuid: with dashes.
    :param volumes: sorted by name.
    """

    name: str
    uuid: str
    volumes: tuple[LogicalVolume, ...]


def newest(sections: list[Section]) -> Section:
    """Choose among copies of the metadata of one group the one that was written last."""
    return max(sections, key=lambda section: _number(section, "seqno", 0, 1 << 32))


def name_of(content: Section) -> str:
    """The name of the group: the one section with a name of its own.

    :raises BadPartitionTable: there is none, or it is not a name that LVM would take.
    """
    names = [name for name, value in content.items() if isinstance(value, dict)]
    if len(names) != 1 or not is_name(names[0]):
        raise BadPartitionTable("LVM metadata: the name of the volume group is missing, or not allowed")
    return names[0]


def read(name: str, section: Section, present: tuple[PhysicalVolume, ...]) -> VolumeGroup:
    """Understand the section of a group.

    :param present: the physical volumes of this device.
    :raises BadPartitionTable: numbers that cannot be, or volumes that share bytes.
    """
    uuid = _uuid(section)
    extent = _number(section, "extent_size", 1, 1 << 40) * SECTOR
    places = _places(_sections(section, "physical_volumes"), present, extent)
    logical = _sections(section, "logical_volumes")
    if len(logical) > MAX_VOLUMES:
        raise BadPartitionTable(f"LVM metadata: {len(logical)} volumes; at most {MAX_VOLUMES} are read")
    used = _used_by_others(logical)
    exported = "EXPORTED" in _flags(section)
    volumes = []
    for own_name, value in sorted(logical.items()):
        if not is_name(own_name):
            raise BadPartitionTable("LVM metadata: a volume has a name that is not allowed")
        if "VISIBLE" not in _flags(value):
            continue
        volume = _volume(own_name, value, places, extent)
        if own_name in used:
            volume = LogicalVolume(own_name, volume.uuid, obstacle=f"it belongs to a {used[own_name]}")
        if exported:
            volume = LogicalVolume(own_name, volume.uuid, obstacle="its group has been exported")
        volumes.append(volume)
    check_overlaps([Extent(*piece, f"the volume {volume.name}") for volume in volumes for piece in volume.pieces])
    return VolumeGroup(name, uuid, tuple(volumes))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the extents of a physical volume are: the first byte on the device and their number; None: not here."""

    start: int | None
    count: int


def _places(sections: dict[str, Section], present: tuple[PhysicalVolume, ...], extent: int) -> dict[str, _Place]:
    here = {volume.uuid: volume for volume in present}
    places = {}
    for name, section in sections.items():
        count = _number(section, "pe_count", 0, 1 << 40)
        volume = here.get(_uuid(section).replace("-", ""))
        if volume is None:
            places[name] = _Place(None, count)
            continue
        first = _number(section, "pe_start", 1, 1 << 54) * SECTOR
        if first + count * extent > volume.size:
            raise BadPartitionTable(
                f"the LVM physical volume at byte {volume.start} is larger than the partition it is in",
                hint="the image is shorter than its volume group says; restore it or enlarge it to its original size",
            )
        places[name] = _Place(volume.start + first, count)
    return places


def _used_by_others(logical: dict[str, Section]) -> dict[str, str]:
    """Volumes on which others stand, such as the origins of snapshots: whoever writes them has to know of that."""
    used: dict[str, str] = {}
    for section in logical.values():
        for segment in _segments(section):
            kind = segment.get("type")
            if kind in ("striped", "linear"):
                continue
            for value in segment.values():
                for item in value if isinstance(value, list) else [value]:
                    if isinstance(item, str) and item in logical:
                        used[item] = str(kind)[:32]
    return used


def _volume(name: str, section: Section, places: dict[str, _Place], extent: int) -> LogicalVolume:
    uuid = _uuid(section)
    pieces: list[tuple[int, int]] = []
    expected = 0
    for segment in _segments(section):
        kind, stripes = segment.get("type"), segment.get("stripes")
        if kind not in ("striped", "linear"):
            return LogicalVolume(name, uuid, obstacle=f"it is of the type {str(kind)[:32]}")
        if not isinstance(stripes, list) or len(stripes) != 2 or segment.get("stripe_count") != 1:
            return LogicalVolume(name, uuid, obstacle="it is striped")
        place, first = places.get(str(stripes[0])), stripes[1]
        count = _number(segment, "extent_count", 1, 1 << 40)
        if place is None or not isinstance(first, int) or not 0 <= first <= place.count - count:
            raise BadPartitionTable(f"LVM metadata: the volume {name} has extents that do not exist")
        if _number(segment, "start_extent", 0, 1 << 40) != expected:
            raise BadPartitionTable(f"LVM metadata: the segments of the volume {name} leave gaps or overlap")
        expected += count
        if place.start is None:
            return LogicalVolume(name, uuid, obstacle="a part of it is on another disk")
        start, size = place.start + first * extent, count * extent
        if pieces and sum(pieces[-1]) == start:
            pieces[-1] = (pieces[-1][0], pieces[-1][1] + size)
        else:
            pieces.append((start, size))
    return LogicalVolume(name, uuid, tuple(pieces))


def _segments(section: Section) -> list[Section]:
    """Segments of a volume in their order."""
    count = _number(section, "segment_count", 0, MAX_SEGMENTS)
    segments = [section.get(f"segment{number}") for number in range(1, count + 1)]
    if not segments:
        raise BadPartitionTable("LVM metadata: a volume has no segments")
    return [_checked(segment) for segment in segments]


def _checked(value: Value | None) -> Section:
    if not isinstance(value, dict):
        raise BadPartitionTable("LVM metadata: a section is missing")
    return value


def _sections(section: Section, name: str) -> dict[str, Section]:
    return {key: _checked(value) for key, value in _checked(section.get(name, {})).items()}


def _number(section: Section, name: str, least: int, most: int) -> int:
    value = section.get(name)
    if not isinstance(value, int) or not least <= value <= most:
        raise BadPartitionTable(f"LVM metadata: {name} is missing or makes no sense")
    return value


def _uuid(section: Section) -> str:
    value = section.get("id")
    if not isinstance(value, str) or not _UUID.fullmatch(value):
        raise BadPartitionTable("LVM metadata: an id is missing or makes no sense")
    return value


def _flags(section: Section) -> frozenset[str]:
    value = section.get("status")
    return frozenset(item for item in value if isinstance(item, str)) if isinstance(value, list) else frozenset()


def device_names(group: VolumeGroup, volume: LogicalVolume) -> tuple[str, ...]:
    """The names of the volume's device in the guest: those of LVM, of device-mapper, and udev's links.

    In names of device-mapper a hyphen of a name is written twice (dmsetup(8), lib/misc/lvm-string.c).
    """
    mangled = "-".join(name.replace("-", "--") for name in (group.name, volume.name))
    uuid = (group.uuid + volume.uuid).replace("-", "")
    return (
        f"/dev/{group.name}/{volume.name}",
        f"/dev/mapper/{mangled}",
        f"/dev/disk/by-id/dm-name-{mangled}",
        f"/dev/disk/by-id/dm-uuid-LVM-{uuid}",
    )
