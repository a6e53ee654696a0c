"""What a case is, and what the families of cases share."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
CLUSTER = 65536

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


def with_name(make: Callable[[bytes], bytes]) -> Callable[[str], Build]:
    """Make a disk that names a file; beside it lie an image, a link to the canary, and one to a device."""

    def named(name: str) -> Build:
        def build(directory: Path, canary: Path) -> None:
            (directory / "base").write_bytes(bytes(MIB))
            (directory / "link").symlink_to(canary / "secret")
            (directory / "zero").symlink_to("/dev/zero")
            (directory / "disk").write_bytes(make(os.fsencode(name.replace("@", str(canary)))))

        return build

    return named
