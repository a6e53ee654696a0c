"""Small files, their paths, and where they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mapper_core.linux import mountinfo
from mapper_core.linux.files import is_in_memory, real_path

pytestmark = pytest.mark.unit


def test_the_real_path_is_that_of_realpath(tmp_path: Path) -> None:
    directory = tmp_path / "a b" / "ü"
    directory.mkdir(parents=True)
    (tmp_path / "link").symlink_to("a b")
    (tmp_path / "loop").symlink_to("loop")
    for path in (
        directory,
        tmp_path / "link" / "ü",
        tmp_path / "link" / ".." / "link",
        Path("/"),
        Path("/proc/self/fd"),
    ):
        assert real_path(str(path)) == os.path.realpath(path)
    (directory / "file").touch()
    assert real_path(str(directory / "file")) == str(directory / "file")
    with pytest.raises(NotADirectoryError):
        real_path(str(directory / "file"), os.O_DIRECTORY)
    for wrong in ("none", "loop"):
        with pytest.raises(OSError, match=wrong):
            real_path(str(tmp_path / wrong))


def test_a_tmpfs_is_told_from_other_filesystems(tmp_path: Path) -> None:
    kinds = {entry.device: entry.fstype for entry in mountinfo.entries()}
    with (tmp_path / "file").open("w") as file:
        device = os.fstat(file.fileno()).st_dev
        kind = kinds.get((os.major(device), os.minor(device)), "btrfs")  # that has another number here
        assert is_in_memory(file.fileno()) == (kind == "tmpfs")
    fd = os.memfd_create("x")
    assert is_in_memory(fd)
    os.close(fd)
    with open("/proc/self/status") as file:
        assert not is_in_memory(file.fileno())
