"""Mounts by descriptor."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mapper_core.errors import (
    CorruptImage,
    DeviceBusy,
    KernelError,
    NotFound,
    NotMapped,
    NotSupported,
    ReadOnlyImage,
    UnknownFilesystem,
)
from mapper_core.linux import block, idmap, loop, mountinfo, mounts, unmounting
from mapper_core.linux.mounts import MountAttribute, Propagation
from mapper_core.model import Access, IdMap, IdRange

pytestmark = pytest.mark.root

Attach = Callable[..., loop.LoopDevice]
Elsewhere = Callable[..., int]
MakeImage = Callable[..., Path]

MIB = 1 << 20
IDS = IdMap(uid=(IdRange(0, 100000, 65536),), gid=(IdRange(0, 300000, 65536),))


@contextlib.contextmanager
def closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def directory_fd(path: Path) -> contextlib.AbstractContextManager[int]:
    return closing(os.open(path, os.O_PATH | os.O_DIRECTORY))


@pytest.fixture
def disk(make_image: MakeImage, attach: Attach) -> str:
    """An ext4 filesystem with a file of root and one of user 7, group 8."""
    image: Path = make_image(mkfs="ext4")
    commands = "write /dev/null mine\nwrite /dev/null theirs\nsif theirs uid 7\nsif theirs gid 8\n"
    subprocess.run(["debugfs", "-w", "-f", "-", image], input=commands, text=True, check=True, capture_output=True)
    device: loop.LoopDevice = attach(image)
    return device.path


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "target"
    path.mkdir()
    yield path
    for entry in reversed(mountinfo.entries()):
        if entry.target == str(path) or mountinfo.is_below(entry.target, str(path)):
            unmounting.unmount(entry.target)


def mount(source: str, target: Path, fstype: str = "ext4", attributes: MountAttribute = MountAttribute.NONE) -> None:
    new = mounts.new_filesystem(fstype, source, access=Access.READ_WRITE, attributes=attributes)
    with closing(new), directory_fd(target) as fd:
        mounts.attach(new, fd)


def owner(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_uid, found.st_gid


# --- new mounts -----------------------------------------------------------------------------------------------


def test_flags_are_there_from_the_start(disk: str, target: Path) -> None:
    """S-17: a mount is never visible without nosuid and nodev."""
    wanted = MountAttribute.NOSUID | MountAttribute.NODEV | MountAttribute.NOEXEC | MountAttribute.NOATIME
    with closing(mounts.new_filesystem("ext4", disk, access=Access.READ_ONLY, attributes=wanted)) as fd:
        assert mountinfo.at(str(target)) == ()
        with directory_fd(target) as onto:
            mounts.attach(fd, onto)
    (entry,) = mountinfo.at(str(target))
    assert {"nosuid", "nodev", "noexec", "noatime", "ro"} <= set(entry.options)
    assert "ro" in entry.super_options
    assert (entry.fstype, entry.source) == ("ext4", disk)
    assert entry.device == (7, int(disk.removeprefix("/dev/loop")))
    with pytest.raises(OSError):
        (target / "new").touch()


def test_a_mount_that_is_never_attached_goes_with_its_descriptor(disk: str) -> None:
    """M-14, U-08: an error before the attach leaves nothing."""
    fd = mounts.new_filesystem("ext4", disk, access=Access.READ_WRITE)
    with pytest.raises(DeviceBusy), block.exclusive(disk):
        pass
    os.close(fd)
    with block.exclusive(disk):
        pass


def test_options_reach_the_filesystem(disk: str, target: Path) -> None:
    options = ("noload", "errors=remount-ro")
    new = mounts.new_filesystem("ext4", disk, access=Access.READ_ONLY, options=options)
    with closing(new), directory_fd(target) as fd:
        mounts.attach(new, fd)
    assert "errors=remount-ro" in mountinfo.at(str(target))[-1].super_options


def test_the_kernels_own_reason_is_in_the_error(disk: str) -> None:
    with pytest.raises(KernelError, match="Unknown parameter 'bogus'") as caught:
        mounts.new_filesystem("ext4", disk, access=Access.READ_WRITE, options=("bogus=1",))
    assert caught.value.errno == errno.EINVAL


def test_unknown_filesystem(disk: str) -> None:
    """S-16: the type is handed over as it is; nothing is guessed."""
    with pytest.raises(UnknownFilesystem):
        mounts.new_filesystem("nosuchfs", disk, access=Access.READ_WRITE)


def test_wrong_filesystem(disk: str) -> None:
    with pytest.raises(KernelError, match="xfs"):
        mounts.new_filesystem("xfs", disk, access=Access.READ_WRITE)


def test_no_device() -> None:
    with pytest.raises(NotFound):
        mounts.new_filesystem("ext4", "/dev/loop1048575", access=Access.READ_WRITE)


def test_a_read_only_device_is_not_mounted_for_writing(make_image: MakeImage, attach: Attach) -> None:
    """U-06."""
    device = attach(make_image(mkfs="ext4"), access=Access.READ_ONLY)
    with pytest.raises(ReadOnlyImage):
        mounts.new_filesystem("ext4", device.path, access=Access.READ_WRITE)
    os.close(mounts.new_filesystem("ext4", device.path, access=Access.READ_ONLY))


def test_a_damaged_filesystem(make_image: MakeImage, attach: Attach) -> None:
    """XFS checks the sums of its headers: EFSBADCRC or EFSCORRUPTED."""
    image: Path = make_image(size=400 * MIB, mkfs="xfs")
    with image.open("r+b") as file:
        file.seek(200)
        file.write(b"\xff" * 16)
    with pytest.raises((CorruptImage, KernelError), match="xfs"):
        mounts.new_filesystem("xfs", attach(image).path, access=Access.READ_ONLY, options=("norecovery",))


def test_busy_names_the_holder(disk: str) -> None:
    with block.exclusive(disk), pytest.raises(DeviceBusy, match=f"process {os.getpid()}"):
        mounts.new_filesystem("ext4", disk, access=Access.READ_WRITE)


def test_the_target_is_the_open_directory_whatever_its_name_means_now(disk: str, tmp_path: Path, target: Path) -> None:
    """S-10: between the open and the mount the name becomes a link to somewhere else."""
    bait = tmp_path / "bait"
    bait.mkdir()
    with directory_fd(target) as fd:
        target.rename(tmp_path / "renamed")
        target.symlink_to(bait)
        with closing(mounts.new_filesystem("ext4", disk, access=Access.READ_WRITE)) as new:
            mounts.attach(new, fd)
    try:
        assert mountinfo.at(str(bait)) == ()
        assert len(mountinfo.at(str(tmp_path / "renamed"))) == 1
    finally:
        unmounting.unmount(str(tmp_path / "renamed"))
        target.unlink()


def test_a_deleted_target(disk: str, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    with directory_fd(tmp_path / "gone") as fd:
        (tmp_path / "gone").rmdir()
        with (
            closing(mounts.new_filesystem("ext4", disk, access=Access.READ_WRITE)) as new,
            pytest.raises(KernelError) as caught,
        ):
            mounts.attach(new, fd)
    assert caught.value.errno == errno.ENOENT


# --- clones and flags -----------------------------------------------------------------------------------------


def test_a_clone_with_and_without_what_is_below(disk: str, tmp_path: Path, target: Path) -> None:
    mount(disk, target)
    (target / "sub").mkdir()
    mount("x", target / "sub", "tmpfs")
    (target / "sub" / "below").touch()
    for recursive in (True, False):
        copy = tmp_path / f"copy{recursive}"
        copy.mkdir()
        with (
            directory_fd(target) as source,
            closing(mounts.clone_tree(source, recursive=recursive)) as clone,
            directory_fd(copy) as fd,
        ):
            mounts.attach(clone, fd)
        assert (copy / "sub" / "below").exists() is recursive
        assert len(mountinfo.below(str(copy))) == recursive
        for entry in reversed((*mountinfo.at(str(copy)), *mountinfo.below(str(copy)))):
            unmounting.unmount(entry.target)


def test_a_clone_of_a_link_is_not_the_clone_of_its_target(tmp_path: Path, target: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")
    with closing(mounts.clone_tree(str(tmp_path / "link"), recursive=False)) as fd:
        assert not os.path.isdir(f"/proc/self/fd/{fd}/")


def test_a_clone_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        mounts.clone_tree(str(tmp_path / "none"), recursive=False)


def test_flags_of_a_whole_tree(disk: str, target: Path) -> None:
    mount(disk, target)
    (target / "sub").mkdir()
    mount("x", target / "sub", "tmpfs", MountAttribute.NOEXEC)
    with directory_fd(target) as fd:
        mounts.set_attributes(
            fd, set=MountAttribute.NOSUID | MountAttribute.NODEV, clear=MountAttribute.NOEXEC, recursive=True
        )
    for path in (target, target / "sub"):
        options = set(mountinfo.at(str(path))[-1].options)
        assert {"nosuid", "nodev"} <= options
        assert "noexec" not in options


def test_propagation(disk: str, target: Path) -> None:
    mount(disk, target)
    for wanted, prefix in ((Propagation.SHARED, "shared:"), (Propagation.SLAVE, ""), (Propagation.PRIVATE, "")):
        with directory_fd(target) as fd:
            mounts.set_attributes(fd, propagation=wanted)
        fields = mountinfo.at(str(target))[-1].propagation
        assert bool(prefix) == bool(fields)
        assert all(field.startswith(prefix) for field in fields)


def test_the_kernel_refuses_nonsense(target: Path) -> None:
    with directory_fd(target) as fd, pytest.raises(KernelError) as caught:
        mounts.set_attributes(fd, set=MountAttribute.NODEV)  # no mount point
    assert caught.value.errno == errno.EINVAL


# --- idmapped -------------------------------------------------------------------------------------------------


def test_an_idmapped_mount_shifts_owners_both_ways(disk: str, target: Path) -> None:
    """L-06: files of root in an unmodified image belong to the container's root."""
    with (
        closing(idmap.user_namespace(IDS)) as userns,
        closing(mounts.new_filesystem("ext4", disk, access=Access.READ_WRITE)) as new,
    ):
        mounts.set_attributes(new, userns_fd=userns)
        with directory_fd(target) as fd:
            mounts.attach(new, fd)
    assert "idmapped" in mountinfo.at(str(target))[-1].options
    assert owner(target / "mine") == (100000, 300000)
    assert owner(target / "theirs") == (100007, 300008)
    os.chown(target / "mine", 100042, 300043)
    unmounting.unmount(str(target))
    mount(disk, target)
    assert owner(target / "mine") == (42, 43)


def test_host_root_cannot_create_in_an_idmapped_mount(disk: str, target: Path) -> None:
    """Id 0 of the host has no number in the image: directories must be made before the mount is mapped."""
    with (
        closing(idmap.user_namespace(IDS)) as userns,
        closing(mounts.new_filesystem("ext4", disk, access=Access.READ_WRITE)) as new,
    ):
        mounts.set_attributes(new, userns_fd=userns)
        with pytest.raises(OSError) as caught:
            os.mkdir("new", dir_fd=new)
    assert caught.value.errno == errno.EOVERFLOW


def test_support_is_found_out_by_trying(disk: str, target: Path) -> None:
    """L-08, L-19."""
    mount(disk, target)
    assert mounts.filesystem_supports_idmap(str(target))
    with directory_fd(target) as fd, closing(idmap.user_namespace(IDS)) as userns:
        assert mounts.filesystem_supports_idmap(fd, userns_fd=userns)
    assert not mounts.filesystem_supports_idmap("/proc")
    assert "idmapped" not in mountinfo.at(str(target))[-1].options


def test_a_filesystem_that_cannot_is_a_typed_error() -> None:
    with (
        closing(idmap.user_namespace(IDS)) as userns,
        closing(mounts.clone_tree("/proc", recursive=False)) as clone,
        pytest.raises(NotSupported, match="idmapped"),
    ):
        mounts.set_attributes(clone, userns_fd=userns)


# --- unmount --------------------------------------------------------------------------------------------------


def test_unmount_twice(disk: str, target: Path) -> None:
    mount(disk, target)
    unmounting.unmount(str(target))
    for path in (str(target), str(target / "none")):
        with pytest.raises(NotMapped):
            unmounting.unmount(path)


def test_only_the_topmost_mount_goes(disk: str, target: Path) -> None:
    mount(disk, target)
    mount("x", target, "tmpfs")
    assert [entry.fstype for entry in mountinfo.at(str(target))] == ["ext4", "tmpfs"]
    unmounting.unmount(str(target))
    assert [entry.fstype for entry in mountinfo.at(str(target))] == ["ext4"]


def test_a_link_is_not_followed(disk: str, target: Path, tmp_path: Path) -> None:
    mount(disk, target)
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(NotMapped):
        unmounting.unmount(str(tmp_path / "link"))
    assert len(mountinfo.at(str(target))) == 1


def test_by_name_in_an_open_directory(disk: str, target: Path, tmp_path: Path) -> None:
    mount(disk, target)
    with directory_fd(tmp_path) as fd:
        unmounting.unmount("target", parent_fd=fd)
    assert mountinfo.at(str(target)) == ()


@pytest.mark.parametrize("by_name", [False, True])
def test_busy_names_who_is_inside(disk: str, target: Path, by_name: bool) -> None:
    mount(disk, target)
    process = subprocess.Popen(["sleep", "1000"], cwd=target)
    try:
        with pytest.raises(DeviceBusy) as caught, directory_fd(target.parent) as fd:
            unmounting.unmount("target" if by_name else str(target), parent_fd=fd if by_name else None)
        assert f"process {process.pid} (sleep)" in str(caught.value)
    finally:
        process.kill()
        process.wait(timeout=10)


def test_busy_names_an_open_file_and_a_mount_below(disk: str, target: Path) -> None:
    mount(disk, target)
    (target / "sub").mkdir()
    mount("x", target / "sub", "tmpfs")
    with open(target / "mine", "rb"), pytest.raises(DeviceBusy) as caught:
        unmounting.unmount(str(target))
    assert f"process {os.getpid()}" in str(caught.value)
    assert f"is mounted on {target / 'sub'}" in str(caught.value)


def test_detach_takes_the_whole_tree_out(disk: str, target: Path) -> None:
    mount(disk, target)
    (target / "sub").mkdir()
    mount("x", target / "sub", "tmpfs")
    with open(target / "mine", "rb"):
        unmounting.unmount(str(target), detach=True)
        assert (*mountinfo.at(str(target)), *mountinfo.below(str(target))) == ()
        with pytest.raises(DeviceBusy), block.exclusive(disk):
            pass
    with block.exclusive(disk):
        pass


def test_by_descriptor(disk: str, target: Path) -> None:
    mount(disk, target)
    with directory_fd(target) as fd:
        unmounting.unmount_fd(fd)
        assert mountinfo.at(str(target)) == ()
        with pytest.raises(NotMapped):
            unmounting.unmount_fd(fd)
    with block.exclusive(disk):
        pass


# --- the mount table ------------------------------------------------------------------------------------------


def test_odd_names_are_found(tmp_path: Path) -> None:
    """P-07."""
    for name in ("a b", "tab\there", "line\nbreak", "back\\slash", "#", "\\040", "ü"):
        path = tmp_path / name
        path.mkdir()
        mount("x", path, "tmpfs")
        try:
            assert len(mountinfo.at(str(path))) == 1
        finally:
            unmounting.unmount(str(path))


def test_disk_10_is_not_below_disk_1(tmp_path: Path) -> None:
    """U-04."""
    for name in ("disk.1", "disk.10"):
        (tmp_path / name).mkdir()
    mount("x", tmp_path / "disk.10", "tmpfs")
    try:
        assert mountinfo.below(str(tmp_path / "disk.1")) == ()
        assert len(mountinfo.below(str(tmp_path))) == 1
    finally:
        unmounting.unmount(str(tmp_path / "disk.10"))


def test_what_is_on_a_directory_is_told_without_the_table(disk: str, target: Path) -> None:
    with directory_fd(target.parent) as parent:

        def number() -> int | None:
            return mountinfo.device_on("target", parent_fd=parent)

        assert number() is None
        mount(disk, target)
        assert number() == mountinfo.device_on(str(target)) == os.stat(disk).st_rdev
        mount("x", target, "tmpfs")
        assert number() == target.stat().st_dev != os.stat(disk).st_rdev, "the topmost counts"
        (target / "sub").mkdir()
        assert mountinfo.device_on(str(target / "sub")) is None, "a directory in a mount is no mount"
        (target / "link").symlink_to(target)
        assert mountinfo.device_on(str(target / "link")) is None, "a link to one is none either"
    with pytest.raises(FileNotFoundError):
        mountinfo.device_on(str(target / "none"))


def test_clear_is_what_nothing_is_mounted_on_or_below(disk: str, target: Path) -> None:
    assert mountinfo.is_clear(str(target / "none"))
    assert mountinfo.is_clear(str(target))
    (target / "a" / "b").mkdir(parents=True)
    assert mountinfo.is_clear(str(target))
    mount(disk, target / "a" / "b")
    assert not mountinfo.is_clear(str(target)), "two levels below"
    assert not mountinfo.is_clear(str(target / "a" / "b")), "on it"
    assert mountinfo.is_clear(str(target / "a" / "b" / "lost+found"))
    unmounting.unmount(str(target / "a" / "b"))
    (target / "file").touch()
    bound = mounts.clone_tree(str(target / "file"), recursive=False)
    with closing(bound), closing(os.open(target / "file", os.O_PATH)) as onto:
        mounts.attach(bound, onto)
    assert not mountinfo.is_clear(str(target)), "a file can be a mount point too"
    unmounting.unmount(str(target / "file"))
    mount("x", target, "tmpfs")
    assert not mountinfo.is_clear(str(target)), "empty, but a mount itself"


def test_to_try_to_unmount_changes_nothing_when_it_is_in_use(disk: str, target: Path) -> None:
    mount(disk, target)
    (target / "sub").mkdir()
    mount("x", target / "sub", "tmpfs")
    before = mountinfo.under(str(target))
    assert not unmounting.try_unmount(str(target)), "it has a mount below it"
    assert mountinfo.under(str(target)) == before
    unmounting.unmount(str(target / "sub"))
    with (target / "mine").open():
        assert not unmounting.try_unmount(str(target))
    with directory_fd(target.parent) as parent:
        assert unmounting.try_unmount("target", parent_fd=parent)
    with pytest.raises(NotMapped):
        unmounting.try_unmount(str(target))


def test_types_of_filesystems_that_the_kernel_knows() -> None:
    listed = {line.rpartition("\t")[2] for line in Path("/proc/filesystems").read_text().splitlines()}
    assert "tmpfs" in listed
    assert all(mounts.is_known(name) for name in listed & {"ext4", "tmpfs", "proc", "xfs", "btrfs"})
    assert not mounts.is_known("no-such-filesystem")


def test_another_process_sees_its_own_table(elsewhere: Elsewhere, tmp_path: Path) -> None:
    pid = elsewhere('mount -t tmpfs x "$1"', tmp_path)
    assert len(mountinfo.at(str(tmp_path), pid=pid)) == 1
    assert mountinfo.at(str(tmp_path)) == ()


def test_a_process_that_has_ended() -> None:
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
    with pytest.raises(NotFound):
        mountinfo.entries(process.pid)
    process.wait(timeout=10)
    with pytest.raises(NotFound):
        mountinfo.entries(process.pid)
