"""Snapshots of several disks at one moment: all or none, whatever happens in between."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from mapper_core import capabilities, snapshots
from mapper_core.errors import AlreadyExists, Busy, DeadlineExceeded, KernelError, MapperError, NotSupported
from mapper_core.mapping import Mapper
from mapper_core.model import Disk, MapOptions
from mapper_core.reconcile import reconcile
from mapper_core.testing import disks
from mapper_core.testing.disks import Part
from mapper_core.tree import mounted
from mapper_core.tree.look import Purpose
from mapper_core.tree.mounted import TreeRequest

pytestmark = pytest.mark.root


@pytest.fixture
def pair(mapper: Mapper, tmp_path: Path) -> tuple[Disk, Disk]:
    """Two qcow2 images with a filesystem each."""
    made = []
    for number in range(2):
        raw = disks.make_filesystem(tmp_path / f"raw{number}", Part("ext4", 16, (), (("/number", str(number)),)))
        made.append(Disk(str(disks.convert(raw, "qcow2", tmp_path / f"disk{number}")), "qcow2"))
    return made[0], made[1]


@contextmanager
def _mounted(mapper: Mapper, pair: tuple[Disk, ...], tmp_path: Path) -> Iterator[list[Path]]:
    trees = []
    for number, disk in enumerate(pair):
        tree = tmp_path / f"tree{number}"
        tree.mkdir(exist_ok=True)
        mounted.mount_tree(mapper, TreeRequest(disk, MapOptions(), str(tree), purpose=Purpose.DATA))
        trees.append(tree)
    try:
        yield trees
    finally:
        for tree in trees:
            mounted.unmount_tree(mapper, str(tree))


def _names(mapper: Mapper, *found: Disk) -> list[list[str]]:
    return [[item.name for item in capabilities.snapshots(mapper, disk)] for disk in found]


def _can_be_written(trees: list[Path]) -> None:
    for tree in trees:
        fd = os.open(tree / "written", os.O_WRONLY | os.O_CREAT)
        os.write(fd, b"yes")
        os.fsync(fd)
        os.close(fd)


WRITER = """
import os, sys
fds = [os.open(path, os.O_WRONLY | os.O_SYNC) for path in sys.argv[1:]]
for number in range(1, 10**8):
    for fd in fds:
        os.pwrite(fd, b"%08d" % number, 0)
"""


def test_all_disks_are_kept_as_they_were_at_one_moment(mapper: Mapper, pair: tuple[Disk, Disk], tmp_path: Path) -> None:
    """Somebody writes a number to one disk, and then to the other: the other is never ahead."""
    with _mounted(mapper, pair, tmp_path) as (one, two):
        for tree in (one, two):
            (tree / "count").write_text("00000000")
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(one / "count"), str(two / "count")])
        try:
            while (two / "count").read_text() == "00000000":
                assert writer.poll() is None
            for round_ in range(3):
                snapshots.create(mapper, pair, f"moment{round_}")
        finally:
            writer.kill()
            writer.wait()
    for round_ in range(3):
        for disk in pair:
            capabilities.snapshot_revert(mapper, disk, f"moment{round_}")
        with _mounted(mapper, pair, tmp_path) as (one, two):
            first, second = int((one / "count").read_text()), int((two / "count").read_text())
            assert first - 1 <= second <= first
            assert second > 0
    assert _names(mapper, *pair) == [["moment0", "moment1", "moment2"]] * 2


def test_when_one_disk_cannot_no_disk_has_it(
    mapper: Mapper, pair: tuple[Disk, Disk], bare: Path, tmp_path: Path
) -> None:
    raw = Disk(str(bare), "raw")
    with pytest.raises(NotSupported, match="raw"):
        snapshots.create(mapper, (*pair, raw), "some")
    assert _names(mapper, *pair) == [[], []]
    capabilities.snapshot_create(mapper, pair[1], "taken")
    with pytest.raises(AlreadyExists, match="taken"):
        snapshots.create(mapper, pair, "taken")
    assert _names(mapper, *pair) == [[], ["taken"]]
    # the second one's server cannot be asked: the first one's, made by then, is deleted, and it can be written again
    with _mounted(mapper, pair, tmp_path) as trees:
        mapped = mapper.find(pair[1].source)
        assert mapped is not None
        socket = Path(f"{mapper.runtime.exports}/{mapped.id}/qmp.sock")
        socket.rename(socket.with_name("away"))
        with pytest.raises(MapperError):
            snapshots.create(mapper, pair, "half")
        socket.with_name("away").rename(socket)
        _can_be_written(trees)
        assert _names(mapper, *pair) == [[], ["taken"]]
        assert all(not record.snapshot for record in mapper.journal.records())


def test_a_dead_server_is_an_error_with_a_type(mapper: Mapper, pair: tuple[Disk, Disk], tmp_path: Path) -> None:
    with _mounted(mapper, pair, tmp_path) as trees:
        mapped = mapper.find(pair[1].source)
        assert mapped is not None
        os.kill(int(Path(f"{mapper.runtime.exports}/{mapped.id}/pid").read_text()), signal.SIGKILL)
        with pytest.raises(MapperError):
            snapshots.create(mapper, pair, "half")
        _can_be_written(trees[:1])
        assert _names(mapper, *pair) == [[], []]


#: Which call of which method of the registry the process does not survive.
PLACES = {
    "frozen, none made": ("snapshot_create", 1),
    "frozen, one made": ("snapshot_create", 2),
    "all made": ("snapshots", 3),
}

KILLED = """
import os, signal, sys
from mapper_core import registry, snapshots
from mapper_core.mapping import Mapper
from mapper_core.model import Disk
method, count = sys.argv[1], int(sys.argv[2])
real = getattr(registry.Registry, method)
def killed(*arguments, **named):
    global count
    count -= 1
    if count == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **named)
setattr(registry.Registry, method, killed)
snapshots.create(Mapper.open(), [Disk(path, "qcow2") for path in sys.argv[3:]], "cut")
"""


@pytest.mark.parametrize("repair", ["repeat", "reconcile"])
@pytest.mark.parametrize("place", PLACES)
def test_killed_in_the_middle(mapper: Mapper, pair: tuple[Disk, Disk], tmp_path: Path, place: str, repair: str) -> None:
    """Afterwards the filesystems go on, and the snapshot is there on both or on none."""
    method, count = PLACES[place]
    with _mounted(mapper, pair, tmp_path) as trees:
        argv = [sys.executable, "-c", KILLED, method, str(count), *(disk.source for disk in pair)]
        assert subprocess.run(argv, timeout=60, check=False).returncode == -signal.SIGKILL
        assert any(record.snapshot == "cut" for record in mapper.journal.records())
        _wait_for_the_guard(mapper, pair)
        if repair == "repeat":
            snapshots.create(mapper, pair, "cut")
            wanted = [["cut"]] * 2
        else:
            report = reconcile(mapper)
            assert report.problems == ()
            assert {action.outcome.split(":")[0] for action in report.actions} == {"thawed"}
            wanted = [[], []]
        _can_be_written(trees)
        assert _names(mapper, *pair) == wanted
        assert all(not record.snapshot for record in mapper.journal.records())


def _wait_for_the_guard(mapper: Mapper, pair: tuple[Disk, Disk]) -> None:
    """It has the locks of its parent until it has thawed, and so everybody else is told that the disks are busy."""
    until = time.monotonic() + 20
    for disk in pair:
        while True:
            with suppress(Busy), mapper.lock(mapper.identify(disk).id):
                break
            assert time.monotonic() < until
            time.sleep(0.01)


def test_a_snapshot_that_cannot_be_taken_back_is_not_forgotten(
    mapper: Mapper, pair: tuple[Disk, Disk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second disk has no room for one, and the first one's daemon hangs just then."""
    make = mapper.registry.snapshot_create

    def fail_for_the_second(disk: Disk, *others: Any) -> None:
        if disk.source == pair[1].source:
            raise KernelError("no room")
        make(disk, *others)

    def hang(*_: object) -> None:
        raise DeadlineExceeded("no answer")

    with _mounted(mapper, pair, tmp_path) as trees:
        with monkeypatch.context() as patch:
            patch.setattr(mapper.registry, "snapshot_create", fail_for_the_second)
            patch.setattr(mapper.registry, "snapshot_delete", hang)
            with pytest.raises(KernelError, match="no room"):
                snapshots.create(mapper, pair, "before")
        _can_be_written(trees)
        assert _names(mapper, *pair) == [["before"], []]
        assert [action.subject for action in reconcile(mapper).actions] == [pair[0].source]
        assert _names(mapper, *pair) == [[], []]
        assert reconcile(mapper).actions == ()
