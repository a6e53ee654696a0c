"""plan, mount and umount."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from mapper_core.linux import mountinfo
from mapper_core.testing import disks
from mapper_core.testing.disks import Part

from .conftest import Cli

pytestmark = pytest.mark.root


@pytest.fixture
def target(tmp_path: Path) -> Path:
    directory = tmp_path / "mnt"
    directory.mkdir()
    return directory


def test_plan_shows_what_would_be_mounted_and_what_not(cli: Cli, system: Path, tmp_path: Path) -> None:
    qcow2 = disks.convert(system, "qcow2", tmp_path / "system.qcow2")
    before = qcow2.read_bytes()
    for image, kind in ((system, "raw"), (qcow2, "qcow2")):
        text = cli.ok("plan", image, "-f", kind)
        mounts, skipped = text.split("\n\n")
        assert [line.split()[:3] for line in mounts.splitlines()[1:]] == [["/", "1", "ext4"], ["/home", "2", "ext4"]]
        assert "/dev/sdb1 none swap" in skipped and "proc /proc proc" in skipped
        plan = cli("plan", image, "-f", kind, "--json").json
        assert set(plan) == {"mounts", "skipped", "warnings"}
        assert [item["target"] for item in plan["mounts"]] == ["/", "/home"]
        assert all(item["reason"] for item in plan["skipped"]) and len(plan["skipped"]) == 2
    assert qcow2.read_bytes() == before
    assert cli.ok("ls") == ""


def test_mount_and_umount(cli: Cli, system: Path, target: Path) -> None:
    assert cli.ok("mount", system, target, "-f", "raw") == ""
    assert (target / "etc/os-release").read_text() == "ID=debian\n"
    assert (target / "home/user/file").read_text() == "mine\n"
    (target / "new").write_text("x")
    disk_table, tree_table = cli.ok("ls").split("\n\n")
    assert f"tree:{target}" in disk_table
    assert tree_table.splitlines()[1].split() == [str(target), disk_table.split("\n")[1].split()[0], "cli", "mounted"]
    (tree,) = cli("ls", "--json").json["trees"]
    assert (tree["directory"], tree["owner"], tree["state"]) == (str(target), "cli", "mounted")
    # the device belongs to the tree
    cli.fails(5, "ImageInUse", "unmap", system)
    assert cli.ok("umount", target) == ""
    assert cli.ok("umount", target) == ""
    assert (cli.ok("ls"), list(target.iterdir())) == ("", [])


def test_mount_in_json_has_the_plan(cli: Cli, system: Path, target: Path) -> None:
    tree = cli("mount", system, target, "-f", "raw", "-r", "--json").json
    assert set(tree) == {"directory", "disk", "plan", "owner"}
    assert tree["disk"]["access"] == "ro"
    with pytest.raises(OSError, match="Read-only"):
        (target / "new").touch()
    cli.ok("umount", target)


def test_an_id_map_changes_what_is_seen_and_not_the_image(cli: Cli, system: Path, target: Path) -> None:
    cli.ok("mount", system, target, "-f", "raw", "--idmap", "100000:65536")
    found = (target / "etc").stat()
    assert (found.st_uid, found.st_gid) == (100000, 100000)
    cli.ok("umount", target)
    cli.ok("mount", system, target, "-f", "raw", "-r")
    assert (target / "etc").stat().st_uid == 0
    cli.ok("umount", target)


def test_several_trees_go_at_once(cli: Cli, system: Path, raw: Path, tmp_path: Path) -> None:
    targets = [tmp_path / "one", tmp_path / "two"]
    for image, directory in zip((system, raw), targets, strict=True):
        directory.mkdir()
        cli.ok("mount", image, directory, "-f", "raw")
    cli.ok("umount", *targets)
    assert cli.ok("ls") == ""


def test_a_tree_in_use_stays(cli: Cli, system: Path, target: Path) -> None:
    cli.ok("mount", system, target, "-f", "raw")
    fd = os.open(target / "etc/fstab", os.O_RDONLY)
    try:
        error = cli.fails(5, "DeviceBusy", "umount", target)
        assert str(os.getpid()) in error["message"]
        assert cli.fails(5, "ImageInUse", "unmap", system)["hint"] == f"mapper-cli umount {target}"
    finally:
        os.close(fd)
    done = cli("umount", ".", cwd=target)
    assert done.status == 0, f"it is in its own way: {done.err}"


def test_wrong_directories(cli: Cli, system: Path, target: Path) -> None:
    missing = target / "missing"
    assert cli.fails(2, "UsageError", "mount", system, missing, "-f", "raw")["hint"] == f"mkdir {missing}"
    assert cli.fails(2, "UsageError", "mount", system, system, "-f", "raw")["hint"] == "name a directory"
    subprocess.run(["mount", "-t", "tmpfs", "none", target], check=True)
    try:
        cli.fails(3, "NotMapped", "umount", target)
        cli.fails(2, "UsageError", "mount", system, target, "-f", "raw")
        assert len(mountinfo.at(str(target))) == 1
    finally:
        subprocess.run(["umount", target], check=True)


def test_mounting_twice_on_one_directory(cli: Cli, system: Path, raw: Path, target: Path) -> None:
    cli.ok("mount", system, target, "-f", "raw")
    cli.fails(5, "ImageInUse", "mount", raw, target, "-f", "raw")
    assert (target / "etc/fstab").exists()
    cli.ok("umount", target)


def test_a_hint_says_which_is_the_root(cli: Cli, tmp_path: Path, target: Path) -> None:
    files = (("/sbin/init", "#!/bin/sh\n"), ("/etc/hostname", "x\n"))
    two = disks.make_disk(
        tmp_path / "two.raw", (Part("ext4", 8, ("-L", "old"), files), Part("ext4", 8, ("-L", "new"), files))
    )
    error = cli.fails(4, "AmbiguousRoot", "mount", two, target, "-f", "raw")
    assert str(two) in error["message"] and "LABEL=" in error["hint"]
    for hint, number in (("LABEL=old", 1), ("2", 2)):
        plan = cli("plan", two, "-f", "raw", "--root", hint, "--json").json
        assert [item["volume"]["partition"]["number"] for item in plan["mounts"]] == [number]


def test_a_disk_with_nothing_to_mount(cli: Cli, tmp_path: Path, target: Path) -> None:
    image = disks.make_disk(tmp_path / "swap.raw", (Part("swap", 4, type="S"),))
    for words in (("plan", image), ("mount", image, target)):
        assert str(image) in cli.fails(4, "NoRootFound", *words, "-f", "raw")["message"]
