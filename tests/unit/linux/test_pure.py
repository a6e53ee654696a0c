"""The parts of the kernel wrappers that decide without the kernel."""

from __future__ import annotations

import errno
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapper_core.errors import KernelError, NotSupported, UnsafePath, UsageError
from mapper_core.linux import (
    beneath,
    blkpg,
    holders,
    idmap,
    loop,
    loop_status,
    process_info,
    syscalls,
    unmounting,
)
from mapper_core.linux.holders import Holder, HolderKind
from mapper_core.model import Access, IdRange

pytestmark = pytest.mark.unit

NO_DESCRIPTOR = -1


@pytest.mark.parametrize(
    ("device", "number", "node"),
    [
        ("/dev/sda", 1, "/dev/sda1"),
        ("/dev/vdb", 15, "/dev/vdb15"),
        ("/dev/loop0", 1, "/dev/loop0p1"),
        ("/dev/nbd12", 128, "/dev/nbd12p128"),
        ("/dev/nvme0n1", 2, "/dev/nvme0n1p2"),
    ],
)
def test_partition_node(device: str, number: int, node: str) -> None:
    assert blkpg.partition_node(device, number) == node


@pytest.mark.parametrize("tag", ["", "x" * 64, "ü" * 32, "a\0b"])
def test_a_tag_that_the_kernel_would_cut_is_refused(tag: str) -> None:
    """Cut to 63 bytes it would never be found again. The descriptor is never touched."""
    with pytest.raises(UsageError):
        loop.attach(NO_DESCRIPTOR, access=Access.READ_ONLY, tag=tag, direct_io=False)


def test_size_of_the_loop_structure() -> None:
    """sizeof(struct loop_info64) on every 64-bit machine."""
    assert loop_status.INFO.size == 232


@pytest.mark.parametrize(
    "path",
    ["", "/etc/\0passwd", "/" + "a/" * 2048, "x" * 4096],
    ids=["empty", "NUL", "deep", "long"],
)
def test_names_that_no_kernel_gets_to_see(path: str) -> None:
    with pytest.raises(UnsafePath):
        beneath.open_in_root(NO_DESCRIPTOR, path, 0)


def test_a_hostile_name_is_not_printed_raw() -> None:
    """Terminal escapes and newlines in a name of the image must not reach the terminal or the log."""
    with pytest.raises(UnsafePath) as caught:
        beneath.open_in_root(NO_DESCRIPTOR, "/\x1b[2J\n\0", 0)
    assert str(caught.value) == r"/\x1b[2J\x0a\x00: the path contains a NUL"


def test_id_map_text() -> None:
    ranges = (IdRange(0, 100000, 65536), IdRange(65536, 200000, 1))
    assert idmap.format_map(ranges) == b"0 100000 65536\n65536 200000 1\n"


@pytest.mark.parametrize(
    "ranges",
    [(), (IdRange(0, 0, 0),), (IdRange(-1, 0, 1),), (IdRange(0, -1, 1),), (IdRange(0, 2**32 - 1, 1),)],
    ids=["empty", "no ids", "negative inside", "negative outside", "too large"],
)
def test_an_impossible_id_map_is_refused(ranges: tuple[IdRange, ...]) -> None:
    with pytest.raises(UsageError):
        idmap.format_map(ranges)


@given(st.binary(max_size=16).filter(lambda name: b"\0" not in name))
def test_any_process_name(name: bytes) -> None:
    """A process calls itself ``x) Z 0 (`` if it likes; the kernel does not escape that."""
    text = b"1234 (" + name + b") S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 424242 20 21\n"
    found = process_info.parse_stat(text)
    assert (found.pid, found.state, found.start_time) == (1234, "S", 424242)


def test_a_zombie_counts_as_gone() -> None:
    text = b"7 (sh) Z 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 99"
    assert process_info.parse_stat(text).gone


def test_holders_are_named() -> None:
    found = (
        Holder(HolderKind.MOUNT, "loop0p1", 77, "init", "/mnt", 4026531000),
        Holder(HolderKind.PROCESS, "loop0", 55, "qemu"),
        Holder(HolderKind.DEVICE, "loop0p2", target="dm-3"),
        Holder(HolderKind.SWAP, "loop0p5"),
        Holder(HolderKind.FILESYSTEM, "loop0p6", target="ext4"),
    )
    text = holders.describe(found)
    for part in ("loop0p1 is mounted on /mnt", "4026531000", "77 (init)", "process 55 (qemu)", "dm-3", "swap", "ext4"):
        assert part in text
    assert holders.advise(found) == ("nsenter -t 77 -m umount /mnt; end process 55; release dm-3; swapoff /dev/loop0p5")


@pytest.mark.parametrize("namespace", [0, 1])
def test_what_is_advised_can_be_typed_whatever_the_guest_has_mounted_where(namespace: int) -> None:
    """S-12: names of directories are a stranger's, and what stands behind "hint:" is copied into a root shell."""
    holder = Holder(HolderKind.MOUNT, "loop0p1", 77, "sh", "/x; touch /canary #", namespace)
    assert shlex.split(holders.advise((holder,)))[-2:] == ["umount", "/x; touch /canary #"]


def test_equal_holders_are_named_once() -> None:
    one = Holder(HolderKind.PROCESS, "loop0", 55, "qemu")
    assert holders.describe((one, one)).count("55") == 1


def test_nobody_visible_is_said_so() -> None:
    assert "no mount and no process shows it" in holders.describe(())


def test_unmount_by_name_takes_a_single_name() -> None:
    for name in ("a/b", "", ".", ".."):
        with pytest.raises(UsageError):
            unmounting.unmount(name, parent_fd=NO_DESCRIPTOR)


def test_an_os_error_becomes_a_sentence() -> None:
    error = syscalls.kernel_error(OSError(errno.EIO, "?"), "cannot read it", subject="/dev/loop0")
    assert isinstance(error, KernelError)
    assert error.errno == errno.EIO
    assert str(error) == "/dev/loop0: cannot read it: Input/output error (EIO)"


def test_an_unknown_machine_is_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong number would be another system call."""
    monkeypatch.setattr(syscalls, "KNOWN_MACHINES", ("pdp11",))
    with pytest.raises(NotSupported, match="system call numbers"):
        syscalls.libc.__wrapped__()
