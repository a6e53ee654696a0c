"""Loop devices on this kernel."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mapper_core.errors import DeviceBusy, KernelError, NoFreeDevice, ReadOnlyImage, UsageError
from mapper_core.linux import blkpg, block, loop, mounts
from mapper_core.model import Access

pytestmark = pytest.mark.root

Attach = Callable[..., loop.LoopDevice]
Elsewhere = Callable[..., int]
MakeImage = Callable[..., Path]
Mounted = Callable[..., Path]

MIB = 1 << 20

# Attaches argv[1] with tag argv[2] and prints the device; with a third argument it then kills itself.
ATTACH = """
import os, signal, sys
from mapper_core.linux import loop
from mapper_core.model import Access
fd = os.open(sys.argv[1], os.O_RDWR)
device = loop.attach(fd, access=Access.READ_WRITE, tag=sys.argv[2], direct_io=True)
print(device.path, flush=True)
if len(sys.argv) > 3:
    os.kill(os.getpid(), signal.SIGKILL)
"""


@contextlib.contextmanager
def opened(path: str | Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def tag_of(device: loop.LoopDevice) -> str:
    state = loop.status(device.path)
    assert state is not None
    return state.tag


def test_the_device_shows_the_file(make_image: MakeImage, attach: Attach) -> None:
    image = make_image()
    device = attach(image)
    with opened(device.path, os.O_RDWR) as fd:
        os.pwrite(fd, b"from the device", 4096)
        block.flush(fd)
        assert block.size(fd) == 16 * MIB
    assert image.read_bytes()[4096:4111] == b"from the device"


def test_status_tells_what_was_asked(make_image: MakeImage, attach: Attach) -> None:
    image = make_image()
    device = attach(image, access=Access.READ_ONLY, offset=MIB, size_limit=2 * MIB)
    state = loop.status(device.path)
    found = os.stat(image)
    assert state == loop.LoopStatus(
        device=device,
        tag=f"test:{os.getpid()}:{image.name}",
        backing_device=found.st_dev,
        backing_inode=found.st_ino,
        offset=MIB,
        size_limit=2 * MIB,
        read_only=True,
        direct_io=False,
        autoclear=False,
    )
    with opened(device.path, os.O_RDONLY) as fd:
        assert block.size(fd) == 2 * MIB


def test_a_longest_tag_is_found_whole(make_image: MakeImage) -> None:
    tag = "t" * 62 + "1"
    with opened(make_image(), os.O_RDWR) as fd:
        device = loop.attach(fd, access=Access.READ_WRITE, tag=tag, direct_io=False)
    assert loop.find(tag) == (device,)
    assert loop.find(tag[:-1]) == ()
    loop.detach(device.path, tag=tag)
    assert loop.find(tag) == ()


def test_a_device_is_found_after_its_maker_was_killed(make_image: MakeImage) -> None:
    """A crash between the ioctl and the journal: only the tag knows the number."""
    tag = f"crash:{os.getpid()}"
    child = subprocess.run(
        [sys.executable, "-c", ATTACH, make_image(), tag, "die"], capture_output=True, text=True, timeout=30
    )
    assert child.returncode == -signal.SIGKILL
    found = loop.find(tag)
    assert [device.path for device in found] == [child.stdout.strip()]
    loop.detach(found[0].path, tag=tag)


def test_nothing_keeps_the_device_but_the_kernel(make_image: MakeImage, attach: Attach) -> None:
    """M-13: no autoclear, so no descriptor has to stay open."""
    device = attach(make_image())
    gc.collect()
    with opened(device.path, os.O_RDONLY):
        pass
    assert loop.status(device.path) is not None


def test_read_only_is_read_only(make_image: MakeImage, attach: Attach) -> None:
    """Even when the descriptor could write (an exporter that ignores its own read-only flag)."""
    image = make_image()
    with opened(image, os.O_RDWR) as fd:
        device = loop.attach(fd, access=Access.READ_ONLY, tag="ro", direct_io=False)
    try:
        with pytest.raises(OSError), opened(device.path, os.O_RDWR) as fd:
            os.pwrite(fd, b"x" * 512, 0)
            os.fsync(fd)
        with opened(device.path, os.O_RDONLY) as fd:
            assert block.is_read_only(fd)
        assert image.read_bytes()[:512] == bytes(512)
    finally:
        loop.detach(device.path, tag="ro")


def test_write_access_is_never_downgraded_in_silence(make_image: MakeImage) -> None:
    """U-06: the kernel would answer success and give a read-only device."""
    with opened(make_image(), os.O_RDONLY) as fd, pytest.raises(ReadOnlyImage):
        loop.attach(fd, access=Access.READ_WRITE, tag="downgrade", direct_io=False)
    assert loop.find("downgrade") == ()


def test_sector_size(make_image: MakeImage, attach: Attach) -> None:
    device = attach(make_image(), sector_size=4096)
    with opened(device.path, os.O_RDONLY) as fd:
        assert block.logical_sector_size(fd) == 4096


def test_a_setting_that_the_kernel_refuses_uses_no_device(make_image: MakeImage) -> None:
    """M-14: one step, so nothing is half set up."""
    with opened(make_image(), os.O_RDWR) as fd, pytest.raises(KernelError) as caught:
        loop.attach(fd, access=Access.READ_WRITE, tag="odd", sector_size=1000, direct_io=True)
    assert caught.value.errno == errno.EINVAL
    assert loop.find("odd") == ()


def test_a_backing_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with opened("/dev/null", os.O_RDWR) as fd, pytest.raises(KernelError):
        loop.attach(fd, access=Access.READ_WRITE, tag="null", direct_io=False)


def test_direct_io_is_on_where_the_filesystem_can(make_image: MakeImage, attach: Attach) -> None:
    state = loop.status(attach(make_image(), direct_io=True).path)
    assert state is not None
    assert state.direct_io


def test_direct_io_is_left_out_where_it_is_impossible(
    make_image: MakeImage,
    attach: Attach,
    mounted: Mounted,
    tmp_path: Path,
) -> None:
    """A device of 512-byte sectors cannot do direct I/O to a file on a disk of 4096-byte sectors."""
    below = make_image(size=64 * MIB)
    disk = attach(below, sector_size=4096)
    subprocess.run(["mkfs.ext4", "-q", disk.path], check=True, capture_output=True, timeout=60)
    image = mounted(disk.path) / "inner.img"
    image.write_bytes(bytes(MIB))
    with opened(image, os.O_RDWR) as fd:
        device = loop.attach(fd, access=Access.READ_WRITE, tag="inner", direct_io=True)
    state = loop.status(device.path)
    loop.detach(device.path, tag="inner")
    assert state is not None
    assert not state.direct_io


def test_capacity_follows_the_file(make_image: MakeImage, attach: Attach) -> None:
    image = make_image()
    device = attach(image)
    os.truncate(image, 24 * MIB)
    loop.set_capacity(device.path)
    with opened(device.path, os.O_RDONLY) as fd:
        assert block.size(fd) == 24 * MIB


def test_capacity_of_a_free_device(make_image: MakeImage, attach: Attach) -> None:
    device = attach(make_image())
    loop.detach(device.path, tag=tag_of(device))
    with pytest.raises(KernelError) as caught:
        loop.set_capacity(device.path)
    assert caught.value.errno == errno.ENXIO


# --- others at the same time ----------------------------------------------------------------------------------


def test_eight_processes_get_eight_devices(make_image: MakeImage) -> None:
    """M-05: all are answered the same free number at first."""
    images = [make_image(size=MIB) for _ in range(8)]
    for number, image in enumerate(images):
        image.write_bytes(bytes((number + 1,)) * MIB)
    start = [sys.executable, "-c", ATTACH]
    children = [
        subprocess.Popen([*start, image, f"race{os.getpid()}:{number}"], stdout=subprocess.PIPE, text=True)
        for number, image in enumerate(images)
    ]
    devices = [child.communicate(timeout=60)[0].strip() for child in children]
    try:
        assert [child.returncode for child in children] == [0] * 8
        assert len(set(devices)) == 8
        for number, device in enumerate(devices):
            with opened(device, os.O_RDONLY) as fd:
                assert set(os.pread(fd, MIB, 0)) == {number + 1}
    finally:
        for number, device in enumerate(devices):
            loop.detach(device, tag=f"race{os.getpid()}:{number}")


def test_many_threads_churn(make_image: MakeImage) -> None:
    """M-07, M-11: reused numbers never show the bytes or partitions of another image, and none is left."""
    problems: list[str] = []

    def churn(number: int, image: Path) -> None:
        tag = f"churn{os.getpid()}:{number}"
        for _ in range(25):
            with opened(image, os.O_RDWR) as backing:
                device = loop.attach(backing, access=Access.READ_WRITE, tag=tag, direct_io=True)
            with opened(device.path, os.O_RDONLY) as fd:
                if os.pread(fd, 1, 0) != bytes((number,)):
                    problems.append(f"{device.path} shows another image")
                if block.kernel_partitions(device.path):
                    problems.append(f"{device.path} has partitions")
                blkpg.add(fd, number, MIB, MIB)
            loop.detach(device.path, tag=tag)

    threads = []
    for number in range(1, 5):
        image = make_image(size=4 * MIB)
        with opened(image, os.O_RDWR) as fd:
            os.pwrite(fd, bytes((number,)), 0)
        threads.append(threading.Thread(target=churn, args=(number, image)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert [state.tag for state in loop.list_devices() if state.tag.startswith(f"churn{os.getpid()}")] == []


def test_a_free_device_that_somebody_holds_is_passed_over(make_image: MakeImage, attach: Attach) -> None:
    """M-10: it stays the lowest free one for ever, and LOOP_CONFIGURE answers EBUSY for ever."""
    device = attach(make_image())
    loop.detach(device.path, tag=tag_of(device))
    with block.exclusive(device.path):
        started = time.monotonic()
        other = attach(make_image())
        assert time.monotonic() - started < 5
    assert other.path != device.path


# --- an incomplete /dev ---------------------------------------------------------------------------------------


def run_in_plain_dev(code: str, setup: str, *arguments: str | Path) -> dict[str, str]:
    """Run Python where /dev is a tmpfs that has only what ``setup`` makes; ``report`` is its answer."""
    script = f"""
mount -t tmpfs -o mode=755 plain /dev
mknod /dev/null c 1 3
mknod /dev/urandom c 1 9
{setup}
exec "$0" -c "$1" "$@"
"""
    child = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script, sys.executable, code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert child.returncode == 0, child.stderr
    answer: dict[str, str] = json.loads(child.stdout)
    return answer


PLAIN_DEV = """
import json, os, sys
from mapper_core.errors import MapperError
from mapper_core.linux import blkpg, loop
from mapper_core.model import Access
report = {}
fd = os.open(sys.argv[2], os.O_RDWR)
try:
    device = loop.attach(fd, access=Access.READ_WRITE, tag="plain", direct_io=False, deadline_seconds=2)
    report["device"] = device.path
    node = os.open(device.path, os.O_RDONLY)
    try:
        blkpg.add(node, 1, 1 << 20, 1 << 20)
        path = blkpg.ensure_partition_node(device.path, 1)
        first = os.stat(path).st_rdev
        blkpg.delete(node, 1)
        blkpg.add(node, 2, 1 << 20, 1 << 20)  # takes the device number of the first
        blkpg.add(node, 1, 2 << 20, 1 << 20)
        assert blkpg.ensure_partition_node(device.path, 1) == path
        assert os.stat(path).st_rdev != first
        os.close(os.open(path, os.O_RDONLY))
        report["partition"] = path
    finally:
        os.close(node)
        loop.detach(device.path, tag="plain")
except MapperError as error:
    report["error"] = type(error).__name__
print(json.dumps(report))
"""


def test_missing_nodes_are_made_and_stale_ones_replaced(make_image: MakeImage) -> None:
    answer = run_in_plain_dev(PLAIN_DEV, "mknod /dev/loop-control c 10 237", make_image())
    assert answer.get("error") is None
    assert answer["partition"] == answer["device"] + "p1"


def test_no_node_can_be_made(make_image: MakeImage) -> None:
    setup = "mknod /dev/loop-control c 10 237; mount -o remount,ro /dev"
    assert run_in_plain_dev(PLAIN_DEV, setup, make_image()) == {"error": NoFreeDevice.__name__}


def test_no_loop_driver(make_image: MakeImage) -> None:
    assert run_in_plain_dev(PLAIN_DEV, "", make_image()) == {"error": "TransportUnavailable"}


# --- detach ---------------------------------------------------------------------------------------------------


def test_detach_is_done_when_it_returns(make_image: MakeImage, attach: Attach) -> None:
    device = attach(make_image())
    tag = tag_of(device)
    loop.detach(device.path, tag=tag)
    assert not os.path.exists(f"/sys/block/loop{device.number}/loop")
    assert loop.status(device.path) is None


def test_detach_again_is_a_success(make_image: MakeImage, attach: Attach) -> None:
    """U-09."""
    device = attach(make_image())
    tag = tag_of(device)
    for _ in range(3):
        loop.detach(device.path, tag=tag)
    loop.detach("/dev/loop1048575", tag=tag)


def test_a_number_that_was_reused_is_left_alone(make_image: MakeImage, attach: Attach) -> None:
    device = attach(make_image())
    loop.detach(device.path, tag="somebody else's")
    assert loop.status(device.path) is not None


def test_only_loop_devices(tmp_path: Path) -> None:
    for path in ("/dev/null", str(tmp_path)):
        with pytest.raises(UsageError):
            loop.detach(path, tag="x")
        with pytest.raises(UsageError):
            loop.status(path)


def test_what_was_written_is_in_the_file(make_image: MakeImage, attach: Attach) -> None:
    image = make_image()
    device = attach(image)
    with opened(device.path, os.O_RDWR) as fd:
        os.pwrite(fd, b"late", 8192)
    loop.detach(device.path, tag=tag_of(device))
    assert image.read_bytes()[8192:8196] == b"late"


def test_a_held_device_stays_complete(make_image: MakeImage, attach: Attach) -> None:
    """M-12: LOOP_CLR_FD would answer success, set autoclear, and the image would vanish under its user."""
    device = attach(make_image())
    before = loop.status(device.path)
    assert before is not None
    with opened(device.path, os.O_RDWR) as fd:
        blkpg.add(fd, 1, MIB, MIB)
        blkpg.add(fd, 3, 4 * MIB, 2 * MIB)
        with pytest.raises(DeviceBusy) as caught:
            loop.detach(device.path, tag=before.tag, deadline_seconds=0.2)
        assert f"process {os.getpid()}" in str(caught.value)
        assert loop.status(device.path) == before
        assert block.kernel_partitions(device.path) == ((1, MIB, MIB), (3, 4 * MIB, 2 * MIB))
    assert loop.status(device.path) == before  # the last close did not detach it
    loop.detach(device.path, tag=before.tag)


def test_a_held_partition_holds_the_device(make_image: MakeImage, attach: Attach) -> None:
    device = attach(make_image())
    with opened(device.path, os.O_RDONLY) as fd:
        for number in (1, 2):
            blkpg.add(fd, number, number * MIB, MIB)
    with opened(f"{device.path}p2", os.O_RDONLY), pytest.raises(DeviceBusy, match=f"loop{device.number}p2"):
        loop.detach(device.path, tag=tag_of(device), deadline_seconds=0.2)
    assert block.kernel_partitions(device.path) == ((1, MIB, MIB), (2, 2 * MIB, MIB))


def test_a_short_look_of_others_is_waited_for(make_image: MakeImage, attach: Attach) -> None:
    """udev opens every device for a moment."""
    device = attach(make_image())
    fd = os.open(device.path, os.O_RDONLY)
    timer = threading.Timer(0.3, os.close, (fd,))
    timer.start()
    started = time.monotonic()
    loop.detach(device.path, tag=tag_of(device))
    elapsed = time.monotonic() - started
    timer.join()
    assert 0.2 < elapsed < 3
    assert loop.status(device.path) is None


def test_a_mount_is_named_at_once(make_image: MakeImage, attach: Attach, mounted: Mounted) -> None:
    """M-08: no waiting for what does not go away by itself."""
    device = attach(make_image(mkfs="ext4"))
    directory = mounted(device.path)
    started = time.monotonic()
    with pytest.raises(DeviceBusy) as caught:
        loop.detach(device.path, tag=tag_of(device))
    assert time.monotonic() - started < 5
    assert f"loop{device.number} is mounted on {directory}" in str(caught.value)
    assert caught.value.hint == f"umount {directory}"


def test_a_mount_in_another_namespace_is_named(
    make_image: MakeImage,
    attach: Attach,
    elsewhere: Elsewhere,
    tmp_path: Path,
) -> None:
    """U-11, C-07: busy, and nothing visible here."""
    device = attach(make_image(mkfs="ext4"))
    (tmp_path / "there").mkdir()
    pid = elsewhere('mount -t ext4 "$1" "$2"', device.path, tmp_path / "there")
    with pytest.raises(DeviceBusy) as caught:
        loop.detach(device.path, tag=tag_of(device))
    namespace = os.stat(f"/proc/{pid}/ns/mnt").st_ino
    assert f"in mount namespace {namespace} of process {pid}" in str(caught.value)
    assert caught.value.hint == f"nsenter -t {pid} -m umount {tmp_path / 'there'}"
    state = loop.status(device.path)
    assert state is not None
    assert not state.autoclear


def test_a_mounted_partition_is_named(make_image: MakeImage, attach: Attach, mounted: Mounted) -> None:
    device = attach(make_image(size=32 * MIB))
    with opened(device.path, os.O_RDONLY) as fd:
        blkpg.add(fd, 1, MIB, 16 * MIB)
    subprocess.run(["mkfs.ext4", "-q", f"{device.path}p1"], check=True, capture_output=True, timeout=60)
    mounted(f"{device.path}p1")
    with pytest.raises(DeviceBusy, match=f"loop{device.number}p1 is mounted on"):
        loop.detach(device.path, tag=tag_of(device))


def test_a_filesystem_without_a_mount_is_named(make_image: MakeImage, attach: Attach) -> None:
    """A detached mount, as after umount --lazy, is in nobody's mountinfo."""
    device = attach(make_image(mkfs="ext4"))
    fd = mounts.new_filesystem("ext4", device.path, access=Access.READ_WRITE)
    try:
        with pytest.raises(DeviceBusy, match="ext4 filesystem that no visible mount shows"):
            loop.detach(device.path, tag=tag_of(device), deadline_seconds=0.2)
    finally:
        os.close(fd)


def test_partitions_go_with_the_device(make_image: MakeImage, attach: Attach) -> None:
    """M-04, M-11: the kernel itself would keep them for the next image."""
    device = attach(make_image())
    with opened(device.path, os.O_RDONLY) as fd:
        blkpg.add(fd, 1, MIB, MIB)
    loop.detach(device.path, tag=tag_of(device))
    assert not os.path.exists(f"{device.path}p1")
    assert block.kernel_partitions(device.path) == ()


def test_the_file_may_be_gone(make_image: MakeImage, attach: Attach) -> None:
    """M-20."""
    image = make_image()
    device = attach(image)
    image.unlink()
    loop.detach(device.path, tag=tag_of(device))
    assert loop.status(device.path) is None


def test_list_has_ours_and_other_programs_devices(make_image: MakeImage, attach: Attach) -> None:
    ours = attach(make_image())
    image = make_image()
    theirs = subprocess.run(
        ["losetup", "--find", "--show", image], check=True, capture_output=True, text=True, timeout=30
    ).stdout.strip()
    try:
        states = {state.device.path: state for state in loop.list_devices()}
    finally:
        subprocess.run(["losetup", "--detach", theirs], check=True, timeout=30)
    assert states[ours.path].backing_inode != states[theirs].backing_inode == os.stat(image).st_ino
    numbers = [state.device.number for state in loop.list_devices()]
    assert numbers == sorted(numbers)
