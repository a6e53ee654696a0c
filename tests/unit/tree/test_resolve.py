"""Finding the volume that a line of fstab means."""

from __future__ import annotations

import pytest

from mapper_core.model import Filesystem, Partition, Volume
from mapper_core.tree.resolve import own_disks, resolve, resolve_hint, split_device

pytestmark = pytest.mark.unit


def volume(
    number: int, fs: str = "ext4", uuid: str = "", label: str = "", partuuid: str = "", name: str = ""
) -> Volume:
    return Volume(Partition(number, number << 20, 1 << 20, uuid=partuuid, label=name), Filesystem(fs, uuid, label))


EFI = volume(1, "vfat", "1234-ABCD", "EFI", "aaaaaaaa-0000-0000-0000-000000000001", "ESP")
ROOT = volume(
    2, "ext4", "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9", "root fs", "aaaaaaaa-0000-0000-0000-000000000002", "Root"
)
HOME = volume(12, "xfs", "11111111-2222-3333-4444-555555555555", "Größe", "aaaaaaaa-0000-0000-0000-00000000000c")
ODD = volume(13, "ext4", "", "a\\xff", "aaaaaaaa-0000-0000-0000-00000000000d", "a/b")
TWIN = volume(20, "ext4", "22222222-2222-3333-4444-555555555555", "twin")
TWIN2 = volume(21, "ext4", "22222222-2222-3333-4444-555555555555", "twin")
DISK = (EFI, ROOT, HOME, ODD, TWIN, TWIN2)
BARE = (volume(0, "ext4", "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9", "bare"),)
DISKS = frozenset(
    {"sda", "vda", "xvda", "hda", "nvme0n1", "mmcblk0", "by-path/pci-0000:00:05.0-scsi-0:0:0:0", "by-id/x"}
)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("UUID=0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9", ROOT),
        ("UUID=0A1B2C3D-4E5F-6071-8293-A4B5C6D7E8F9", ROOT),
        ('UUID="0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"', ROOT),
        ("UUID='0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9'", ROOT),
        ("UUID=1234-abcd", EFI),
        ("LABEL=EFI", EFI),
        ("LABEL=root fs", ROOT),
        ('LABEL="root fs"', ROOT),
        ("LABEL=Größe", HOME),
        ("LABEL=a\udcff", ODD),
        ("PARTUUID=AAAAAAAA-0000-0000-0000-000000000002", ROOT),
        ("PARTLABEL=Root", ROOT),
        ("PARTLABEL=a/b", ODD),
        ("/dev/sda2", ROOT),
        ("/dev/vda12", HOME),
        ("/dev/xvda1", EFI),
        ("/dev/hda2", ROOT),
        ("/dev/nvme0n1p2", ROOT),
        ("/dev/mmcblk0p12", HOME),
        ("/dev/disk/by-uuid/0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9", ROOT),
        ("/dev/disk/by-uuid/1234-ABCD", EFI),
        ("/dev/disk/by-label/root\\x20fs", ROOT),
        ("/dev/disk/by-label/Größe", HOME),
        ("/dev/disk/by-partuuid/aaaaaaaa-0000-0000-0000-000000000002", ROOT),
        ("/dev/disk/by-partlabel/a\\x2fb", ODD),
        ("/dev/disk/by-path/pci-0000:00:05.0-scsi-0:0:0:0-part2", ROOT),
        ("/dev/disk/by-id/x-part12", HOME),
        ("/dev/root", ROOT),
    ],
)
def test_found(spec: str, expected: Volume) -> None:
    """P-02."""
    assert resolve(spec, DISK, DISKS, ROOT).volume == expected


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("UUID=", "not on this disk"),
        ("LABEL=", "not on this disk"),
        ("UUID=ffffffff-4e5f-6071-8293-a4b5c6d7e8f9", "not on this disk"),
        ("LABEL=efi", "not on this disk"),  # letters of labels do count
        ("LABEL=ROOT FS", "not on this disk"),
        ("LABEL=\"EFI'", "not on this disk"),
        ("LABEL=xEFIx", "not on this disk"),
        ("PARTLABEL=root", "not on this disk"),
        ("label=EFI", "names nothing"),
        ('UUID="0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9', "not on this disk"),
        ("UUID=22222222-2222-3333-4444-555555555555", "matches partitions 20, 21"),
        ("LABEL=twin", "matches partitions 20, 21"),
        ("/dev/sda3", "not on this disk"),
        ("/dev/sda", "not on this disk"),
        ("/dev/sdb2", "another disk"),
        ("/dev/nvme1n1p2", "another disk"),
        ("/dev/sdap2", "another disk"),
        ("/dev/sda0002", "names nothing"),
        ("/dev/sda²", "names nothing"),
        ("/dev/nvme0n12", "another disk"),
        ("/dev/sda2/../sda1", "names nothing"),
        ("/dev/mapper/vg-root", "no logical volume"),
        ("/dev/dm-0", "no logical volume"),
        ("/dev/md127", "RAID are not opened"),
        ("/dev/vg/root", "names nothing"),
        ("/dev/disk/by-uuid/", "not on this disk"),
        ("/dev/disk/by-dname/root", "names nothing"),
        ("/dev/disk/by-UUID/1234-ABCD", "names nothing"),
        ("/dev/disk/by-path/pci-1-part2", "another disk"),
        ("/dev/disk/by-id/a/b-part2", "names nothing"),
        ("/etc/passwd", "names nothing"),
        ("", "names nothing"),
    ],
)
def test_not_found(spec: str, reason: str) -> None:
    match = resolve(spec, DISK, DISKS, ROOT)
    assert match.volume is None
    assert reason in match.reason


def test_an_empty_name_matches_nothing() -> None:
    """A partition without label or UUID must not be found by an empty one."""
    disk = (volume(1), volume(2))
    for spec in ("UUID=", 'LABEL=""', "PARTUUID=", "PARTLABEL=", "/dev/disk/by-label/"):
        assert resolve(spec, disk, DISKS).volume is None


def test_whole_disk() -> None:
    for spec in ("/dev/vda", "/dev/nvme0n1", "/dev/disk/by-id/x", "LABEL=bare"):
        assert resolve(spec, BARE, DISKS).volume == BARE[0]
    assert resolve("/dev/vda1", BARE, DISKS).volume is None


def test_by_path_needs_the_disk() -> None:
    assert resolve("/dev/disk/by-path/pci-1-part2", DISK, frozenset({"sda"})).volume is None


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("/dev/sda1", ("sda", 1)),
        ("/dev/sdab12", ("sdab", 12)),
        ("/dev/vdb", ("vdb", 0)),
        ("/dev/nvme0n1", ("nvme0n1", 0)),
        ("/dev/nvme10n2p3", ("nvme10n2", 3)),
        ("/dev/mmcblk0p1", ("mmcblk0", 1)),
        ("/dev/loop0p1", ("loop0", 1)),
        ("/dev/disk/by-path/pci-0-part1-part2", ("by-path/pci-0-part1", 2)),
        ("/dev/disk/by-id/wwn-0x5", ("by-id/wwn-0x5", 0)),
        ("sda1", ("", 0)),
        ("/dev/sr0", ("", 0)),
        ("/dev/sda1\n", ("", 0)),
    ],
)
def test_split_device(spec: str, expected: tuple[str, int]) -> None:
    assert split_device(spec) == expected


@pytest.mark.parametrize(
    ("root", "others", "expected"),
    [
        ("/dev/sda1", ["/dev/sda2", "/dev/sdb1"], {"sda"}),
        ("/dev/sdb1", ["/dev/sda2", "/dev/sdb1"], {"sdb"}),
        ("UUID=x", ["/dev/vda2"], {"vda"}),
        ("/dev/sdb1", ["/dev/disk/by-id/a-part2"], {"sdb", "by-id/a"}),
        ("UUID=x", ["/dev/vdb1"], set()),
        ("UUID=x", ["/dev/vda2", "/dev/vdb1"], {"vda"}),
        ("UUID=x", ["/dev/sda2", "/dev/vda3"], set()),
        ("", ["/dev/nvme0n1p1", "/dev/nvme0n1p2"], {"nvme0n1"}),
        ("/dev/disk/by-path/p-part1", ["/dev/disk/by-path/p-part2", "/dev/disk/by-path/q-part1"], {"by-path/p"}),
        ("UUID=x", ["/dev/disk/by-id/a-part1", "/dev/disk/by-id/b-part1"], set()),
        (
            "UUID=x",
            ["/dev/disk/by-id/a-part1", "/dev/disk/by-path/b-part1", "/dev/sda1"],
            {"by-id/a", "by-path/b", "sda"},
        ),
        ("UUID=x", ["tmpfs", "LABEL=y"], set()),
    ],
)
def test_own_disks(root: str, others: list[str], expected: set[str]) -> None:
    """P-02, P-18: a device of another disk of the machine is not this disk's partition of the same number."""
    assert own_disks([root, *others], root) == expected


@pytest.mark.parametrize(
    "hint",
    ["2", "p2", "vda2", "sda2", "/dev/sdz2", "nvme3n1p2", "LABEL=root fs", "UUID=0A1B2C3D-4E5F-6071-8293-A4B5C6D7E8F9",
     "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9", "AAAAAAAA-0000-0000-0000-000000000002", "PARTLABEL=Root",
     "PARTUUID=aaaaaaaa-0000-0000-0000-000000000002", "/dev/disk/by-label/root\\x20fs", "/dev/disk/by-path/any-part2"],
)  # fmt: skip
def test_hints(hint: str) -> None:
    assert resolve_hint(hint, DISK).volume == ROOT


@pytest.mark.parametrize(
    "hint", ["3", "0", "p", "", "vda", "LABEL=nothing", "LABEL=", "twin", "99999", "²", "/", "LABEL=twin"]
)
def test_hints_that_lead_nowhere(hint: str) -> None:
    match = resolve_hint(hint, DISK)
    assert match.volume is None
    assert match.reason


def test_hint_of_a_whole_disk() -> None:
    assert resolve_hint("0", BARE).volume == resolve_hint("vda", BARE).volume == BARE[0]


def test_names_of_the_guest_itself() -> None:
    """M-21: whatever a logical volume is called, it is the same one; such a name is no guess at the disk's own."""
    names = ("/dev/vg/root", "/dev/mapper/vg-root", "/dev/disk/by-id/dm-name-vg-root")
    root = Volume(Partition(5, 5 << 20, 1 << 20, names=names), Filesystem("ext4"))
    for name in names:
        assert resolve(name, (EFI, root), DISKS).volume == root
    assert resolve("/dev/mapper/vg-home", (EFI, root), DISKS).volume is None
