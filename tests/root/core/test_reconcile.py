"""After a crash, reconcile puts the node in order; what is in use it leaves."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from mapper_core import reconcile as reconciling
from mapper_core.errors import Busy, DeviceBusy
from mapper_core.journal import State
from mapper_core.linux import mountinfo
from mapper_core.mapping import Mapper
from mapper_core.model import Disk, MapOptions
from mapper_core.reconcile import Mode, reconcile
from mapper_core.registry import EntryPoint
from mapper_core.testing import disks
from mapper_core.tree import mounted, record
from mapper_core.tree.mounted import TreeRequest, mount_tree, unmount_tree
from mapper_core.tree.record import TreeRecord

pytestmark = pytest.mark.root


def _kill_during(work: Callable[[], None], seconds: float) -> None:
    """Run ``work`` in a process and kill it with -9 after a while."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _gone() -> int:
    """The number of a process that has ended."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


@pytest.mark.parametrize("moment", [0.005, 0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2, 0.3])
def test_killed_while_mounting(mapper: Mapper, system: Path, moment: float) -> None:
    """Kill -9 anywhere in map and mount: one reconcile later nothing is left, and the disk can be mounted."""
    image = disks.convert(system, "qcow2", system.with_suffix(".qcow2"))
    directory = f"{mapper.runtime.mounts}/one-1.0"
    request = TreeRequest(Disk(str(image), "qcow2"), MapOptions(), directory)

    def work() -> None:
        own = Mapper.open()
        while True:
            mount_tree(own, request)
            unmount_tree(own, directory)

    _kill_during(work, moment)
    report = reconcile(mapper)
    assert not report.problems, report
    # a tree that was complete when its maker died is wanted
    unmount_tree(mapper, directory)
    assert mapper.journal.ids() == ()
    assert os.listdir(mapper.runtime.trees) == []
    assert os.listdir(mapper.runtime.exports) == []
    assert mountinfo.below(mapper.runtime.root) == ()
    mount_tree(mapper, request)
    unmount_tree(mapper, directory)
    disks.run("qemu-img", "check", "-f", "qcow2", str(image))


def test_what_is_wanted_is_left_alone(mapper: Mapper, bare: Path) -> None:
    mapped = mapper.map(Disk(str(bare), "raw"), MapOptions(), user="cli")
    assert reconcile(mapper) == reconcile(mapper, Mode.DRY_RUN)
    assert mapper.find(mapped.id) == mapped
    mapper.unmap(mapped.id, user="cli")


def test_users_that_are_gone(mapper: Mapper, bare: Path) -> None:
    """A tree without a record; a process that mapped for a moment and died."""
    for user in ("tree:/nowhere", f"pid:{_gone()}"):
        mapper.map(Disk(str(bare), "raw"), MapOptions(), user=user)
    assert len(reconcile(mapper, Mode.DRY_RUN).actions) == 2
    assert len(mapper.mapped()) == 1
    assert len(reconcile(mapper).actions) == 2
    assert mapper.mapped() == ()


def test_a_process_that_was_killed_keeps_nobody_from_unmapping(mapper: Mapper, bare: Path) -> None:
    """Nor does the next who maps the disk inherit it."""
    dead = f"pid:{_gone()}"
    mapper.map(Disk(str(bare), "raw"), MapOptions(), user=dead)
    assert mapper.map(Disk(str(bare), "raw"), MapOptions(), user="cli").users == ("cli",)
    mapper.unmap(str(bare), user="cli")
    mapper.map(Disk(str(bare), "raw"), MapOptions(), user=dead)
    mapper.unmap(str(bare), user="cli")
    assert mapper.mapped() == ()


def test_a_tree_that_is_finished_meanwhile_stays(mapper: Mapper, bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was seen without the lock may be over when the lock is there."""
    directory = f"{mapper.runtime.mounts}/x"
    mount_tree(mapper, TreeRequest(Disk(str(bare), "raw"), MapOptions(), directory))
    tree = mounted.find(mapper, directory)
    assert tree is not None
    with monkeypatch.context() as patch:
        patch.setattr(mounted, "records", lambda _mapper: (dataclasses.replace(tree, complete=False),))
        assert reconcile(mapper).actions == ()
    assert mountinfo.at(directory)
    unmount_tree(mapper, directory)


def test_a_tree_that_is_in_use_stays_and_reconcile_leaves_it(mapper: Mapper, bare: Path) -> None:
    """That somebody tried to unmount it is no crash."""
    directory = f"{mapper.runtime.mounts}/x"
    mount_tree(mapper, TreeRequest(Disk(str(bare), "raw"), MapOptions(), directory))
    fd = os.open(directory, os.O_RDONLY)
    try:
        with pytest.raises(DeviceBusy):
            unmount_tree(mapper, directory)
        assert reconcile(mapper).actions == ()
        assert mountinfo.at(directory)
    finally:
        os.close(fd)
    unmount_tree(mapper, directory)


def test_a_mount_that_is_refused_leaves_nothing(mapper: Mapper, bare: Path) -> None:
    """Not even when others have the disk, without which its own undoing cannot go on."""
    disk = Disk(str(bare), "raw")
    with mapper.lock(mapper.identify(disk).id), pytest.raises(Busy):
        mount_tree(mapper, TreeRequest(disk, MapOptions(), f"{mapper.runtime.mounts}/x"))
    assert mounted.records(mapper) == ()
    assert os.listdir(mapper.runtime.mounts) == []


def test_an_unfinished_tree_of_a_disk_that_others_use(mapper: Mapper, bare: Path) -> None:
    """Its maker was killed before it got the disk."""
    mapped = mapper.map(Disk(str(bare), "raw"), MapOptions(), user="cli")
    half = TreeRecord(f"{mapper.runtime.mounts}/x", mapped.id, "cli", mapper.boot, own_directory=True)
    record.write(mapper.runtime.trees, half)
    report = reconcile(mapper)
    assert (len(report.actions), report.problems) == (1, ())
    assert mapper.find(mapped.id) == mapped
    mapper.unmap(mapped.id, user="cli")


def test_a_zombie_is_gone(mapper: Mapper, bare: Path) -> None:
    """A killed process whose parent never asks for its exit status keeps nothing: neither a disk nor a half-written record."""
    zombie = os.fork()
    if zombie == 0:
        os._exit(0)
    os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
    mapper.map(Disk(str(bare), "raw"), MapOptions(), user=f"pid:{zombie}")
    half = [Path(directory) / f".x.json.{zombie}" for directory in (mapper.runtime.disks, mapper.runtime.trees)]
    others = Path(mapper.runtime.trees) / f".y.json.{os.getpid()}"
    for path in (*half, others):
        path.touch()
    assert len(reconcile(mapper).actions) == 1
    os.waitpid(zombie, 0)
    assert mapper.mapped() == ()
    assert not any(path.exists() for path in half)
    others.unlink()  # its writer lives


def test_records_of_an_earlier_boot(mapper: Mapper, bare: Path) -> None:
    """Y-01: /run on a disk: the devices are gone, and the numbers may belong to others by now."""
    mapped = mapper.map(Disk(str(bare), "raw"), MapOptions(), user="cli")
    record = mapper.journal.read(mapped.id)
    assert record is not None
    mapper.unmap(mapped.id, user="cli")
    mapper.journal.write(dataclasses.replace(record, boot="another"))
    other = disks.run("losetup", "--find", "--show", str(bare)).strip()
    try:
        assert reconcile(mapper).actions
        assert mapper.journal.ids() == ()
        assert disks.run("losetup", "-n", "-O", "BACK-FILE", other).strip() == str(bare)
    finally:
        disks.run("losetup", "-d", other)


def test_a_damaged_record_is_reported_and_stops_nobody(mapper: Mapper, bare: Path) -> None:
    (Path(mapper.runtime.disks) / "f-0-0.json").write_text("{")
    mapped = mapper.map(Disk(str(bare), "raw"), MapOptions(), user="pid:999999999")
    report = reconcile(mapper)
    assert [problem.subject for problem in report.problems] == ["f-0-0"]
    assert [action.subject for action in report.actions] == [str(bare)]
    assert not mapper.find(mapped.id)
    (Path(mapper.runtime.disks) / "f-0-0.json").unlink()


def test_a_record_that_names_another_device_stops_nobody(mapper: Mapper, bare: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.raw"
    shutil.copyfile(bare, other)
    mapped = sorted(
        (mapper.map(Disk(str(image), "raw"), MapOptions(), user=f"pid:{_gone()}") for image in (bare, other)),
        key=lambda disk: disk.id,
    )
    first = mapper.journal.read(mapped[0].id)
    assert first is not None and first.attachment is not None
    mapper.journal.write(
        dataclasses.replace(first, attachment=dataclasses.replace(first.attachment, device="/dev/null"))
    )
    report = reconcile(mapper)
    assert [action.subject for action in report.actions] == [mapped[1].disk.source]
    assert ["not a loop device" in problem.outcome for problem in report.problems] == [True]
    mapper.journal.write(first)
    assert len(reconcile(mapper).actions) == 1


def test_an_owner_that_cannot_be_asked_keeps_what_it_has_and_stops_nobody(
    mapper: Mapper, bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its daemon hangs, for example; the next one's disk is released all the same."""
    owner = types.ModuleType("owner_for_test")

    def is_alive(_user: str) -> bool:
        raise RuntimeError("no answer")

    vars(owner)["is_alive"] = is_alive
    monkeypatch.setitem(sys.modules, owner.__name__, owner)
    entries = (EntryPoint("a", owner.__name__, "", ""), EntryPoint("b", "no_such_module", "", ""))
    monkeypatch.setattr(reconciling, "installed", lambda _group: entries)
    other = tmp_path / "other.raw"
    shutil.copyfile(bare, other)
    for user in ("a:one", "b:two"):
        mapper.map(Disk(str(bare), "raw"), MapOptions(), user=user)
    mapper.map(Disk(str(other), "raw"), MapOptions(), user=f"pid:{_gone()}")
    report = reconcile(mapper)
    assert [action.subject for action in report.actions] == [str(other)]
    assert [(problem.kind, problem.subject) for problem in report.problems] == [("owner", "a:one"), ("owner", "b:two")]
    assert "no answer" in report.problems[0].outcome
    for user in ("a:one", "b:two"):
        mapper.unmap(str(bare), user=user)


def test_an_interrupted_resize_is_of_the_disk_and_not_of_its_name(mapper: Mapper, bare: Path, tmp_path: Path) -> None:
    """The image was renamed, and another one has its name: that is not what was to become larger."""
    mapped = mapper.map(Disk(str(bare), "raw"), MapOptions(), user="cli")
    begun = mapper.journal.read(mapped.id)
    assert begun is not None
    mapper.journal.write(dataclasses.replace(begun, resize_to=mapped.size + disks.MIB))
    bare.rename(tmp_path / "renamed")
    shutil.copyfile(tmp_path / "renamed", bare)
    report = reconcile(mapper)
    assert (len(report.actions), report.problems) == (1, ())
    assert bare.stat().st_size == mapped.size
    assert (tmp_path / "renamed").stat().st_size == mapped.size + disks.MIB
    assert reconcile(mapper).actions == ()
    mapper.unmap(mapped.id, user="cli")


def test_what_another_process_is_working_on_is_left(mapper: Mapper, bare: Path) -> None:
    mapped = mapper.map(Disk(str(bare), "raw"), MapOptions(), user="cli")
    record = mapper.journal.read(mapped.id)
    assert record is not None
    mapper.journal.write(dataclasses.replace(record, state=State.MAPPING))
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with Mapper.open().lock(mapped.id):
                os.write(tell, b"x")
                time.sleep(30)
        finally:
            os._exit(0)
    assert os.read(ready, 1) == b"x"
    assert reconcile(mapper).actions == ()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(ready)
    os.close(tell)
    assert len(reconcile(mapper).actions) == 1
    assert mapper.journal.ids() == ()


def test_what_is_in_use_is_waited_for(mapper: Mapper, bare: Path) -> None:
    """A killed container's mounts vanish a moment after it; whoever waits for them need not be told to repeat it."""
    mapped = mapper.map(Disk(str(bare), "raw"), MapOptions(), user=f"pid:{_gone()}")
    holder = subprocess.Popen(
        # its mount is in a mount namespace of its own, and goes with it
        ["unshare", "-m", "sh", "-c", f"mount {mapped.device} /mnt && echo ready && exec sleep 60"],
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"ready\n"
        killer = threading.Timer(0.3, holder.kill)
        killer.start()
        report = reconcile(mapper)
        killer.join()
    assert report.problems == ()
    assert [action.subject for action in report.actions] == [str(bare)]
    assert mapper.mapped() == ()


def test_what_stays_in_use_is_reported(mapper: Mapper, bare: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    mapped = mapper.map(Disk(str(bare), "raw"), MapOptions(), user=f"pid:{_gone()}")
    disks.run("mount", mapped.device, str(tmp_path / "elsewhere"))
    began = time.monotonic()
    report = reconcile(mapper, settle_seconds=0.2)
    assert 0.2 <= time.monotonic() - began < 5
    assert report.actions == ()
    assert [problem.subject for problem in report.problems] == [str(bare)]
    assert "elsewhere" in report.problems[0].outcome
    disks.run("umount", str(tmp_path / "elsewhere"))
    assert len(reconcile(mapper).actions) == 1
