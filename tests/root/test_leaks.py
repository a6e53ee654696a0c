"""The leak oracle sees each kind of resource, on this kernel."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mapper_core.testing import leaks

pytestmark = pytest.mark.root


def run(*argv: str | Path) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(8 << 20)
    return path


@contextmanager
def seen(tmp_path: Path, *kinds: str) -> Iterator[None]:
    """Within the block exactly these kinds of leaks appear. The fixture of conftest.py sees to it that they go."""
    before = leaks.snapshot()
    yield
    found = leaks.diff(before, leaks.snapshot(), (str(tmp_path), os.environ["MAPPER_RUNTIME_DIR"]))
    assert sorted(item.kind for item in found.items) == sorted(kinds), str(found)


def test_loop_device(tmp_path: Path, image: Path) -> None:
    device = ""
    try:
        with seen(tmp_path, "loop"):
            device = run("losetup", "--find", "--show", image)
    finally:
        run("losetup", "--detach", device)


def test_loop_device_of_a_file_that_was_deleted(tmp_path: Path, image: Path) -> None:
    device = ""
    try:
        with seen(tmp_path, "loop"):
            device = run("losetup", "--find", "--show", image)
            image.unlink()
    finally:
        run("losetup", "--detach", device)


def test_partitions_that_were_added_to_a_device(tmp_path: Path, image: Path) -> None:
    device = run("losetup", "--find", "--show", image)
    try:
        with seen(tmp_path, "partition", "partition"):
            run("addpart", device, "1", "2048", "2048")
            run("addpart", device, "2", "4096", "2048")
        run("delpart", device, "1")
        run("delpart", device, "2")
    finally:
        run("losetup", "--detach", device)


def test_mount(tmp_path: Path) -> None:
    target = tmp_path / "a tree"  # escaped as \040 in mountinfo
    target.mkdir()
    try:
        with seen(tmp_path, "mount"):
            run("mount", "-t", "tmpfs", "none", target)
    finally:
        run("umount", target)


@contextmanager
def namespace_with_tmpfs(target: Path) -> Iterator[int]:
    """A process in a mount namespace of its own, with a tmpfs on ``target``."""
    script = 'mount -t tmpfs none "$1" && echo ready && exec cat'
    process = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script, "sh", str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout and process.stdout.readline() == b"ready\n"
        yield process.pid
        assert process.stdin
        process.stdin.close()  # cat ends, and the namespace with it


def test_mount_in_another_namespace(tmp_path: Path) -> None:
    before = leaks.snapshot()
    with namespace_with_tmpfs(tmp_path) as pid:
        found = leaks.diff(before, leaks.snapshot(), (str(tmp_path),))
        assert [(item.kind, item.pid) for item in found.items if item.kind == "mount"] == [("mount", pid)]
        assert [item.pid for item in found.items if item.kind == "child"] == [pid]
    assert not leaks.wait_for_none(before, 5, scope=(str(tmp_path),))


def test_mount_in_the_namespace_of_a_thread(tmp_path: Path) -> None:
    """A thread that does setns() or unshare() has mounts that /proc/PID/mountinfo of its process does not show."""
    clone_newns = 0x20000
    libc = ctypes.CDLL(None, use_errno=True)
    mounted, looked = threading.Event(), threading.Event()

    def work() -> None:
        # unshare(CLONE_NEWNS) implies CLONE_FS only for this thread; it may do so, since it is not the only one
        assert libc.unshare(clone_newns) == 0
        assert libc.mount(None, b"/", None, 0x4000 | 0x40000, None) == 0  # MS_REC | MS_PRIVATE
        assert libc.mount(b"none", os.fsencode(tmp_path), b"tmpfs", 0, None) == 0
        mounted.set()
        looked.wait(30)

    thread = threading.Thread(target=work)
    try:
        with seen(tmp_path, "mount"):
            thread.start()
            assert mounted.wait(30)
    finally:
        looked.set()
        thread.join()


def test_storage_daemon_and_its_fuse_export(tmp_path: Path, image: Path) -> None:
    export = tmp_path / "export"
    export.touch()
    blockdev = {"driver": "file", "node-name": "n", "filename": str(image)}
    pidfile = tmp_path / "pid"
    with seen(tmp_path, "fuse", "process"):
        run(
            *("qemu-storage-daemon", "--daemonize", "--pidfile", pidfile, "--blockdev", json.dumps(blockdev)),
            *("--export", f"type=fuse,id=e,node-name=n,mountpoint={export},writable=on,allow-other=off"),
        )
    pid = int(pidfile.read_text())
    pidfd = os.pidfd_open(pid)
    try:
        before_end = leaks.snapshot()
        os.kill(pid, 15)
        # not a child: a pidfd becomes readable when the process has ended (pidfd_open(2))
        assert select.select([pidfd], [], [], 10)[0]
    finally:
        os.close(pidfd)
    assert any(item.kind == "process" and item.pid == pid for item in before_end.items)


def test_qemu_nbd_process(tmp_path: Path, image: Path) -> None:
    socket = tmp_path / "s"
    with seen(tmp_path, "child"):
        process = subprocess.Popen(
            ["qemu-nbd", "--persistent", "-f", "raw", "-k", str(socket), str(image)], stdin=subprocess.DEVNULL
        )
    process.kill()
    process.wait()


def test_a_zombie_is_not_counted(tmp_path: Path) -> None:
    with seen(tmp_path):
        process = subprocess.Popen(["sh", "-c", f": {tmp_path}"])
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended and nobody has reaped it
    process.wait()


def test_a_process_that_names_the_runtime_directory(tmp_path: Path, runtime_dir: Path) -> None:
    before = leaks.snapshot()
    # its parent ends at once, so it is nobody's child here
    run("sh", "-c", f"tail -f /dev/null --pid=1 {runtime_dir}/x >/dev/null 2>&1 & echo $!")
    found = leaks.diff(before, leaks.snapshot(), (str(runtime_dir),))
    for item in found.items:
        os.kill(item.pid, 9)
    assert [item.kind for item in found.items] == ["process"]


def test_descriptor(tmp_path: Path, image: Path) -> None:
    with seen(tmp_path, "fd"):
        fd = os.open(image, os.O_RDONLY)
    os.close(fd)


def test_files_of_the_runtime_directory(tmp_path: Path, runtime_dir: Path) -> None:
    with seen(tmp_path, "file", "file", "file"):
        (runtime_dir / "disks").mkdir()
        (runtime_dir / "disks" / "0123.json").touch()
        (runtime_dir / "exports" / "0123").mkdir(parents=True)
        (runtime_dir / "exports" / "0123" / "pid").touch()
        (runtime_dir / "locks").mkdir()
        (runtime_dir / "locks" / "0123").touch()  # nobody holds it: no leak
    shutil.rmtree(runtime_dir)


def test_a_lock_that_is_held(tmp_path: Path, runtime_dir: Path) -> None:
    (runtime_dir / "locks").mkdir()
    with (runtime_dir / "locks" / "0123").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        before = leaks.Snapshot(tuple(item for item in leaks.snapshot().items if item.kind == "fd"))
        found = leaks.diff(before, leaks.snapshot(), (str(runtime_dir),))
    assert [item.text for item in found.items] == [f"{runtime_dir}/locks/0123 (lock held)"]


def test_what_is_mounted_below_the_runtime_directory_is_not_listed(tmp_path: Path, runtime_dir: Path) -> None:
    tree = runtime_dir / "mounts" / "1"
    tree.mkdir(parents=True)
    with seen(tmp_path, "mount"):
        run("mount", "-t", "tmpfs", "none", tree)
        (tree / "file of the image").touch()
    run("umount", tree)
    shutil.rmtree(runtime_dir / "mounts")


def test_temporary_directory() -> None:
    before = leaks.snapshot()
    with tempfile.TemporaryDirectory() as python_style, tempfile.TemporaryDirectory(prefix="mapper-") as ours:
        found = leaks.diff(before, leaks.snapshot())
        assert {python_style, ours} <= {item.touches[0] for item in found.items if item.kind == "temporary"}


def test_command_line(tmp_path: Path, runtime_dir: Path, image: Path) -> None:
    """Scripts take a snapshot before, and get lines, a count and an exit status after. The oracle is no leak."""
    oracle = (sys.executable, "-m", "mapper_core.testing.leaks")
    before = tmp_path / "before.json"
    before.write_text(run(*oracle, "snapshot"))
    compare = (*oracle, "diff", str(before), "--scope", str(tmp_path), "--scope", str(runtime_dir))
    device = run("losetup", "--find", "--show", image)
    try:
        result = subprocess.run(compare, capture_output=True, text=True, timeout=60)
    finally:
        run("losetup", "--detach", device)
    assert (result.returncode, result.stdout) == (1, f"leak: loop: {device} on {image}\nleaks: 1\n")
    result = subprocess.run((*compare, "--wait", "5"), capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, "leaks: 0\n")
