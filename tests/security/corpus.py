# mypy: disable-error-code="assignment, attr-defined, operator, arg-type"
"""The corpus: real hostile images, each made of bytes or by the tools of its format, and what must become of it.

A case is built into a directory of its own; its disk is the file ``disk`` there. Outside of that directory lies what no
image may reach, the canary: ``@`` in a name stands for its directory. Every action on a case is either refused, with one
of the errors that the case names, or, where the case says so, harmless.
"""

from __future__ import annotations

import os
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mapper_core.testing import disks, superblocks, tables
from mapper_core.testing.disks import Part
from mapper_core.testing.images import (
    FEATURE_NAMES,
    SECTOR,
    VMDK_FIELDS,
    qcow2,
    vmdk_descriptor,
    vmdk_sparse,
    vmdk_stream,
)
from mapper_core.testing.tables import Gpt, Mbr

MIB = 1 << 20
CLUSTER = 65536

#: Writes the disk, and what lies beside it, into a directory; the second argument is the canary.
Build = Callable[[Path, Path], object]


@dataclass(frozen=True, slots=True)
class Case:
    """One hostile image.

    :param name: what is wrong with it.
    :param format: as which it is declared.
    :param errors: names of the classes with which it may be refused.
    :param harmless: the actions that may also succeed.
    """

    name: str
    format: str
    build: Build
    errors: tuple[str, ...]
    harmless: tuple[str, ...] = ()


#: The header alone is well-formed: what reads no more of it may succeed.
HEADER = ("inspect", "resize", "snapshot")
#: A disk whose content, not its format, is bad: it is mapped, and then refused when it is to be mounted.
MAPPED = (*HEADER, "map")
ALL = (*MAPPED, "mount", "stage")


def content(data: bytes | bytearray, size: int = 0) -> Build:
    """A disk of these bytes, and zeros up to ``size``."""

    def build(directory: Path, canary: Path) -> None:
        with open(directory / "disk", "wb") as file:
            file.write(data)
            file.truncate(max(len(data), size))

    return build


def naming(data: bytes) -> Build:
    """A disk of these bytes, in which ``@`` is the canary."""
    return lambda directory, canary: content(data.replace(b"@", os.fsencode(canary)))(directory, canary)


# --- raw, and what is no image (S-01, S-05, S-26, M-22) -------------------------------------------------------


def raw() -> Iterator[Case]:
    """Files that are declared raw, or that are no files."""
    bad = ("FormatMismatch", "UnsupportedFormat")

    def written_by_a_guest(make: Callable[[bytes], bytes]) -> Build:
        def build(directory: Path, canary: Path) -> None:
            (directory / "disk").write_bytes(make(os.fsencode(canary / "secret")).ljust(4 * MIB, b"\0"))

        return build

    for name, make in {
        "qcow2 header": lambda secret: qcow2(backing=secret),
        "qcow2 header with a data file": lambda secret: qcow2(data_file=secret),
        "vmdk descriptor": lambda secret: vmdk_descriptor(
            create_type="monolithicFlat", extents=[f'RW 1 FLAT "{os.fsdecode(secret)}" 0']
        ),
        "sparse vmdk": lambda secret: vmdk_sparse(descriptor=vmdk_descriptor(parent=os.fsdecode(secret), parent_cid=1)),
        "gzip": lambda secret: b"\x1f\x8b\x08\0" + bytes(1000),
        "xz": lambda secret: b"\xfd7zXZ\0" + bytes(1000),
        "zstd": lambda secret: b"\x28\xb5\x2f\xfd" + bytes(1000),
        "zip": lambda secret: b"PK\x03\x04" + bytes(1000),
    }.items():
        yield Case(f"a guest's {name}", "raw", written_by_a_guest(make), bad)

    unsafe = ("UnsafePath", "ImageNotFound", "TruncatedImage", "FormatMismatch")

    def as_socket(directory: Path, canary: Path) -> None:
        here = os.open(directory, os.O_RDONLY)
        try:
            with socket.socket(socket.AF_UNIX) as end:
                end.bind(f"/proc/self/fd/{here}/disk")
        finally:
            os.close(here)

    for name, build in {
        "FIFO": lambda directory, canary: os.mkfifo(directory / "disk"),
        "socket": as_socket,
        "directory": lambda directory, canary: (directory / "disk").mkdir(),
        "character device": lambda directory, canary: os.mknod(directory / "disk", 0o20600, os.makedev(1, 5)),
        "link to a device": lambda directory, canary: (directory / "disk").symlink_to("/dev/zero"),
        "link to procfs": lambda directory, canary: (directory / "disk").symlink_to("/proc/self/environ"),
        "link to /proc/kcore": lambda directory, canary: (directory / "disk").symlink_to("/proc/kcore"),
        "link to nothing": lambda directory, canary: (directory / "disk").symlink_to("nothing"),
        "loop of links": lambda directory, canary: (directory / "disk").symlink_to("disk"),
    }.items():
        for declared in ("raw", "qcow2", "vmdk"):
            yield Case(f"{name} as {declared}", declared, build, unsafe)

    small = ("CorruptImage", "TruncatedImage", "FormatMismatch", "UnsupportedFormat", "UnsafePath")
    for length in (0, 1, 100, 511):
        yield Case(f"{length} bytes", "raw", content(bytes(length)), (*small, "NoRootFound"), HEADER)
        for declared in ("qcow2", "vmdk"):
            yield Case(f"{length} bytes as {declared}", declared, content(bytes(length)), small)
    yield Case("8 TiB of nothing", "raw", content(b"", 1 << 43), ("NoRootFound", "KernelError"), MAPPED)


# --- qcow2 (S-02, S-03, S-06, S-19, S-20) ---------------------------------------------------------------------

#: Names that must lead nowhere: files, devices and protocols of qemu.
HOST_NAMES = (
    "@/secret",
    "../canary/secret",
    "./../canary/secret",
    "base/../../canary/secret",
    "link",
    "zero",
    "/etc/shadow",
    "/dev/sda",
    "/dev/zero",
    "/proc/self/environ",
    "/proc/self/fd/3",
    "/proc/self/root@/secret",
    'json:{"driver":"file","filename":"@/secret"}',
    "nbd://127.0.0.1:10809/x",
    "http://169.254.169.254/latest/meta-data",
    "fat:rw:@",
    "file:@/secret",
    "blkdebug::@/secret",
)


def _with_name(make: Callable[[bytes], bytes]) -> Callable[[str], Build]:
    def named(name: str) -> Build:
        def build(directory: Path, canary: Path) -> None:
            (directory / "base").write_bytes(bytes(MIB))
            (directory / "link").symlink_to(canary / "secret")
            (directory / "zero").symlink_to("/dev/zero")
            (directory / "disk").write_bytes(make(os.fsencode(name.replace("@", str(canary)))))

        return build

    return named


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
    dense = bytearray(qcow2(size=1 << 40))
    entries = len(dense[3 * CLUSTER :]) // 8
    struct.pack_into(f">{entries}Q", dense, 3 * CLUSTER, *((1 << 63) | (4 + n) * CLUSTER for n in range(entries)))
    struct.pack_into(">32768H", dense, 2 * CLUSTER, *([1] * 32768))
    yield "dense disk", bytes(dense), (entries + 5) * CLUSTER
    yield "512-byte clusters", qcow2(cluster_bits=9, size=1 << 30), 1 << 30


def qcow2_images() -> Iterator[Case]:
    """Images in the format qcow2."""
    forbidden = ("ForbiddenReference", "BackingFileMissing")
    for name in HOST_NAMES:
        yield Case(f"backing file {name}", "qcow2", _with_name(lambda name: qcow2(backing=name))(name), forbidden)
    for name in HOST_NAMES[::2]:
        yield Case(f"data file {name}", "qcow2", _with_name(lambda name: qcow2(data_file=name))(name), forbidden)
    probed = _with_name(lambda name: qcow2(backing=name, backing_format=b""))("@/secret")
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


# --- vmdk (S-04, S-19, M-24) ----------------------------------------------------------------------------------


def costly_vmdk() -> Iterator[tuple[str, bytes, int]]:
    """Yield (name, content, size of the sparse file) of images that want to cost much (S-19)."""
    big = 1 << 43
    yield "8 EiB", vmdk_sparse(capacity_field=(1 << 54) - 1), big
    yield "largest directory", vmdk_sparse(capacity_field=(32 << 20) * 512 * 128, overhead=1 << 20), big
    yield "smallest grains", vmdk_sparse(capacity_field=1 << 33, grain=1), big
    yield "1 TiB", vmdk_sparse(capacity=1 << 31), big
    yield "1 TiB stream", vmdk_stream(capacity=1 << 31), 0
    many = [f'RW 2048 FLAT "{"x" * 60}{number:04}" 0' for number in range(2048)]
    yield "too many extents", vmdk_descriptor(create_type="twoGbMaxExtentFlat", extents=many * 2), 0
    yield "same extent", vmdk_descriptor(create_type="twoGbMaxExtentFlat", extents=['RW 1 FLAT "disk" 0'] * 2048), 0
    yield "endless text", b"# Disk DescriptorFile\n", big
    yield "long line", b"# Disk DescriptorFile\n" + b"RW " + b" " * 250_000, 0
    yield "many blanks", b"# Disk DescriptorFile\n" + b"\n" * 250_000, 0
    yield "many keys", b"# Disk DescriptorFile\n" + b"CID=1\n" * 40_000, 0
    yield "many quotes", b"# Disk DescriptorFile\n" + b'RW 1 FLAT "' * 20_000, 0


def _many_extents(directory: Path, canary: Path) -> None:
    lines = []
    for number in range(2048):
        name = f"extent{number:04}"
        with open(directory / name, "wb") as file:
            file.truncate(4096)
        lines.append(f'RW 8 FLAT "{name}" 0')
    (directory / "disk").write_bytes(vmdk_descriptor(create_type="twoGbMaxExtentFlat", extents=lines))


def vmdk_images() -> Iterator[Case]:
    """Images in the format vmdk."""
    forbidden = ("ForbiddenReference", "BackingFileMissing")
    bad = ("CorruptImage", "TruncatedImage", "UnsupportedFormat", "FormatMismatch")
    for name in (name for name in HOST_NAMES[::2] if '"' not in name):
        for kind, create_type, end in (("FLAT", "monolithicFlat", " 0"), ("SPARSE", "twoGbMaxExtentSparse", "")):

            def extent(name: bytes, kind: str = kind, create_type: str = create_type, end: str = end) -> bytes:
                line = f'RW 1 {kind} "{os.fsdecode(name)}"{end}'
                return vmdk_descriptor(create_type=create_type, extents=[line])

            yield Case(f"{kind} extent {name}", "vmdk", _with_name(extent)(name), forbidden)

        def parent(name: bytes) -> bytes:
            return vmdk_sparse(descriptor=vmdk_descriptor(parent=os.fsdecode(name), parent_cid=0x1000))

        yield Case(f"parent {name}", "vmdk", _with_name(parent)(name), forbidden)
    for kind, create_type in (
        ("VMFS", "vmfs"), ("VMFS", "monolithicFlat"), ("VMFSSPARSE", "vmfsSparse"), ("SESPARSE", "seSparse"),
        ("VMFSRAW", "vmfs"), ("VMFSRDM", "vmfs"), ("ZERO", "monolithicFlat"),
    ):  # fmt: skip
        text = vmdk_descriptor(create_type=create_type, extents=[f'RW 1 {kind} "@/secret"'])
        yield Case(f"{kind} extent of {create_type}", "vmdk", naming(text), (*bad, *forbidden))
    inside = vmdk_descriptor(create_type="monolithicFlat", extents=['RW 1 FLAT "@/secret" 0'])
    yield Case(
        "a descriptor that is hidden in a sparse file",
        "vmdk",
        naming(vmdk_sparse(descriptor=inside, capacity_field=0)),
        bad,
    )
    own = content(vmdk_descriptor(create_type="monolithicFlat", extents=['RW 2 FLAT "disk" 0']), 1024)
    errors = (*bad, *forbidden, "NoRootFound", "ImageInUse", "CommandFailed")
    yield Case(
        "it is its own extent", "vmdk", own, errors, ("inspect", "map")
    )  # its guest sees the text that it has written
    for name, values in {
        "directory behind the end": {"directory": 1 << 40},
        "directory at the header": {"directory": 0},
        "tables of 0 entries": {"entries": 0},
        "tables of 2^32 entries": {"entries": 0xFFFFFFFF},
        "grains of 0": {"grain": 0},
        "grains of 2^63": {"grain": 1 << 63},
        "no capacity": {"capacity_field": 0},
        "overhead behind the end": {"overhead": 1 << 60},
        "descriptor behind the end": {"descriptor_field": 1 << 50},
        "descriptor of 2^50": {"descriptor_sectors": 1 << 50},
        "version 99": {"version": 99},
        "unknown compression": {"flags": 0x10001, "compression": 9},
        "all flags": {"flags": 0xFFFFFFFF},
        "broken line ends": {"newlines": 0},
    }.items():
        assert set(values) <= set(VMDK_FIELDS)
        image = content(vmdk_sparse(**values))
        errors = (*bad, "NoRootFound", "CommandFailed", "KernelError", "ReadOnlyImage", "NotSupported")
        yield Case(
            name, "vmdk", image, errors, MAPPED if name in ("broken line ends", "overhead behind the end") else ()
        )
    for name, value in {
        "behind the end": 1 << 30,
        "the header": 0,
        "itself": 21,
        "the last of all": 0xFFFFFFFF,
    }.items():
        image = bytearray(vmdk_sparse())
        struct.pack_into("<I", image, 21 * SECTOR, value)
        yield Case(f"grain table: {name}", "vmdk", content(image), errors, MAPPED)
        image = bytearray(vmdk_sparse())
        (table,) = struct.unpack_from("<I", image, 21 * SECTOR)
        for number in range(512):
            struct.pack_into("<I", image, table * SECTOR + 4 * number, value)
        yield Case(f"grains: {name}", "vmdk", content(image), errors, MAPPED)
    for name, values in {
        "footer of another size": {"capacity_field": 4096},
        "footer without a directory": {"directory": 0},
        "footer with a directory behind the end": {"directory": 1 << 40},
        "footer that is none": {"magic": 0},
    }.items():
        yield Case(name, "vmdk", content(vmdk_stream(**values)), (*bad, "ReadOnlyImage", "NotSupported"), HEADER)
    for name, text, size in costly_vmdk():
        errors = (*bad, *forbidden, "NoRootFound", "ReadOnlyImage", "NotSupported", "Refused", "CommandFailed")
        yield Case(name, "vmdk", content(text, size), errors, MAPPED)
    yield Case("many extents", "vmdk", _many_extents, ("NoRootFound", "NotSupported", "ReadOnlyImage"), MAPPED)


# --- partition tables (S-14, S-15, P-15, P-16, P-17) ----------------------------------------------------------

SECTORS = 4096


def _gpt(*entries: Gpt, **values: int) -> bytearray:
    return tables.gpt_image(SECTORS * 512, entries, **values)


def _header(offset: int, layout: str, value: int) -> bytearray:
    """A GPT with one number changed in both headers, and the checksums made right again."""
    image = _gpt(Gpt(1, 64, 127))
    for lba in (1, SECTORS - 1):
        struct.pack_into(layout, image, lba * 512 + offset, value)
        tables.sign(image, lba)
    return image


def _mbr(*entries: Mbr, chain: tuple[tuple[int, tuple[Mbr, ...]], ...] = ()) -> bytearray:
    return tables.mbr_image(SECTORS * 512, entries, chain)


def partition_tables() -> Iterator[Case]:
    """Raw disks whose partition table is wrong."""
    bad = ("BadPartitionTable", "PartitionBeyondDevice")
    broken: dict[str, bytes | bytearray] = {
        "GPT of 2^32 entries": _header(80, "<I", 0xFFFFFFFF),
        "GPT of 2^20 entries": _header(80, "<I", 1 << 20),
        "GPT entries of 1 byte": _header(84, "<I", 1),
        "GPT entries of 2^30 bytes": _header(84, "<I", 1 << 30),
        "GPT entries behind the end": _header(72, "<Q", 1 << 60),
        "GPT header of 2^32 bytes": _header(12, "<I", 0xFFFFFFFF),
        "GPT: overlapping": _gpt(Gpt(1, 64, 200), Gpt(2, 100, 300)),
        "GPT: one inside of another": _gpt(Gpt(1, 64, 2000), Gpt(2, 100, 300)),
        "GPT: it ends before it begins": _gpt(Gpt(1, 200, 100)),
        "GPT: over the table": _gpt(Gpt(1, 0, 100)),
        "GPT: behind the end": _gpt(Gpt(1, 64, SECTORS * 2)),
        "GPT: the last sector of all": _gpt(Gpt(1, 64, (1 << 64) - 1)),
        "MBR: overlapping": _mbr(Mbr(1, 0x83, 64, 200), Mbr(2, 0x83, 100, 200)),
        "MBR: over itself": _mbr(Mbr(1, 0x83, 0, SECTORS)),
        "MBR: behind the end": _mbr(Mbr(1, 0x83, 64, 0xFFFFFFFF)),
        "MBR: two extended that overlap": _mbr(Mbr(1, 5, 64, 2000), Mbr(2, 5, 1000, 2000)),
        "EBR that is its own next": _mbr(Mbr(1, 5, 100, 1000), chain=((100, (Mbr(1, 0x83, 1, 10), Mbr(2, 5, 0, 10))),)),
        "EBRs in a circle": _mbr(
            Mbr(1, 5, 100, 1000),
            chain=((100, (Mbr(1, 0x83, 1, 9), Mbr(2, 5, 50, 9))), (150, (Mbr(1, 0x83, 1, 9), Mbr(2, 5, 0, 9)))),
        ),
        "EBR behind the end": _mbr(Mbr(1, 5, 100, 1000), chain=((100, (Mbr(1, 0x83, 1, 10), Mbr(2, 5, 1 << 31, 10))),)),
        "EBR inside of a neighbour": _mbr(
            Mbr(1, 0x83, 500, 500), Mbr(2, 5, 100, 300), chain=((100, (Mbr(1, 0x83, 450, 100),)),)
        ),
    }
    # P-15: a disk that was cut off, its second header with it
    cut = bytes(_gpt(Gpt(1, 64, 200), Gpt(2, 300, SECTORS - 64)))[: SECTORS // 2 * 512]
    broken["GPT that was cut off"] = cut
    broken["MBR that was cut off"] = bytes(_mbr(Mbr(1, 0x83, 64, SECTORS - 64)))[: SECTORS // 2 * 512]
    wrong = _gpt(Gpt(1, 64, 127))
    wrong[512 + 16] ^= 1
    wrong[(SECTORS - 1) * 512 + 16] ^= 1
    broken["GPT with two wrong checksums"] = wrong
    for name, image in broken.items():
        yield Case(name, "raw", content(image), (*bad, "NoRootFound"), HEADER)
    none = ("NoRootFound", *bad)
    yield Case("GPT for sectors of 4096", "raw", content(_gpt(Gpt(1, 8, 9), sector_size=4096)), none, MAPPED)
    reversed_slots = _gpt(Gpt(1, 900, 999), Gpt(3, 500, 599), Gpt(7, 64, 99))
    yield Case("GPT slots 1, 3, 7, reversed", "raw", content(reversed_slots), none, MAPPED)  # P-17
    protective = bytes(_mbr(Mbr(1, 0xEE, 1, SECTORS - 1)))
    yield Case("a protective MBR and nothing else", "raw", content(protective), none, MAPPED)
    # P-16: a hybrid image of a CD whose second GPT is nonsense
    hybrid = bytearray(superblocks.iso9660(size=SECTORS * 512))
    hybrid[:512] = tables.table_sector((Mbr(1, 0xEE, 1, 63), Mbr(2, 0x00, 0, SECTORS, 0x80), Mbr(3, 0xEF, 100, 200)))
    hybrid[512 : 512 + 8] = b"EFI PART"
    hybrid[(SECTORS - 1) * 512 : (SECTORS - 1) * 512 + 92] = b"EFI PART" + os.urandom(84)
    yield Case("hybrid ISO", "raw", content(hybrid), (*none, "UnknownFilesystem", "KernelError"), MAPPED)


def filesystems() -> Iterator[Case]:
    """Raw disks that have no more of a filesystem than its signature; the kernel is asked to mount it (S-16)."""
    # btrfs says EROFS of what it does not understand
    errors = ("UnknownFilesystem", "KernelError", "NoRootFound", "CorruptImage", "ReadOnlyImage", "FormatMismatch")
    for _, name, build in superblocks.CORPUS:
        yield Case(f"{name}: nothing but a superblock", "raw", content(build()), errors, MAPPED)

    def spoiled(offset: int, garbage: bytes) -> Build:
        def build(directory: Path, canary: Path) -> None:
            image = disks.make_filesystem(directory / "disk", Part("ext4", 8, (), (("/sbin/init", ""),)))
            with image.open("r+b") as file:
                file.seek(offset)
                file.write(garbage)

        return build

    for name, offset, garbage in (
        ("counts", 1024, b"\xff" * 32),
        ("block size of 2^255", 1024 + 24, b"\xff" * 4),
        ("no inodes per group", 1024 + 40, bytes(4)),
        ("inodes of 64 KiB", 1024 + 88, b"\xff\xff"),
        ("unknown features", 1024 + 96, b"\xff" * 4),
    ):
        yield Case(f"ext4: {name}", "raw", spoiled(offset, garbage), errors, MAPPED)

    def cut(directory: Path, canary: Path) -> None:
        spoiled(0, b"")(directory, canary)
        os.truncate(directory / "disk", 4 * MIB)

    yield Case("ext4: cut off", "raw", cut, errors, MAPPED)


# --- what is in the root filesystem (S-07, S-09, S-10, S-12, S-16) --------------------------------------------


@dataclass(frozen=True, slots=True)
class Rooms:
    """Where a guest's disk has its two filesystems: a root, 8 MiB, and one for /home, 4 MiB."""

    root: int = 2048
    home: int = 2048 + 8 * 2048
    sectors: int = 2048 + 12 * 2048 + 2048


def guest(
    fstab: str = "LABEL=home /home ext4 defaults 0 0\n", spoil: Callable[[Path, Path], object] | None = None
) -> Build:
    """A GPT disk with a system, changed by its guest.

    :param spoil: changes the directory that becomes the root; the second argument is the canary.
    """

    def build(directory: Path, canary: Path) -> None:
        tree = directory / "tree"
        for name in ("sbin", "etc", "home"):
            (tree / name).mkdir(parents=True)
        (tree / "sbin/init").write_text("")
        (tree / "sbin/init").chmod(0o755)
        (tree / "etc/fstab").write_text(fstab.replace("@", str(canary)))
        if spoil is not None:
            spoil(tree, canary)
        room = Rooms()
        root, home = directory / "root", directory / "home"
        disks.make_filesystem(root, Part("ext4", 8, ("-d", str(tree))))
        disks.make_filesystem(home, Part("ext4", 4, ("-L", "home")))
        entries = (Gpt(1, room.root, room.home - 1), Gpt(2, room.home, room.home + 4 * 2048 - 1))
        with open(directory / "disk", "wb") as file:
            file.write(tables.gpt_image(room.sectors * 512, entries))
            for sector, piece in ((room.root, root), (room.home, home)):
                file.seek(sector * 512)
                file.write(piece.read_bytes())
        for piece in (root, home):
            piece.unlink()

    return build


def _fstab(change: Callable[[Path, Path], object]) -> Callable[[Path, Path], object]:
    """The fstab is something else than a file."""

    def spoil(tree: Path, canary: Path) -> None:
        (tree / "etc/fstab").unlink()
        change(tree / "etc/fstab", canary)

    return spoil


def _linked(target: str) -> Callable[[Path, Path], object]:
    def spoil(tree: Path, canary: Path) -> None:
        (tree / "home").rmdir()
        (tree / "home").symlink_to(target.replace("@", str(canary)))

    return spoil


def _sparse(path: Path, canary: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 30)


def guests() -> Iterator[Case]:
    """Raw disks with a system whose guest wants more than its disk."""
    errors = (
        "UnsafePath",
        "BadFstab",
        "UnknownFilesystem",
        "NotFound",
        "BadImage",
        "NoRootFound",
        "KernelError",
        "NotSupported",
    )
    for name, change in {
        "link to the host": lambda path, canary: path.symlink_to(canary / "fstab"),
        "relative link": lambda path, canary: path.symlink_to("../" * 30 + str(canary / "fstab").lstrip("/")),
        "loop of links": lambda path, canary: path.symlink_to("fstab"),
        "magic link": lambda path, canary: path.symlink_to("/proc/self/environ"),
        "link to a descriptor": lambda path, canary: path.symlink_to("/proc/self/fd/3"),
        "FIFO": lambda path, canary: os.mkfifo(path),
        "character device": lambda path, canary: os.mknod(path, 0o20600, os.makedev(1, 5)),
        "block device": lambda path, canary: os.mknod(path, 0o60600, os.makedev(7, 0)),
        "directory": lambda path, canary: path.mkdir(),
        "a gigabyte": _sparse,
        "binary": lambda path, canary: path.write_bytes(bytes(range(256)) * 10),
        "a megabyte of lines": lambda path, canary: path.write_bytes(b"LABEL=home /home ext4\n" * 45000),
    }.items():
        # a link whose target does not exist inside of the image: no fstab, the root alone is mounted
        harmless = ALL if "link" in name else MAPPED
        yield Case(f"fstab: {name}", "raw", guest(spoil=_fstab(change)), errors, harmless)
    for where in (
        "/../../../../../../@", "//@", "/./..@", "/proc/1", "/sys", "/dev/shm", "/run", "@/../..", "relative", "/a\\000b",
        "/" + "x" * 5000, "/home/../../..@", "/-o", "/%s%n", "/\\012/\\033[2J",
    ):  # fmt: skip
        # "//canary" is a path of the image, and is made there
        yield Case(f"fstab: at {where[:30]}", "raw", guest(f"LABEL=home {where} ext4 defaults 0 0\n"), errors, ALL)
    for target in ("@", "../../../../../../../../../..@", "/proc/self/cwd", "/proc/1/root@", "home", "/dev/shm"):
        yield Case(f"/home is a link to {target}", "raw", guest(spoil=_linked(target)), errors, MAPPED)

    def nested(tree: Path, canary: Path) -> None:
        (tree / "a").symlink_to(canary)

    deep = "LABEL=home /a/b/c ext4 defaults 0 0\n"
    yield Case("a link on the way to a mount point", "raw", guest(deep, nested), errors, ALL)
    for kind in ("ntfs", "minix", "hfsplus", "udf", "jfs", "reiserfs"):
        yield Case(f"fstab: type {kind}", "raw", guest(f"LABEL=home /home {kind} defaults 0 0\n"), errors, MAPPED)
    for name, line in {
        "a label for a shell": "LABEL=$(touch${IFS}@/x) /a`touch${IFS}@/x` ext4 defaults 0 0\n",
        "a device of the host": "/dev/sda1 /home ext4 defaults 0 0\n/dev/mapper/vg-root /var ext4 defaults 0 0\n",
        "the same filesystem twice": "LABEL=home /home ext4 defaults 0 0\nLABEL=home /var ext4 defaults 0 0\n",
        "options of root's": "LABEL=home /home ext4 suid,dev,exec,loop=/dev/loop0,journal_dev=0x700 0 0\n",
        "an unknown disk": "UUID=00000000-0000-0000-0000-000000000000 /home ext4 defaults 0 0\n",
    }.items():
        harmless = ALL if name == "options of root's" or "device" in name else MAPPED
        yield Case(f"fstab: {name}", "raw", guest(line), errors, harmless)

    def rootfs(tree: Path, canary: Path) -> None:
        (tree / "rootfs").symlink_to(canary)
        (tree / "lost").symlink_to("/")

    yield Case("an entry called rootfs", "raw", guest(spoil=rootfs), errors, ALL)  # S-08
    yield Case("/etc is a link", "raw", guest(spoil=_etc_is_a_link), errors, ALL)
    yield Case("init is a link to the host", "raw", guest(spoil=_init_is_a_link), errors, ALL)


def _etc_is_a_link(tree: Path, canary: Path) -> None:
    (tree / "etc/fstab").unlink()
    (tree / "etc").rmdir()
    (tree / "etc").symlink_to(canary)


def _init_is_a_link(tree: Path, canary: Path) -> None:
    (tree / "sbin/init").unlink()
    (tree / "sbin/init").symlink_to(canary / "secret")


FAMILIES: dict[str, Callable[[], Iterator[Case]]] = {
    "raw": raw,
    "qcow2": qcow2_images,
    "vmdk": vmdk_images,
    "partition tables": partition_tables,
    "filesystems": filesystems,
    "guests": guests,
}
