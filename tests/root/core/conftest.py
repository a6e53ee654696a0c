"""Real disks for the tests of the core."""

from pathlib import Path

import pytest

from mapper_core.mapping import Mapper
from mapper_core.testing import disks
from mapper_core.testing.disks import Part


@pytest.fixture
def mapper(runtime_dir: Path) -> Mapper:
    """A mapper on a runtime directory of its own."""
    return Mapper.open()


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A raw image with one ext4."""
    return disks.make_filesystem(tmp_path / "bare.raw", Part("ext4", 16, ("-L", "data"), (("/hello", "world\n"),)))


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """A raw disk as installers make it: ESP, /boot, root, /home, swap."""
    return make_system(tmp_path / "system.raw")


ROOT_UUID = "11111111-2222-3333-4444-555555555555"


def make_system(path: Path, extra_fstab: str = "") -> Path:
    fstab = (
        f"UUID={ROOT_UUID} / ext4 errors=remount-ro 0 1\n"
        "LABEL=home /home ext4 noatime 0 2\n"
        'PARTUUID="@BOOT@" /boot ext4 defaults 0 2\n'
        "UUID=ABCD-1234 /boot/efi vfat umask=0077 0 1\n"
        "/dev/sda5 none swap sw 0 0\n"
        "tmpfs /tmp tmpfs defaults 0 0\n" + extra_fstab
    )
    parts = (
        Part("vfat", 8, ("-i", "ABCD1234"), type="U"),
        Part("ext4", 8),
        Part("", 24),
        Part("ext4", 8, ("-L", "home")),
        Part("swap", 4, type="S"),
    )
    disks.make_disk(path, parts)
    fstab = fstab.replace("@BOOT@", disks.partition_uuid(path, 2))
    files = (("/sbin/init", "#!/bin/sh\n"), ("/etc/fstab", fstab), ("/home/.keep", ""), ("/boot/efi/.keep", ""))
    root = Part("ext4", 24, ("-U", ROOT_UUID), files)
    piece = disks.make_filesystem(path.with_name("root.part"), root)
    start = int(disks.run("partx", "-g", "-o", "START", "-n", "3", str(path)).strip())
    disks.run("dd", f"if={piece}", f"of={path}", "bs=512", f"seek={start}", "conv=notrunc,sparse", "status=none")
    return path
