"""The control filesystem of FUSE, with a real server: the export of qemu-storage-daemon."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mapper_core.errors import DeadlineExceeded, KernelError, NotMapped
from mapper_core.linux import fuse, loop, mountinfo, mounts
from mapper_core.model import Access

pytestmark = pytest.mark.root

MakeImage = Callable[..., Path]

MIB = 1 << 20


class Export:
    """A server and the file that it exports."""

    def __init__(self, path: Path, process: subprocess.Popen[bytes]) -> None:
        self.path = path
        self.process = process


@pytest.fixture
def export(make_image: MakeImage, tmp_path: Path) -> Iterator[Export]:
    image = make_image()
    path = tmp_path / "export"
    path.touch()
    blockdev = json.dumps(
        {"driver": "raw", "node-name": "disk", "file": {"driver": "file", "filename": str(image), "locking": "off"}}
    )
    process = subprocess.Popen(
        [
            "qemu-storage-daemon",
            "--blockdev", blockdev,
            "--export", f"type=fuse,id=e,node-name=disk,mountpoint={path},writable=on,allow-other=off",
            "--pidfile", str(tmp_path / "pid"),
        ]
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while not mountinfo.at(str(path)):
        assert time.monotonic() < deadline, "the export is not mounted"
        assert process.poll() is None, "the server has ended"
        time.sleep(0.01)
    yield Export(path, process)
    process.send_signal(signal.SIGCONT)
    process.kill()
    process.wait(timeout=10)
    if mountinfo.at(str(path)):
        mounts.unmount(str(path), detach=True)


def test_the_limit_is_set_and_stays(export: Export) -> None:
    """The server's answer to FUSE_INIT, which sets it too, must not come later."""
    fuse.limit_background(str(export.path))
    assert fuse.max_background(str(export.path)) == 1
    with open(export.path, "r+b", buffering=0) as file:
        file.write(b"x" * 4096)
    assert fuse.max_background(str(export.path)) == 1


def test_nothing_is_mounted_for_that(export: Export) -> None:
    def control_mounts() -> int:
        return sum(entry.fstype == "fusectl" for entry in mountinfo.entries())

    before = control_mounts()
    fuse.limit_background(str(export.path))
    assert control_mounts() == before


def test_no_fuse_mount(tmp_path: Path) -> None:
    for path in (str(tmp_path), "/proc"):
        with pytest.raises(NotMapped):
            fuse.limit_background(path)
        with pytest.raises(NotMapped):
            fuse.abort(path)


def test_a_server_that_hangs_is_given_up(export: Export) -> None:
    """M-23: the request that waits for it is ended too, so that no thread and no process stays in D state."""
    export.process.send_signal(signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        fuse.limit_background(str(export.path), deadline_seconds=0.5)
    assert time.monotonic() - started < 10
    with pytest.raises(OSError):
        os.stat(export.path)


def test_a_dead_server(export: Export) -> None:
    export.process.kill()
    export.process.wait(timeout=10)
    with pytest.raises((KernelError, NotMapped)):
        fuse.limit_background(str(export.path))


def test_abort_wakes_who_waits(export: Export) -> None:
    export.process.send_signal(signal.SIGSTOP)
    reader = subprocess.Popen(["dd", f"if={export.path}", "of=/dev/null"], stderr=subprocess.DEVNULL)
    with pytest.raises(subprocess.TimeoutExpired):
        reader.wait(timeout=0.3)
    fuse.abort(str(export.path))
    assert reader.wait(timeout=10) != 0


def test_a_loop_device_on_a_dead_server_can_be_detached(export: Export) -> None:
    """M-23, L-11: and it is said that writes were lost."""
    fd = os.open(export.path, os.O_RDWR)
    device = loop.attach(fd, access=Access.READ_WRITE, tag="dead", direct_io=False)
    os.close(fd)
    try:
        with open(device.path, "r+b", buffering=0) as disk:
            export.process.kill()
            export.process.wait(timeout=10)
            disk.write(b"x" * 8192)
    finally:
        with pytest.raises(KernelError, match="last writes could not be stored"):
            loop.detach(device.path, tag="dead")
    assert loop.status(device.path) is None
    loop.detach(device.path, tag="dead")
