"""RBD images on a real cluster: through Mapper's device, against Ceph's and qemu's own clients on the same image.

The same work on each side: 4 KiB at random places, 16 in flight, and 1 MiB in order. What is between the two is FUSE and a
loop device.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

LAB = Path(__file__).parents[1] / "labs" / "ceph"
SIZE = 256 << 20
DEPTH = 16


@dataclass(frozen=True)
class Work:
    """One kind of access.

    :param fio: its name there.
    :param block: bytes of each request.
    :param count: of requests; each side does all of them.
    :param limit: how often the time of qemu the same may take through Mapper.
    """

    name: str
    fio: str
    block: int
    count: int
    limit: float

    @property
    def is_write(self) -> bool:
        return "write" in self.fio


WORKS = (
    Work("4k random read", "randread", 4096, 2048, 12),
    Work("4k random write", "randwrite", 4096, 2048, 12),
    Work("1M read", "read", 1 << 20, 256, 4),
    Work("1M write", "write", 1 << 20, 256, 6),
)


@dataclass(frozen=True)
class Cluster:
    """A cluster of the lab, as client.oneadmin."""

    directory: str

    @property
    def conf(self) -> str:
        return f"{self.directory}/ceph.conf"

    @property
    def settings(self) -> tuple[tuple[str, str], ...]:
        return (("user", "oneadmin"), ("conf", self.conf))

    def rbd(self, *arguments: str) -> str:
        return run("rbd", "--conf", self.conf, "--id", "oneadmin", *arguments)


@contextlib.contextmanager
def lab() -> Iterator[Cluster]:
    """A private cluster with one image, full of data."""
    directory = f"/var/lib/mapper-lab/bench{os.getpid()}"
    run(str(LAB), "up", directory)
    try:
        cluster = Cluster(directory)
        cluster.rbd("create", "--size", f"{SIZE >> 20}M", "one/bench")
        cluster.rbd("bench", "--io-type", "write", "--io-size", "1M", "--io-total", str(SIZE), "one/bench")
        yield cluster
    finally:
        run(str(LAB), "down", directory)


def run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(f"{argv}: {done.stderr}")
    return done.stdout


def by_mapper(device: str, work: Work) -> float:
    """Seconds that fio needs on the device; a write ends when it is stored."""
    report = run(
        "fio", "--name=bench", f"--filename={device}", f"--rw={work.fio}", f"--bs={work.block}", f"--size={SIZE}",
        f"--io_size={work.block * work.count}", "--ioengine=libaio", f"--iodepth={DEPTH}", "--direct=1", "--end_fsync=1",
        "--randseed=1", "--output-format=json",
    )  # fmt: skip
    [job] = json.loads(report[report.index("{") :])["jobs"]
    return float(job["job_runtime"]) / 1000


def by_qemu(cluster: Cluster, work: Work) -> float:
    """Seconds that qemu's own driver needs, without a device; it has no random places: a step of a prime number of blocks does."""
    image = json.dumps(
        {
            "driver": "raw",
            "file": {"driver": "rbd", "pool": "one", "image": "bench", "conf": cluster.conf, "user": "oneadmin"},
        }
    )
    step = work.block * (1009 if work.fio.startswith("rand") else 1)
    write = ("-w", "--flush-interval", str(work.count)) if work.is_write else ()
    report = run(
        "qemu-img", "bench", "-t", "writeback", "-c", str(work.count), "-d", str(DEPTH), "-s", str(work.block), "-S", str(step),
        *write, f"json:{image}",
    )  # fmt: skip
    return float(re.findall(r"in ([0-9.]+) seconds", report)[0])


def by_rbd(cluster: Cluster, work: Work) -> float:
    """Seconds that ``rbd bench`` needs."""
    pattern = "rand" if work.fio.startswith("rand") else "seq"
    report = cluster.rbd(
        "bench", "--io-type", "write" if work.is_write else "read", "--io-size", str(work.block),
        "--io-threads", str(DEPTH), "--io-total", str(work.block * work.count), "--io-pattern", pattern, "one/bench",
    )  # fmt: skip
    return work.count / float(re.findall(r"ops/sec: *([0-9.]+)", report)[-1])


def compare(repeat: int, take_turns: Callable[..., list[float]]) -> Iterator[tuple[Work, float, float, float]]:
    """For each kind of access the seconds by Mapper, by qemu and by rbd: medians of runs that take turns."""
    from mapper_core.mapping import Mapper
    from mapper_core.model import Disk, MapOptions

    mapper = Mapper.open()
    with lab() as cluster:
        disk = Disk("one/bench", "rbd", settings=cluster.settings)

        def ours(work: Work) -> float:
            mapped = mapper.map(
                disk, MapOptions(), user="bench"
            )  # anew: nobody's cache is warm, and the image is ours alone
            try:
                return by_mapper(mapped.device, work)
            finally:
                mapper.unmap(mapped.id, user="bench")

        for work in WORKS:
            sides = (partial(ours, work), partial(by_qemu, cluster, work), partial(by_rbd, cluster, work))
            mine, qemu, rbd = take_turns(repeat, *sides)
            yield work, mine, qemu, rbd


def map_and_unmap(repeat: int) -> float:
    """Seconds for an image, there and back, through the Python interface."""
    from mapper_core.mapping import Mapper
    from mapper_core.model import Disk, MapOptions

    mapper = Mapper.open()
    times = []
    with lab() as cluster:
        disk = Disk("one/bench", "rbd", settings=cluster.settings)
        for _ in range(repeat):
            began = time.perf_counter()
            mapped = mapper.map(disk, MapOptions(), user="bench")
            mapper.unmap(mapped.id, user="bench")
            times.append(time.perf_counter() - began)
    return sorted(times)[len(times) // 2]
