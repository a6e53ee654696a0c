"""Disk images made of bytes, without any tool: small valid ones, and the same with any field changed.

For tests of inspectors. The images are as small as their format allows, and a real qemu opens them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

SECTOR = 512

# --- qcow2 --------------------------------------------------------------------------------------------------

#: Header fields of qcow2: name -> (offset, struct format). See qemu's docs/interop/qcow2.txt.
QCOW2_FIELDS: dict[str, tuple[int, str]] = {
    "magic": (0, ">I"),
    "version_field": (4, ">I"),
    "backing_offset": (8, ">Q"),
    "backing_size": (16, ">I"),
    "cluster_bits_field": (20, ">I"),
    "size_field": (24, ">Q"),
    "encryption": (32, ">I"),
    "l1_entries": (36, ">I"),
    "l1_offset": (40, ">Q"),
    "refcount_offset": (48, ">Q"),
    "refcount_clusters": (56, ">I"),
    "snapshots": (60, ">I"),
    "snapshots_offset": (64, ">Q"),
    "incompatible": (72, ">Q"),
    "compatible": (80, ">Q"),
    "autoclear": (88, ">Q"),
    "refcount_order": (96, ">I"),
    "header_length": (100, ">I"),
    "compression": (104, ">B"),
}

BACKING_FORMAT, FEATURE_NAMES, DATA_FILE = 0xE2792ACA, 0x6803F857, 0x44415441


def qcow2(
    *,
    size: int = 1 << 20,
    version: int = 3,
    cluster_bits: int = 16,
    backing: bytes = b"",
    backing_format: bytes = b"raw",
    data_file: bytes = b"",
    extensions: Sequence[tuple[int, bytes]] = (),
    **fields: int,
) -> bytes:
    """Return an empty qcow2 image: four clusters, with the header, refcount table, refcount block and L1 table.

    :param size: virtual size, bytes.
    :param backing: name of the backing file.
    :param backing_format: left out of the image when empty, or without a backing file.
    :param data_file: name of the external data file; sets the feature bit too.
    :param extensions: more header extensions (type, content), in front of the end marker.
    :param fields: header fields of :data:`QCOW2_FIELDS` to overwrite in the end, whatever that breaks; the names that
        end in ``_field`` change the number without changing the layout.
    """
    cluster = 1 << cluster_bits
    length = 112 if version >= 3 else 72
    area = list(extensions)
    if backing and backing_format:
        area.insert(0, (BACKING_FORMAT, backing_format))
    if data_file:
        area.insert(0, (DATA_FILE, data_file))
    packed = b"".join(
        struct.pack(">II", kind, len(content)) + content.ljust(-(-len(content) // 8) * 8, b"\0")
        for kind, content in (*area, (0, b""))
    )
    name_at = length + len(packed)
    values = {
        "magic": 0x514649FB,
        "version_field": version,
        "backing_offset": name_at if backing else 0,
        "backing_size": len(backing),
        "cluster_bits_field": cluster_bits,
        "size_field": size,
        "l1_entries": max(1, -(-size // (cluster * (cluster // 8)))),
        "l1_offset": 3 * cluster,
        "refcount_offset": cluster,
        "refcount_clusters": 1,
    }
    if version >= 3:
        values |= {"refcount_order": 4, "header_length": length, "incompatible": 4 if data_file else 0}
    image = bytearray(3 * cluster)
    image += bytes(values["l1_entries"] * 8)
    for name, value in {**values, **fields}.items():
        offset, form = QCOW2_FIELDS[name]
        struct.pack_into(form, image, offset, value)
    image[length : length + len(packed)] = packed
    image[name_at : name_at + len(backing)] = backing
    struct.pack_into(">Q", image, cluster, 2 * cluster)
    clusters = 3 + -(-values["l1_entries"] * 8 // cluster)
    struct.pack_into(f">{clusters}H", image, 2 * cluster, *([1] * clusters))
    return bytes(image)


# --- vmdk ---------------------------------------------------------------------------------------------------

#: Fields of a sparse vmdk header. See "Virtual Disk Format 5.0". Units of sizes and offsets: sectors.
VMDK_FIELDS: dict[str, tuple[int, str]] = {
    "magic": (0, "<I"),
    "version": (4, "<I"),
    "flags": (8, "<I"),
    "capacity_field": (12, "<Q"),
    "grain": (20, "<Q"),
    "descriptor_field": (28, "<Q"),
    "descriptor_sectors": (36, "<Q"),
    "entries": (44, "<I"),
    "redundant": (48, "<Q"),
    "directory": (56, "<Q"),
    "overhead": (64, "<Q"),
    "unclean": (72, "<B"),
    "newlines": (73, "<I"),
    "compression": (77, "<H"),
}

GD_AT_END = (1 << 64) - 1


def vmdk_descriptor(
    *,
    create_type: str = "monolithicSparse",
    extents: Sequence[str] = ('RW 2048 SPARSE "disk.vmdk"',),
    cid: int = 0x12345678,
    parent_cid: int = 0xFFFFFFFF,
    parent: str = "",
    newline: str = "\n",
) -> bytes:
    """Return the text that describes a vmdk image.

    :param extents: lines as they are written.
    :param parent: value of parentFileNameHint.
    """
    lines = [
        "# Disk DescriptorFile",
        "version=1",
        f"CID={cid:08x}",
        f"parentCID={parent_cid:08x}",
        f'createType="{create_type}"',
        *([f'parentFileNameHint="{parent}"'] if parent else []),
        "# Extent description",
        *extents,
        "",
        "# The Disk Data Base",
        "#DDB",
        'ddb.virtualHWVersion = "4"',
        'ddb.adapterType = "ide"',
        "",
    ]
    return newline.join(lines).encode()


def vmdk_sparse(*, capacity: int = 2048, descriptor: bytes | None = None, **fields: int) -> bytes:
    """Return an empty sparse vmdk file, with one grain table for every 32 MiB.

    :param capacity: virtual size, sectors.
    :param descriptor: text embedded in it; empty for an extent of a split image; ``None``: one that fits.
    :param fields: header fields of :data:`VMDK_FIELDS` to overwrite in the end, whatever that breaks.
    """
    if descriptor is None:
        descriptor = vmdk_descriptor(extents=[f'RW {capacity} SPARSE "disk.vmdk"'])
    tables = -(-capacity // (128 * 512))
    directory_at = 21
    tables_at = directory_at + -(-tables * 4 // SECTOR)
    overhead = -(-(tables_at + tables * 4) // 128) * 128
    image = bytearray(overhead * SECTOR)
    _put_vmdk_header(
        image,
        0,
        {
            "magic": 0x564D444B,
            "version": 1,
            "flags": 1,
            "capacity_field": capacity,
            "grain": 128,
            "descriptor_field": 1 if descriptor else 0,
            "descriptor_sectors": 20 if descriptor else 0,
            "entries": 512,
            "directory": directory_at,
            "overhead": overhead,
            "newlines": 0x0A0D200A,
            **fields,
        },
    )
    image[SECTOR : SECTOR + len(descriptor)] = descriptor
    struct.pack_into(f"<{tables}I", image, directory_at * SECTOR, *(tables_at + number * 4 for number in range(tables)))
    return bytes(image)


def vmdk_stream(*, capacity: int = 2048, name: str = "disk.vmdk", **fields: int) -> bytes:
    """Return an empty streamOptimized vmdk as VMware writes it: the directory and a second header are at the end.

    :param fields: fields of the second header, the footer, to overwrite.
    """
    descriptor = vmdk_descriptor(create_type="streamOptimized", extents=[f'RW {capacity} SPARSE "{name}"'])
    common = {
        "magic": 0x564D444B,
        "version": 3,
        "flags": 0x30001,
        "capacity_field": capacity,
        "grain": 128,
        "descriptor_field": 1,
        "descriptor_sectors": 20,
        "entries": 512,
        "overhead": 128,
        "newlines": 0x0A0D200A,
        "compression": 1,
    }
    tables = -(-capacity // (128 * 512))
    image = bytearray(128 * SECTOR)
    _put_vmdk_header(image, 0, {**common, "directory": GD_AT_END})
    image[SECTOR : SECTOR + len(descriptor)] = descriptor
    directory = bytes(-(-tables * 4 // SECTOR) * SECTOR)  # no grains at all
    image += struct.pack("<QII", len(directory) // SECTOR, 0, 2).ljust(SECTOR, b"\0") + directory
    image += struct.pack("<QII", 1, 0, 3).ljust(SECTOR, b"\0")  # marker of the footer
    footer = bytearray(SECTOR)
    _put_vmdk_header(footer, 0, {**common, "directory": 129, **fields})
    return bytes(image + footer + bytes(SECTOR))  # the last sector is the end-of-stream marker


def _put_vmdk_header(image: bytearray, at: int, values: dict[str, int]) -> None:
    for name, value in values.items():
        offset, form = VMDK_FIELDS[name]
        struct.pack_into(form, image, at + offset, value)
