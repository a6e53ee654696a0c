"""create, resize and snapshot, as they are typed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mapper_core.testing import disks
from mapper_core.testing.disks import MIB, Part

from .conftest import Cli

pytestmark = pytest.mark.root


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MIB)  # and not all: the memory of later tests is measured


@pytest.mark.parametrize("kind", ["raw", "qcow2", "vmdk"])
def test_a_new_disk_is_empty_and_mine(cli: Cli, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "new"
    assert cli.ok("create", path, "1.5G", "-f", kind) == ""
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_blocks * 512 < MIB
    device = cli.ok("map", path, "-f", kind)
    assert disks.run("blockdev", "--getsize64", device).strip() == str(1536 * MIB)
    cli.ok("unmap", path)
    before = _beginning(path)
    assert "exists already" in cli.fails(7, "AlreadyExists", "create", path, "1G", "-f", kind)["message"]
    assert _beginning(path) == before


def test_bad_requests_leave_no_file(cli: Cli, tmp_path: Path) -> None:
    cli.fails(2, "UsageError", "create", tmp_path / "x", "1000", "-f", "raw")
    cli.fails(2, "UsageError", "create", tmp_path / "x", "1G")
    cli.fails(3, "PluginMissing", "create", tmp_path / "x", "1G", "-f", "vhdx")
    cli.fails(3, "NotFound", "create", tmp_path / "no" / "x", "1G", "-f", "raw")
    cli.fails(1, "KernelError", "create", tmp_path / "x", "4096P", "-f", "raw")
    cli.fails(1, "CommandFailed", "create", tmp_path / "x", "4096P", "-f", "qcow2")
    # qemu-img makes it, and it is more than is read again
    cli.fails(4, "UnsupportedFormat", "create", tmp_path / "x", "100T", "-f", "vmdk")
    cli.fails(2, "UsageError", "create", tmp_path / 'a"b', "1M", "-f", "vmdk")
    cli.fails(1, "KernelError", "create", tmp_path / ("x" * 300), "1M", "-f", "raw")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    cli.fails(7, "AlreadyExists", "create", tmp_path / "link", "1G", "-f", "raw")
    assert sorted(os.listdir(tmp_path)) == ["link"]


def test_a_disk_grows_with_its_root(cli: Cli, tmp_path: Path) -> None:
    raw = disks.make_disk(tmp_path / "raw", (Part("", 4), Part("ext4", 24, (), (("/sbin/init", ""), ("/etc/x", "")))))
    path = disks.convert(raw, "qcow2", tmp_path / "disk")
    done = cli("resize", path, "+100M", "-f", "qcow2", "--grow", "--json")
    assert done.status == 0, done.err
    grown = done.json["grown"]
    assert (done.json["size"], grown["partition"]["number"]) == (132 * MIB, 2)
    assert grown["capacity"] > 100 * MIB > grown["capacity_before"]
    assert cli("inspect", path, "-f", "qcow2", "--json").json["virtual_size"] == 132 * MIB
    cli.ok("resize", path, "132M", "-f", "qcow2")
    cli.fails(7, "Refused", "resize", path, "100M", "-f", "qcow2")
    cli.fails(2, "UsageError", "resize", path, "+1M", "-f", "qcow2", "--partition", "2")
    cli.fails(4, "FormatMismatch", "resize", path, "+1M", "-f", "raw")  # S-05
    cli.fails(3, "NotFound", "resize", path, "+1M", "-f", "qcow2", "--grow", "--partition", "9")


def test_snapshots_by_hand(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    cli.ok("create", path, "16M", "-f", "qcow2")
    assert cli("snapshot", "list", path, "-f", "qcow2", "--json").json == []
    assert cli.ok("snapshot", "create", path, "before", "-f", "qcow2") == ""
    assert cli.ok("snapshot", "list", path, "-f", "qcow2").splitlines()[1].split()[:2] == ["before", "16M"]
    cli.fails(7, "AlreadyExists", "snapshot", "create", path, "before", "-f", "qcow2")
    cli.ok("resize", path, "32M", "-f", "qcow2")
    cli.ok("snapshot", "revert", path, "before", "-f", "qcow2")
    assert cli("inspect", path, "-f", "qcow2", "--json").json["virtual_size"] == 16 * MIB
    cli.ok("snapshot", "delete", path, "before", "-f", "qcow2")
    cli.fails(3, "SnapshotMissing", "snapshot", "delete", path, "before", "-f", "qcow2")
    cli.fails(2, "UsageError", "snapshot", "create", path, "-f", "qcow2")
    cli.fails(2, "UsageError", "snapshot", "list", path, "name", "-f", "qcow2")
    cli.ok("create", tmp_path / "raw", "1M", "-f", "raw")
    assert (
        "no hook snapshots"
        in cli.fails(6, "NotSupported", "snapshot", "list", tmp_path / "raw", "-f", "raw")["message"]
    )


def test_the_list_of_plugins_tells_what_formats_can(cli: Cli) -> None:
    found = {item["name"]: item["capabilities"] for item in cli("plugins", "--json").json}
    assert found["raw"] == ["inspect", "create", "resize"]
    assert found["vmdk"] == ["inspect", "create"]
    assert "snapshot_revert" in found["qcow2"]
    assert "inspect,create,resize" in cli.ok("plugins")
