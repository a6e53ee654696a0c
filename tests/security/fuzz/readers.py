"""What is fuzzed: each reader of bytes that strangers wrote, as a function that must return or raise a MapperError.

Anything else that is raised is a finding, and so is an answer that breaks what the rest of the program relies on.
"""

from __future__ import annotations

import os
import tempfile
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .disks import SparseDisk, encode

if TYPE_CHECKING:
    from mapper_core.model import ImageInfo
    from mapper_core.tree.fstab import FstabEntry


@dataclass(frozen=True, slots=True)
class Reader:
    """One thing to fuzz.

    :param modules: packages whose coverage guides the fuzzer.
    :param check: reads the input.
    :param seeds: inputs to begin with.
    """

    modules: tuple[str, ...]
    check: Callable[[bytes], None]
    seeds: Callable[[], tuple[bytes, ...]]


# --- images -------------------------------------------------------------------------------------------------


def _inspect(data: bytes, inspect: Callable[[str, tuple[str, ...]], ImageInfo]) -> None:
    from mapper_core import policy
    from mapper_core.errors import MapperError
    from mapper_core.model import Access, Disk, MapOptions

    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as directory:
        path = f"{directory}/disk"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            SparseDisk(data).write_to(fd)
        finally:
            os.close(fd)
        with suppress(MapperError):
            info = inspect(path, ())
            policy.check_image(Disk(path, info.format), info, MapOptions(Access.READ_ONLY))
            assert info.virtual_size > 0 and info.virtual_size % 512 == 0, info
            for layer in info.chain():
                assert all(item.path.startswith(f"{directory}/") for item in layer.references), info


def _qcow2(data: bytes) -> None:
    from mapper_qcow2.header import inspect_image

    _inspect(data, inspect_image)


def _qcow2_seeds() -> tuple[bytes, ...]:
    from mapper_core.testing import images

    return tuple(
        encode(image)
        for image in (
            images.qcow2(),
            images.qcow2(version=2),
            images.qcow2(cluster_bits=9, size=1 << 24),
            images.qcow2(backing=b"disk"),
            images.qcow2(backing=b"../../etc/passwd", backing_format=b"qcow2"),
        )
    )


def _vmdk(data: bytes) -> None:
    from mapper_vmdk.header import inspect_image

    _inspect(data, inspect_image)


def _vmdk_seeds() -> tuple[bytes, ...]:
    from mapper_core.testing import images

    return tuple(
        encode(image)
        for image in (
            images.vmdk_sparse(),
            images.vmdk_sparse(capacity=1 << 20, descriptor=b""),
            images.vmdk_stream(),
            images.vmdk_descriptor(),
            images.vmdk_descriptor(create_type="monolithicFlat", extents=('RW 2048 FLAT "disk" 0',)),
            images.vmdk_descriptor(
                create_type="twoGbMaxExtentSparse", extents=('RW 2048 SPARSE "a.vmdk"', 'RW 2048 SPARSE "b.vmdk"')
            ),
            images.vmdk_descriptor(parent_cid=1, parent="disk"),
        )
    )


# --- devices ------------------------------------------------------------------------------------------------


def _tables(data: bytes) -> None:
    from mapper_core.errors import MapperError
    from mapper_core.partitions.discover import discover

    disk = SparseDisk(data)
    for sector_size in (512, 4096):
        with suppress(MapperError):
            table = discover(disk.read, disk.size, sector_size)
            numbers = [partition.number for partition in table.partitions]
            assert len(set(numbers)) == len(numbers), table
            for partition in table.partitions:
                assert partition.start >= 0 and partition.start + partition.size <= disk.size, table
                assert not _controls(partition.label), table


def _controls(text: str) -> str:
    return "".join(char for char in text if unicodedata.category(char) == "Cc")


def _table_seeds() -> tuple[bytes, ...]:
    from mapper_core.testing import tables

    size = 8 << 20
    gpt = (tables.Gpt(1, 2048, 4095), tables.Gpt(3, 4096, 8191))
    mbr = (tables.Mbr(1, 0x83, 2048, 2048), tables.Mbr(2, 0x05, 4096, 8192))
    return tuple(
        encode(bytes(image))
        for image in (
            tables.gpt_image(size, gpt),
            tables.gpt_image(size, (tables.Gpt(1, 256, 511),), sector_size=4096),
            tables.mbr_image(size, mbr, tables.logical_chain(4096, ((0x83, 4608, 1024), (0x83, 6656, 1024)))),
        )
    )


def _superblocks(data: bytes) -> None:
    from mapper_core.errors import MapperError
    from mapper_core.tree.superblock import probe

    disk = SparseDisk(data)
    with suppress(MapperError):
        found = probe(disk.read, disk.size)
        assert not _controls(found.type + found.uuid + found.label), found


def _superblock_seeds() -> tuple[bytes, ...]:
    from mapper_core.testing import superblocks as made

    return tuple(
        encode(build())
        for build in (
            made.ext, made.xfs, made.btrfs, made.squashfs, made.erofs, made.f2fs, made.fat16, made.fat32, made.exfat,
        )
    )  # fmt: skip


# --- texts --------------------------------------------------------------------------------------------------


def _fstab(data: bytes) -> None:
    from mapper_core.errors import MapperError
    from mapper_core.tree import fstab

    with suppress(MapperError):
        table = fstab.parse(data)
        again = fstab.parse(fstab.render(table))
        assert [_meaning(entry) for entry in again.entries] == [_meaning(entry) for entry in table.entries], table


def _meaning(entry: FstabEntry) -> tuple[object, ...]:
    return entry.spec, entry.target, entry.fstype, entry.options, entry.freq, entry.passno


def _fstab_seeds() -> tuple[bytes, ...]:
    return (
        b"UUID=1-2 / ext4 defaults,noatime 0 1\nLABEL=a\\040b /home btrfs subvol=@home,nofail 0 0\n# note\n",
        b'PARTUUID=00000000-01 /boot vfat umask=077 0 2\n/dev/disk/by-id/x\ty xfs "a,b"\n',
        b"none none swap sw 0 0\ntmpfs /tmp tmpfs size=1g\n\xff\xfe /\\134\\012 auto\r\n",
    )


def _xml(data: bytes) -> None:
    from mapper_driver.opennebula.parse import parse_vm
    from mapper_driver.opennebula.xml import read_document

    from mapper_core.errors import MapperError

    with suppress(MapperError):
        vm = parse_vm(read_document(data), "/var/lib/one/datastores", "raw")
        assert vm.container.replace("-", "").isalnum(), vm
        assert all(".." not in disk.location.split("/") for disk in vm.disks), vm


def _xml_seeds() -> tuple[bytes, ...]:
    fixtures = Path(__file__).parents[3] / "driver" / "tests" / "unit" / "fixtures"
    return tuple(path.read_bytes() for path in sorted(fixtures.glob("*/*.xml")))


READERS = {
    "qcow2": Reader(("mapper_qcow2", "mapper_core.imagefile", "mapper_core.references"), _qcow2, _qcow2_seeds),
    "vmdk": Reader(("mapper_vmdk", "mapper_core.imagefile", "mapper_core.references"), _vmdk, _vmdk_seeds),
    "tables": Reader(("mapper_core.partitions",), _tables, _table_seeds),
    "superblocks": Reader(("mapper_core.tree",), _superblocks, _superblock_seeds),
    "fstab": Reader(("mapper_core.tree",), _fstab, _fstab_seeds),
    "xml": Reader(("mapper_driver", "xml"), _xml, _xml_seeds),
}
