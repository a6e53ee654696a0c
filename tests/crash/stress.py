"""Many processes work on a few disks of all formats, at random, and each disk must always be itself.

Every disk carries its own number: in a file of its filesystem, in a block behind it, and in what the workers write there. Whoever
has a disk mapped or mounted reads its number, writes to a place of his own, and reads that back. A worker may be refused (the
disk is locked, or held by others), in words of ours; anything else is a failure, and so is a worker that does not get on.

By hand, in full size::

    python -m tests.crash.stress --workers 64 --operations 1000 --disks 40
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import functools
import json
import mmap
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from mapper_core import capabilities
from mapper_core.errors import Busy, DeviceBusy, FormatMismatch
from mapper_core.mapping import Mapper
from mapper_core.model import Disk, MapOptions, MappedDisk
from mapper_core.reconcile import reconcile
from mapper_core.runtime import ENVIRONMENT, Runtime
from mapper_core.testing import disks, leaks
from mapper_core.testing.disks import MIB, Part
from mapper_core.tree.mounted import TreeRequest, mount_tree, unmount_tree

from .killing import patiently

BLOCK = 4096
#: More than one raw disk of each kind for each of the others: starting a daemon costs most.
KINDS = ("raw", "raw gpt", "raw", "qcow2", "raw gpt", "vmdk", "raw", "qcow2 gpt")
#: A worker that has done nothing for so long hangs, seconds. The machine may be slow, and others use it.
STUCK_SECONDS = 240.0
#: How long it may take until everything is released in the end, seconds.
RELEASE_SECONDS = 300.0


@dataclass(frozen=True)
class Marked:
    """A disk with a number."""

    number: int
    disk: Disk
    is_table: bool

    def area(self, mapped: MappedDisk) -> tuple[str, int]:
        """The device with the blocks of the workers, and where they begin."""
        return (mapped.table.partitions[1].device, 0) if self.is_table else (mapped.device, 5 * MIB)

    def block(self, text: str) -> bytes:
        return f"disk {self.number}: {text}".encode().ljust(BLOCK, b".")


def make(directory: Path, number: int) -> Marked:
    """Make a disk: 5 MiB of ext4 and 1 MiB of blocks, with or without a partition table around them."""
    kind, _, table = KINDS[number % len(KINDS)].partition(" ")
    part = Part("ext4", 5, (), (("/id", f"disk {number}\n"), ("/sbin/init", "")))
    raw = directory / f"{number}.raw"
    if table:
        disks.make_disk(raw, (part, Part("", 1)))
        at = int(disks.run("partx", "-g", "-o", "START", "-n", "2", str(raw)).strip()) * 512
    else:
        disks.make_filesystem(raw, part)
        os.truncate(raw, 6 * MIB)
        at = 5 * MIB
    marked = Marked(number, Disk(str(raw if kind == "raw" else raw.with_suffix(f".{kind}")), kind), bool(table))
    with raw.open("r+b") as file:
        file.seek(at)
        file.write(marked.block("id"))
    if kind != "raw":
        disks.convert(raw, kind, Path(marked.disk.source))
        raw.unlink()
    return marked


class Worker:
    """One process.

    :param number: from 0.
    :param beat: called after each operation.
    """

    def __init__(self, number: int, everything: tuple[Marked, ...], seed: int, beat: Callable[[], None]) -> None:
        self.number, self.everything, self.beat = number, everything, beat
        self.random = random.Random(f"{seed}/{number}")
        self.mapper = Mapper.open()
        self.user = f"w{number}"
        self.held: dict[int, MappedDisk] = {}
        self.trees: dict[int, str] = {}
        self.leaving: set[int] = set()
        self.done: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.written = 0
        self.choices = (
            *((self.map, 24), (self.unmap, 24), (self.check, 20), (self.mount, 8), (self.umount, 8)),
            *((self.look, 8), (self.inspect, 5), (self.snapshot, 2), (self.lie, 2), (self.clean, 1)),
        )

    def run(self, operations: int) -> None:
        acts, weights = zip(*self.choices, strict=True)
        for _ in range(operations):
            act = self.random.choices(acts, weights)[0]
            try:
                act(self.random.choice(self.everything))
            except Busy as error:
                self.refused[f"{act.__name__}: {type(error).__name__}"] += 1
            self.done[act.__name__] += 1
            self.beat()
        self.release()

    def map(self, marked: Marked) -> None:
        self.held[marked.number] = self.mapper.map(marked.disk, MapOptions(), user=self.user)
        self.verify(marked)

    def unmap(self, marked: Marked) -> None:
        if self.held and self.random.random() < 0.8:
            marked = self.everything[self.random.choice(sorted(self.held))]
        self.mapper.unmap(marked.disk.source, user=self.user)
        self.held.pop(marked.number, None)

    def check(self, marked: Marked) -> None:
        if self.held:
            self.verify(self.everything[self.random.choice(sorted(self.held))])

    def verify(self, marked: Marked) -> None:
        """The device is that disk, and has what this worker wrote to it."""
        device, start = marked.area(self.held[marked.number])
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        try:
            assert os.pread(fd, BLOCK, start) == marked.block("id"), f"{device} is not disk {marked.number}"
            self.written += 1
            mine = marked.block(f"worker {self.number} wrote {self.written}")
            at = start + (1 + self.number) * BLOCK
            os.pwrite(fd, mine, at)
            os.fdatasync(fd)
            assert os.pread(fd, BLOCK, at) == mine, f"{device} has lost what was written to disk {marked.number}"
        finally:
            os.close(fd)

    def mount(self, marked: Marked) -> None:
        directory = f"{self.mapper.runtime.mounts}/{self.user}-{marked.number}"
        if marked.number in self.trees:
            return
        mount_tree(self.mapper, TreeRequest(marked.disk, MapOptions(), directory, owner=self.user))
        self.trees[marked.number] = directory
        self.verify_tree(marked)

    def verify_tree(self, marked: Marked) -> None:
        directory = Path(self.trees[marked.number])
        assert (directory / "id").read_text() == f"disk {marked.number}\n", f"{directory} is not disk {marked.number}"
        (directory / self.user).write_text(f"disk {marked.number}")

    def umount(self, marked: Marked) -> None:
        if self.trees:
            number = self.random.choice(sorted(self.trees))
            if number not in self.leaving:
                self.verify_tree(self.everything[number])
            try:
                unmount_tree(self.mapper, self.trees[number], owner=self.user)
            except DeviceBusy:
                self.leaving.add(number)  # it is unmounted, but somebody still has the disk
                raise
            del self.trees[number]
            self.leaving.discard(number)

    def look(self, marked: Marked) -> None:
        found = {item.disk.source: item.device for item in self.mapper.mapped()}
        for number, mapped in self.held.items():
            assert found.get(self.everything[number].disk.source) == mapped.device, f"disk {number} is mapped no more"

    def inspect(self, marked: Marked) -> None:
        info = self.mapper.inspect(marked.disk)
        assert info is not None and info.format == marked.disk.format

    def snapshot(self, marked: Marked) -> None:
        if marked.disk.format != "qcow2":
            return
        name = f"s{self.number}"
        capabilities.snapshot_create(self.mapper, marked.disk, name)
        patiently(lambda: capabilities.snapshot_delete(self.mapper, marked.disk, name), RELEASE_SECONDS)

    def lie(self, marked: Marked) -> None:
        wrong = "raw" if marked.disk.format != "raw" else "qcow2"
        with contextlib.suppress(FormatMismatch):
            self.mapper.map(Disk(marked.disk.source, wrong), MapOptions(), user=self.user)
            raise AssertionError(f"disk {marked.number} was mapped as {wrong}")
        self.refused["lie: FormatMismatch"] += 1

    def clean(self, marked: Marked) -> None:
        reconcile(self.mapper, settle_seconds=0)

    def release(self) -> None:
        for directory in self.trees.values():
            patiently(functools.partial(unmount_tree, self.mapper, directory, owner=self.user), RELEASE_SECONDS)
            self.beat()
        for number in self.held:
            source = self.everything[number].disk.source
            patiently(functools.partial(self.mapper.unmap, source, user=self.user), RELEASE_SECONDS)
            self.beat()


@dataclass(frozen=True)
class Figures:
    """What was done."""

    workers: int
    disks: int
    operations: int
    refused: int
    seconds: float
    kinds: dict[str, int]


def run(directory: Path, workers: int, operations: int, count: int, seed: int) -> Figures:
    """Run everything, and look at every disk afterwards.

    :raises AssertionError: with what the workers said.
    """
    everything = tuple(make(directory, number) for number in range(count))
    context = multiprocessing.get_context("fork")
    beats = memoryview(mmap.mmap(-1, 8 * workers)).cast("q")
    started = time.monotonic()
    children = []
    for number in range(workers):
        report = directory / f"worker{number}"
        child = context.Process(target=_live, args=(number, everything, seed, operations, beats, report))
        child.start()
        children.append(child)
    try:
        _watch(children, beats)
    finally:
        for child in children:
            child.kill()
            child.join()
    statuses = [child.exitcode for child in children]
    for child in children:
        child.close()  # its pipe
    seconds = time.monotonic() - started
    done: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    wrong = []
    for number, status in enumerate(statuses):
        report = directory / f"worker{number}"
        said = json.loads(report.read_text()) if report.exists() else {"error": f"worker {number}: no report"}
        if "error" in said or status != 0:
            wrong.append(f"worker {number}, status {status}: {said.get('error')}")
        done.update(said.get("done", {}))
        refused.update(said.get("refused", {}))
    assert not wrong, "\n".join(wrong)
    for marked in everything:
        _examine(marked, directory)
    return Figures(workers, count, done.total(), refused.total(), seconds, dict(refused.most_common()))


def _live(
    number: int, everything: tuple[Marked, ...], seed: int, operations: int, beats: memoryview, report: Path
) -> None:
    faulthandler.register(signal.SIGUSR1)

    def beat() -> None:
        beats[number] += 1

    worker = Worker(number, everything, seed, beat)
    try:
        worker.run(operations)
    except BaseException:
        report.write_text(json.dumps({"error": traceback.format_exc()}))
        raise
    report.write_text(json.dumps({"done": worker.done, "refused": worker.refused}))


def _watch(children: Sequence[BaseProcess], beats: memoryview) -> None:
    """Wait for the end of all; one that hangs says where."""
    last = [(0, time.monotonic())] * len(children)
    while any(child.is_alive() for child in children):
        for number, child in enumerate(children):
            if beats[number] != last[number][0] or not child.is_alive():
                last[number] = (beats[number], time.monotonic())
            elif time.monotonic() - last[number][1] > STUCK_SECONDS:
                assert child.pid is not None
                os.kill(child.pid, signal.SIGUSR1)
                time.sleep(1)
                raise AssertionError(f"worker {number} hangs after {beats[number]} operations")
        for child in children:
            if child.is_alive():
                child.join(1.0)
                break


def _examine(marked: Marked, directory: Path) -> None:
    """Afterwards every block of the disk still says that it belongs to it."""
    raw = directory / "examined"
    source = marked.disk.source
    if marked.disk.format == "qcow2":
        disks.run("qemu-img", "check", "-q", "-f", "qcow2", source)
    disks.run("qemu-img", "convert", "-f", marked.disk.format, "-O", "raw", source, str(raw))
    number = "2" if marked.is_table else ""
    at = int(disks.run("partx", "-g", "-o", "START", "-n", number, str(raw)).strip()) * 512 if number else 5 * MIB
    blocks = raw.read_bytes()[at : at + MIB]
    for position in range(0, MIB, BLOCK):
        block = blocks[position : position + BLOCK]
        own = block.startswith(f"disk {marked.number}: ".encode())
        assert own or not any(block), f"disk {marked.number} has a block of another: {block[:40]!r}"
    start = int(disks.run("partx", "-g", "-o", "START", "-n", "1", str(raw)).strip()) * 512 if number else 0
    if not number:
        os.truncate(raw, 5 * MIB)
    disks.run("e2fsck", "-fn", f"{raw}?offset={start}")
    assert disks.run("debugfs", "-R", "cat /id", f"{raw}?offset={start}") == f"disk {marked.number}\n"
    raw.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.stress", description="many processes on a few disks")
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--operations", type=int, default=1000, help="of each worker")
    parser.add_argument("--disks", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    name = tempfile.mkdtemp(prefix="mapper-stress-", dir="/run")
    os.environ[ENVIRONMENT] = f"{name}/r"
    Runtime.from_environment().prepare()
    before = leaks.snapshot((f"{name}/r",))
    directory = Path(name, "images")
    directory.mkdir()
    try:
        print(run(directory, options.workers, options.operations, options.disks, options.seed))
    finally:
        found = leaks.wait_for_none(before, 10, (f"{name}/r",), (name,))
        print(found)
        if found:
            print(f"left as it is: {name}")
        else:
            shutil.rmtree(name)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
