"""What the conformance tests work with: disks with a known content, and how they are mapped and compared."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mapper_core.mapping import Mapper
from mapper_core.model import Access, Disk, MapOptions, MappedDisk
from mapper_core.registry import Registry
from mapper_core.runtime import Runtime

#: Makes an image of the format, with the bytes of the raw file ``content`` on its disk, at the path ``image``. For disks that are
#: no files the path only gives a name that no other disk has.
MakeDisk = Callable[[Path, Path], Disk]

MIB = 1 << 20
BLOCK = 4096
USER = "kit"


def proves(topic: str, *hooks: str) -> pytest.MarkDecorator:
    """Say what a test proves: its row in the report, and the hooks that it exercises."""
    return pytest.mark.mapper_kit(topic=topic, hooks=hooks)


def pattern(size: int, seed: int = 1) -> bytes:
    """Return content in which every block says where it belongs, with a hole in the middle.

    It looks like no format, no partition table and no filesystem.

    :param size: bytes, a multiple of :data:`BLOCK`.
    """
    blocks = size // BLOCK
    hole = range(blocks // 2, blocks // 2 + blocks // 8)
    return b"".join(
        bytes(BLOCK) if number in hole else struct.pack("<8sQ", b"a block:", seed << 48 | number) * (BLOCK // 16)
        for number in range(blocks)
    )


def difference(found: bytes, expected: bytes) -> str:
    """Say where two contents differ first; empty when they do not. (pytest would print all of both.)"""
    if found == expected:
        return ""
    if len(found) != len(expected):
        return f"{len(found)} bytes instead of {len(expected)}"
    at = next(at for at in range(0, len(found), 16) if found[at : at + 16] != expected[at : at + 16])
    return f"at byte {at}: {found[at : at + 16].hex()} instead of {expected[at : at + 16].hex()}"


def read(device: str) -> bytes:
    """Read a whole device."""
    with open(device, "rb") as file:
        return file.read()


class Bench:
    """The disks of one test.

    :param mapper: with a journal of the test's own.
    :param transport: how disks are mapped; ``None``: by the first that works.
    :param make: the author's fixture.
    :param directory: for images.
    :param note: adds to the report of the run.
    """

    def __init__(
        self,
        mapper: Mapper,
        transport: str | None,
        make: MakeDisk,
        directory: Path,
        note: Callable[[str, int], None],
    ) -> None:
        self.mapper = mapper
        self.transport = transport
        self.make = make
        self.directory = directory
        self.note = note
        self._made = 0

    def disk(self, content: bytes) -> Disk:
        """Make a disk with this content."""
        self._made += 1
        source = self.directory / f"content-{self._made}"
        source.write_bytes(content)
        disk = self.make(source, self.directory / f"disk-{self._made}")
        source.unlink()
        return disk

    def options(self, access: Access) -> MapOptions:
        """How disks are mapped."""
        return MapOptions(access, self.transport)

    def map(self, disk: Disk, access: Access) -> MappedDisk:
        """Map a disk; what is on the bench uses it."""
        return self.mapper.map(disk, self.options(access), user=USER)

    def unmap(self, target: str) -> None:
        """Revert :meth:`map`."""
        self.mapper.unmap(target, user=USER)

    @contextlib.contextmanager
    def mapped(self, disk: Disk, access: Access) -> Iterator[MappedDisk]:
        """Map a disk for a block."""
        found = self.map(disk, access)
        try:
            yield found
        finally:
            self.unmap(found.id)

    def content(self, disk: Disk) -> bytes:
        """Read a disk that is not mapped."""
        with self.mapped(disk, Access.READ_ONLY) as found:
            return read(found.device)

    @contextlib.contextmanager
    def case(self, name: str) -> Iterator[None]:
        """One of several things that a test tries: named when it fails."""
        try:
            yield
        except BaseException as error:
            error.add_note(f"case: {name}")
            raise

    def check_nothing_left(self) -> None:
        """Fail when the journal or the directory of servers still has something. Devices are the leak oracle's."""
        assert self.mapper.journal.ids() == ()
        assert os.listdir(self.mapper.runtime.exports) == []


class OnBench:
    """Fixtures of all conformance tests; see :class:`mapper_core.testing.conformance.PluginConformance`."""

    format: str = ""
    access: Access = Access.READ_WRITE
    transport: str | None = None
    every: int = 1

    @pytest.fixture
    def make_disk(self) -> MakeDisk:
        """Return what makes a disk of the format; each plugin's tests have their own."""
        pytest.fail(f"{type(self).__name__} has no fixture make_disk", pytrace=False)

    @pytest.fixture(autouse=True)
    def _leaves_nothing(self, leak_oracle: None) -> None:
        """After each test nothing may be in use that was not before."""

    @pytest.fixture
    def registry(self) -> Registry:
        """All plugins that are installed."""
        assert self.format, f"{type(self).__name__} does not say its format"
        return Registry.load()

    @pytest.fixture
    def desk(
        self,
        registry: Registry,
        make_disk: MakeDisk,
        tmp_path: Path,
        runtime_dir: Path,
        record_property: Callable[[str, object], None],
    ) -> Bench:
        """As ``bench``, for tests that map nothing and need no root."""

        def note(what: str, number: int) -> None:
            record_property("mapper_kit_note", f"{number} {what}")

        return Bench(Mapper(Runtime(str(runtime_dir)), registry), self.transport, make_disk, tmp_path, note)

    @pytest.fixture
    def bench(self, privilege: str, desk: Bench) -> Bench:
        """Disks that are mapped; skips the test where that is not possible."""
        if privilege:
            pytest.skip(privilege)
        desk.mapper.runtime.prepare()
        return desk
