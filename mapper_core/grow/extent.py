"""How far a partition can grow. Pure."""

from __future__ import annotations

from mapper_core.errors import NoRoomToGrow
from mapper_core.frozen import dataclass
from mapper_core.model import Partition
from mapper_core.partitions.layout import Extent

#: Where partitions begin and end since 2010, bytes; anything less is not worth a change of the table.
ALIGNMENT = 1 << 20


@dataclass(frozen=True, slots=True)
class Write:
    """Whole sectors of the device.

    :param offset: bytes.
    """

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Growth:
    """A change of a partition table.

    :param partition: as it will be.
    :param writes: in this order, each on the device before the next one begins: whenever the power fails, the table on
        the device is valid, the old one or the new one.
    """

    partition: Partition
    writes: tuple[Write, ...]


def new_end(partition: Partition, others: tuple[Extent, ...], limit: int, device_size: int) -> int:
    """Return where a partition can end, bytes; its present end when it is as large as it can be.

    :param others: everything else that the table describes.
    :param limit: the first byte behind what this kind of table can give to partitions.
    :param device_size: bytes.
    :raises NoRoomToGrow: something stands right behind it, and keeps it from what is free behind that.
    """
    present = partition.start + partition.size
    behind = sorted((other for other in others if other.start >= present), key=lambda other: other.start)
    bound = min(behind[0].start if behind else limit, limit)
    end = max(present, bound // ALIGNMENT * ALIGNMENT)
    if end > present or not behind:
        return end
    last = max(other.end for other in behind)
    raise NoRoomToGrow(
        f"partition {partition.number} cannot grow: {behind[0].name} follows it",
        hint=f"the disk has {max(0, device_size - last)} bytes behind the last partition; name the partition that is to grow",
    )
