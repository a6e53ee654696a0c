"""LVM inside of an image: its volumes take the place of the partitions they lie in.

The volumes become partitions of the device, made of the bytes that the metadata name. LVM and device-mapper of the host are
not asked and see nothing of it: a group in an image that is called like one of the host's, or has its very uuid, is
harmless (M-16), and there is nothing that had to be deactivated before the device can go.
"""

from __future__ import annotations

from mapper_core.errors import BadPartitionTable
from mapper_core.frozen import replace
from mapper_core.model import Partition, PartitionTable
from mapper_core.partitions import ReadAt, window
from mapper_core.partitions.discover import discover
from mapper_core.partitions.layout import MAX_NUMBER, Extent, check_overlaps
from mapper_lvm import group, label, text

#: The scheme of a disk that is a physical volume as a whole.
SCHEME = "lvm"


def find(read: ReadAt, size: int, sector_size: int) -> PartitionTable | None:
    """Find the partitions of a device with LVM on it; ``None`` when there is none.

    Partitions that are physical volumes are left out; the logical volumes follow, with numbers behind those of the table.

    :raises BadPartitionTable: the table, or the metadata, make no sense.
    """
    table = discover(read, size, sector_size)
    found = _labels(read, table.partitions)
    physical = tuple(volume for _, volume in found if volume is not None)
    if not physical:
        return None
    kept = tuple(item for item, volume in found if volume is None)
    warnings = list(table.warnings)
    partitions = []
    number = max((item.number for item in table.partitions), default=0)
    for one in _groups(physical):
        for volume in one.volumes:
            name = f"{one.name}/{volume.name}"
            if volume.obstacle or len(volume.pieces) != 1:
                reason = volume.obstacle or f"it lies in {len(volume.pieces)} pieces"
                warnings.append(f"the logical volume {name} is not used: {reason}")
                continue
            number += 1
            if number > MAX_NUMBER:
                raise BadPartitionTable("the disk has too many logical volumes")
            start, length = volume.pieces[0]
            names = group.device_names(one, volume)
            partitions.append(Partition(number, start, length, uuid=volume.uuid, label=name, names=names))
    # each group is sane in itself by now, but two can claim the same physical volume
    check_overlaps([Extent(item.start, item.size, f"the volume {item.label}") for item in partitions])
    scheme = SCHEME if table.scheme == "none" else table.scheme
    return replace(table, scheme=scheme, partitions=(*kept, *partitions), warnings=tuple(warnings))


def _labels(read: ReadAt, partitions: tuple[Partition, ...]) -> list[tuple[Partition, label.PhysicalVolume | None]]:
    """Read the label of each partition, as long as what they lead to is not too much."""
    found: list[tuple[Partition, label.PhysicalVolume | None]] = []
    texts: set[bytes] = set()
    for item in partitions:
        volume = label.read(window(read, item.start, item.size), item.start, item.size)
        found.append((item, volume))
        texts.update(volume.texts if volume is not None else ())
        if sum(map(len, texts)) > label.MAX_TEXT:
            raise BadPartitionTable(f"the disk has more than {label.MAX_TEXT >> 20} MiB of LVM metadata")
    return found


def _groups(physical: tuple[label.PhysicalVolume, ...]) -> list[group.VolumeGroup]:
    """Read each group once, however many of its volumes are on this device."""
    copies: dict[str, list[tuple[str, text.Section]]] = {}
    for content in dict.fromkeys(content for volume in physical for content in volume.texts):
        parsed = text.parse(content.rstrip(b"\0").decode("utf-8", "replace"))
        name = group.name_of(parsed)
        section = parsed[name]
        assert isinstance(section, dict)
        copies.setdefault(str(section.get("id")), []).append((name, section))
    groups = []
    for found in copies.values():
        newest = group.newest([section for _, section in found])
        name = next(name for name, section in found if section is newest)
        groups.append(group.read(name, newest, physical))
    return sorted(groups, key=lambda one: (one.name, one.uuid))
