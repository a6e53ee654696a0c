"""Images, loop devices and foreign mount namespaces for the tests of the kernel wrappers."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mapper_core.linux import loop, mounts, unmounting
from mapper_core.model import Access

MIB = 1 << 20

MakeImage = Callable[..., Path]
Attach = Callable[..., loop.LoopDevice]
Elsewhere = Callable[..., int]


@pytest.fixture
def make_image(tmp_path: Path) -> MakeImage:
    """make_image(size=..., mkfs="ext4"): a sparse file, with a filesystem on it if asked for."""
    numbers = itertools.count()

    def make(*, size: int = 16 * MIB, mkfs: str = "") -> Path:
        path = tmp_path / f"disk{next(numbers)}.img"
        with path.open("wb") as file:
            file.truncate(size)
        if mkfs:
            force = {"ext4": "-F", "xfs": "-f", "btrfs": "-f"}[mkfs]
            subprocess.run([f"mkfs.{mkfs}", "-q", force, path], check=True, capture_output=True, timeout=60)
        return path

    return make


@pytest.fixture
def attach(tmp_path: Path) -> Iterator[Attach]:
    """attach(path, ...): a loop device that is detached at the end of the test. The tag is the path's name."""
    with contextlib.ExitStack() as stack:

        def attached(
            path: Path,
            *,
            access: Access = Access.READ_WRITE,
            offset: int = 0,
            size_limit: int = 0,
            sector_size: int = 512,
            direct_io: bool = False,
        ) -> loop.LoopDevice:
            tag = f"test:{os.getpid()}:{path.name}"
            fd = os.open(path, os.O_RDONLY if access is Access.READ_ONLY else os.O_RDWR)
            try:
                device = loop.attach(
                    fd,
                    access=access,
                    tag=tag,
                    offset=offset,
                    size_limit=size_limit,
                    sector_size=sector_size,
                    direct_io=direct_io,
                )
            finally:
                os.close(fd)
            stack.callback(loop.detach, device.path, tag=tag)
            return device

        yield attached


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """mounted(device, fstype): a directory with that filesystem, unmounted at the end of the test if it still is."""
    with contextlib.ExitStack() as stack:

        def mount(source: str, fstype: str = "ext4", *, access: Access = Access.READ_WRITE) -> Path:
            directory = tmp_path / f"mount{len(list(tmp_path.iterdir()))}"
            directory.mkdir()
            fd = mounts.new_filesystem(fstype, source, access=access)
            try:
                target = os.open(directory, os.O_PATH)
                try:
                    mounts.attach(fd, target)
                finally:
                    os.close(target)
            finally:
                os.close(fd)
            stack.callback(unmount_if_mounted, directory)
            return directory

        yield mount


def unmount_if_mounted(directory: Path) -> None:
    from mapper_core.errors import NotMapped

    with contextlib.suppress(NotMapped):
        unmounting.unmount(str(directory))


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    """elsewhere(shell_script): run it in a new mount namespace; a process that stays there, until the end of the test."""
    with contextlib.ExitStack() as stack:

        def start(script: str, *arguments: str | Path) -> int:
            process = subprocess.Popen(
                [
                    "unshare",
                    "--mount",
                    "--propagation",
                    "private",
                    "sh",
                    "-ec",
                    f"{script}\necho ready\nexec sleep 1000",
                    "sh",
                ]
                + [str(argument) for argument in arguments],
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.callback(end, process)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            return process.pid

        yield start


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(timeout=10)
    if process.stdout is not None:
        process.stdout.close()
