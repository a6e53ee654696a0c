"""The rules that every partition of every scheme obeys."""

from __future__ import annotations

import itertools

from mapper_core.errors import BadPartitionTable, PartitionBeyondDevice
from mapper_core.frozen import dataclass

#: Partitions we are willing to handle on one disk. The kernel makes at most 255 (DISK_MAX_PARTS, Linux 5.11+).
MAX_PARTITIONS = 128
MAX_NUMBER = 255


@dataclass(frozen=True, slots=True)
class Extent:
    """A range of the device, bytes, and what it is, for the error text."""

    start: int
    size: int
    name: str

    @property
    def end(self) -> int:
        """The first byte after it."""
        return self.start + self.size


def check_inside(extent: Extent, device_size: int) -> None:
    """Check that a partition covers neither the first sector nor anything behind the device.

    :raises BadPartitionTable: it covers the start of the device, where the table itself lies.
    :raises PartitionBeyondDevice: it ends behind the device: most often the image was truncated.
    """
    if extent.start <= 0:
        raise BadPartitionTable(f"{extent.name} covers the partition table itself")
    if extent.end > device_size:
        raise PartitionBeyondDevice(
            f"{extent.name} ends at byte {extent.end}, behind the end of the device at {device_size}",
            hint="the image is shorter than its partition table says; restore it or enlarge it to its original size",
        )


def check_overlaps(extents: list[Extent]) -> None:
    """Check that no two extents share a byte.

    :raises BadPartitionTable: two of them do.
    """
    ordered = sorted(extents, key=lambda extent: (extent.start, extent.end))
    for before, after in itertools.pairwise(ordered):
        if after.start < before.end:
            raise BadPartitionTable(f"{before.name} and {after.name} overlap")
