"""Disks that grow: while the container runs, and when a machine is deployed on disks that are larger than their images."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest
from mapper_driver.lxd.client import LxdClient

from mapper_core.mapping import Mapper
from mapper_core.reconcile import reconcile
from mapper_core.testing import disks
from mapper_core.testing.disks import MIB, Part

from .conftest import Lab, lxd_is_enough, run
from .machine import Machine, ok
from .one import One, disk_xml

pytestmark = [pytest.mark.lxd, pytest.mark.timeout(240)]

VM = 70
Done = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Sized:
    """A machine whose disks say how large they are.

    :param disks: format, and elements of the ``<DISK>`` besides, by number.
    """

    one: One
    client: LxdClient
    images: ModuleType
    disks: dict[int, tuple[str, dict[str, str]]] = field(default_factory=dict)

    def path(self, number: int) -> Path:
        return self.one.vm_dir(VM) / f"disk.{number}"

    def add(self, number: int, path: Path, kind: str = "raw", **elements: str) -> None:
        """Make an image a disk of the machine; its size is the one of the image."""
        if kind == "raw":
            if path != self.path(number):
                path.rename(self.path(number))
        else:
            disks.convert(path, kind, self.path(number))
            path.unlink()
        size = str(self.virtual_size(number, kind) // MIB)
        self.disks[number] = (kind, {"SIZE": size, "ORIGINAL_SIZE": size, **elements})

    def system(self, *behind: Part, filesystem: str = "btrfs", label: str = "gpt", kind: str = "qcow2") -> None:
        """Disk 0: a small system in a partition behind another one."""
        tree = self.one.directory / "tree"
        tree.mkdir()
        self.images.write_system(str(tree), fstab="")
        options = ("--rootdir", str(tree)) if filesystem == "btrfs" else ("-d", str(tree))
        parts = (Part("ext4", 8), Part(filesystem, 128, options), *behind)
        self.add(0, disks.make_disk(self.one.directory / "raw", parts, label=label), kind)

    def virtual_size(self, number: int, kind: str) -> int:
        text = disks.run("qemu-img", "info", "-U", "-f", kind, str(self.path(number)))
        return int(re.findall(r"virtual size:.*\((\d+) bytes\)", text)[0])

    @property
    def machine(self) -> Machine:
        each = "".join(disk_xml(number, kind=kind, **elements) for number, (kind, elements) in self.disks.items())
        return Machine(self.one, self.client, VM, self.one.vm_xml(VM, each, deployed=True), lcm_state=62)

    def resize(self, number: int, mib: int, previous: int | None = None, **environment: str) -> Done:
        """What oned sends; in its database the disk has the new size from then on, or at a failure the old one."""
        kind, elements = self.disks[number]
        asked = elements | {"SIZE": str(mib), "SIZE_PREV": str(previous or elements["SIZE"]), "RESIZE": "YES"}
        self.disks[number] = (kind, asked)
        done = self.machine.call(
            "resize_disk", self.machine.name, str(number), str(mib), "copy-of-stdin", "node", **environment
        )
        self.disks[number] = (kind, elements | ({"SIZE": str(mib)} if done.returncode == 0 else {}))
        return done

    def df(self, path: str) -> int:
        """Room of a filesystem, as the container's own df says, MiB."""
        return int(self.machine.inside("df", "-P", "-k", path).splitlines()[-1].split()[1]) // 1024

    def fill(self, path: str, mib: int) -> str:
        """Write a file; return its checksum."""
        self.machine.inside("dd", "if=/dev/urandom", f"of={path}", "bs=1M", f"count={mib}", "conv=fsync")
        return self.sum(path)

    def take(self, path: str, mib: int) -> None:
        """Make a file to which that much room belongs."""
        self.machine.inside("busybox", "fallocate", "-l", f"{mib}M", path)

    def sum(self, path: str) -> str:
        return self.machine.inside("busybox", "md5sum", path).split()[0]


@pytest.fixture
def sized(lab: Lab, client: LxdClient, images: ModuleType, tmp_path: Path) -> Iterator[Sized]:
    """A machine without disks yet; at the end nothing of it may be left."""
    found = Sized(One(tmp_path, lab.socket), client, images)
    try:
        yield found
    finally:
        if found.disks:
            done = found.machine.power("cancel")
    if found.disks:
        ok(done)
        found.machine.nothing_left()


def _can_grow_mounted_ext4() -> bool:
    """Whether the kernel lets us enlarge a mounted ext4 (CAP_SYS_RESOURCE)."""
    status = Path("/proc/self/status").read_text()
    return bool(int(status.split("CapEff:")[1].split()[0], 16) >> 24 & 1)


def test_disks_of_all_kinds_grow_while_the_container_runs(sized: Sized) -> None:
    """A qcow2 with GPT, a bare XFS, an MBR with a logical partition; data and processes stay, twice is once."""
    sized.system()
    sized.add(1, disks.make_filesystem(sized.path(1), Part("xfs", 320)), TARGET="/data")
    script = "label: dos\nsize=4M,type=82\ntype=5\nsize=112M,type=L\n"
    disk = disks.make_filesystem(sized.path(2), Part("", 124))
    disks.run("sfdisk", "-q", str(disk), stdin=script)
    piece = disks.make_filesystem(disk.with_name("piece"), Part("btrfs", 112))
    start = disks.run("partx", "-g", "-o", "START", "-n", "5", str(disk)).strip()
    disks.run("dd", f"if={piece}", f"of={disk}", "bs=512", f"seek={start}", "conv=notrunc,sparse", "status=none")
    sized.add(2, disk, TARGET="/srv")
    machine = sized.machine
    ok(machine.deploy())
    pid = machine.client.state(machine.name).pid
    for number, path, by in ((0, "/", 200), (1, "/data", 400), (2, "/srv", 300)):
        kind, elements = sized.disks[number]
        new, before = int(elements["SIZE"]) + by, sized.df(path)
        kept = sized.fill(f"{path}/kept", 8)
        seen = machine.seen()
        done = ok(sized.resize(number, new, MAPPER_ONE_VERSION="7.0.0"))
        assert done.stdout == "" and "room for" in done.stderr
        assert sized.df(path) - before > by * 0.8
        assert sized.virtual_size(number, kind) == new * MIB
        assert sized.sum(f"{path}/kept") == kept
        sized.take(f"{path}/large", before)  # more than there was room for
        again = ok(sized.resize(number, new, previous=int(elements["SIZE"]), MAPPER_ONE_VERSION="7.0.0"))
        assert "that size already" in again.stderr
        assert machine.seen() == seen
    assert machine.client.state(machine.name).pid == pid
    # oned goes on to say ORIGINAL_SIZE; the machine comes back as it is
    room = [sized.df(path) for path in ("/", "/data", "/srv")]
    ok(sized.machine.power("shutdown"))
    ok(sized.machine.deploy())
    assert [sized.df(path) for path in ("/", "/data", "/srv")] == room
    assert sized.sum("/kept") and sized.sum("/srv/kept")


@lxd_is_enough
def test_the_storage_driver_was_first(sized: Sized) -> None:
    """Some storages are enlarged before the action, and a block device is by nobody else."""
    sized.system()
    sized.add(1, disks.make_filesystem(sized.path(1), Part("btrfs", 128)), TARGET="/data")
    volume = disks.make_filesystem(sized.one.directory / "volume", Part("btrfs", 128))
    device = run("losetup", "--find", "--show", str(volume)).strip()
    try:
        sized.path(2).symlink_to(device)
        sized.add(2, sized.path(2), TARGET="/volume", DISK_TYPE="BLOCK", TYPE="BLOCK")
        ok(sized.machine.deploy())
        os.truncate(sized.path(1), 300 * MIB)
        ok(sized.resize(1, 300))
        assert sized.df("/data") > 280
        refused = sized.resize(2, 300)
        assert (refused.returncode != 0 and "disk.2" in refused.stderr) or device in refused.stderr
        assert sized.df("/volume") == 128
        os.truncate(volume, 300 * MIB)
        run("losetup", "-c", device)
        ok(sized.resize(2, 300))
        assert sized.df("/volume") > 280
        ok(sized.machine.power("cancel"))
    finally:
        run("losetup", "-d", device)


@lxd_is_enough
def test_what_cannot_grow_is_refused_before_anything_changes(sized: Sized) -> None:
    """P-14, U-03. A smaller disk, one that cannot be written, one whose end is not the container's, one that is none."""
    sized.system()
    parts = (Part("btrfs", 128), Part("swap", 4, type="S"))
    sized.add(1, disks.make_disk(sized.path(1), parts), TARGET="/data")
    sized.add(2, disks.make_filesystem(sized.path(2), Part("btrfs", 128)), TARGET="/ro", READONLY="YES")
    ok(sized.machine.deploy())
    machine = sized.machine
    before = [sized.df(path) for path in ("/", "/data", "/ro")]
    sizes = [sized.path(number).stat().st_size for number in (1, 2)]
    large = int(sized.disks[0][1]["SIZE"])
    for number, mib, words in (
        (0, large - 1, "never made smaller"),
        (1, 400, "partition 2 (swap)"),
        (2, 400, "read-only"),
    ):
        done = sized.resize(number, mib)
        assert done.returncode in (6, 7), (done.returncode, done.stderr)
        assert words in done.stderr, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr
    for argv in (("5", "400"), ("0", "500")):
        done = machine.call("resize_disk", machine.name, *argv, "copy", "node")
        assert done.returncode == 2, done.stderr
    assert [sized.df(path) for path in ("/", "/data", "/ro")] == before
    assert [sized.path(number).stat().st_size for number in (1, 2)] == sizes
    assert sized.virtual_size(0, "qcow2") == large * MIB
    # not running; not there
    machine.client.freeze(machine.name)
    done = sized.resize(0, large + 100)
    assert done.returncode == 12 and "frozen" in done.stderr
    machine.client.unfreeze(machine.name)
    machine.client.stop(machine.name)
    done = sized.resize(0, large + 100)
    assert done.returncode == 12 and "stopped" in done.stderr
    ok(machine.power("cancel"))
    done = sized.resize(0, large + 100)
    assert done.returncode == 3 and "one-70" in done.stderr
    assert sized.virtual_size(0, "qcow2") == large * MIB


KILLER = """#!{python}
import os, signal, sys
from mapper_core import grow
from mapper_core.linux import direct, filesystem_size
from mapper_driver.main import main
module = {{"table": direct, "filesystem": filesystem_size}}["{place}"]
setattr(module, {{"table": "write", "filesystem": "grow"}}["{place}"], lambda *_: os.kill(os.getpid(), signal.SIGKILL))
sys.exit(main())
"""


@lxd_is_enough
@pytest.mark.parametrize("place", ["table", "filesystem"])
def test_killed_in_the_middle_it_runs_on_and_the_next_call_does_the_rest(sized: Sized, place: str) -> None:
    sized.system()
    ok(sized.machine.deploy())
    before, large = sized.df("/"), int(sized.disks[0][1]["SIZE"])
    kept = sized.fill("/kept", 8)
    killer = sized.one.directory / "killer"
    killer.write_text(KILLER.format(python=sys.executable, place=place))
    killer.chmod(0o755)
    assert sized.resize(0, large + 200, MAPPER_DRIVER=str(killer)).returncode == -9
    assert sized.df("/") == before and sized.sum("/kept") == kept
    refused = sized.resize(0, large + 100)
    assert refused.returncode == 7 and "never made smaller" in refused.stderr
    ok(sized.resize(0, large + 200))
    assert sized.df("/") - before > 160
    mapper = Mapper.open()
    reconcile(mapper)  # the killed process has held the disk too
    assert [user.split(":")[0] for disk in mapper.mapped() for user in disk.users] == ["tree"]


@lxd_is_enough
def test_ext4(sized: Sized) -> None:
    """Where the kernel does not let us enlarge it while it is mounted, that is said, and the next deployment does it."""
    sized.system(filesystem="ext4")
    ok(sized.machine.deploy())
    before, large = sized.df("/"), int(sized.disks[0][1]["SIZE"])
    done = sized.resize(0, large + 200)
    if _can_grow_mounted_ext4():
        ok(done)
    else:
        assert done.returncode != 0
        assert "CAP_SYS_RESOURCE" in done.stderr and f"disk 0 has {large + 200} MiB" in done.stderr
        assert sized.df("/") == before
        sized.disks[0][1]["SIZE"] = str(large + 200)  # as the storage driver does it for a machine that is off
        ok(sized.machine.power("shutdown"))
        ok(sized.machine.deploy())
    assert sized.df("/") - before > 160
    sized.take("/large", before)


@lxd_is_enough
@pytest.mark.parametrize("asked", ["asked", "not asked"])
def test_what_was_enlarged_at_instantiation_grows_when_that_was_asked_for(sized: Sized, asked: str) -> None:
    """P-12 to P-14: partitions too, once, and never otherwise. A disk that cannot is mounted all the same."""
    sized.system(filesystem="ext4", label="dos", kind="raw")
    sized.add(1, disks.make_filesystem(sized.path(1), Part("ext4", 24)), TARGET="/data")
    parts = (Part("ext4", 24), Part("swap", 4, type="S"))
    sized.add(2, disks.make_disk(sized.path(2), parts), TARGET="/tail")
    for number in range(3):
        _, elements = sized.disks[number]
        size = int(elements["SIZE"]) + 200
        os.truncate(sized.path(number), size * MIB)
        if asked == "asked":
            elements["SIZE"] = str(size)
    done = ok(sized.machine.deploy(MAPPER_ONE_VERSION="7.0.0"))
    room = [sized.df(path) for path in ("/", "/data", "/tail")]
    assert room[2] < 24
    if asked == "asked":
        assert room[0] > 300 and room[1] > 200
        assert "disk 2 is larger than what is on it" in done.stderr and "partition 2 (swap)" in done.stderr
        assert done.stderr.count("larger than what is on it") == 1
        assert "disk 0: partition 2 has" in done.stderr and "disk 1: the disk has" in done.stderr
    else:
        assert room[0] < 130 and room[1] < 24
        assert "larger" not in done.stderr
    kept = sized.fill("/data/kept", 8)
    ok(sized.machine.power("shutdown"))
    again = ok(sized.machine.deploy(MAPPER_ONE_VERSION="7.0.0"))
    assert [sized.df(path) for path in ("/", "/data", "/tail")] == room
    assert sized.sum("/data/kept") == kept
    assert "room for" not in again.stderr
