"""RBD by the kernel's own client and by rbd-nbd, with a Ceph cluster inside the machine."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest
from mapper_rbd import attaching, krbd, rbd_nbd, waiting
from mapper_rbd import cluster as settings_of

from mapper_core.errors import DeadlineExceeded
from mapper_core.linux import process_info
from mapper_core.mapping import Mapper
from mapper_core.model import Disk, MapOptions
from mapper_core.reconcile import reconcile
from mapper_core.testing import disks
from mapper_core.tree.mounted import TreeRequest, mount_tree, unmount_tree
from tests.ceph.cluster import LAB, MIB, Cluster, Images, run
from tests.ceph.rbddisk import disk, holders, read, system_disk, write

from .kernel import connected, partitions_of

pytestmark = [pytest.mark.vm, pytest.mark.timeout(240)]

TRANSPORTS = ("krbd", "rbd-nbd")
DIRECTORY = "/var/lib/mapper-lab/vm"
#: While the cluster is away: the setting ``timeout``, how long programs are waited for, what a whole command may take; seconds.
AWAY_TIMEOUT, AWAY_PATIENCE, BOUND = 1, 3, 60


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


# --- the cluster is away ------------------------------------------------------------------------------------


@contextmanager
def paused(cluster: Cluster, daemon: str) -> Iterator[None]:
    """It keeps its connections and answers nobody. Otherwise everybody is patient in a slow machine, but not meanwhile."""
    [process] = process_info.find_by_argument(f"ceph-{daemon}", f"--conf={cluster.conf}")
    real = settings_of.from_settings
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings_of, "from_settings", lambda settings: replace(real(settings), timeout=AWAY_TIMEOUT))
        os.kill(process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(process.pid, signal.SIGCONT)


@contextmanager
def goes_away_before(cluster: Cluster, module: ModuleType, name: str) -> Iterator[None]:
    """When a function that starts a program of Ceph's is called, until the end of the block."""
    real = getattr(module, name)
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:

        def interrupted(argv: tuple[str, ...], **options: Any) -> object:
            stack.enter_context(paused(cluster, "osd"))
            [seconds] = options.keys() & {"timeout", "seconds"}
            return real(argv, **{**options, seconds: AWAY_PATIENCE})

        patch.setattr(module, name, interrupted)
        yield


@contextmanager
def late(what: str) -> Iterator[None]:
    before = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=what) as found:
        yield
    assert time.monotonic() - before < BOUND
    assert found.value.hint


def start_writing(device: str, file: Path) -> subprocess.Popen[bytes]:
    """Begin to write a file to a device, behind its first block; return when that waits for the storage."""
    argv = ("dd", f"if={file}", f"of={device}", "bs=64k", "seek=1", "conv=fsync", "status=none")
    writer = subprocess.Popen(argv)
    until = time.monotonic() + 20
    while (found := process_info.info(writer.pid)) is None or found.state != "D":
        assert writer.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    return writer


@contextmanager
def written_to_memory(device: str, data: bytes, offset: int) -> Iterator[None]:
    """The kernel has these data, and the storage is so slow that they are not stored when it is asked whether it answers."""

    def is_slow(_device: str, _seconds: float) -> NoReturn:
        raise DeadlineExceeded("there is much to write")

    fd = os.open(device, os.O_RDWR)
    try:
        os.pwrite(fd, data, offset)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attaching, "flush_within", is_slow)
            yield
    finally:
        os.close(fd)


def test_a_monitor_that_does_not_answer(mapper: Mapper, cluster: Cluster, source: str) -> None:
    with paused(cluster, "mon"), late(f"monitors of the cluster did not answer within {AWAY_TIMEOUT} s"):
        mapper.map(wanted(cluster, source), MapOptions(), user="t")
    assert mapper.journal.ids() == ()


@pytest.mark.parametrize(("transport", "module"), [("krbd", krbd), ("rbd-nbd", rbd_nbd)], ids=TRANSPORTS)
def test_c08_a_cluster_that_goes_away_at_every_step(
    mapper: Mapper, cluster: Cluster, transport: str, module: ModuleType, tmp_path: Path
) -> None:
    """C-08: bounded, said, in the journal; nothing is forced or lost, and reconcile finishes it when the cluster is back."""
    options = MapOptions(transport=transport)
    image = wanted(cluster, Images(cluster).create(f"one/away-{transport}", 4 * MIB))  # it goes with the cluster
    with goes_away_before(cluster, module, "run"), late("did not answer"):  # while it is mapped
        mapper.map(image, options, user="t")
    assert len(mapper.journal.ids()) == 1, "the lock of the image is still to be given back"
    assert reconcile(mapper).problems == ()
    assert (mapper.journal.ids(), connected()) == ((), [])

    mapped = mapper.map(image, options, user="t")
    write(mapped.device, b"before")
    (tmp_path / "data").write_bytes(data := os.urandom(1 * MIB))
    with paused(cluster, "osd"):
        with late("did not answer"):  # nothing is to be written, and the device itself does not ask the cluster
            mapper.unmap(mapped.id, user="t")
        writer = start_writing(mapped.device, tmp_path / "data")
        with late("did not answer"):
            mapper.unmap(mapped.id, user="t")
        assert writer.poll() is None, "it waits"
        assert mapper.journal.ids() == (mapped.id,)
    assert writer.wait(60) == 0
    # udev looks at what was written, and would hold the device while that waits
    disks.run("udevadm", "settle", "--timeout=60")

    # the kernel's own client refuses to let go of a device that somebody has open; rbd-nbd does not
    in_memory = nullcontext() if module is krbd else written_to_memory(mapped.device, data, 2 * MIB)
    with in_memory, goes_away_before(cluster, waiting, "run_or_leave"):  # after it was asked whether it answers
        before = time.monotonic()
        [problem] = reconcile(mapper, settle_seconds=0).problems
        assert "still waits for the cluster" in problem.outcome
        assert time.monotonic() - before < BOUND
        assert mapper.journal.ids() == (mapped.id,)
        assert process_info.find_by_argument("rbd", mapped.device), "it was left to itself, and not killed"
    assert reconcile(mapper).problems == ()
    assert (mapper.journal.ids(), holders(cluster, image.source), connected()) == ((), (), [])
    with cluster.volume(image.source, read_only=True) as opened:
        assert not list(opened.watchers_list()), "it has said goodbye"
        assert not opened.list_lockers()
        assert opened.read(0, 6) == b"before"
        assert opened.read(1 << 16, len(data)) == data
        assert module is krbd or opened.read(2 * MIB, len(data)) == data, (
            "it was written before the device was disconnected"
        )
