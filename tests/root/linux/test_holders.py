"""Everything that can hold a device is found."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mapper_core.errors import NotFound, Refused
from mapper_core.linux import blkpg, block, holders, loop
from mapper_core.linux.holders import Holder, HolderKind

pytestmark = pytest.mark.root

Attach = Callable[..., loop.LoopDevice]
Elsewhere = Callable[..., int]
MakeImage = Callable[..., Path]
Mounted = Callable[..., Path]

MIB = 1 << 20


def test_a_free_device_has_none(make_image: MakeImage, attach: Attach) -> None:
    device = attach(make_image())
    # udev opens each new device for a moment, where it runs.
    until = time.monotonic() + 10
    while (found := holders.holders(device.path)) and time.monotonic() < until:
        block.wait_for_close(device.path, 0.1)
    assert found == ()


def test_no_device(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        holders.holders(str(tmp_path / "none"))
    with pytest.raises(Refused):
        holders.holders("/dev/null")


def test_a_process(make_image: MakeImage, attach: Attach) -> None:
    device = attach(make_image())
    with open(device.path, "rb") as file:
        process = subprocess.Popen(["sleep", "1000"], stdin=file)
        try:
            found = holders.holders(device.path)
        finally:
            process.kill()
            process.wait(timeout=10)
    name = f"loop{device.number}"
    assert Holder(HolderKind.PROCESS, name, process.pid, "sleep") in found
    assert {holder.pid for holder in found} >= {os.getpid(), process.pid}


def test_a_process_that_opened_another_node(make_image: MakeImage, attach: Attach, tmp_path: Path) -> None:
    """A container has its own /dev; and the node may be deleted by now."""
    device = attach(make_image())
    node = tmp_path / "oddname"
    os.mknod(node, 0o600 | 0o060000, os.stat(device.path).st_rdev)
    with open(node, "rb"):
        assert os.getpid() in [holder.pid for holder in holders.holders(device.path)]
        node.unlink()
        assert os.getpid() in [holder.pid for holder in holders.holders(device.path)]


def test_mounts_here_and_elsewhere(
    make_image: MakeImage,
    attach: Attach,
    mounted: Mounted,
    elsewhere: Elsewhere,
    tmp_path: Path,
) -> None:
    """U-11: each namespace once; most processes of the host are in ours."""
    device = attach(make_image(mkfs="ext4"))
    here = mounted(device.path)
    (tmp_path / "there").mkdir()
    pid = elsewhere('umount "$1"; mount -t ext4 "$2" "$3"', here, device.path, tmp_path / "there")
    found = [holder for holder in holders.holders(device.path) if holder.kind is HolderKind.MOUNT]
    # A namespace that others on this host make at this moment copies our mount, and is listed too.
    targets = {holder.namespace: holder.target for holder in found}
    assert len(targets) == len(found)
    assert targets[os.stat("/proc/self/ns/mnt").st_ino] == str(here)
    assert targets[os.stat(f"/proc/{pid}/ns/mnt").st_ino] == str(tmp_path / "there")


def test_btrfs(make_image: MakeImage, attach: Attach, mounted: Mounted) -> None:
    """Its mounts show an anonymous device number."""
    device = attach(make_image(size=128 * MIB, mkfs="btrfs"))
    directory = mounted(device.path, "btrfs")
    found = [holder for holder in holders.holders(device.path) if holder.kind is not HolderKind.PROCESS]
    assert [(holder.kind, holder.target) for holder in found] == [(HolderKind.MOUNT, str(directory))]


def test_a_partition(make_image: MakeImage, attach: Attach) -> None:
    device = attach(make_image())
    with open(device.path, "rb") as file:
        blkpg.add(file.fileno(), 1, MIB, MIB)
    with open(f"{device.path}p1", "rb"):
        found = [holder.device for holder in holders.holders(device.path) if holder.pid == os.getpid()]
    assert found == [f"loop{device.number}p1"]


def test_a_loop_device_on_top(make_image: MakeImage, attach: Attach) -> None:
    below = attach(make_image())
    top = attach(Path(below.path))
    found = holders.holders(below.path)
    assert Holder(HolderKind.DEVICE, f"loop{below.number}", target=f"loop{top.number}") in found


def test_swap(make_image: MakeImage, attach: Attach) -> None:
    device = attach(make_image())
    subprocess.run(["mkswap", device.path], check=True, capture_output=True, timeout=30)
    subprocess.run(["swapon", "--priority", "0", device.path], check=True, timeout=30)
    try:
        assert Holder(HolderKind.SWAP, f"loop{device.number}") in holders.holders(device.path)
    finally:
        subprocess.run(["swapoff", device.path], check=True, timeout=30)


def test_who_is_in_a_mount(make_image: MakeImage, attach: Attach, mounted: Mounted) -> None:
    directory = mounted(attach(make_image(mkfs="ext4")).path)
    (directory / "file").touch()
    assert holders.mount_holders(str(directory)) == ()
    assert holders.mount_holders(str(directory / "no mount")) == ()
    with open(directory / "file", "rb"):
        (found,) = holders.mount_holders(str(directory))
    assert (found.kind, found.pid, found.target) == (HolderKind.PROCESS, os.getpid(), str(directory / "file"))
