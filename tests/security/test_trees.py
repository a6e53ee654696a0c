"""Hostile content of a filesystem, all the way to the mounted tree: nothing escapes, nothing is left.

A canary stands on the host: a directory with a secret, at the places to which the images point. It is never read,
never mounted over, and never changed.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mapper_core.errors import MapperError, UnsafePath
from mapper_core.linux import mountinfo
from mapper_core.mapping import Mapper
from mapper_core.model import Disk, MapOptions
from mapper_core.testing import disks
from mapper_core.testing.disks import Part
from mapper_core.tree.look import Purpose
from mapper_core.tree.mounted import TreeRequest, mount_tree, plan_tree, unmount_tree

pytestmark = pytest.mark.security

SECRET = "UUID=deadbeef-0000-0000-0000-000000000000 /canary ext4 defaults 0 0\n"


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A host file with a secret that looks like an fstab."""
    path = tmp_path / "canary"
    path.mkdir()
    (path / "fstab").write_text(SECRET)
    before = [(name, (path / name).stat()) for name in sorted(os.listdir(path))]
    yield path
    after = [(name, (path / name).stat()) for name in sorted(os.listdir(path))]
    assert [(name, found.st_mtime_ns, found.st_size) for name, found in after] == [
        (name, found.st_mtime_ns, found.st_size) for name, found in before
    ]
    assert (path / "fstab").read_text() == SECRET
    assert mountinfo.under(str(path)) == ()


@pytest.fixture
def mapper(runtime_dir: Path) -> Mapper:
    return Mapper.open()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "tree"
    path.mkdir()
    return path


def _image(mapper: Mapper, tmp_path: Path, spoil: Callable[[Path], object], fstab: str = "") -> Path:
    """A system disk with a root and a /home partition, its root changed by ``spoil`` as its guest could do it."""
    files = (("/sbin/init", ""), ("/etc/fstab", fstab or "LABEL=home /home ext4 defaults 0 0\n"), ("/home/.keep", ""))
    root, home = Part("ext4", 16, (), files), Part("ext4", 8, ("-L", "home"))
    image = disks.make_disk(tmp_path / "evil.raw", (root, home))
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    mount_tree(
        mapper, TreeRequest(Disk(str(image), "raw"), MapOptions(), str(work), root_hint="1", purpose=Purpose.DATA)
    )
    spoil(work)
    unmount_tree(mapper, str(work))
    return image


def _mount(mapper: Mapper, image: Path, target: Path) -> None:
    mount_tree(mapper, TreeRequest(Disk(str(image), "raw"), MapOptions(), str(target)))


def _replace(path: Path) -> Path:
    path.unlink()
    return path


FSTABS: dict[str, Callable[[Path, Path], object]] = {
    "absolute link to the host": lambda tree, canary: _replace(tree / "etc/fstab").symlink_to(canary / "fstab"),
    "relative link to the host": lambda tree, canary: _replace(tree / "etc/fstab").symlink_to(
        "../" * 30 + str(canary / "fstab").lstrip("/")
    ),
    "loop of links": lambda tree, canary: _replace(tree / "etc/fstab").symlink_to("fstab"),
    "magic link": lambda tree, canary: _replace(tree / "etc/fstab").symlink_to("/proc/self/environ"),
    "FIFO": lambda tree, canary: os.mkfifo(_replace(tree / "etc/fstab")),
    "device": lambda tree, canary: os.mknod(_replace(tree / "etc/fstab"), 0o20600, os.makedev(1, 5)),
    "directory": lambda tree, canary: _replace(tree / "etc/fstab").mkdir(),
    "a gigabyte": lambda tree, canary: os.truncate(tree / "etc/fstab", 1 << 30),
    "binary": lambda tree, canary: (tree / "etc/fstab").write_bytes(bytes(range(256)) * 10),
}


@pytest.mark.parametrize("case", FSTABS)
def test_an_fstab_that_is_not_a_file_of_the_image(
    mapper: Mapper, tmp_path: Path, canary: Path, target: Path, case: str
) -> None:
    """S-07: the old helper read whatever the guest's link named, as root."""
    image = _image(mapper, tmp_path, lambda tree: FSTABS[case](tree, canary))
    started = time.monotonic()
    try:
        _mount(mapper, image, target)
    except MapperError as error:
        assert "deadbeef" not in str(error) + error.hint
        assert mapper.journal.ids() == ()
    else:  # a link whose target does not exist inside of the image: no fstab, the root alone is mounted
        assert {entry.target for entry in mountinfo.under(str(target))} == {str(target)}
        unmount_tree(mapper, str(target))
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "where",
    [
        "/../../../../../../@",
        "//@",
        "/./..@",
        "/proc/1",
        "/sys",
        "/dev/shm",
        "@/../..",
        "",
        "relative",
        "/a\\000b",
        "/" + "x" * 5000,
    ],
)
def test_a_mount_point_that_leads_out(mapper: Mapper, tmp_path: Path, canary: Path, target: Path, where: str) -> None:
    """S-09."""
    line = f"LABEL=home {where.replace('@', str(canary))} ext4 defaults 0 0\n"
    image = _image(mapper, tmp_path, lambda tree: None, fstab=line)
    try:
        _mount(mapper, image, target)
    except MapperError:
        assert mapper.journal.ids() == ()
        return
    # "//canary" is a path of the image, and was made there
    assert all(
        entry.target.startswith(str(target)) for entry in mountinfo.entries() if entry.source.startswith("/dev/loop")
    )
    unmount_tree(mapper, str(target))


LINKS = ["@", "../../../../../../../../../..@", "/proc/self/cwd", "/proc/1/root/tmp", "home"]


@pytest.mark.parametrize("link", LINKS)
def test_a_mount_point_that_is_a_link(mapper: Mapper, tmp_path: Path, canary: Path, target: Path, link: str) -> None:
    """S-10: /home -> /etc."""

    def spoil(tree: Path) -> None:
        (tree / "home/.keep").unlink()
        (tree / "home").rmdir()
        (tree / "home").symlink_to(link.replace("@", str(canary)))

    image = _image(mapper, tmp_path, spoil)
    with pytest.raises(MapperError):
        _mount(mapper, image, target)
    assert mapper.journal.ids() == ()


def test_a_guest_that_swaps_its_mount_point_while_we_mount(
    mapper: Mapper, tmp_path: Path, canary: Path, target: Path
) -> None:
    """S-10, CVE-2021-25741: a thread swaps /home for a link to the host, as fast as it can, through another mount of the same
    filesystem; the host is never mounted over."""
    image = _image(mapper, tmp_path, lambda tree: (tree / "evil").symlink_to(canary))
    work = tmp_path / "work"
    disk = mapper.map(Disk(str(image), "raw"), MapOptions(), user="guest")
    disks.run("mount", f"{disk.device}p1", str(work))
    stop = threading.Event()
    swaps = 0

    def swap() -> None:
        nonlocal swaps
        libc_exchange = 2  # RENAME_EXCHANGE
        import ctypes

        libc = ctypes.CDLL(None)
        home, evil = os.fsencode(work / "home"), os.fsencode(work / "evil")
        while not stop.is_set():
            libc.renameat2(-100, home, -100, evil, libc_exchange)
            swaps += 1

    thread = threading.Thread(target=swap)
    thread.start()
    outcomes = {"mounted": 0, "refused": 0}
    try:
        for _ in range(60):
            try:
                _mount(mapper, image, target)
            except MapperError:
                outcomes["refused"] += 1
            else:
                outcomes["mounted"] += 1
            assert mountinfo.under(str(canary)) == ()
            for _ in range(3):
                try:
                    unmount_tree(mapper, str(target))
                except MapperError:
                    continue
                break
    finally:
        stop.set()
        thread.join()
        unmount_tree(mapper, str(target))
        disks.run("umount", str(work))
        mapper.unmap(disk.id, user="guest")
    assert swaps > 1000
    assert outcomes["mounted"] + outcomes["refused"] == 60


@pytest.mark.parametrize("kind", ["ntfs", "minix", "hfsplus", "udf", "jfs"])
def test_a_rare_filesystem_is_not_tried(mapper: Mapper, tmp_path: Path, target: Path, kind: str) -> None:
    """S-16: the type comes from our own list, not from what the kernel would load a module for."""
    fstab = f"LABEL=home /home {kind} defaults 0 0\n"
    image = _image(mapper, tmp_path, lambda tree: None, fstab=fstab)
    with pytest.raises(MapperError):
        _mount(mapper, image, target)
    assert mapper.journal.ids() == ()


def test_a_broken_superblock(mapper: Mapper, tmp_path: Path, target: Path) -> None:
    image = disks.make_filesystem(tmp_path / "broken", Part("ext4", 16))
    with image.open("r+b") as file:
        file.seek(1024 + 4)
        file.write(b"\xff" * 40)
    with pytest.raises(MapperError):
        mount_tree(mapper, TreeRequest(Disk(str(image), "raw"), MapOptions(), str(target)))
    assert mapper.journal.ids() == ()


def test_hostile_text_reaches_no_shell(mapper: Mapper, tmp_path: Path, canary: Path, target: Path) -> None:
    """S-12."""
    line = f"LABEL=$(touch${{IFS}}{canary}/x) /a`touch${{IFS}}{canary}/x` ext4 defaults 0 0\n"
    image = _image(mapper, tmp_path, lambda tree: None, fstab=line)
    with pytest.raises(MapperError):
        _mount(mapper, image, target)
    assert os.listdir(canary) == ["fstab"]


def test_a_label_of_the_host_stays_inside_of_the_disk(mapper: Mapper, tmp_path: Path) -> None:
    """P-18, S-21: two disks with the same label and UUID; each is resolved within itself."""
    same = ("-U", "11111111-2222-3333-4444-555555555555", "-L", "same")
    root = Part("ext4", 16, same, (("/sbin/init", ""), ("/etc/fstab", "LABEL=same / ext4 defaults 0 1\n")))
    images = [disks.make_disk(tmp_path / name, (root,)) for name in ("one", "two")]
    for image in images:
        mapper.map(Disk(str(image), "raw"), MapOptions(), user="t")
    for image in images:
        plan = plan_tree(mapper, Disk(str(image), "raw"))
        mapped = mapper.find(str(image))
        assert mapped is not None
        assert plan.mounts[0].volume.partition.device == f"{mapped.device}p1"
    for image in images:
        mapper.unmap(str(image), user="t")


def test_content_of_the_image_is_never_followed_on_the_host(mapper: Mapper, tmp_path: Path, canary: Path) -> None:
    """S-08: the root of the filesystem itself is opened, whatever it contains."""
    image = _image(mapper, tmp_path, lambda tree: (tree / "rootfs").symlink_to(canary))
    directory = f"{mapper.runtime.mounts}/one-1.0"
    mount_tree(mapper, TreeRequest(Disk(str(image), "raw"), MapOptions(), directory))
    assert os.stat(mapper.runtime.mounts).st_mode & 0o777 == 0o700
    unmount_tree(mapper, directory)


def test_unsafe_paths_are_typed() -> None:
    assert UnsafePath("x").exit_code == 7
