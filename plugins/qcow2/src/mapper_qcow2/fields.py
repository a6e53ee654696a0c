"""The fields of a qcow2 header, read and checked one by one.

Source: ``docs/interop/qcow2.txt`` of qemu. All numbers are big-endian. The limits are those of qemu, where it has one.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator

from mapper_core.formats import HEADER_SIZE, refusal
from mapper_core.frozen import dataclass
from mapper_core.imagefile import ImageFile

MAGIC = b"QFI\xfb"

_COMMON = struct.Struct(">4sIQIIQIIQQIIQ")  # 72 bytes: the whole header of version 2
_VERSION_3 = struct.Struct(">QQQII")  # 72 to 103

MIN_CLUSTER_BITS, MAX_CLUSTER_BITS = 9, 21
MIN_CLUSTER_BITS_EXTENDED_L2 = 14
MAX_L1_BYTES = 32 << 20
MAX_REFCOUNT_TABLE_BYTES = 8 << 20
MAX_SNAPSHOTS = 4096  # qemu would take 65536, and some seconds to read them, each time
MIN_SNAPSHOT_BYTES = 40
MAX_NAME_BYTES = 1023
MAX_EXTENSIONS = 64

_END, _BACKING_FORMAT, _FEATURE_NAMES, _DATA_FILE = 0x00000000, 0xE2792ACA, 0x6803F857, 0x44415441
_COMPRESSION = {0: "zlib", 1: "zstd"}


class Incompatible(enum.IntFlag):
    """Features without whose knowledge an image must not be opened."""

    DIRTY = 1 << 0
    CORRUPT = 1 << 1
    DATA_FILE = 1 << 2
    COMPRESSION = 1 << 3
    EXTENDED_L2 = 1 << 4


_KNOWN_FEATURES = 0b11111
_LAZY_REFCOUNTS = 1 << 0  # compatible
_DATA_FILE_RAW = 1 << 1  # autoclear


@dataclass(frozen=True, slots=True)
class Header:
    """A header whose fields are consistent with each other and with the size of the file.

    :param size: virtual size, bytes; as written, not always a multiple of 512.
    :param l1_entries: entries of the L1 table, 8 bytes each.
    :param refcount_clusters: clusters of the refcount table.
    :param backing_name: empty when there is no backing file.
    :param backing_format: empty when the image does not say.
    :param data_file: name of the external data file, empty when the data is inside.
    """

    version: int
    cluster_bits: int
    size: int
    l1_offset: int
    l1_entries: int
    refcount_offset: int
    refcount_clusters: int
    refcount_bits: int
    snapshots: int
    snapshots_offset: int
    features: Incompatible
    lazy_refcounts: bool
    data_file_raw: bool
    compression: str
    backing_name: bytes
    backing_format: bytes
    data_file: bytes

    @property
    def cluster_size(self) -> int:
        """Bytes of a cluster."""
        return 1 << self.cluster_bits

    @property
    def l2_entry_size(self) -> int:
        """Bytes of an entry of an L2 table."""
        return 16 if Incompatible.EXTENDED_L2 in self.features else 8


def read_header(image: ImageFile) -> Header:
    """Read and check the header of an image.

    :raises FormatMismatch, UnsupportedFormat, TruncatedImage, CorruptImage: it is something else, a variant that is
        not handled, too short, or contradicts itself.
    """
    first = image.read_start(HEADER_SIZE)
    if not first.startswith(MAGIC):
        raise refusal("qcow2", first, image.path)
    if len(first) < _COMMON.size:
        raise image.truncated("header", _COMMON.size)
    (
        _magic, version, backing_offset, backing_size, cluster_bits, size, encryption, l1_entries, l1_offset,
        refcount_offset, refcount_clusters, snapshots, snapshots_offset,
    ) = _COMMON.unpack_from(first)  # fmt: skip
    if version not in (2, 3):
        found = "qcow (version 1)" if version == 1 else f"qcow2 version {version}"
        raise image.unsupported(f"{found} is not supported", "convert it with: qemu-img convert -O qcow2")
    if not MIN_CLUSTER_BITS <= cluster_bits <= MAX_CLUSTER_BITS:
        raise image.corrupt(f"the cluster size 2^{cluster_bits} is out of range")
    cluster = 1 << cluster_bits
    incompatible = compatible = autoclear = compression = 0
    refcount_order, length = 4, _COMMON.size
    if version == 3:
        end_of_fields = _COMMON.size + _VERSION_3.size
        if len(first) < end_of_fields:
            raise image.truncated("header", end_of_fields)
        incompatible, compatible, autoclear, refcount_order, length = _VERSION_3.unpack_from(first, _COMMON.size)
        if length < end_of_fields or length % 8 or length > cluster:
            raise image.corrupt(f"the header length {length} is out of range")
        compression = image.read(end_of_fields, 1, "header")[0] if length > end_of_fields else 0
    if refcount_order > 6:
        raise image.corrupt(f"the refcount width 2^{refcount_order} is out of range")
    if backing_offset:
        if backing_size > MAX_NAME_BYTES:
            raise image.corrupt(f"the name of the backing file has {backing_size} bytes, more than {MAX_NAME_BYTES}")
        if backing_offset < length or backing_offset + backing_size > cluster:
            # a name elsewhere lies in the data of the guest, which could change it after the check (S-06)
            raise image.corrupt("the name of the backing file lies outside of the first cluster")
    name = image.read(backing_offset, backing_size, "name of the backing file") if backing_offset else b""

    extensions = dict(_extensions(image, length, backing_offset or cluster))
    _check_features(image, incompatible, extensions.get(_FEATURE_NAMES, b""))
    features = Incompatible(incompatible)
    if encryption:
        raise image.unsupported(
            "the image is encrypted", "convert it with: qemu-img convert, to one without encryption"
        )
    if (compression != 0) != (Incompatible.COMPRESSION in features):
        raise image.corrupt("the compression type and its feature bit contradict each other")
    if compression not in _COMPRESSION:
        raise image.unsupported(f"the compression type {compression} is not known")
    if Incompatible.EXTENDED_L2 in features and cluster_bits < MIN_CLUSTER_BITS_EXTENDED_L2:
        raise image.corrupt(f"extended L2 entries with a cluster size of {cluster}")
    if (_DATA_FILE in extensions) != (Incompatible.DATA_FILE in features):
        raise image.corrupt("the external data file and its feature bit contradict each other")
    if autoclear & _DATA_FILE_RAW and Incompatible.DATA_FILE not in features:
        raise image.corrupt("a raw data file without a data file")

    header = Header(
        version=version,
        cluster_bits=cluster_bits,
        size=size,
        l1_offset=l1_offset,
        l1_entries=l1_entries,
        refcount_offset=refcount_offset,
        refcount_clusters=refcount_clusters,
        refcount_bits=1 << refcount_order,
        snapshots=snapshots,
        snapshots_offset=snapshots_offset,
        features=features,
        lazy_refcounts=bool(compatible & _LAZY_REFCOUNTS),
        data_file_raw=bool(autoclear & _DATA_FILE_RAW),
        compression=_COMPRESSION[compression],
        backing_name=name,
        backing_format=extensions.get(_BACKING_FORMAT, b""),
        data_file=extensions.get(_DATA_FILE, b""),
    )
    _check_tables(image, header)
    return header


def _extensions(image: ImageFile, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Return the header extensions that matter, each at most once.

    :param end: where the area ends: at the name of the backing file, or at the end of the first cluster.
    """
    wanted = {_BACKING_FORMAT: 15, _FEATURE_NAMES: 48 * 256, _DATA_FILE: MAX_NAME_BYTES}
    offset = start
    for _ in range(MAX_EXTENSIONS):
        if offset == end:
            return
        kind, length = struct.unpack(">II", image.read(offset, 8, "header extensions"))
        offset += 8
        if length > end - offset:
            raise image.corrupt(f"the header extension {kind:#010x} with {length} bytes is larger than its place")
        if kind == _END:
            return
        if kind in wanted:
            if length > wanted[kind]:
                raise image.corrupt(f"the header extension {kind:#010x} is too long ({length} bytes)")
            yield kind, image.read(offset, length, "header extensions")
            if kind != _FEATURE_NAMES:
                # qemu takes the last of several, others the first: nobody may disagree about a file name
                del wanted[kind]
        elif kind in (_BACKING_FORMAT, _DATA_FILE):
            raise image.corrupt(f"the header extension {kind:#010x} is there twice")
        offset = min(offset + -(-length // 8) * 8, end)
    raise image.corrupt(f"the header has more than {MAX_EXTENSIONS} extensions")


def _check_features(image: ImageFile, incompatible: int, names: bytes) -> None:
    unknown = incompatible & ~_KNOWN_FEATURES
    if unknown:
        raise image.unsupported(f"the image needs features that are not supported: {_feature_names(unknown, names)}")
    if incompatible & Incompatible.CORRUPT:
        raise image.corrupt(
            "the image is marked corrupt: a program found damaged metadata in it",
            "make a copy, then repair it with: qemu-img check -r all",
        )


def _feature_names(bits: int, table: bytes) -> str:
    """Name feature bits by the feature name table (48 bytes each: type, bit, name); the names are hostile too."""
    names = {
        table[at + 1]: table[at + 2 : at + 48].rstrip(b"\0").decode("ascii", "replace")
        for at in range(0, len(table) - 47, 48)
        if table[at] == 0
    }
    described = []
    for bit in range(64):
        if bits >> bit & 1:
            name = names.get(bit, "")
            described.append(f"bit {bit} ({name})" if name and name.isprintable() else f"bit {bit}")
    return ", ".join(described)


def _check_tables(image: ImageFile, header: Header) -> None:
    """Check the place of every table that the header names."""
    if header.size >= 1 << 63:
        raise image.corrupt(f"the virtual size {header.size} is out of range")
    per_l1_entry = header.cluster_size * (header.cluster_size // header.l2_entry_size)
    needed = -(-header.size // per_l1_entry)
    if needed * 8 > MAX_L1_BYTES or header.l1_entries * 8 > MAX_L1_BYTES:
        raise image.unsupported(f"the L1 table is larger than {MAX_L1_BYTES >> 20} MiB")
    if header.l1_entries < needed:
        raise image.corrupt(f"the L1 table has {header.l1_entries} entries, the virtual size needs {needed}")
    refcount_bytes = header.refcount_clusters << header.cluster_bits
    if not refcount_bytes:
        raise image.corrupt("the image has no refcount table")
    if refcount_bytes > MAX_REFCOUNT_TABLE_BYTES:
        raise image.corrupt(f"the refcount table is larger than {MAX_REFCOUNT_TABLE_BYTES >> 20} MiB")
    if header.snapshots_offset % header.cluster_size or header.snapshots_offset >= 1 << 63:
        raise image.corrupt(f"the snapshot table cannot start at {header.snapshots_offset:#x}")
    if header.snapshots > MAX_SNAPSHOTS:
        raise image.corrupt(f"the image has {header.snapshots} snapshots, more than {MAX_SNAPSHOTS}")

    places = [(0, header.cluster_size, "header"), (header.refcount_offset, refcount_bytes, "refcount table")]
    if header.l1_entries:
        places.append((header.l1_offset, header.l1_entries * 8, "L1 table"))
    if header.snapshots:
        places.append((header.snapshots_offset, header.snapshots * MIN_SNAPSHOT_BYTES, "snapshot table"))
    end_before, before = 0, ""
    for offset, length, what in sorted(places):
        if offset % header.cluster_size:
            raise image.corrupt(f"the {what} does not start at a cluster ({offset:#x})")
        if offset < end_before:
            raise image.corrupt(f"the {what} overlaps the {before}")
        if offset + length > image.size:
            raise image.truncated(what, offset + length)
        end_before, before = offset + length, what
