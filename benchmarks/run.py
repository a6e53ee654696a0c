#!/usr/bin/env python3
"""Measures what a mapping costs, against the same work done without Mapper, in one run on one machine.

    .venv/bin/python benchmarks/run.py [NAME...] [--repeat N] [--json]

Needs root, the packages of scripts/os-packages.txt and a host that does nothing else: on a busy one, waiting for its disk
hides what is measured. Programs are started as ``scripts/setup`` installs them, editable, in the environment of the
interpreter that runs this file; ``mount_tree`` and ``unmount_tree`` are called as any program would.

Each line is a ratio or a size with its limit; the exit status is 1 when a limit is exceeded. Ratios compare medians of
runs that take turns, so that both sides see the same machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import bare
import images

BIN = Path(sys.executable).parent
MEBIBYTE = 1 << 20

#: Limits of the own time of actions; all others have half a second. Those that mount all disks, or wait for the guest, have more.
ACTION_SECONDS = {"deploy": 1.0, "snapshot_revert": 1.5, "reboot": 1.0, "reset": 1.0, "shutdown": 1.0, "cancel": 1.0}


@dataclass(frozen=True)
class Result:
    """One measured value.

    :param value: in ``unit``; good when it is not above ``limit``.
    :param note: the figures behind it.
    """

    name: str
    value: float
    unit: str
    limit: float
    note: str

    @property
    def good(self) -> bool:
        return self.value <= self.limit


@dataclass(frozen=True)
class Bench:
    """Where a benchmark works.

    :param directory: for images and mount points, on a disk.
    :param repeat: how often each side is measured.
    """

    directory: Path
    repeat: int


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def take_turns(repeat: int, *sides: Callable[[], float]) -> list[float]:
    """Medians of the sides, which return their own time, in seconds. One round before does not count."""
    rounds = [[side() for side in sides] for _ in range(repeat + 1)][1:]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


def run(*argv: str | Path) -> str:
    result = subprocess.run(argv, stdout=subprocess.PIPE, text=True, timeout=120, check=True)
    return result.stdout.strip()


def milliseconds(time_taken: float) -> str:
    return f"{time_taken * 1000:.1f} ms"


# --- the benchmarks -----------------------------------------------------------------------------------------


def api_raw(bench: Bench) -> Iterator[Result]:
    """Map, mount, unmount, unmap of a raw ext4 image through the Python API, against bare system calls."""
    from mapper_core.mapping import Mapper
    from mapper_core.model import Disk, MapOptions
    from mapper_core.tree.mounted import TreeRequest, mount_tree, unmount_tree

    image, target = images.ext4(bench.directory / "raw.img"), bench.directory / "target"
    target.mkdir(exist_ok=True)
    mapper = Mapper.open()
    request = TreeRequest(Disk(str(image), "raw"), MapOptions(), str(target))

    def ours() -> None:
        mount_tree(mapper, request)
        unmount_tree(mapper, str(target))

    mine, floor = take_turns(
        bench.repeat, lambda: seconds(ours), lambda: seconds(lambda: bare.loop_mount_and_back(image, target))
    )
    yield Result(
        "raw ext4, there and back, API / system calls",
        mine / floor,
        "x",
        1.5,
        f"{milliseconds(mine)} / {milliseconds(floor)}",
    )


def cli_map(bench: Bench) -> Iterator[Result]:
    """``mapper-cli map`` of a raw image, against the start of Python."""
    image = images.ext4(bench.directory / "cli.img")

    def ours() -> float:
        time_taken = seconds(lambda: run(BIN / "mapper-cli", "map", image, "--format", "raw"))
        run(BIN / "mapper-cli", "unmap", image)
        return time_taken

    mine, floor = take_turns(bench.repeat, ours, lambda: seconds(lambda: run(sys.executable, "-c", "pass")))
    yield Result(
        "mapper-cli map / python -c pass", mine / floor, "x", 5, f"{milliseconds(mine)} / {milliseconds(floor)}"
    )


def qcow2_tree(bench: Bench) -> Iterator[Result]:
    """A qcow2 image with a GPT, from nothing to the mounted tree, against a shell script that knows the layout."""
    image, target = images.qcow2_system(bench.directory / "system.qcow2"), bench.directory / "tree"
    target.mkdir(exist_ok=True)
    script = Path(__file__).with_name("by-hand.sh")

    def ours() -> float:
        time_taken = seconds(lambda: run(BIN / "mapper-cli", "mount", image, target, "--format", "qcow2"))
        assert os.path.ismount(target / "home")
        run(BIN / "mapper-cli", "umount", target)
        return time_taken

    def by_hand() -> float:
        state = bench.directory / "by-hand"
        time_taken = seconds(lambda: run("sh", script, "up", image, target, state))
        assert os.path.ismount(target / "home")
        run("sh", script, "down", image, target, state)
        return time_taken

    mine, shell = take_turns(bench.repeat, ours, by_hand)
    note = f"{milliseconds(mine)} / {milliseconds(shell)}"
    yield Result("qcow2 with GPT to mounted tree", mine * 1000, "ms", 400, note)
    yield Result("qcow2 with GPT to mounted tree, mapper-cli / shell", mine / shell, "x", 3, note)


def hundred(bench: Bench) -> Iterator[Result]:
    """A hundred raw images mapped at once: what the last ones cost, against the first."""
    from mapper_core.mapping import Mapper
    from mapper_core.model import Disk, MapOptions

    template = images.ext4(bench.directory / "one.img")
    mapper = Mapper.open()
    disks = [Disk(str(bench.directory / f"many-{number}.img"), "raw") for number in range(101)]
    for disk in disks:
        shutil.copyfile(template, disk.source)
    os.sync()  # else the kernel writes the copies back in the middle of the measurement
    times = []
    with contextlib.ExitStack() as undo:
        for disk in disks:
            undo.callback(mapper.unmap, disk.source, user="bench")
            times.append(seconds(lambda disk=disk: mapper.map(disk, MapOptions(), user="bench")))  # type: ignore[misc]
    first, last = statistics.median(times[1:11]), statistics.median(times[-10:])  # the very first loads modules
    note = f"{milliseconds(last)} / {milliseconds(first)}, medians of ten"
    yield Result("the 100th mapped image / the 1st", last / first, "x", 1.3, note)


def driver_actions(bench: Bench) -> Iterator[Result]:
    """OpenNebula's actions on a real LXD: the time of the whole script without that spent in the daemon's API."""
    import actions

    for name, samples in actions.measure(bench.directory, max(3, bench.repeat // 4)).items():
        own, daemon, processor = map(statistics.median, (samples.own, samples.daemon, samples.processor))
        note = f"median; {daemon:.2f} s in the daemon besides; {processor:.2f} s of a processor"
        yield Result(f"{name}, own time", own, "s", ACTION_SECONDS.get(name, 0.5), note)


def memory(bench: Bench) -> Iterator[Result]:
    """What stays in memory for one mapped qcow2 image: the processes that serve it."""
    image = images.qcow2_system(bench.directory / "memory.qcow2")
    before = set(_processes())
    device = run(BIN / "mapper-cli", "map", image, "--format", "qcow2")
    try:
        run("dd", f"if={device}", "of=/dev/null", "bs=1M", "count=32")
        servers = [pid for pid, line in _processes().items() if pid not in before and str(image) in line]
        rollups = [dict(_rollup(pid)) for pid in servers]
    finally:
        run(BIN / "mapper-cli", "unmap", image)
    proportional, resident = (sum(rollup[key] for rollup in rollups) / 1024 for key in ("Pss", "Rss"))
    yield Result(
        "memory of a mapped qcow2",
        proportional,
        "MiB",
        30,
        f"PSS of {len(servers)} process(es); RSS {resident:.1f} MiB",
    )


def rbd(bench: Bench) -> Iterator[Result]:
    """An RBD image through Mapper, against ``qemu-img bench`` and ``rbd bench`` of the same image on the same cluster."""
    import rbd_images

    for work, mine, qemu, ceph in rbd_images.compare(max(3, bench.repeat // 3), take_turns):
        note = f"{milliseconds(mine)} / {milliseconds(qemu)}; rbd bench {milliseconds(ceph)}, ratio {mine / ceph:.2f}"
        yield Result(f"RBD, {work.name}, Mapper / qemu-img bench", mine / qemu, "x", work.limit, note)
    there_and_back = rbd_images.map_and_unmap(max(3, bench.repeat))
    yield Result("RBD, map and unmap", there_and_back * 1000, "ms", 500, "median")


def _processes() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                found[int(name)] = (
                    Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
    return found


def _rollup(pid: int) -> Iterator[tuple[str, int]]:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        key, value, _ = line.split()
        yield key.rstrip(":"), int(value)


BENCHMARKS: dict[str, Callable[[Bench], Iterator[Result]]] = {
    "api-raw": api_raw,
    "cli-map": cli_map,
    "qcow2-tree": qcow2_tree,
    "hundred": hundred,
    "actions": driver_actions,
    "memory": memory,
    "rbd": rbd,
}


# --- command line -------------------------------------------------------------------------------------------


def _tmpfs() -> str:
    """Where a tmpfs is: /run on any real node; small machines without an init system have one in /dev/shm only."""
    mounts = Path("/proc/mounts").read_text().splitlines()
    mounted = {line.split()[1] for line in mounts if line.split()[2] == "tmpfs"}
    return next((directory for directory in ("/run", "/dev/shm") if directory in mounted), "/run")


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A directory on a disk for images, and a runtime directory on a tmpfs, as in production."""
    from mapper_core.testing import leaks

    with (
        tempfile.TemporaryDirectory(prefix="bench-", dir="/var/tmp") as directory,
        tempfile.TemporaryDirectory(prefix="bench-", dir=_tmpfs()) as runtime,
    ):
        os.environ["MAPPER_RUNTIME_DIR"] = runtime
        # otherwise every start compiles everything anew
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        before = leaks.snapshot()
        yield Path(directory)
        found = leaks.wait_for_none(before, 5, scope=(directory, runtime))
        print(found, file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description="measure, against the same work without Mapper")
    parser.add_argument("name", nargs="*", help=f"what to measure (default: all): {', '.join(BENCHMARKS)}")
    parser.add_argument("--repeat", type=int, default=15, metavar="N", help="rounds of each comparison (default 15)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    unknown = set(options.name) - set(BENCHMARKS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    results: list[Result] = []
    with workplace() as directory:
        for name in options.name or BENCHMARKS:
            for result in BENCHMARKS[name](Bench(directory, options.repeat)):
                results.append(result)
                if not options.json:
                    verdict = "ok" if result.good else "TOO MUCH"
                    print(
                        f"{result.name:52} {result.value:8.2f} {result.unit:3} (limit {result.limit:g}) {verdict:8} {result.note}"
                    )
    if options.json:
        print(json.dumps([{**asdict(result), "good": result.good} for result in results], indent=1))
    return 0 if all(result.good for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
