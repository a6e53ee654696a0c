"""Mapped disks: what is on them arrives, and mapping can be repeated and reverted."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import threading

import pytest

from mapper_core.errors import ImageInUse, MappedDifferently, NotMapped, ReadOnlyImage
from mapper_core.model import Access
from mapper_core.testing import tables
from mapper_core.testing.conformance.bench import BLOCK, MIB, Bench, OnBench, difference, pattern, proves, read

#: Writes that are in flight at the same time. qemu's FUSE export has lost data with two of them.
WRITERS = 8
SECTOR = 512


class OnDevices(OnBench):
    """As root: see the module."""

    @proves("data", "map", "unmap")
    def test_the_device_has_the_bytes_of_the_disk(self, bench: Bench) -> None:
        """All of them, and not one more."""
        content = pattern(4 * MIB)
        with bench.mapped(bench.disk(content), Access.READ_ONLY) as found:
            assert found.size == len(content)
            assert not difference(read(found.device), content)
            assert found.table.scheme == "none"

    @proves("data", "map", "unmap")
    def test_what_is_written_is_in_the_disk_afterwards(self, bench: Bench) -> None:
        """Many writes in flight, past the page cache and through it; read back at once, and after another map."""
        if self.access is Access.READ_ONLY:
            return  # that writing is refused is test_write_access_is_never_downgraded
        before, after = pattern(8 * MIB), pattern(8 * MIB, seed=2)
        disk = bench.disk(before)
        with bench.mapped(disk, Access.READ_WRITE) as found:
            for content, flags in ((after, os.O_DIRECT), (pattern(8 * MIB, seed=3), 0), (after, 0)):
                _write_at_once(found.device, content, flags)
                assert not difference(read(found.device), content)
        assert not difference(bench.content(disk), after)
        bench.note("MiB verified", 4 * len(after) // MIB)

    @proves("idempotency", "map", "unmap")
    def test_mapping_twice_is_one_mapping(self, bench: Bench) -> None:
        """It lives until its last user has gone; a stranger cannot end it."""
        disk = bench.disk(pattern(MIB))
        first = bench.map(disk, Access.READ_ONLY)
        assert bench.map(disk, Access.READ_ONLY) == first
        options = bench.options(Access.READ_ONLY)
        assert bench.mapper.map(disk, options, user="other").device == first.device
        bench.unmap(first.id)
        assert bench.mapper.find(first.id) is not None
        with pytest.raises(ImageInUse):
            bench.mapper.unmap(first.id, user="stranger")
        bench.mapper.unmap(first.id, user="other")
        assert bench.mapper.find(first.id) is None

    @proves("idempotency", "unmap")
    def test_unmapping_twice_is_a_success(self, bench: Bench) -> None:
        """Also of a disk that never was mapped, and by the name of a device that is gone."""
        disk = bench.disk(pattern(MIB))
        bench.unmap(disk.source)
        device = bench.map(disk, Access.READ_ONLY).device
        for target in (disk.source, disk.source, device):
            with contextlib.suppress(NotMapped):  # somebody else has been given the device meanwhile
                bench.unmap(target)
        bench.check_nothing_left()

    @proves("idempotency", "map", "unmap")
    def test_again_and_again(self, bench: Bench) -> None:
        """Ten times, two contents in turn: a device that is used again never shows what was there before."""
        contents = (pattern(MIB), pattern(2 * MIB, seed=2))
        disks = [bench.disk(content) for content in contents]
        for _ in range(0, 5, self.every):
            for disk, content in zip(disks, contents, strict=True):
                assert not difference(bench.content(disk), content)
        bench.check_nothing_left()

    @proves("identity", "identify", "map")
    def test_another_disk_has_another_identity(self, bench: Bench) -> None:
        """Two disks with the same content are two, on two devices."""
        one, two = (bench.disk(pattern(MIB)) for _ in range(2))
        assert bench.mapper.identify(one).id == bench.mapper.identify(one).id != bench.mapper.identify(two).id
        with bench.mapped(one, Access.READ_ONLY) as first, bench.mapped(two, Access.READ_ONLY) as second:
            assert first.device != second.device
            assert {disk.id for disk in bench.mapper.mapped()} == {first.id, second.id}

    @proves("read-only", "map")
    def test_read_only_is_read_only(self, bench: Bench) -> None:
        """The kernel refuses writes, and the content is the same afterwards."""
        content = pattern(MIB)
        disk = bench.disk(content)
        with bench.mapped(disk, Access.READ_ONLY) as found:
            assert found.access is Access.READ_ONLY
            with pytest.raises(OSError, match=r"Operation not permitted|Read-only|Permission denied"):
                fd = os.open(found.device, os.O_WRONLY)
                try:
                    os.pwrite(fd, b"x" * BLOCK, 0)
                    os.fsync(fd)
                finally:
                    os.close(fd)
        assert not difference(bench.content(disk), content)

    @proves("read-only", "map")
    def test_write_access_is_never_downgraded(self, bench: Bench) -> None:
        """Who asks for it gets it, or an error."""
        disk = bench.disk(pattern(MIB))
        if self.access is Access.READ_ONLY:
            with pytest.raises(ReadOnlyImage):
                bench.map(disk, Access.READ_WRITE)
            bench.check_nothing_left()
            return
        with bench.mapped(disk, Access.READ_WRITE) as found:
            assert found.access is Access.READ_WRITE
            with pytest.raises(MappedDifferently):
                bench.map(disk, Access.READ_ONLY)

    @proves("partitions", "discover_partitions")
    def test_partitions_have_nodes_at_once(self, bench: Bench) -> None:
        """Each has its bytes; the nodes go with the device."""
        for scheme, (content, expected) in {"gpt": _with_gpt(), "dos": _with_mbr()}.items():
            with bench.case(scheme):
                with bench.mapped(bench.disk(content), Access.READ_ONLY) as found:
                    assert found.table.scheme == scheme
                    ranges = {
                        item.number: (item.start // SECTOR, item.size // SECTOR) for item in found.table.partitions
                    }
                    assert ranges == expected
                    for item in found.table.partitions:
                        assert not difference(read(item.device), content[item.start : item.start + item.size])
                if _is_free(found.device):  # else somebody else has it already
                    names = [os.path.basename(item.device) for item in found.table.partitions]
                    assert [name for name in names if os.path.exists(f"/sys/class/block/{name}")] == []


def _is_free(device: str) -> bool:
    try:
        with open(f"/sys/class/block/{os.path.basename(device)}/size", encoding="ascii") as file:
            return file.read().strip() == "0"
    except FileNotFoundError:
        return True


def _with_gpt() -> tuple[bytes, dict[int, tuple[int, int]]]:
    """A disk with a GPT; start and length of its partitions, sectors."""
    content = bytearray(pattern(4 * MIB))
    table = tables.gpt_image(len(content), (tables.Gpt(1, 64, 2047), tables.Gpt(3, 2048, 6143, name="data")))
    content[: 34 * SECTOR], content[-33 * SECTOR :] = table[: 34 * SECTOR], table[-33 * SECTOR :]
    return bytes(content), {1: (64, 1984), 3: (2048, 4096)}


def _with_mbr() -> tuple[bytes, dict[int, tuple[int, int]]]:
    """The same with an MBR, a primary and two logical partitions."""
    content = bytearray(pattern(4 * MIB))
    chain = tables.logical_chain(4096, ((0x83, 4160, 1000), (0x83, 5200, 800)))
    slots = (tables.Mbr(1, 0x83, 64, 2000), tables.Mbr(2, 0x05, 4096, 4000))
    table = tables.mbr_image(len(content), slots, chain)
    for sector in (0, *(sector for sector, _ in chain)):
        place = slice(sector * SECTOR, (sector + 1) * SECTOR)
        content[place] = table[place]
    return bytes(content), {1: (64, 2000), 5: (4160, 1000), 6: (5200, 800)}


def _write_at_once(device: str, content: bytes, flags: int) -> None:
    """Write pieces of 4 to 64 KiB in a random order from several threads.

    :param flags: for open(2).
    """
    order = random.Random(7)  # noqa: S311  the same every time
    pieces, at = [], 0
    while at < len(content):
        length = min(order.randint(1, 16) * BLOCK, len(content) - at)
        pieces.append((at, length))
        at += length
    order.shuffle(pieces)
    problems: list[OSError] = []
    fd = os.open(device, os.O_RDWR | flags)
    try:

        def work(mine: list[tuple[int, int]]) -> None:
            with mmap.mmap(-1, 16 * BLOCK) as buffer:  # aligned, as O_DIRECT wants it
                for offset, size in mine:
                    buffer[:size] = content[offset : offset + size]
                    with memoryview(buffer) as view, view[:size] as piece:
                        try:
                            assert os.pwrite(fd, piece, offset) == size
                        except OSError as error:
                            problems.append(error)
                            return

        threads = [threading.Thread(target=work, args=(pieces[number::WRITERS],)) for number in range(WRITERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
    assert problems == []
