"""Raw disks, and what is no image (S-01, S-05, S-26, M-22)."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from mapper_core.testing.images import (
    qcow2,
    vmdk_descriptor,
    vmdk_sparse,
)

from .case import HEADER, MAPPED, MIB, Build, Case, content


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
