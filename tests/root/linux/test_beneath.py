"""Nothing in a hostile tree leads out of it, blocks, or fills the memory."""

from __future__ import annotations

import os
import secrets
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mapper_core.errors import MapperError, NotFound, UnsafePath
from mapper_core.linux import beneath, mounts, unmounting
from mapper_core.model import Access

pytestmark = pytest.mark.root

LIMIT = 4096


class Tree:
    """A tree with a canary beside it: a secret on the host that no path of the tree may show."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.root = base / "root"
        self.canary = base / "canary"
        self.secret = secrets.token_bytes(16)
        self.root.mkdir()
        (self.root / "etc").mkdir()
        self.canary.write_bytes(self.secret)
        self.fd = os.open(self.root, os.O_PATH | os.O_DIRECTORY)

    def read(self, path: str = "/etc/fstab") -> bytes:
        return beneath.read_file_in_root(self.fd, path, LIMIT)


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    made = Tree(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    yield made
    os.close(made.fd)
    assert made.canary.read_bytes() == made.secret
    assert sorted(path.name for path in tmp_path.iterdir()) == before, "something was made outside of the tree"


def test_a_plain_file(tree: Tree) -> None:
    (tree.root / "etc/fstab").write_bytes(b"/dev/sda1 / ext4\n")
    for path in ("/etc/fstab", "etc/fstab", "//etc/./fstab", "/etc/../etc/fstab", "/../../../etc/fstab"):
        assert tree.read(path) == b"/dev/sda1 / ext4\n"


def test_a_file_of_exactly_the_limit(tree: Tree) -> None:
    (tree.root / "etc/fstab").write_bytes(b"x" * LIMIT)
    assert len(tree.read()) == LIMIT


@pytest.mark.parametrize(
    "link",
    [
        "{canary}",  # absolute: it means {root}{canary}
        "../../canary",
        "../../../../../../../../../../../../{canary}",
        "/../../{canary}",
        "/proc/self/root/{canary}",  # there is no /proc in the tree
    ],
)
def test_a_link_to_the_host_leads_nowhere(tree: Tree, link: str) -> None:
    """S-07, S-09."""
    (tree.root / "etc/fstab").symlink_to(link.format(canary=tree.canary, root=tree.root))
    with pytest.raises(NotFound):
        tree.read()


def test_a_link_stays_in_the_tree(tree: Tree) -> None:
    (tree.root / "usr").mkdir()
    (tree.root / "usr/fstab").write_bytes(b"inside")
    (tree.root / "etc/fstab").symlink_to("/../../usr/fstab")
    assert tree.read() == b"inside"


def test_a_directory_link_to_the_host(tree: Tree) -> None:
    (tree.root / "etc").rmdir()
    (tree.root / "etc").symlink_to(tree.base)
    with pytest.raises(NotFound):
        tree.read("/etc/canary")


def test_magic_links_are_refused(tree: Tree) -> None:
    """/proc/self/root and /proc/self/fd/N jump anywhere, whatever the root is."""
    (tree.root / "proc").mkdir()
    proc = mounts.clone_tree("/proc", recursive=False)
    target = beneath.open_directory_in_root(tree.fd, "/proc")
    try:
        mounts.attach(proc, target)
    finally:
        os.close(target)
        os.close(proc)
    opened = os.open(tree.canary, os.O_RDONLY)
    try:
        (tree.root / "etc/fstab").symlink_to(f"/proc/self/fd/{opened}")
        for path in (f"/proc/self/root{tree.canary}", f"/proc/self/cwd/{tree.canary}", "/etc/fstab"):
            with pytest.raises(UnsafePath):
                tree.read(path)
    finally:
        os.close(opened)
        unmounting.unmount(str(tree.root / "proc"))


def test_links_without_end(tree: Tree) -> None:
    (tree.root / "etc/fstab").symlink_to("fstab")
    with pytest.raises(UnsafePath):
        tree.read()


def test_a_name_without_end(tree: Tree) -> None:
    for path in ("/" + "x" * 300, "/x" * 3000):
        with pytest.raises(UnsafePath):
            tree.read(path)


def test_a_file_on_the_way_is_no_such_file(tree: Tree) -> None:
    (tree.root / "file").touch()
    with pytest.raises(NotFound):
        tree.read("/file/fstab")


@pytest.mark.parametrize("kind", ["directory", "FIFO", "socket", "character device", "block device"])
def test_what_is_no_file_is_not_opened(tree: Tree, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """S-07, S-26: a FIFO without a writer blocks, a device node starts its driver."""
    path = tree.root / "etc/fstab"
    if kind == "directory":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        monkeypatch.chdir(path.parent)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("fstab")
    else:
        # Numbers without a driver: opening one would give ENXIO or ENODEV and not the answer expected here.
        os.mknod(path, (stat.S_IFCHR if kind == "character device" else stat.S_IFBLK) | 0o666, os.makedev(250, 250))
    started = time.monotonic()
    with pytest.raises(UnsafePath, match=f"is a {kind} and not a regular file"):
        tree.read()
    assert time.monotonic() - started < 5


def test_a_huge_file_is_not_read(tree: Tree) -> None:
    with (tree.root / "etc/fstab").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UnsafePath, match="1099511627776 bytes"):
        tree.read()


def test_a_file_that_is_longer_than_it_says(tree: Tree) -> None:
    """As files of /proc, or a file that grows while it is read."""
    fd = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
    try:
        assert os.stat("/proc/kallsyms").st_size == 0
        with pytest.raises(UnsafePath, match="has more than"):
            beneath.read_file_in_root(fd, "/kallsyms", LIMIT)
    finally:
        os.close(fd)


def test_reading_does_not_write(tree: Tree) -> None:
    """An access time is a write to the image."""
    path = tree.root / "etc/fstab"
    path.write_bytes(b"x")
    os.utime(path, ns=(10**9, 2 * 10**9))  # older than the modification: relatime would update it
    tree.read()
    assert path.stat().st_atime_ns == 10**9


def test_a_tree_that_changes_all_the_time(tree: Tree) -> None:
    """The classic race: a directory is swapped with a link to the host while it is walked."""
    (tree.root / "a").mkdir()
    (tree.root / "a/canary").write_bytes(b"inside")
    (tree.root / "b").symlink_to(tree.base)
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for source, target in (("a", "t"), ("b", "a"), ("a", "b"), ("t", "a")):
                os.rename(tree.root / source, tree.root / target)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(2000):
            try:
                assert tree.read("/a/../a/canary") == b"inside"
            except MapperError:
                continue
    finally:
        stop.set()
        thread.join()


# --- directories ----------------------------------------------------------------------------------------------


def made(tree: Tree, path: str, mode: int | None = 0o755) -> str:
    fd = beneath.open_directory_in_root(tree.fd, path, create=mode)
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def test_directories_are_made(tree: Tree) -> None:
    assert made(tree, "/var/lib/data", 0o700) == f"{tree.root}/var/lib/data"
    assert (tree.root / "var/lib").stat().st_mode & 0o777 == 0o700
    assert made(tree, "/var/lib/data", None) == f"{tree.root}/var/lib/data"
    assert made(tree, "/", None) == str(tree.root)


def test_nothing_is_made_unless_asked(tree: Tree) -> None:
    with pytest.raises(NotFound):
        made(tree, "/var/lib", None)
    assert not (tree.root / "var").exists()


@pytest.mark.parametrize("link", ["../../outside", "/outside", "{base}/outside"])
def test_links_to_the_host_are_made_inside(tree: Tree, link: str) -> None:
    """S-09, S-10: a dangling link is not made true, inside or outside."""
    (tree.root / "mnt").symlink_to(link.format(base=tree.base))
    with pytest.raises(UnsafePath, match="leads nowhere"):
        made(tree, "/mnt/data")
    assert not (tree.base / "outside").exists()


def test_a_link_to_an_existing_directory_of_the_host(tree: Tree) -> None:
    (tree.root / "mnt").symlink_to(tree.base)
    (tree.root / str(tree.base)[1:]).mkdir(parents=True)
    assert made(tree, "/mnt/data") == f"{tree.root}{tree.base}/data"


def test_dots_do_not_climb(tree: Tree) -> None:
    assert made(tree, "/../../outside/../x") == f"{tree.root}/x"
    assert (tree.root / "outside").is_dir()


def test_a_file_in_the_way(tree: Tree) -> None:
    (tree.root / "mnt").touch()
    for path in ("/mnt", "/mnt/data"):
        with pytest.raises(UnsafePath, match="not a directory"):
            made(tree, path)


def test_a_read_only_tree(tree: Tree) -> None:
    fd = mounts.new_filesystem("tmpfs", "x", access=Access.READ_ONLY)
    try:
        with pytest.raises(MapperError, match="EROFS"):
            beneath.open_directory_in_root(fd, "/mnt", create=0o755)
    finally:
        os.close(fd)


def test_no_descriptor_is_leaked(tree: Tree) -> None:
    (tree.root / "file").touch()
    (tree.root / "mnt").symlink_to("nowhere")
    before = len(os.listdir("/proc/self/fd"))
    for path in ("/a/b/c", "/file/x", "/mnt/x"):
        for _ in range(3):
            try:
                made(tree, path)
            except UnsafePath:
                continue
    assert len(os.listdir("/proc/self/fd")) == before
