"""Every option that we pass on is one that this kernel takes: an fstab that works in a machine works here."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mapper_core.linux import mounts
from mapper_core.model import Access
from mapper_core.tree.options import MOUNT_ATTRIBUTES, driver, filter_options

pytestmark = pytest.mark.root

EXT = "acl user_xattr errors=continue errors=remount-ro grpid bsdgroups nogrpid sysvgroups sync dirsync lazytime nolazytime"
JOURNAL = "commit=30 data=ordered data=journal discard nodiscard commit=5,data=ordered,errors=remount-ro,noatime"

#: What fstab lines may say, one set of options per word.
OPTIONS = {
    "ext2": EXT,
    "ext3": f"{EXT} {JOURNAL}",
    "ext4": f"{EXT} {JOURNAL} delalloc nodelalloc auto_da_alloc noauto_da_alloc",
    "xfs": "defaults nouuid discard nodiscard inode32 inode64 largeio nolargeio allocsize=64k allocsize=65536 sync lazytime",
    "btrfs": "compress compress=zstd compress=zstd:1 compress=zlib:9 compress=lzo compress=no compress=none compress-force "
    "compress-force=zstd:3 space_cache space_cache=v1 space_cache=v2 autodefrag noautodefrag ssd nossd datacow nodatacow "
    "datasum nodatasum acl noacl discard discard=sync discard=async nodiscard commit=120 flushoncommit noflushoncommit "
    "subvolid=5 subvol=/ subvolid=256 subvol=@ subvol=/@ subvol=@,subvolid=999 sync lazytime",
    "squashfs": "defaults sync",
}


@pytest.fixture
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    image = tmp_path / "image"
    if request.param == "squashfs":
        (tmp_path / "tree").mkdir()
        argv = ["mksquashfs", str(tmp_path / "tree"), str(image), "-quiet", "-no-progress"]
    else:
        image.touch()
        os.truncate(image, 320 << 20)
        argv = [f"mkfs.{request.param}", "-q", str(image)]
    subprocess.run(argv, check=True, capture_output=True, timeout=60)
    made = subprocess.run(
        ["losetup", "--find", "--show", image], check=True, capture_output=True, text=True, timeout=60
    )
    try:
        yield made.stdout.strip()
    finally:
        subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True, timeout=60)


def mount(fstype: str, device: str, words: str, access: Access, kernel: frozenset[str]) -> int:
    filtered = filter_options(tuple(words.split(",")), fstype, access)
    assert filtered.dropped == ()
    options = tuple(option for option in filtered.options if option not in MOUNT_ATTRIBUTES)
    if filtered.subvolume:
        options = (*options, f"subvol={filtered.subvolume}")
    return mounts.new_filesystem(driver(fstype, kernel), device, options=options, access=filtered.access)


@pytest.mark.parametrize("access", list(Access))
@pytest.mark.parametrize(
    ("device", "fstype"), [(name, name) for name in OPTIONS], indirect=["device"], ids=list(OPTIONS)
)
def test_options(device: str, fstype: str, access: Access) -> None:
    kernel = frozenset(line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines())
    if fstype == "btrfs":
        os.close(_with_subvolume(device, kernel))
    for words in OPTIONS[fstype].split():
        os.close(mount(fstype, device, words, access, kernel))


def _with_subvolume(device: str, kernel: frozenset[str]) -> int:
    """Make the subvolume ``@``, whose id is 256, the first one there is."""
    fd = mount("btrfs", device, "defaults", Access.READ_WRITE, kernel)
    argv = ["btrfs", "subvolume", "create", f"/proc/self/fd/{fd}/@"]
    subprocess.run(argv, check=True, capture_output=True, timeout=60, pass_fds=(fd,))
    return fd
