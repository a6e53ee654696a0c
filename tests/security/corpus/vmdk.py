# mypy: disable-error-code="assignment, arg-type"
"""vmdk (S-04, S-19, M-24)."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from mapper_core.testing.images import (
    SECTOR,
    VMDK_FIELDS,
    vmdk_descriptor,
    vmdk_sparse,
    vmdk_stream,
)

from .case import HEADER, HOST_NAMES, MAPPED, Case, content, naming, with_name


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

            yield Case(f"{kind} extent {name}", "vmdk", with_name(extent)(name), forbidden)

        def parent(name: bytes) -> bytes:
            return vmdk_sparse(descriptor=vmdk_descriptor(parent=os.fsdecode(name), parent_cid=0x1000))

        yield Case(f"parent {name}", "vmdk", with_name(parent)(name), forbidden)
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
