"""The rule by which the host leaves the disks of guests alone, with the udev that obeys it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from mapper_driver.install.plan import data_directory, filled

from mapper_core.mapping import Mapper
from mapper_core.model import Disk, MapOptions
from mapper_core.testing import disks

pytestmark = pytest.mark.vm

RULE = Path("/run/udev/rules.d/59-mapper.rules")


def settle() -> None:
    disks.run("udevadm", "settle", "--timeout=20")


def links(device: str) -> list[str]:
    """What udev calls a device."""
    settle()
    return disks.run("udevadm", "info", "--query=symlink", device).split()


@pytest.fixture
def datastores(tmp_path: Path) -> Iterator[Path]:
    """The rule in force, for images in this directory."""
    directory = tmp_path / "datastores"
    directory.mkdir()
    text = Path(data_directory("node"), "etc/udev/rules.d", RULE.name).read_bytes()
    RULE.parent.mkdir(parents=True, exist_ok=True)
    RULE.write_bytes(filled(text, {"DATASTORES": str(directory)}))
    disks.run("udevadm", "control", "--reload")
    yield directory
    RULE.unlink()
    disks.run("udevadm", "control", "--reload")


def test_no_name_of_the_host_is_given_to_what_is_on_a_guests_disk(
    datastores: Path, mapper: Mapper, bare: Path, qcow2: Path
) -> None:
    """S: a guest that gives its filesystem the UUID of one of the host's would be mounted in its place at the next boot."""
    own = disks.run("losetup", "--find", "--show", str(bare)).strip()  # not in a datastore: the host's own
    try:
        assert [name for name in links(own) if "by-uuid" in name] and "disk/by-label/data" in links(own)
    finally:
        disks.run("losetup", "--detach", own)
    settle()
    for image, kind in ((bare, "raw"), (qcow2, "qcow2")):
        path = datastores / image.name
        os.rename(image, path)
        mapped = mapper.map(Disk(str(path), kind), MapOptions(), user="t")
        devices = [mapped.device, *(part.device for part in mapped.table.partitions)]
        try:
            for device in devices:
                assert [name for name in links(device) if "by-uuid" in name or "by-label" in name] == [], device
                properties = disks.run("udevadm", "info", "--query=property", device).split("\n")
                assert {"MAPPER_GUEST=1", "UDISKS_IGNORE=1", "SYSTEMD_READY=0"} <= set(properties), device
        finally:
            mapper.unmap(mapped.device, user="t")
    assert not os.path.exists("/dev/disk/by-label/data")
