"""Questions to block devices, and partitions by BLKPG."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mapper_core.errors import DeviceBusy, NotFound, Refused
from mapper_core.linux import blkpg, block, loop

pytestmark = pytest.mark.root

Attach = Callable[..., loop.LoopDevice]
MakeImage = Callable[..., Path]

MIB = 1 << 20


@contextlib.contextmanager
def opened(path: str | Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def test_sizes(make_image: MakeImage, attach: Attach) -> None:
    device = attach(make_image(size=5 * MIB + 512))
    with opened(device.path) as fd:
        assert block.size(fd) == 5 * MIB + 512
        assert block.logical_sector_size(fd) == 512
        assert not block.is_read_only(fd)


def test_a_link_leads_to_the_device(make_image: MakeImage, attach: Attach, tmp_path: Path) -> None:
    device = attach(make_image())
    (tmp_path / "by-id").symlink_to(device.path)
    assert block.kernel_name(str(tmp_path / "by-id")) == f"loop{device.number}"


def test_what_is_no_block_device(tmp_path: Path) -> None:
    with pytest.raises(Refused):
        block.device_number("/dev/null")
    for path in (tmp_path / "none", tmp_path / "none" / "none"):
        with pytest.raises(NotFound):
            block.device_number(str(path))
    with pytest.raises(NotFound):
        block.ensure_node("/dev/loop1048575")


def test_something_else_with_the_name_of_a_node(make_image: MakeImage, attach: Attach, tmp_path: Path) -> None:
    device = attach(make_image())
    impostor = tmp_path / f"loop{device.number}"
    impostor.symlink_to("/dev/zero")
    with pytest.raises(Refused):
        block.ensure_node(str(impostor))
    assert impostor.is_symlink()


def test_exclusive_keeps_exclusive_users_out(make_image: MakeImage, attach: Attach) -> None:
    device = attach(make_image())
    with block.exclusive(device.path):
        with pytest.raises(DeviceBusy, match=f"process {os.getpid()}"), block.exclusive(device.path):
            pass
        with opened(device.path):
            pass
    with block.exclusive(device.path):
        pass


def test_exclusive_claims_the_partitions_too(make_image: MakeImage, attach: Attach) -> None:
    device = attach(make_image())
    with opened(device.path) as fd:
        blkpg.add(fd, 1, MIB, MIB)
        with block.exclusive(f"{device.path}p1"), pytest.raises(DeviceBusy), block.exclusive(device.path):
            pass


def test_exclusive_without_a_device(tmp_path: Path) -> None:
    with pytest.raises(NotFound), block.exclusive(str(tmp_path / "none")):
        pass


@pytest.fixture
def node(make_image: MakeImage, attach: Attach, tmp_path: Path) -> str:
    """A node of our own: everybody may look at the one in /dev, and inotify watches the inode."""
    path = tmp_path / "node"
    os.mknod(path, stat.S_IFBLK | 0o600, os.stat(attach(make_image()).path).st_rdev)
    return str(path)


def test_waiting_ends_with_the_close(node: str) -> None:
    fd = os.open(node, os.O_RDONLY)
    timer = threading.Timer(0.2, os.close, (fd,))
    started = time.monotonic()
    timer.start()
    block.wait_for_close(node, 20)
    assert 0.15 < time.monotonic() - started < 10
    timer.join()


def test_waiting_ends_with_the_time(node: str) -> None:
    started = time.monotonic()
    block.wait_for_close(node, 0.1)
    assert 0.09 < time.monotonic() - started < 5


# --- partitions -----------------------------------------------------------------------------------------------


def test_the_node_is_there_at_once(make_image: MakeImage, attach: Attach) -> None:
    """M-09: no udev, no waiting, and the right bytes."""
    image = make_image()
    with opened(image, os.O_RDWR) as fd:
        os.pwrite(fd, b"second", 3 * MIB)
    device = attach(image)
    with opened(device.path) as fd:
        blkpg.add(fd, 2, 3 * MIB, MIB)
        with opened(blkpg.partition_node(device.path, 2)) as partition:
            assert os.pread(partition, 6, 0) == b"second"
            assert block.size(partition) == MIB


def test_the_kernel_lists_them_by_number(make_image: MakeImage, attach: Attach) -> None:
    device = attach(make_image())
    with opened(device.path) as fd:
        for number, start in ((10, 1), (2, 5), (1, 9)):
            blkpg.add(fd, number, start * MIB, MIB)
    assert block.kernel_partitions(device.path) == ((1, 9 * MIB, MIB), (2, 5 * MIB, MIB), (10, MIB, MIB))


@pytest.mark.parametrize(
    ("number", "start", "size", "expected"),
    [
        (1, 8 * MIB, MIB, errno.EBUSY),  # the number exists
        (2, MIB + 512, MIB, errno.EBUSY),  # overlaps the first
        (2, 15 * MIB, 2 * MIB, errno.EINVAL),  # P-15: ends behind the device
        (2, 4 * MIB + 100, MIB, errno.EINVAL),  # not on a sector
        (2, 1 << 62, 1 << 62, errno.EINVAL),
        (2, -MIB, MIB, errno.EINVAL),
    ],
)
def test_what_the_kernel_refuses(
    make_image: MakeImage,
    attach: Attach,
    number: int,
    start: int,
    size: int,
    expected: int,
) -> None:
    device = attach(make_image())
    with opened(device.path) as fd:
        blkpg.add(fd, 1, MIB, MIB)
        with pytest.raises(OSError) as caught:
            blkpg.add(fd, number, start, size)
        assert caught.value.errno == expected
        assert block.kernel_partitions(device.path) == ((1, MIB, MIB),)


def test_delete_what_is_not_there(make_image: MakeImage, attach: Attach) -> None:
    with opened(attach(make_image()).path) as fd, pytest.raises(OSError) as caught:
        blkpg.delete(fd, 1)
    assert caught.value.errno == errno.ENXIO


def test_resize_a_partition_in_use(make_image: MakeImage, attach: Attach) -> None:
    device = attach(make_image())
    with opened(device.path) as fd:
        blkpg.add(fd, 1, MIB, MIB)
        with opened(f"{device.path}p1") as partition:
            blkpg.resize(fd, 1, MIB, 3 * MIB)
            assert block.size(partition) == 3 * MIB


def test_a_partition_does_not_grow_behind_the_device(make_image: MakeImage, attach: Attach) -> None:
    """P-15: kernel 6.1 itself would let it."""
    device = attach(make_image())
    with opened(device.path) as fd:
        blkpg.add(fd, 1, MIB, MIB)
        with pytest.raises(OSError) as caught:
            blkpg.resize(fd, 1, MIB, 16 * MIB)
        assert caught.value.errno == errno.EINVAL
        blkpg.resize(fd, 1, MIB, 15 * MIB)


def test_delete_all_or_none(make_image: MakeImage, attach: Attach) -> None:
    device = attach(make_image())
    with opened(device.path) as fd:
        for number in (1, 2, 3):
            blkpg.add(fd, number, number * MIB, MIB)
        before = block.kernel_partitions(device.path)
        with opened(f"{device.path}p2"), pytest.raises(OSError) as caught:
            blkpg.delete_all(fd)
        assert caught.value.errno == errno.EBUSY
        assert block.kernel_partitions(device.path) == before
        assert blkpg.delete_all(fd) == before
        assert block.kernel_partitions(device.path) == ()
