"""Filesystems that are broken, or no more than a superblock (S-16)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from mapper_core.testing import disks, superblocks
from mapper_core.testing.disks import Part

from .case import MAPPED, MIB, Build, Case, content


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
