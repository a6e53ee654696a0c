"""The control filesystem of FUSE, with a real server: the export of qemu-storage-daemon."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from mapper_core import process
from mapper_core.errors import DeadlineExceeded, KernelError, NotMapped
from mapper_core.linux import fuse, loop, mountinfo, process_info, unmounting
from mapper_core.model import Access
from mapper_core.transports import daemon

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
        unmounting.unmount(str(path), detach=True)


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


def _wake_later(export: Export) -> threading.Timer:
    """So that a test whose subject waits for the server fails, and does not hang."""
    timer = threading.Timer(10, export.process.send_signal, (signal.SIGCONT,))
    timer.start()
    return timer


def test_a_program_that_cannot_be_killed_is_given_up(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    """M-23: it waits in the kernel for a disk whose server hangs; whoever has started it does not wait with it."""
    monkeypatch.setattr(process, "KILL_SECONDS", 0.3)
    fd = os.open(export.path, os.O_RDWR)
    device = loop.attach(fd, access=Access.READ_WRITE, tag="hangs", direct_io=False).path
    os.close(fd)
    export.process.send_signal(signal.SIGSTOP)
    timer = _wake_later(export)
    started = time.monotonic()
    try:
        with pytest.raises(DeadlineExceeded, match="cannot even be killed"):
            process.run(("dd", f"if={device}", "of=/dev/null", "iflag=direct", "count=1"), timeout=0.3)
        assert time.monotonic() - started < 5
        (stuck,) = process_info.find_by_argument("dd", f"if={device}")
        assert stuck.state == "D"
    finally:
        timer.cancel()
        export.process.send_signal(signal.SIGCONT)
        for child in process_info.find_by_argument("dd", f"if={device}"):
            with suppress(ChildProcessError):  # a thread of sh may ask for it, too
                os.waitpid(child.pid, 0)
        loop.detach(device, tag="hangs")


@pytest.mark.parametrize("end", [signal.SIGSTOP, signal.SIGKILL])
def test_who_has_a_lock_is_found_beside_a_server_that_hangs(
    export: Export, tmp_path: Path, end: signal.Signals
) -> None:
    """M-23: all files that anybody has open are looked at, and none is asked for."""
    lock = os.open(tmp_path / "alive", os.O_RDWR | os.O_CREAT)
    os.set_inheritable(lock, True)
    sleeper = ["sh", "-c", f"exec 9<{export.path}; exec sleep 60"]
    with subprocess.Popen(sleeper, close_fds=False) as holder:
        try:
            while [name.name for name in Path(f"/proc/{holder.pid}/fd").iterdir()].count("9") == 0:
                time.sleep(0.01)
            export.process.send_signal(end)
            time.sleep(1.1)  # as long as the kernel remembers what it was told
            timer = _wake_later(export)
            started = time.monotonic()
            assert [found.pid for found in daemon._holders(lock)] == [holder.pid]
            assert time.monotonic() - started < 5
            timer.cancel()
        finally:
            export.process.send_signal(signal.SIGCONT)
            holder.kill()
    os.close(lock)


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
