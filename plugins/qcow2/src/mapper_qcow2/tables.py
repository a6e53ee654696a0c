"""Whether a qcow2 file is as long as its tables say.

qemu reads what lies behind the end of a file as zeros: a truncated image works for a while, with holes in it.
"""

from __future__ import annotations

import sys
from array import array

from mapper_core.imagefile import ImageFile
from mapper_qcow2.fields import Header, Incompatible

_OFFSET = 0x00FF_FFFF_FFFF_FE00  # bits 9 to 55 of an L1, refcount table and standard L2 entry
_COMPRESSED = 1 << 62

#: No more of a table is read. 256 KiB of L1 are 16 TiB of disk with the usual cluster size.
_TABLE_LIMIT = 256 << 10
#: L2 tables that are read to confirm a suspicion, bytes.
_L2_LIMIT = 2 << 20


def check_length(image: ImageFile, header: Header) -> None:
    """Find out whether the file is truncated, at a cost that does not depend on its size.

    The L1 table must not point behind the end of the file. The rest is checked only when there is a reason to: the
    refcounts count a cluster behind the end. That alone is no proof, a crash can leave such a cluster behind (a leak), but
    an L2 entry that points there is, and so is an L2 table of which a part is there: qemu refers to one when all of it is stored.

    :raises TruncatedImage: something that is in use lies behind the end of the file.
    """
    size = min(header.l1_entries * 8, _TABLE_LIMIT)
    if not size or not image.affords(size):
        return
    tables = [entry & _OFFSET for entry in _numbers(image.read(header.l1_offset, size, "L1 table"))]
    if max(tables) >= image.size:
        raise image.truncated("L2 table", max(tables) + header.cluster_size)
    # with an external data file only the metadata are in this file
    if Incompatible.DATA_FILE in header.features or not _counts_behind_end(image, header):
        return
    left = _L2_LIMIT
    # tables that were written late point to clusters that were written late: the end of the file is what is missing
    for offset in sorted({table for table in tables if table}, reverse=True):
        if offset + header.cluster_size > image.size:
            raise image.truncated("L2 table", offset + header.cluster_size)
        left -= header.cluster_size
        if left < 0 or not image.affords(header.cluster_size):
            return
        entries = _numbers(image.read(offset, header.cluster_size, "L2 table"))[:: header.l2_entry_size // 8]
        furthest = max((_cluster(entry, header) for entry in entries), default=0)
        if furthest >= image.size:
            raise image.truncated("cluster in use", furthest + 1)


def _counts_behind_end(image: ImageFile, header: Header) -> bool:
    """Say whether the last cluster with a refcount starts behind the end of the file."""
    if Incompatible.DIRTY in header.features:
        return True  # the refcounts are not up to date
    size = header.refcount_clusters << header.cluster_bits
    if size > _TABLE_LIMIT or not image.affords(size + header.cluster_size):
        return False
    table = image.read(header.refcount_offset, size, "refcount table").rstrip(b"\0")
    if not table:
        raise image.corrupt("the refcount table is empty")
    index = (len(table) - 1) // 8
    offset = _numbers(table[index * 8 :].ljust(8, b"\0"))[0] & _OFFSET
    if offset >= image.size:
        raise image.truncated("refcount block", offset + header.cluster_size)
    length = min(header.cluster_size, image.size - offset)
    block = image.read(offset, length, "refcount block").rstrip(b"\0")
    counts_per_block = header.cluster_size * 8 // header.refcount_bits
    # the last byte that is not zero belongs to the last counted cluster; of several in one byte the first is taken
    within = max(len(block) - 1, 0) * 8 // header.refcount_bits
    return (index * counts_per_block + within) << header.cluster_bits >= image.size


def _cluster(entry: int, header: Header) -> int:
    """Return the host offset in an L2 entry, bytes."""
    if entry & _COMPRESSED:
        # the offset takes the low bits, the number of sectors the rest up to bit 61
        return entry & ((1 << (62 - (header.cluster_bits - 8))) - 1)
    return entry & _OFFSET


def _numbers(data: bytes) -> array[int]:
    numbers = array("Q")
    numbers.frombytes(data)
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers
