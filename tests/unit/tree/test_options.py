"""Which options of an image's fstab reach the kernel."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapper_core.errors import UnsafePath
from mapper_core.model import Access
from mapper_core.tree.options import ALLOWED_FILESYSTEMS, MOUNT_ATTRIBUTES, driver, filter_options, normalise_subvolume

pytestmark = pytest.mark.unit


def kept(options: str, fstype: str = "ext4", access: Access = Access.READ_WRITE) -> str:
    return ",".join(filter_options(tuple(options.split(",")), fstype, access).options)


@pytest.mark.parametrize(
    ("fstype", "options"),
    [
        ("ext4", "noatime,errors=remount-ro,commit=30,data=ordered,discard,acl,user_xattr,lazytime"),
        ("ext3", "nodiratime,data=journal,commit=5"),
        ("ext2", "relatime,errors=continue,grpid"),
        ("btrfs", "compress=zstd:1,ssd,autodefrag,discard=async,noatime"),
        ("btrfs", "compress-force=lzo,nodatacow,commit=120"),
        ("btrfs", "compress,nossd,subvolid=257"),
        ("vfat", "umask=0077,fmask=0022,dmask=0022,shortname=winnt,utf8,flush"),
        ("squashfs", "nosuid,nodev,noexec"),
        ("iso9660", "norock,nojoliet"),
    ],
)
def test_harmless_options_are_kept(fstype: str, options: str) -> None:
    filtered = filter_options(tuple(options.split(",")), fstype, Access.READ_WRITE)
    assert ",".join(filtered.options) == options
    assert filtered.dropped == ()


#: One by one, with blanks between them.
DANGEROUS = """
errors=panic dev suid user users owner group context=system_u:object_r:tmp_t:s0 fscontext=x loop offset=512 sizelimit=1
uid=0 gid=0 usrjquota=aquota.user jqfmt=vfsv1 usrquota quota nobarrier barrier=0 data=writeback data_err=abort mode=0777
journal_path=/dev/sda journal_dev=0x801 sb=32768 debug noload norecovery abort init_itable=0 test_dummy_encryption dax
commit=-1 commit=99999 logdev=/dev/sda rtdev=/dev/sda device=/dev/sda degraded fatal_errors=panic usebackuproot rescue=all
user_subvol_rm_allowed clear_cache skip_balance iocharset=utf8 codepage=437 upperdir=/ lowerdir=/ source=/dev/sda fd=0
nosuid=1 NOATIME noatime=1 mand acl=1 remount move bind=1
"""


@pytest.mark.parametrize("fstype", sorted(ALLOWED_FILESYSTEMS))
def test_dangerous_options_are_dropped_and_named(fstype: str) -> None:
    """S-16: what would touch the host, crash it, or weaken it."""
    for option in DANGEROUS.split():
        filtered = filter_options((option,), fstype, Access.READ_WRITE)
        assert filtered.options == (("nouuid",) if fstype == "xfs" else ())
        assert filtered.dropped == (option,)


def test_options_that_speak_to_others_are_dropped_in_silence() -> None:
    options = "defaults,rw,auto,nofail,async,exec,nouser,_netdev,x-systemd.device-timeout=10,X-mount.mkdir,comment=x,space_cache=v2"
    filtered = filter_options(tuple(options.split(",")), "ext4", Access.READ_WRITE)
    assert (filtered.options, filtered.dropped) == ((), ())


def test_options_of_another_filesystem_are_dropped() -> None:
    assert kept("compress=zstd", "ext4") == kept("umask=0", "ext4") == kept("data=ordered", "ext2") == ""


@pytest.mark.parametrize("access", list(Access))
def test_xfs_always_gets_nouuid(access: Access) -> None:
    """P-09: two clones of one image are mounted at the same time."""
    for options in ("defaults", "nouuid", "noatime,nouuid"):
        assert kept(options, "xfs", access).split(",").count("nouuid") == 1


@pytest.mark.parametrize(
    ("fstype", "expected"),
    [
        ("ext4", "noload"),
        ("ext3", "noload"),
        ("ext2", ""),
        ("xfs", "nouuid,norecovery"),
        ("btrfs", "rescue=nologreplay"),
        ("vfat", ""),
        ("squashfs", ""),
    ],
)
def test_read_only_access_replays_no_journal(fstype: str, expected: str) -> None:
    """Nothing is written to an image that the caller wants to read."""
    filtered = filter_options(("defaults",), fstype, Access.READ_ONLY)
    assert ",".join(filtered.options) == expected
    assert filtered.access is Access.READ_ONLY


def test_options_for_the_journal_go_with_it() -> None:
    """The kernel refuses them beside noload."""
    assert kept("commit=30,data=ordered,noatime", "ext4", Access.READ_ONLY) == "noatime,noload"


def test_read_only_by_the_image_still_replays() -> None:
    """The device can be written: without the replay the container would see a filesystem with holes in it."""
    filtered = filter_options(("ro",), "ext4", Access.READ_WRITE)
    assert (filtered.access, filtered.options) == (Access.READ_ONLY, ())


@pytest.mark.parametrize(
    ("options", "fstype", "allowed", "expected"),
    [
        ("defaults", "ext4", "rw", "rw"),
        ("ro", "ext4", "rw", "ro"),
        ("ro,rw", "ext4", "rw", "rw"),
        ("rw", "ext4", "ro", "ro"),
        ("rw", "squashfs", "rw", "ro"),
        ("defaults", "iso9660", "rw", "ro"),
        ("rw", "erofs", "rw", "ro"),
    ],
)
def test_access(options: str, fstype: str, allowed: str, expected: str) -> None:
    assert filter_options(tuple(options.split(",")), fstype, Access(allowed)).access is Access(expected)


def test_the_last_of_two_values_counts() -> None:
    assert kept("commit=5,noatime,commit=10") == "noatime,commit=10"


@pytest.mark.parametrize(
    ("options", "subvolume", "remaining"),
    [
        ("subvol=@", "@", ""),
        ("subvol=/@", "@", ""),
        ("subvol=@/", "@", ""),
        ("subvol=//@home//x/", "@home/x", ""),
        ("subvol=/", "/", ""),
        ("subvol=.", "/", ""),
        ("subvolid=5", "/", ""),
        ("subvolid=0", "/", ""),
        ("subvolid=5,subvol=@", "@", ""),
        ("subvol=@,subvolid=5", "@", ""),
        ("subvol=@,subvolid=256", "@", ""),
        ("subvolid=256,subvol=@", "@", ""),
        ("subvolid=256", "", "subvolid=256"),
        ("noatime", "", "noatime"),
    ],
)
def test_subvolumes(options: str, subvolume: str, remaining: str) -> None:
    """P-08: with and without slash, and an id that a rollback made stale."""
    filtered = filter_options(tuple(options.split(",")), "btrfs", Access.READ_WRITE)
    assert (filtered.subvolume, ",".join(filtered.options), filtered.dropped) == (subvolume, remaining, ())


@pytest.mark.parametrize("option", ["subvol=", "subvolid=", "subvolid=abc", "subvolid=-1", "subvolid=05"])
def test_subvolumes_that_make_no_sense(option: str) -> None:
    filtered = filter_options((option,), "btrfs", Access.READ_WRITE)
    assert (filtered.subvolume, filtered.options, filtered.dropped) == ("", (), (option,))


def test_subvolume_upwards() -> None:
    """S-09."""
    for path in ("..", "@/../..", "/../@"):
        with pytest.raises(UnsafePath):
            normalise_subvolume(path)


def test_subvolumes_exist_on_btrfs_only() -> None:
    filtered = filter_options(("subvol=@", "subvolid=5"), "ext4", Access.READ_WRITE)
    assert (filtered.subvolume, filtered.dropped) == ("", ("subvol=@", "subvolid=5"))


@given(st.lists(st.text(max_size=30)), st.sampled_from(sorted(ALLOWED_FILESYSTEMS)), st.sampled_from(Access))
def test_anything(options: list[str], fstype: str, access: Access) -> None:
    """An option is passed on as it was written, or not at all; nothing is made up but what a type needs."""
    added = {"nouuid", "noload", "norecovery", "rescue=nologreplay"}
    try:
        filtered = filter_options(tuple(options), fstype, access)
    except UnsafePath:
        return
    assert set(filtered.options) <= set(options) | added
    assert "errors=panic" not in filtered.options
    assert set(filtered.dropped) <= set(options)
    assert access is Access.READ_WRITE or filtered.access is Access.READ_ONLY


@pytest.mark.parametrize(
    ("fstype", "kernel", "expected"),
    [
        ("ext4", {"ext4", "xfs"}, "ext4"),
        ("ext2", {"ext4"}, "ext4"),
        ("ext3", {"ext2", "ext3", "ext4"}, "ext3"),
        ("ext4", {"ext2", "ext3"}, ""),
        ("vfat", {"ext4"}, ""),
        ("ntfs", {"ntfs", "ntfs3"}, ""),
        ("f2fs", {"f2fs"}, ""),
        ("swap", {"swap"}, ""),
        ("", {""}, ""),
    ],
)
def test_driver(fstype: str, kernel: set[str], expected: str) -> None:
    """S-16: a type that is not on the list is not mounted, even when the kernel could."""
    assert driver(fstype, frozenset(kernel)) == expected


def test_attributes_are_no_filesystem_options() -> None:
    assert kept(",".join(sorted(MOUNT_ATTRIBUTES)), "squashfs") == ",".join(sorted(MOUNT_ATTRIBUTES))
