"""Many at once on nbd: each gets a device of its own or a clear answer, and never another one's data."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.queues import Queue
from pathlib import Path

import pytest

from mapper_core.errors import MapperError
from mapper_core.linux import mountinfo
from mapper_core.mapping import Mapper
from mapper_core.model import Disk, MapOptions
from mapper_core.reconcile import reconcile
from mapper_core.testing import disks
from mapper_core.testing.disks import Part
from mapper_core.tree.mounted import TreeRequest, mount_tree, unmount_tree

from .kernel import NBD_DEVICES, connected, partitions_of, read

pytestmark = [pytest.mark.vm, pytest.mark.timeout(240)]

NBD = MapOptions(transport="nbd")
WORKERS = 2 * NBD_DEVICES
FORK = multiprocessing.get_context("fork")


def marked(directory: Path, number: int) -> Path:
    """An image whose content is its number."""
    raw = directory / f"{number}.raw"
    raw.write_bytes(number.to_bytes(2, "big") * (1 << 19))
    image = disks.convert(raw, "qcow2", directory / f"{number}.qcow2")
    raw.unlink()
    return image


def collect(target: Callable[..., None], arguments: list[tuple[object, ...]], seconds: float) -> list[tuple[int, str]]:
    """Run one process for each tuple of arguments; return what each has put into the queue."""
    answers: Queue[tuple[int, str]] = FORK.Queue()
    workers = [FORK.Process(target=target, args=(*given, answers)) for given in arguments]
    for worker in workers:
        worker.start()
    try:
        return [answers.get(timeout=seconds) for _ in workers]
    finally:
        for worker in workers:
            worker.join(10)
            worker.kill()
            worker.join()
        answers.close()
        answers.join_thread()


def map_one(image: str, number: int, start: float, answers: Queue[tuple[int, str]]) -> None:
    time.sleep(max(0.0, start - time.monotonic()))  # all at once
    try:
        answers.put((number, Mapper.open().map(Disk(image, "qcow2"), NBD, user="t").device))
    except MapperError as error:
        answers.put((number, type(error).__name__))


def test_32_workers_on_16_devices(mapper: Mapper, tmp_path: Path) -> None:
    """M-05: 16 get 16 devices with their own content, 16 are told that there is none."""
    images = [marked(tmp_path, number) for number in range(WORKERS)]
    start = time.monotonic() + 1
    found = dict(collect(map_one, [(str(image), n, start) for n, image in enumerate(images)], 150))
    devices = {number: device for number, device in found.items() if device.startswith("/dev/")}
    assert Counter(found.values())["NoFreeDevice"] == WORKERS - NBD_DEVICES, found
    assert sorted(devices.values()) == connected()
    assert len(devices) == NBD_DEVICES
    for number, device in devices.items():
        assert read(device, 0, 1 << 20) == number.to_bytes(2, "big") * (1 << 19)
    for device in devices.values():
        mapper.unmap(device, user="t")
    assert connected() == []


def cycle(image: str, number: int, count: int, answers: Queue[tuple[int, str]]) -> None:
    """Map and unmap, and say what is wrong."""
    mapper = Mapper.open()
    problem = ""
    try:
        for _ in range(count):
            mapped = mapper.map(Disk(image, "qcow2"), NBD, user="t")
            parts = len(mapped.table.partitions)
            wanted = f"label-{number}".encode()
            have = read(mapped.table.partitions[0].device, 0, len(wanted)) if parts else b""
            if parts != number + 1 or partitions_of(mapped.device) != list(range(1, parts + 1)) or have != wanted:
                problem = f"{mapped.device}: {parts} partitions, {partitions_of(mapped.device)}, {have!r}"
            mapper.unmap(mapped.device, user="t")
    except MapperError as error:
        problem = f"{type(error).__name__}: {error}"
    answers.put((number, problem))


def test_cycles_of_four_workers(mapper: Mapper, tmp_path: Path) -> None:
    """M-04, M-06, M-07: devices are reused all the time, each time with another number of partitions."""
    images = []
    for number in range(4):
        raw = tmp_path / f"{number}.raw"
        disks.make_disk(raw, (Part("", 2),) * (number + 1))
        with raw.open("r+b") as file:
            file.seek(1 << 20)
            file.write(f"label-{number}".encode())
        images.append(disks.convert(raw, "qcow2", raw.with_suffix(".qcow2")))
    found = collect(cycle, [(str(image), number, 8) for number, image in enumerate(images)], 200)
    assert dict(found) == dict.fromkeys(range(4), "")
    assert connected() == []


def server_of(mapper: Mapper, disk_id: str) -> int:
    return int((Path(mapper.runtime.exports) / disk_id / "pid").read_text())


def test_a_server_that_was_killed_does_not_keep_the_disk(mapper: Mapper, qcow2: Path) -> None:
    """L-11, M-17: everything ends, and in bounded time."""
    mapped = mapper.map(Disk(str(qcow2), "qcow2"), NBD, user="t")
    os.kill(server_of(mapper, mapped.id), signal.SIGKILL)
    started = time.monotonic()
    mapper.unmap(mapped.device, user="t")
    assert time.monotonic() - started < 30
    assert connected() == []
    again = mapper.map(Disk(str(qcow2), "qcow2"), NBD, user="t")
    assert len(again.table.partitions) == 5
    mapper.unmap(again.device, user="t")


def test_the_device_of_a_killed_server_is_not_taken_for_ours(mapper: Mapper, qcow2: Path, bare: Path) -> None:
    """Its number is given to somebody else, whose disk is neither returned as ours nor taken away."""
    mapped = mapper.map(Disk(str(qcow2), "qcow2"), NBD, user="t")
    pid = server_of(mapper, mapped.id)
    os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + 20
    while mapped.device in connected():
        assert time.monotonic() < until
        time.sleep(0.05)
    disks.run("qemu-nbd", f"--connect={mapped.device}", "-f", "raw", str(bare))
    try:
        assert mapper.find(mapped.id) is None
        mapper.unmap(mapped.id, user="t")
        assert connected() == [mapped.device]
        assert mapper.journal.ids() == ()
    finally:
        disks.run("qemu-nbd", "--disconnect", mapped.device)


def kill_during(work: Callable[[], None], seconds: float) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@pytest.mark.parametrize("moment", [0.3, 0.6, 1.0, 1.5])
def test_killed_while_mounting(mapper: Mapper, qcow2: Path, moment: float) -> None:
    """Kill -9 anywhere in map, mount, umount and unmap: one reconcile later nothing is left, and the disk can be mounted."""
    directory = f"{mapper.runtime.mounts}/one-1.0"
    request = TreeRequest(Disk(str(qcow2), "qcow2"), MapOptions(), directory)

    def work() -> None:
        own = Mapper.open()
        while True:
            mount_tree(own, request)
            unmount_tree(own, directory)

    kill_during(work, moment)
    report = reconcile(mapper)
    assert not report.problems, report
    unmount_tree(mapper, directory)  # one that was complete when its maker died is wanted
    assert mapper.journal.ids() == ()
    assert os.listdir(mapper.runtime.exports) == []
    assert mountinfo.below(mapper.runtime.root) == ()
    assert connected() == []
    mount_tree(mapper, request)
    unmount_tree(mapper, directory)
    disks.run("qemu-img", "check", "-f", "qcow2", str(qcow2))
