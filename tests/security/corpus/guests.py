"""What is in the root filesystem (S-07, S-09, S-10, S-12, S-16)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mapper_core.testing import disks, tables
from mapper_core.testing.disks import Part
from mapper_core.testing.tables import Gpt

from .case import ALL, MAPPED, Build, Case


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
