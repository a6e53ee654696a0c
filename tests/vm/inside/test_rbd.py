"""RBD by the kernel's own client and by rbd-nbd, with a Ceph cluster inside the machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mapper_core.mapping import Mapper
from mapper_core.model import Disk, MapOptions
from mapper_core.testing import disks
from mapper_core.tree.mounted import TreeRequest, mount_tree, unmount_tree
from tests.ceph.cluster import LAB, Cluster, Images, run
from tests.ceph.rbddisk import disk, holders, read, system_disk

from .kernel import connected, partitions_of

pytestmark = [pytest.mark.vm, pytest.mark.timeout(240)]

TRANSPORTS = ("krbd", "rbd-nbd")
DIRECTORY = "/var/lib/mapper-lab/vm"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    disks.run("modprobe", "rbd")
    run(LAB, "up", DIRECTORY)
    try:
        yield Cluster.of(DIRECTORY)
    finally:
        run(LAB, "down", DIRECTORY)


@pytest.fixture(scope="module")
def source(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A partitioned image with Ceph's default features (C-01)."""
    images = Images(cluster)
    yield images.upload("one/one-7", system_disk(tmp_path_factory.mktemp("rbd")))
    images.remove_all()


def wanted(cluster: Cluster, source: str) -> Disk:
    return disk(cluster, source, timeout="60")  # everything is slow in an emulated machine


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_map_and_unmap_again_and_again(mapper: Mapper, cluster: Cluster, source: str, transport: str) -> None:
    """C-01: the partitions are there each time, and nothing is left on the host or in the cluster."""
    for _ in range(2):
        mapped = mapper.map(wanted(cluster, source), MapOptions(transport=transport), user="t")
        assert mapped.transport == transport
        assert mapped.device.startswith("/dev/rbd" if transport == "krbd" else "/dev/nbd")
        assert partitions_of(mapped.device) == [1, 2]
        for part in mapped.table.partitions:
            assert read(part.device, 4096) == read(mapped.device, 4096, part.start)
        mapper.unmap(mapped.id, user="t")
        assert holders(cluster, source) == ()
    assert connected() == []


def test_the_kernels_client_is_taken_by_itself(mapper: Mapper, cluster: Cluster, source: str) -> None:
    """A whole tree, by the transport that is preferred where the kernel has it."""
    directory = f"{mapper.runtime.mounts}/one-7.0"
    mount_tree(mapper, TreeRequest(wanted(cluster, source), MapOptions(), directory))
    [mapped] = mapper.mapped()
    assert mapped.transport == "krbd"
    assert Path(directory, "home/user/hello").read_text() == "from rbd\n"
    Path(directory, "home/user/written").write_text("x")
    unmount_tree(mapper, directory)
    mount_tree(mapper, TreeRequest(wanted(cluster, source), MapOptions(transport="rbd-nbd"), directory))
    assert Path(directory, "home/user/written").read_text() == "x"
    unmount_tree(mapper, directory)
