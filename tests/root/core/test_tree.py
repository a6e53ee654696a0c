"""Trees of real filesystems on the real kernel."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mapper_core.errors import (
    AmbiguousRoot,
    BadFstab,
    DeviceBusy,
    ImageInUse,
    MapperError,
    NoRootFound,
    NotMapped,
    UnsafePath,
    UsageError,
)
from mapper_core.linux import mountinfo
from mapper_core.mapping import Mapper
from mapper_core.model import Access, Disk, IdMap, IdRange, MapOptions
from mapper_core.partitions import nodes
from mapper_core.testing import disks
from mapper_core.testing.disks import Part
from mapper_core.tree import mounted
from mapper_core.tree.look import Purpose
from mapper_core.tree.mounted import TreeRequest, mount_tree, plan_tree, unmount_tree

from .conftest import make_system

pytestmark = pytest.mark.root

RW = MapOptions()
RO = MapOptions(Access.READ_ONLY)
SHIFTED = IdMap((IdRange(0, 100000, 65536),), (IdRange(0, 100000, 65536),))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "tree"
    path.mkdir()
    return path


def _request(image: Path, target: Path | str, kind: str = "raw", **values: object) -> TreeRequest:
    return TreeRequest(Disk(str(image), kind), **{"options": RW, "directory": str(target), **values})  # type: ignore[arg-type]


@contextlib.contextmanager
def _namespace(propagation: str) -> Iterator[int]:
    """A process in a mount namespace that was made now, with copies of all mounts."""
    argv = ["unshare", "-m", "--propagation", propagation, "sh", "-c", "echo; exec sleep 60"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        try:
            yield process.pid
        finally:
            process.kill()


def test_a_system_disk_is_mounted_as_its_fstab_says(mapper: Mapper, system: Path, target: Path) -> None:
    """P-01, P-05, P-06: swap is skipped, an ESP without a driver is a warning, parents come first."""
    tree = mount_tree(mapper, _request(system, target))
    assert [mount.target for mount in tree.plan.mounts][:3] == ["/", "/boot", "/home"]
    found = {entry.target: entry for entry in (*mountinfo.at(str(target)), *mountinfo.below(str(target)))}
    assert set(found) >= {str(target), f"{target}/boot", f"{target}/home"}
    assert "noatime" in found[f"{target}/home"].options
    assert any("swap" in skipped.reason for skipped in tree.plan.skipped)
    (target / "home" / "written").write_text("yes")
    unmount_tree(mapper, str(target))
    assert os.listdir(target) == []
    assert mapper.mapped() == ()
    mount_tree(mapper, _request(system, target))
    assert (target / "home" / "written").read_text() == "yes"
    unmount_tree(mapper, str(target))


def test_every_mount_on_the_host_is_nosuid_and_nodev(mapper: Mapper, system: Path, target: Path) -> None:
    """S-17."""
    mount_tree(mapper, _request(system, target))
    for entry in (*mountinfo.at(str(target)), *mountinfo.below(str(target))):
        assert {"nosuid", "nodev"} <= set(entry.options), entry
    unmount_tree(mapper, str(target))


def test_owners_are_shown_by_the_id_map_and_the_image_is_not_changed(
    mapper: Mapper, system: Path, target: Path
) -> None:
    """L-06: root inside, and 0:0 on the disk."""
    mount_tree(mapper, _request(system, target, idmap=SHIFTED))
    for path in (target / "etc/fstab", target / "home", target / "boot"):
        assert (path.stat().st_uid, path.stat().st_gid) == (100000, 100000)
    as_container_root = ["setpriv", "--reuid=100000", "--regid=100000", "--clear-groups"]
    subprocess.run([*as_container_root, "touch", "new"], cwd=target, check=True)
    unmount_tree(mapper, str(target))
    mount_tree(mapper, _request(system, target))
    assert (target / "new").stat().st_uid == 0
    assert (target / "etc/fstab").stat().st_uid == 0
    unmount_tree(mapper, str(target))


@pytest.mark.parametrize("idmap", [None, SHIFTED], ids=["plain", "idmapped"])
def test_a_missing_mount_point_is_made_as_an_init_system_would(
    mapper: Mapper, tmp_path: Path, target: Path, idmap: IdMap | None
) -> None:
    """Root of the host cannot make a directory in an idmapped mount."""
    files = (("/sbin/init", ""), ("/etc/fstab", "LABEL=new /srv/a/b ext4 defaults 0 0\n"))
    image = disks.make_disk(tmp_path / "disk", (Part("ext4", 16, (), files), Part("ext4", 8, ("-L", "new"))))
    with pytest.raises(MapperError, match="/srv"):
        mount_tree(mapper, _request(image, target, options=RO))
    mount_tree(mapper, _request(image, target, idmap=idmap))
    assert mountinfo.at(f"{target}/srv/a/b")
    assert (target / "srv").stat().st_uid == (100000 if idmap else 0)
    unmount_tree(mapper, str(target))


def test_a_bare_filesystem(mapper: Mapper, bare: Path, target: Path) -> None:
    mount_tree(mapper, _request(bare, target))
    assert (target / "hello").read_text() == "world\n"
    unmount_tree(mapper, str(target))


def test_read_only_changes_not_a_byte(mapper: Mapper, system: Path, target: Path) -> None:
    """P-10: no new UUID, no fsck, no replayed journal."""
    before = system.read_bytes()
    mount_tree(mapper, _request(system, target, options=RO))
    with pytest.raises(OSError, match="Read-only"):
        (target / "x").write_text("no")
    unmount_tree(mapper, str(target))
    assert system.read_bytes() == before


def test_the_uuid_is_the_same_after_five_mounts(mapper: Mapper, bare: Path, target: Path) -> None:
    """P-10."""
    before = disks.run("blkid", "-p", "-o", "export", str(bare))
    for _ in range(5):
        mount_tree(mapper, _request(bare, target))
        unmount_tree(mapper, str(target))
    assert disks.run("blkid", "-p", "-o", "export", str(bare)) == before


def test_two_clones_of_an_xfs_image_together(mapper: Mapper, tmp_path: Path) -> None:
    """P-09: the same UUID twice."""
    image = disks.make_filesystem(tmp_path / "a.xfs", Part("xfs", 320))
    disks.run("cp", "--sparse=always", str(image), str(tmp_path / "b.xfs"))
    uuid = disks.run("blkid", "-p", "-s", "UUID", "-o", "value", str(image))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        mount_tree(mapper, _request(tmp_path / f"{name}.xfs", tmp_path / name))
    for name in ("a", "b"):
        unmount_tree(mapper, str(tmp_path / name))
        assert disks.run("blkid", "-p", "-s", "UUID", "-o", "value", str(tmp_path / f"{name}.xfs")) == uuid


def test_subvolumes_of_btrfs(mapper: Mapper, tmp_path: Path, target: Path) -> None:
    """P-08: one filesystem, /=@ and /home=@home, by UUID and LABEL, with and without a slash."""
    image = disks.make_filesystem(tmp_path / "disk", Part("btrfs", 128, ("-L", "sys")))
    uuid = disks.run("blkid", "-p", "-s", "UUID", "-o", "value", str(image)).strip()
    mount_tree(mapper, _request(image, target, purpose=Purpose.DATA))
    disks.run("btrfs", "subvolume", "create", f"{target}/@")
    disks.run("btrfs", "subvolume", "create", f"{target}/@home")
    for directory in ("etc", "sbin", "home"):
        (target / "@" / directory).mkdir()
    (target / "@/sbin/init").write_text("#!/bin/sh\n")
    (target / "@home/mine").write_text("x")
    fstab = f"UUID={uuid} / btrfs subvol=/@,compress=zstd 0 0\nLABEL=sys /home btrfs subvol=@home 0 0\n"
    (target / "@/etc/fstab").write_text(fstab)
    unmount_tree(mapper, str(target))
    tree = mount_tree(mapper, _request(image, target))
    assert [(mount.target, mount.subvolume) for mount in tree.plan.mounts] == [("/", "@"), ("/home", "@home")]
    assert (target / "home/mine").read_text() == "x"
    unmount_tree(mapper, str(target))


@pytest.mark.parametrize("label", ["gpt", "dos"])
def test_a_tree_on_both_kinds_of_tables(mapper: Mapper, tmp_path: Path, target: Path, label: str) -> None:
    files = (("/sbin/init", ""), ("/etc/fstab", "/dev/vda1 / ext4 defaults 0 1\n/dev/vda5 /data ext4 defaults 0 2\n"))
    parts = [Part("ext4", 16, (), (*files, ("/data/.keep", "")))]
    logical = Part("ext4", 16, (), (("/logical", "5"),))
    if label == "dos":
        image = tmp_path / "disk"
        image.write_bytes(b"")
        os.truncate(image, 64 << 20)
        disks.run("sfdisk", "-q", str(image), stdin="label: dos\n1: size=16M\n2: size=40M, type=5\n5: size=16M\n")
        for number, part in ((1, parts[0]), (5, logical)):
            piece = disks.make_filesystem(tmp_path / f"p{number}", part)
            start = int(disks.run("partx", "-g", "-o", "START", "-n", str(number), str(image)).strip())
            disks.run("dd", f"if={piece}", f"of={image}", "bs=512", f"seek={start}", "conv=notrunc", "status=none")
    else:
        image = disks.make_disk(tmp_path / "disk", (*parts, *[Part("", 1)] * 3, logical))
    mount_tree(mapper, _request(image, target))
    assert (target / "data/logical").read_text() == "5"
    unmount_tree(mapper, str(target))


def test_a_second_tree_on_the_same_directory_and_things_that_are_not_ours(
    mapper: Mapper, bare: Path, target: Path
) -> None:
    mount_tree(mapper, _request(bare, target))
    with pytest.raises(ImageInUse, match="already"):
        mount_tree(mapper, _request(bare, target))
    with pytest.raises(ImageInUse, match="belongs to cli"):
        unmount_tree(mapper, str(target), owner="somebody")
    unmount_tree(mapper, str(target))
    unmount_tree(mapper, str(target))
    disks.run("mount", "-t", "tmpfs", "none", str(target))
    try:
        with pytest.raises(UsageError, match="something else"):
            mount_tree(mapper, _request(bare, target))
        with pytest.raises(NotMapped):
            unmount_tree(mapper, str(target))
    finally:
        disks.run("umount", str(target))
    with pytest.raises(UsageError, match="not a directory"):
        mount_tree(mapper, _request(bare, target / "missing"))


def test_a_directory_with_mounts_below_it(mapper: Mapper, bare: Path, target: Path) -> None:
    """They would be covered, and could not be told from the tree's own."""
    (target / "below").mkdir()
    disks.run("mount", "-t", "tmpfs", "none", f"{target}/below")
    try:
        with pytest.raises(UsageError, match="something else"):
            mount_tree(mapper, _request(bare, target))
    finally:
        disks.run("umount", f"{target}/below")
    assert mapper.journal.ids() == ()


def test_a_tree_in_use_is_not_taken_away(mapper: Mapper, bare: Path, target: Path) -> None:
    """U-13: what could not be unmounted is said to be so, by whom, and stays to be unmounted later."""
    mount_tree(mapper, _request(bare, target))
    user = subprocess.Popen(["sleep", "60"], cwd=target)
    try:
        with pytest.raises(DeviceBusy, match=str(user.pid)):
            unmount_tree(mapper, str(target))
    finally:
        user.kill()
        user.wait()
    unmount_tree(mapper, str(target))


def test_a_tree_that_somebody_has_unmounted_still_holds_its_disk(mapper: Mapper, bare: Path, target: Path) -> None:
    """U-07: that nothing is mounted is no reason to stop; the device is released all the same."""
    device = mount_tree(mapper, _request(bare, target)).disk.device
    subprocess.run(["umount", str(target)], check=True, timeout=30)
    unmount_tree(mapper, str(target))
    assert mapper.journal.ids() == ()
    assert not nodes.has_medium(device)


def test_a_tree_held_in_another_mount_namespace_is_named(mapper: Mapper, bare: Path, target: Path) -> None:
    """U-11."""
    mount_tree(mapper, _request(bare, target))
    with _namespace("private") as pid, pytest.raises(DeviceBusy, match=str(pid)):
        unmount_tree(mapper, str(target))
    unmount_tree(mapper, str(target))


def test_services_started_meanwhile_do_not_hold_a_staged_tree(mapper: Mapper, bare: Path) -> None:
    """L-18: systemd's services get slave copies of all mounts; an unmount has to reach them."""
    directory = f"{mapper.runtime.mounts}/one-1.0"
    mount_tree(mapper, _request(bare, directory))
    with _namespace("slave") as pid:
        assert mountinfo.at(directory, pid=pid)
        unmount_tree(mapper, directory)
        assert mapper.mapped() == ()


def test_cleaning_up_never_removes_content(mapper: Mapper, bare: Path) -> None:
    """U-12: rmdir only."""
    directory = Path(f"{mapper.runtime.mounts}/one-1.0")
    mount_tree(mapper, _request(bare, directory))
    disks.run("umount", str(directory))
    (directory / "precious").write_text("of somebody")
    with pytest.raises(OSError, match="not empty"):
        unmount_tree(mapper, str(directory))
    assert (directory / "precious").read_text() == "of somebody"
    (directory / "precious").unlink()
    unmount_tree(mapper, str(directory))


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("/dev/sdb1 /data ext4 defaults 0 0\n", BadFstab),
        ("UUID=00000000-0000-0000-0000-000000000000 /data ext4 defaults 0 0\n", BadFstab),
        ("LABEL=home /../../etc ext4 defaults 0 0\n", MapperError),
        ("LABEL=home /proc/sys ext4 defaults 0 0\n", UnsafePath),
        ("one two\n", BadFstab),
        ("LABEL=home relative ext4 defaults 0 0\n", MapperError),
    ],
)
def test_a_bad_fstab_is_refused_and_nothing_is_left(
    mapper: Mapper, tmp_path: Path, target: Path, line: str, error: type[MapperError]
) -> None:
    """S-09, P-02; the leak oracle looks afterwards."""
    image = make_system(tmp_path / "bad.raw", line)
    with pytest.raises(error, match=r"bad\.raw"):
        mount_tree(mapper, _request(image, target))
    assert mapper.journal.ids() == ()
    assert os.listdir(mapper.runtime.trees) == []


def test_links_of_the_image_do_not_lead_out_of_it(mapper: Mapper, tmp_path: Path, target: Path) -> None:
    """S-10: /home -> /canary, an absolute link to a directory of the host."""
    canary = tmp_path / "canary"
    canary.mkdir()
    image = make_system(tmp_path / "disk.raw")
    mount_tree(mapper, _request(image, target, purpose=Purpose.DATA, root_hint="3"))
    (target / "home/.keep").unlink()
    (target / "home").rmdir()
    (target / "home").symlink_to(canary)
    unmount_tree(mapper, str(target))
    with pytest.raises(UnsafePath, match="leads nowhere"):
        mount_tree(mapper, _request(image, target))
    mount_tree(mapper, _request(image, target, purpose=Purpose.DATA, root_hint="3"))
    Path(f"{target}{canary}").mkdir(parents=True)
    unmount_tree(mapper, str(target))
    tree = mount_tree(mapper, _request(image, target))
    assert mountinfo.at(str(canary)) == ()
    inside = f"{target}{canary}"
    assert [entry.target for entry in mountinfo.below(str(target))].count(inside) == 1
    assert tree.plan.mounts[-1].target == "/home"
    unmount_tree(mapper, str(target))
    assert os.listdir(canary) == []


def test_no_root_and_two_roots(mapper: Mapper, tmp_path: Path, target: Path) -> None:
    """P-03, P-04."""
    empty = disks.make_disk(tmp_path / "empty", (Part("ext4", 8), Part("ext4", 8)))
    with pytest.raises(NoRootFound, match="ext4"):
        mount_tree(mapper, _request(empty, target, purpose=Purpose.SYSTEM))
    root = Part("ext4", 8, (), (("/sbin/init", ""), ("/etc/fstab", "")))
    two = disks.make_disk(tmp_path / "two", (root, root))
    with pytest.raises(AmbiguousRoot, match="partition 1"):
        mount_tree(mapper, _request(two, target))
    mount_tree(mapper, _request(two, target, root_hint="2"))
    assert mountinfo.at(str(target))[-1].source.endswith("p2")
    unmount_tree(mapper, str(target))


def test_planning_mounts_nothing(mapper: Mapper, system: Path) -> None:
    before = mountinfo.entries()
    plan = plan_tree(mapper, Disk(str(system), "raw"))
    assert [mount.target for mount in plan.mounts][:3] == ["/", "/boot", "/home"]
    assert mountinfo.entries() == before
    assert mapper.mapped() == ()


def test_two_names_that_begin_alike(mapper: Mapper, tmp_path: Path) -> None:
    """disk.1 beside disk.10: taking one away leaves the other."""
    for number in ("1", "10"):
        image = disks.make_filesystem(tmp_path / f"disk.{number}", Part("ext4", 8))
        mount_tree(mapper, _request(image, f"{mapper.runtime.mounts}/one-7.{number}"))
    unmount_tree(mapper, f"{mapper.runtime.mounts}/one-7.1")
    assert [tree.directory for tree in mounted.records(mapper)] == [f"{mapper.runtime.mounts}/one-7.10"]
    assert mountinfo.at(f"{mapper.runtime.mounts}/one-7.10")
    unmount_tree(mapper, f"{mapper.runtime.mounts}/one-7.10")
