"""Disks that grow while they are in use, on a kernel that lets root do all of it (CAP_SYS_RESOURCE), and by nbd."""

from pathlib import Path

import pytest

from mapper_core import capabilities
from mapper_core.errors import NotSupported
from mapper_core.mapping import Mapper
from mapper_core.model import Disk, MapOptions
from mapper_core.testing import disks
from mapper_core.testing.disks import MIB

# These run on any host, and expect more of this one.
from tests.root.core.test_grow import (
    test_ext4_grows_while_it_is_mounted_if_the_kernel_lets_us as test_ext4_grows_while_it_is_mounted_if_the_kernel_lets_us,
)
from tests.root.core.test_resize import (
    test_a_device_grows_at_once_with_its_image as test_a_device_grows_at_once_with_its_image,
)

pytestmark = pytest.mark.vm


def test_nbd_says_that_it_cannot_and_what_can(mapper: Mapper, tmp_path: Path) -> None:
    disks.run("qemu-img", "create", "-q", "-f", "qcow2", f"{tmp_path}/disk", "16M")
    disk = Disk(f"{tmp_path}/disk", "qcow2")
    mapper.map(disk, MapOptions(transport="nbd"), user="t")
    with pytest.raises(NotSupported, match="no snapshots while it is in use"):
        capabilities.snapshot_create(mapper, disk, "s")
    with pytest.raises(NotSupported, match="nbd cannot be resized") as caught:
        capabilities.resize(mapper, disk, 32 * MIB)
    assert "storage_daemon" in caught.value.hint
    record = mapper.journal.read(mapper.identify(disk).id)
    assert record is not None
    assert (record.resize_to, record.size, record.snapshot) == (0, 16 * MIB, "")
    mapper.unmap(disk.source, user="t")
    capabilities.resize(mapper, disk, 32 * MIB)
    mapper.map(disk, MapOptions(transport="nbd"), user="t")
    assert capabilities.size_of(mapper, disk) == 32 * MIB
    mapper.unmap(disk.source, user="t")
