"""``labs/sweep``: what killed tests leave does not stay on the host, and what running ones use does."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

SWEEP = Path(__file__).parents[2] / "labs" / "sweep"


def run(*argv: str | Path) -> str:
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def rests(tmp_path: Path) -> Callable[[int], Path]:
    """Lets a run of a pytest, by its process id, leave an export of a storage daemon, a loop device on it and a mount."""

    def leave(owner: int) -> Path:
        of_run = tmp_path / "pytest-of-root" / "pytest-7"
        of_run.mkdir(parents=True)
        (of_run / ".lock").write_text(str(owner))
        image, export, point = of_run / "image", of_run / "export", of_run / "point"
        run("truncate", "--size=8M", image)
        run("mkfs.ext4", "-q", image)
        export.touch()
        point.mkdir()
        run(
            *("qemu-storage-daemon", "--daemonize", "--pidfile", of_run / "pid"),
            *("--blockdev", f"driver=file,node-name=disk,filename={image}"),
            *("--export", f"fuse,id=disk,node-name=disk,mountpoint={export},writable=on"),
        )
        device = run("losetup", "--find", "--show", export)
        run("mount", device, point)
        return of_run

    return leave


def in_use(of_run: Path) -> tuple[bool, bool, bool]:
    """Whether the mount, the loop device and the daemon are there."""
    pid = (of_run / "pid").read_text().strip()
    daemon = Path(f"/proc/{pid}/cmdline")
    loops = run("losetup", "--list", "--noheadings", "--output", "BACK-FILE")
    return (
        os.path.ismount(of_run / "point"),
        f"{of_run}/export" in loops,
        (
            daemon.exists() and daemon.read_bytes() != b""  # it is empty in one that has ended, until its parent looks
        ),
    )


def test_what_a_killed_run_left_goes(rests: Callable[[int], Path], tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait(10)
    of_run = rests(gone.pid)
    shown = run(SWEEP, "--list", tmp_path)
    assert [line.split(":")[0] for line in shown.splitlines()] == ["process", "mount", "mount", "loop"]
    assert in_use(of_run) == (True, True, True)
    assert run(SWEEP, tmp_path) == shown
    assert in_use(of_run) == (False, False, False)
    assert run(SWEEP, tmp_path) == ""


def test_what_a_running_one_uses_stays(rests: Callable[[int], Path], tmp_path: Path) -> None:
    of_run = rests(os.getpid())
    try:
        assert run(SWEEP, tmp_path) == ""
        assert in_use(of_run) == (True, True, True)
    finally:
        (of_run / ".lock").write_text("0")
        run(SWEEP, tmp_path)
