"""Choosing the root filesystem."""

from __future__ import annotations

import itertools

import pytest

from mapper_core.errors import AmbiguousRoot, NoRootFound, UnknownFilesystem
from mapper_core.model import Filesystem, Partition, Volume
from mapper_core.tree import dps
from mapper_core.tree.roots import RootEvidence, choose_root, root_subvolume

pytestmark = pytest.mark.unit

LINUX = "0fc63daf-8483-4772-8e79-3d69d8477de4"
ROOT_X86 = dps.ROOT_BY_MACHINE["x86_64"]


def volume(number: int, fs: str, kind: str = LINUX, label: str = "") -> Volume:
    return Volume(Partition(number, number << 20, 1 << 20, type=kind), Filesystem(fs, f"uuid-{number}", label))


BIOS = volume(14, "", "21686148-6449-6e6f-744e-656564454649")
ESP = volume(15, "vfat", dps.ESP)
BOOT = volume(1, "ext4", dps.XBOOTLDR)
ROOT = volume(2, "ext4")
HOME = volume(3, "xfs")
SWAP = volume(4, "swap")
LVM = volume(5, "LVM2_member")
CD = volume(6, "iso9660")


def whole(item: Volume) -> RootEvidence:
    return RootEvidence(item, has_fstab=True, has_init=True, has_etc=True, os_release="debian")


def choose(
    *volumes: Volume, contents: tuple[RootEvidence, ...] = (), hint: str = "", machine: str = "x86_64"
) -> Volume:
    return choose_root(volumes, contents, hint, architecture=machine)


# --- a hint ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hint", ["3", "vda3", "UUID=uuid-3", "uuid-3"])
def test_a_hint_decides(hint: str) -> None:
    assert choose(ROOT, HOME, volume(9, "ext4", ROOT_X86), contents=(whole(ROOT),), hint=hint) == HOME


def test_a_hint_that_leads_nowhere() -> None:
    with pytest.raises(NoRootFound, match=r"LABEL=x is not on this disk; found: partition 2: ext4; partition 4: swap"):
        choose(ROOT, SWAP, hint="LABEL=x")


@pytest.mark.parametrize("item", [SWAP, LVM, BIOS])
def test_a_hint_at_what_cannot_be_mounted(item: Volume) -> None:
    with pytest.raises(UnknownFilesystem, match="cannot be mounted"):
        choose(ROOT, item, hint=str(item.partition.number))


# --- a bare filesystem ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fs", ["ext4", "xfs", "btrfs", "vfat", "iso9660", "squashfs"])
def test_a_bare_filesystem_is_the_root_without_question(fs: str) -> None:
    """P-04: no fstab, no init, nothing."""
    item = volume(0, fs, "")
    assert choose(item) == choose(item, contents=(RootEvidence(item),)) == item


@pytest.mark.parametrize(("fs", "what"), [("", "nothing recognised"), ("swap", "swap"), ("ntfs", "ntfs")])
def test_a_bare_device_without_a_filesystem(fs: str, what: str) -> None:
    with pytest.raises(NoRootFound, match=f"found: the whole disk: {what}"):
        choose(volume(0, fs, ""))


# --- type GUIDs -----------------------------------------------------------------------------------------------


def test_the_type_guid_decides() -> None:
    """P-04: the Discoverable Partitions Specification, also against the content of others."""
    typed = volume(7, "ext4", ROOT_X86)
    assert choose(BOOT, HOME, typed, SWAP) == typed
    assert choose(BOOT, HOME, typed, SWAP, contents=(whole(HOME),)) == typed
    assert choose(BOOT, HOME, typed, SWAP, contents=(whole(HOME), RootEvidence(typed))) == typed


def test_the_type_guid_of_another_machine_does_not_count() -> None:
    typed = volume(7, "ext4", dps.ROOT_BY_MACHINE["aarch64"])
    assert choose(HOME, typed, machine="aarch64") == typed
    for machine in ("x86_64", "unheard-of"):
        with pytest.raises(AmbiguousRoot):
            choose(HOME, typed, machine=machine)


def test_two_partitions_of_the_root_type() -> None:
    """A/B images: the content decides among them, and only among them."""
    first, second = volume(7, "ext4", ROOT_X86), volume(8, "ext4", ROOT_X86)
    with pytest.raises(AmbiguousRoot, match=r"partition 7.*partition 8"):
        choose(first, second)
    with pytest.raises(AmbiguousRoot):
        choose(first, second, contents=(whole(first), whole(second)))
    assert choose(first, second, HOME, contents=(RootEvidence(first), whole(second), whole(HOME))) == second


def test_a_typed_partition_that_cannot_be_mounted_does_not_count() -> None:
    assert choose(volume(7, "crypto_LUKS", ROOT_X86), ROOT) == ROOT


# --- content --------------------------------------------------------------------------------------------------


def test_the_only_linux_filesystem() -> None:
    """P-04, P-05: what cannot be mounted, or is no Linux filesystem, is in nobody's way."""
    assert choose(BIOS, ESP, BOOT, ROOT, SWAP, LVM, CD) == ROOT


def test_content_decides() -> None:
    """P-03."""
    for order in itertools.permutations((ROOT, HOME, SWAP)):
        assert choose(*order, contents=(RootEvidence(HOME, has_etc=True), whole(ROOT))) == ROOT


def test_a_whole_system_beats_an_fstab() -> None:
    """P-03: the first partition with an fstab is not it."""
    rescue = RootEvidence(HOME, has_fstab=True, has_etc=True)
    assert choose(HOME, ROOT, contents=(rescue, RootEvidence(ROOT, has_init=True, has_etc=True))) == ROOT


def test_an_fstab_decides_between_two_systems() -> None:
    other = RootEvidence(HOME, has_init=True, has_etc=True, os_release="rescue")
    assert choose(HOME, ROOT, contents=(other, whole(ROOT))) == ROOT


def test_two_systems() -> None:
    """P-03: ambiguity is an error that lists the candidates, and what to do."""
    with pytest.raises(AmbiguousRoot, match=r"partition 2: ext4; partition 9: xfs labelled 'rescue'") as caught:
        choose(ROOT, volume(9, "xfs", label="rescue"), contents=(whole(ROOT), whole(volume(9, "xfs", label="rescue"))))
    assert "PARTUUID=" in caught.value.hint


def test_several_filesystems_that_nobody_has_looked_into() -> None:
    with pytest.raises(AmbiguousRoot):
        choose(ROOT, HOME)


def test_no_system_anywhere() -> None:
    """P-04, P-05."""
    with pytest.raises(NoRootFound, match="partition 2: ext4; partition 3: xfs; partition 14: nothing recognised"):
        choose(ROOT, HOME, BIOS, contents=(RootEvidence(ROOT), RootEvidence(HOME)))
    with pytest.raises(NoRootFound):
        choose(ROOT, ESP, contents=(RootEvidence(ROOT),))
    with pytest.raises(NoRootFound):
        choose(ROOT, HOME, contents=(RootEvidence(ROOT), RootEvidence(HOME, has_etc=True)))
    with pytest.raises(NoRootFound, match="no partitions") as caught:
        choose()
    assert "name the partition" in caught.value.hint


def test_a_sparse_system_that_is_alone() -> None:
    assert choose(ROOT, ESP, contents=(RootEvidence(ROOT, has_etc=True),)) == ROOT
    assert choose(ROOT, ESP, contents=(RootEvidence(ROOT, has_init=True),)) == ROOT


@pytest.mark.parametrize("kind", ["LVM2_member", "crypto_LUKS", "linux_raid_member"])
def test_a_system_inside_of_something_else(kind: str) -> None:
    with pytest.raises(NoRootFound, match=kind) as caught:
        choose(ESP, volume(2, kind))
    assert "plugin" in caught.value.hint


def test_the_boot_partition_is_never_the_root() -> None:
    with pytest.raises(NoRootFound):
        choose(ESP, BOOT, contents=(whole(BOOT),))
    with pytest.raises(NoRootFound):
        choose(ESP)


def test_hostile_labels_in_messages() -> None:
    """S-12: the superblock parser has made them fit to print already; here they are quoted."""
    with pytest.raises(NoRootFound, match=r"swap labelled '\$\(id\)'"):
        choose(volume(1, "swap", label="$(id)"), volume(2, ""))


# --- btrfs ----------------------------------------------------------------------------------------------------


def evidence(subvolume: str, found: bool = True) -> RootEvidence:
    return RootEvidence(ROOT, has_init=found, has_etc=found, subvolume=subvolume)


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ((), ""),
        ((evidence("", False),), ""),
        ((evidence("", False), evidence("@")), "@"),
        ((evidence(""), evidence("@", False)), ""),
        ((evidence("@"), evidence("")), ""),
        ((evidence("@"), whole(HOME)), "@"),
    ],
)
def test_subvolume_of_the_root(contents: tuple[RootEvidence, ...], expected: str) -> None:
    """P-08."""
    assert root_subvolume(ROOT, contents) == expected


def test_two_subvolumes_with_a_system() -> None:
    with pytest.raises(AmbiguousRoot, match="@, @backup"):
        root_subvolume(ROOT, (evidence("@backup"), evidence("", False), evidence("@")))
    assert choose(ROOT, HOME, contents=(evidence("@backup"), evidence("@"))) == ROOT
