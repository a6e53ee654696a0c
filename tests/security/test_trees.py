"""What only shows while a tree is being mounted: races, names of the host, and how paths of the image are opened."""

from __future__ import annotations

import mmap
import os
import re
import signal
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from mapper_core.errors import MapperError, NotFound, UnsafePath
from mapper_core.linux import beneath, mountinfo, mounts, unmounting
from mapper_core.linux.syscalls import libc
from mapper_core.mapping import Mapper
from mapper_core.model import Access, Disk, MapOptions
from mapper_core.testing import disks
from mapper_core.testing.disks import Part
from mapper_core.tree.mounted import TreeRequest, mount_tree, plan_tree, unmount_tree

from .conftest import Canary, Report
from .corpus.guests import guest

pytestmark = pytest.mark.security

SWAPS = 10_000
MOUNTS = 10


@pytest.fixture
def mapper(runtime_dir: Path) -> Mapper:
    return Mapper.open()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "mounted"
    path.mkdir()
    return path


def request(image: Path, target: Path) -> TreeRequest:
    return TreeRequest(Disk(str(image), "raw"), MapOptions(), str(target))


@contextmanager
def swapper(one: Path, two: Path) -> Iterator[mmap.mmap]:
    """A process that exchanges two names as fast as it can; what it gives begins with how often it has (u64)."""
    count, exchange, here = mmap.mmap(-1, 8), 2, -100  # RENAME_EXCHANGE, AT_FDCWD
    first, second, library = os.fsencode(one), os.fsencode(two), libc()
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            done = 0
            while True:
                done += library.renameat2(here, first, here, second, exchange) == 0
                struct.pack_into("=Q", count, 0, done)
        os._exit(1)
    try:
        yield count
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_mount_point_that_is_swapped_ten_thousand_times(tmp_path: Path, canary: Canary, report: Report) -> None:
    """S-10, CVE-2021-25741: while another process swaps /home for a link to the host, mounts are made as a tree makes them.

    Each lands in the tree or nowhere.
    """
    tree = tmp_path / "tree"
    (tree / "home").mkdir(parents=True)
    (tree / "evil").symlink_to(canary.directory)
    root = os.open(tree, os.O_PATH | os.O_DIRECTORY)
    mounted = refused = 0
    deadline = time.monotonic() + 60
    try:
        with swapper(tree / "home", tree / "evil") as count:
            while mounted + refused < SWAPS // 10 or struct.unpack_from("=Q", count)[0] < SWAPS:
                assert time.monotonic() < deadline
                filesystem = mounts.new_filesystem("tmpfs", "", access=Access.READ_WRITE)
                try:
                    place = beneath.open_directory_in_root(root, "/home", create=0o755)
                    try:
                        mounts.attach(filesystem, place)
                    finally:
                        os.close(place)
                    mounted += 1
                    where = [
                        entry.target for entry in mountinfo.entries() if mountinfo.is_below(entry.target, str(tmp_path))
                    ]
                    assert len(where) == 1 and os.path.dirname(where[0]) == str(tree)
                    unmounting.unmount_fd(filesystem)
                except (NotFound, UnsafePath):
                    refused += 1
                finally:
                    os.close(filesystem)
            swaps = struct.unpack_from("=Q", count)[0]
    finally:
        os.close(root)
    report.count("swapped mount points", cases=swaps, runs=mounted + refused, refused=refused)
    assert min(mounted, refused) > 10, "it is no race when one of them always wins"
    assert canary.harm() + canary.harm_to_host() == []


def test_a_guest_that_swaps_its_mount_point_while_its_tree_is_mounted(
    mapper: Mapper, tmp_path: Path, canary: Canary, target: Path, report: Report
) -> None:
    """S-10: the same with a real disk, from the moment at which its root is mounted until it is unmounted."""
    guest(spoil=lambda tree, secret: (tree / "evil").symlink_to(secret))(tmp_path, canary.directory)
    image = tmp_path / "disk"
    refused = 0
    try:
        with swapper(target / "home", target / "evil") as count:
            for _ in range(MOUNTS):
                try:
                    mount_tree(mapper, request(image, target))
                except MapperError:
                    refused += 1
                places = [entry.target for entry in mountinfo.entries() if image_of(entry.source) == str(image)]
                assert all(mountinfo.is_below(place, str(target)) or place == str(target) for place in places)
                assert canary.harm() == []
                for _ in range(50):  # it is swapped while we unmount as well
                    with suppress(MapperError):
                        unmount_tree(mapper, str(target))
                        break
            swaps = struct.unpack_from("=Q", count)[0]
    finally:
        unmount_tree(mapper, str(target))
    report.count("swapped mount points", cases=swaps, runs=MOUNTS, refused=refused)
    assert swaps
    assert canary.harm_to_host() == []


def image_of(device: str) -> str:
    """The file behind a loop device or a partition of one; empty for all else."""
    name = re.sub(r"p\d+$", "", os.path.basename(device))
    with suppress(OSError):
        return Path(f"/sys/block/{name}/loop/backing_file").read_text().rstrip("\n")
    return ""


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


class Names:
    """An audit hook that notes each path by which Python opens or changes something (sys.addaudithook)."""

    EVENTS = frozenset(
        {
            *(
                "open",
                "os.chmod",
                "os.chown",
                "os.link",
                "os.listdir",
                "os.mkdir",
                "os.remove",
                "os.rename",
                "os.rmdir",
            ),
            *("os.scandir", "os.setxattr", "os.symlink", "os.truncate", "os.utime"),
        }
    )

    def __init__(self) -> None:
        self.seen: list[str] | None = None
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.seen is not None and event in self.EVENTS:
            self.seen += [os.fsdecode(item) for item in arguments[:2] if isinstance(item, (str, bytes))]


def test_no_path_of_an_image_is_opened_by_its_name(
    mapper: Mapper, tmp_path: Path, canary: Canary, target: Path
) -> None:
    """S-11: checked one way and opened another is how others were fooled. What is below a tree is only ever reached from a
    descriptor of its root, with all names resolved inside of it by the kernel."""
    deep = "LABEL=home /srv/made/deep ext4 defaults 0 0\n"
    guest(deep)(tmp_path, canary.directory)
    names = Names()
    names.seen = []
    try:
        mount_tree(mapper, request(tmp_path / "disk", target))
        made = target / "srv/made/deep"
        seen = list(names.seen)
        assert mountinfo.at(str(made))
        names.seen = []
        unmount_tree(mapper, str(target))
        seen += names.seen
    finally:
        names.seen = None
    assert str(tmp_path / "disk") in seen, "the hook works"
    inside = [path for path in seen if path.startswith(f"{target}/") or (not path.startswith("/") and "/" in path)]
    assert inside == []
