"""What every plugin must pass, where it needs this kernel: all of it on logical volumes, which need device-mapper; and on nbd,
with udev beside it and a kernel that knows partitions, what those could spoil most. Races have tests of their own.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mapper_core import Disk
from mapper_core.testing import disks
from mapper_core.testing.conformance import MakeDisk, PluginConformance
from mapper_core.testing.conformance.crashes import OnCrashes
from mapper_core.testing.conformance.devices import OnDevices
from mapper_core.testing.disks import MIB

from .groups import active_volumes, lvm, volume_group

pytestmark = pytest.mark.vm

GROUP = "vg-kit"
#: Of the physical volume, MiB.
FIRST_EXTENT = 1
#: Of a volume, and for what is made for it later: extents, of one MiB each.
ROOM = 16


class TestNbd(OnCrashes):
    format = "qcow2"
    transport = "nbd"

    @pytest.fixture
    def make_disk(self) -> MakeDisk:
        return lambda content, image: Disk(str(disks.convert(content, "qcow2", image)), "qcow2")

    test_partitions_have_nodes_at_once = OnDevices.test_partitions_have_nodes_at_once


class Group:
    """A volume group with one disk; each volume is made by one command, at a place of its own in which it can grow.

    :param file: behind its physical volume.
    :param device: that is the physical volume.
    """

    def __init__(self, file: Path, device: str) -> None:
        self._file = file
        self._device = device
        self._made = 0

    def volume(self, content: bytes) -> str:
        """Make an inactive volume with this content; return its name."""
        self._made += 1
        name, first, count = f"disk-{self._made}", self._made * ROOM, len(content) // MIB
        options = ("--activate", "n", "--setautoactivation", "n", "--wipesignatures", "n", "--zero", "n")
        place = f"{self._device}:{first}-{first + count - 1}"
        lvm("lvcreate", *options, "--extents", str(count), "--name", name, GROUP, place)
        with self._file.open("r+b") as file:
            file.seek((FIRST_EXTENT + first) * MIB)
            file.write(content)
        return f"{GROUP}/{name}"


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    """One for all tests of the class: each command of LVM takes half a second here."""
    file = tmp_path_factory.mktemp("group") / "disk"
    with volume_group(file, GROUP, "--physicalextentsize", "1M", "--dataalignment", f"{FIRST_EXTENT}M") as device:
        yield Group(file, device)


class TestLvm(PluginConformance):
    format = "lvm"
    every = 5  # the whole takes 5 minutes of emulation

    @pytest.fixture
    def make_disk(self, group: Group) -> Iterator[MakeDisk]:
        yield lambda content, _image: Disk(group.volume(content.read_bytes()), "lvm")
        assert active_volumes(GROUP) == []
