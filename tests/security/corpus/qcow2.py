# mypy: disable-error-code="assignment, attr-defined, operator, arg-type"
"""qcow2 (S-02, S-03, S-06, S-19, S-20)."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from mapper_core.testing.images import (
    FEATURE_NAMES,
    qcow2,
)

from .case import CLUSTER, HOST_NAMES, MAPPED, MIB, Case, content, with_name


def _lies() -> Iterator[tuple[str, bytes]]:
    """Images whose header is good and whose tables are not: every entry is a place that is not free."""
    good = qcow2(size=4 * MIB).ljust(4 * CLUSTER, b"\0")
    copied = 1 << 63
    for name, entry in {
        "the header": 0,
        "the L1 table itself": 3 * CLUSTER,
        "the refcounts": CLUSTER,
        "behind the end": 1 << 40,
        "the last byte of all": (1 << 56) - CLUSTER,
        "an odd place": 4 * CLUSTER + 512,
        "reserved bits": 0x7F00000000000000 | 4 * CLUSTER,
    }.items():
        image = bytearray(good)
        struct.pack_into(">Q", image, 3 * CLUSTER, entry | copied)
        yield f"L1 entry: {name}", bytes(image)
        image = bytearray(good) + bytes(CLUSTER)
        struct.pack_into(">Q", image, 3 * CLUSTER, 4 * CLUSTER | copied)
        for number in range(8):
            struct.pack_into(">Q", image, 4 * CLUSTER + 8 * number, entry | copied)
        struct.pack_into(">H", image, 2 * CLUSTER + 8, 1)
        yield f"L2 entries: {name}", bytes(image)
        image = bytearray(good)
        struct.pack_into(">Q", image, CLUSTER, entry)
        yield f"refcount table: {name}", bytes(image)
    image = bytearray(good) + zlib.compress(bytes(64 * MIB))[:CLUSTER].ljust(2 * CLUSTER, b"\0")
    struct.pack_into(">Q", image, 3 * CLUSTER, 4 * CLUSTER | copied)
    image[4 * CLUSTER : 4 * CLUSTER] = bytes(CLUSTER)
    for number in range(8):
        struct.pack_into(">Q", image, 4 * CLUSTER + 8 * number, 1 << 62 | 0x3F << 54 | 5 * CLUSTER)
    yield "compressed clusters that grow", bytes(image)
    image = bytearray(good)
    struct.pack_into(">32768H", image, 2 * CLUSTER, *([0] * 32768))
    yield "refcounts: all is free", bytes(image)
    struct.pack_into(">32768H", image, 2 * CLUSTER, *([0xFFFF] * 32768))
    yield "refcounts: all is in use", bytes(image)
    entry = struct.pack(">QIHHIIQII", 3 * CLUSTER, 1, 1, 4, 0, 0, 0, 0, 16)
    yield (
        "a snapshot whose table is that of the disk",
        qcow2(size=4 * MIB, snapshots=1, snapshots_offset=4 * CLUSTER).ljust(4 * CLUSTER, b"\0")
        + (entry + bytes(16) + b"1name").ljust(CLUSTER, b"\0"),
    )
    entry = struct.pack(">QIHHIIQII", 1 << 40, 1 << 31, 0xFFFF, 0xFFFF, 0, 0, 0, 0, 0xFFFFFFFF)
    image = qcow2(snapshots=1, snapshots_offset=4 * CLUSTER).ljust(4 * CLUSTER, b"\0") + entry.ljust(CLUSTER, b"\0")
    yield "a snapshot that lies about all its sizes", image


def costly_qcow2() -> Iterator[tuple[str, bytes, int]]:
    """Yield (name, content, size of the sparse file) of images that want to cost much (S-19)."""
    big = 1 << 43
    yield "largest disk", qcow2(cluster_bits=21, size_field=1 << 60, l1_entries=1 << 21), big
    yield "8 EiB", qcow2(cluster_bits=21, size_field=(1 << 63) - 1, l1_entries=0xFFFFFFFF), big
    yield "2^32 clusters", qcow2(size=1 << 48), big
    yield "huge L1 table", qcow2(l1_entries=(32 << 20) // 8), big
    yield "huge refcount table", qcow2(cluster_bits=21, refcount_clusters=4), big
    yield "many snapshots", qcow2(snapshots=65536, snapshots_offset=1 << 40), big
    table = bytes(8) + b"x" * 40
    yield "many features", qcow2(extensions=[(FEATURE_NAMES, table * 256)] * 40, incompatible=(1 << 64) - 1 - 2), big
    yield "huge extension", qcow2(cluster_bits=21, extensions=[(0x1234, bytes(1 << 20))]), big
    # an L1 table of which each entry is a table with clusters behind the end
    dense = bytearray(qcow2(size=1 << 39))
    entries = len(dense[3 * CLUSTER :]) // 8
    struct.pack_into(f">{entries}Q", dense, 3 * CLUSTER, *((1 << 63) | (4 + n) * CLUSTER for n in range(entries)))
    struct.pack_into(">32768H", dense, 2 * CLUSTER, *([1] * 32768))
    yield "dense disk", bytes(dense), (entries + 5) * CLUSTER
    yield "512-byte clusters", qcow2(cluster_bits=9, size=1 << 30), 1 << 30


def qcow2_images() -> Iterator[Case]:
    """Images in the format qcow2."""
    forbidden = ("ForbiddenReference", "BackingFileMissing")
    for name in HOST_NAMES:
        yield Case(f"backing file {name}", "qcow2", with_name(lambda name: qcow2(backing=name))(name), forbidden)
    for name in HOST_NAMES[::2]:
        yield Case(f"data file {name}", "qcow2", with_name(lambda name: qcow2(data_file=name))(name), forbidden)
    probed = with_name(lambda name: qcow2(backing=name, backing_format=b""))("@/secret")
    yield Case("backing file without a format", "qcow2", probed, (*forbidden, "UnsupportedFormat"))

    def below(directory: Path, canary: Path) -> None:
        (directory / "middle").write_bytes(qcow2(backing=os.fsencode(canary / "secret")))
        (directory / "disk").write_bytes(qcow2(backing=b"middle", backing_format=b"qcow2"))

    yield Case("backing file of the backing file", "qcow2", below, forbidden)
    bad = ("CorruptImage", "TruncatedImage", "UnsupportedFormat", "FormatMismatch")
    loop = (*bad, "ForbiddenReference")
    yield Case("it is its own backing file", "qcow2", content(qcow2(backing=b"disk", backing_format=b"qcow2")), loop)

    def chain(directory: Path, canary: Path) -> None:
        for number in range(300):
            image = qcow2(cluster_bits=9, size=4096, backing=b"%d" % (number + 1), backing_format=b"qcow2")
            (directory / (str(number) if number else "disk")).write_bytes(image)
        (directory / "300").write_bytes(qcow2())

    yield Case("a chain of 300 images", "qcow2", chain, (*loop, "Refused"))
    for offset in (CLUSTER - 2, CLUSTER, 4 * CLUSTER, 1 << 63):
        image = bytearray(qcow2(backing=b"base", backing_offset=offset)).ljust(5 * CLUSTER, b"\0")
        image[4 * CLUSTER : 4 * CLUSTER + 4] = b"base"
        yield Case(f"backing name at {offset}", "qcow2", content(image), bad)  # S-06

    fields: dict[str, dict[str, int]] = {
        "version 0": {"version_field": 0},
        "version 1": {"version_field": 1},
        "version 4": {"version_field": 4},
        "AES": {"encryption": 1},
        "LUKS": {"encryption": 2},
        "unknown encryption": {"encryption": 99},
        "clusters of 1 byte": {"cluster_bits_field": 0},
        "clusters of 2^255": {"cluster_bits_field": 255},
        "no size": {"size_field": 0},
        "largest size": {"size_field": (1 << 64) - 1},
        "L1 table behind the end": {"l1_offset": 1 << 40},
        "L1 table at the header": {"l1_offset": 0},
        "L1 table at an odd place": {"l1_offset": 3 * CLUSTER + 8},
        "L1 table too short": {"size_field": 1 << 50},
        "L1 table of 2^32": {"l1_entries": 0xFFFFFFFF},
        "no refcount table": {"refcount_clusters": 0},
        "refcount table behind the end": {"refcount_offset": 1 << 40},
        "refcount table at the L1 table": {"refcount_offset": 3 * CLUSTER},
        "refcounts of 2^9 bits": {"refcount_order": 9},
        "2^32 snapshots": {"snapshots": 0xFFFFFFFF},
        "snapshots behind the end": {"snapshots": 1, "snapshots_offset": 1 << 60},
        "snapshots at an odd place": {"snapshots": 1, "snapshots_offset": 12345},
        "corrupt": {"incompatible": 2},
        "unknown features": {"incompatible": 1 << 63},
        "data file without a name": {"incompatible": 4},
        "header of 0 bytes": {"header_length": 0},
        "header of 2^32 bytes": {"header_length": 0xFFFFFFFF},
        "backing name of 2^32 bytes": {"backing_offset": 200, "backing_size": 0xFFFFFFFF},
        "unknown compression": {"incompatible": 8, "compression": 77},
    }
    for name, values in fields.items():
        yield Case(name, "qcow2", content(qcow2(**values)), (*bad, "SnapshotMissing", "Refused"))
    yield Case(
        "encrypted by its extension", "qcow2", content(qcow2(extensions=[(0x0537BE77, bytes(16))], encryption=2)), bad
    )
    for name, image in _lies():
        # qemu finds out while it reads or writes; the guest gets an I/O error, or what it has written itself
        errors = (*bad, "NoRootFound", "CommandFailed", "KernelError", "PluginFault", "SnapshotMissing")
        yield Case(name, "qcow2", content(image), errors, MAPPED)
    for name, image, size in costly_qcow2():
        errors = (*bad, "NoRootFound", "CommandFailed", "KernelError", "Refused", "NotSupported")
        yield Case(name, "qcow2", content(image, size), errors, MAPPED)
    few = qcow2(snapshots=4096, snapshots_offset=1 << 40)
    yield Case(
        "as many snapshots as are accepted",
        "qcow2",
        content(few, 1 << 43),
        (*bad, "NoRootFound", "CommandFailed"),
        MAPPED,
    )
