"""What the programs that we start may do: looked at in the real ones, and tried."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mapper_core.errors import CommandFailed
from mapper_core.linux.confine import CAP_DAC_OVERRIDE, CAP_SYS_ADMIN, FILES_LIMIT, MEMORY_LIMIT
from mapper_core.mapping import Mapper
from mapper_core.model import Disk, MapOptions, MappedDisk
from mapper_core.process import SEARCH_PATH, run
from mapper_core.testing import disks
from mapper_core.testing.disks import Part
from mapper_core.tree.mounted import TreeRequest, mount_tree, unmount_tree

pytestmark = pytest.mark.security

ENVIRONMENT = {"PATH": ":".join(SEARCH_PATH), "LC_ALL": "C", "LANG": "C", "HOME": "/"}
NOBODY = 65534


@pytest.fixture
def mapped(runtime_dir: Path, tmp_path: Path) -> Iterator[tuple[Mapper, MappedDisk]]:
    """A qcow2 disk that is served by a daemon."""
    image = disks.convert(disks.make_filesystem(tmp_path / "raw", Part("ext4", 8)), "qcow2", tmp_path / "disk")
    mapper = Mapper.open()
    yield mapper, mapper.map(Disk(str(image), "qcow2"), MapOptions(transport="storage_daemon"), user="t")
    mapper.unmap(str(image), user="t")


def fields(text: str) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def check_status(text: str, *capabilities: int) -> None:
    """Compare ``/proc/PID/status`` with what a program may have at most; a test that runs with less sees less."""
    found = fields(text)
    own = int(fields(Path("/proc/self/status").read_text())["CapPrm"], 16)
    allowed = sum(1 << number for number in capabilities) & own
    assert int(found["CapEff"], 16) == int(found["CapPrm"], 16) == allowed
    assert int(found["CapInh"], 16) == int(found["CapAmb"], 16) == 0
    assert found["NoNewPrivs"] == "1"


def check_limits(text: str) -> None:
    limits = {line[:26].strip(): tuple(line[26:].split()[:2]) for line in text.splitlines()[1:]}
    own = {line[:26].strip(): line[26:].split() for line in Path("/proc/self/limits").read_text().splitlines()[1:]}
    hard = own["Max open files"][1]
    files = str(FILES_LIMIT if hard == "unlimited" else min(FILES_LIMIT, int(hard)))
    assert limits["Max core file size"] == ("0", "0")
    assert limits["Max data size"] == (str(MEMORY_LIMIT),) * 2
    assert limits["Max open files"] == (files, files)


def test_a_program_has_hardly_a_capability_left() -> None:
    check_status(run(("cat", "/proc/self/status"), timeout=10).stdout.decode(), CAP_DAC_OVERRIDE)
    check_limits(run(("cat", "/proc/self/limits"), timeout=10).stdout.decode())
    # one that every program has, asked for once more, is not another one
    named_twice = run(("cat", "/proc/self/status"), timeout=10, capabilities=(CAP_DAC_OVERRIDE,))
    check_status(named_twice.stdout.decode(), CAP_DAC_OVERRIDE)


@pytest.mark.parametrize(
    "argv",
    [
        ("mount", "-t", "tmpfs", "none", "/mnt"),
        ("chown", "1", "@"),
        ("mknod", "@.node", "c", "1", "3"),
        ("unshare", "--mount", "true"),
        ("chroot", "/", "true"),
        ("setpriv", "--reuid=1", "true"),
    ],
    ids=lambda argv: argv[0],
)
def test_what_root_can_do_it_cannot(argv: tuple[str, ...], tmp_path: Path) -> None:
    """S-18: even a program that the content of an image has taken over."""
    (tmp_path / "file").touch()
    with pytest.raises(CommandFailed) as caught:
        run(tuple(word.replace("@", str(tmp_path / "file")) for word in argv), timeout=10)
    assert re.search(r"not permitted|permission denied", caught.value.stderr, re.I)
    assert sorted(os.listdir(tmp_path)) == ["file"]


def test_it_reads_and_writes_the_images_of_others(tmp_path: Path) -> None:
    """OpenNebula's images belong to oneadmin; nothing else is asked of most programs."""
    image = tmp_path / "image"
    image.write_text("content")
    image.chmod(0o600)
    os.chown(image, NOBODY, NOBODY)
    assert run(("cat", str(image)), timeout=10).stdout == b"content"
    run(("qemu-img", "create", "-q", "-f", "raw", str(image), "1M"), timeout=10)
    assert image.stat().st_uid == NOBODY


@pytest.mark.parametrize(
    "argv",
    [
        ("dd", "if=/dev/zero", "of=@/other", "count=1", "conv=notrunc"),
        ("truncate", "--size=0", "@/other"),
        ("touch", "@/new"),
        ("rm", "-f", "@/other"),
        ("ln", "@/other", "@/new"),
        ("mv", "@/image", "@/new"),
        ("mkdir", "@/new"),
        ("ln", "-s", "/etc/passwd", "@/new"),
    ],
    ids=lambda argv: argv[0],
)
def test_a_program_that_may_change_one_file_changes_no_other(argv: tuple[str, ...], tmp_path: Path) -> None:
    """S-05, S-20: qemu-img works on the tables of an image; when they have taken it over, this is what it still can do."""
    image, other = tmp_path / "image", tmp_path / "other"
    for path in (image, other):
        path.write_bytes(b"content")
    words = tuple(word.replace("@", str(tmp_path)) for word in argv)
    with pytest.raises(CommandFailed) as caught:
        run(words, timeout=10, writes=(str(image),))
    assert re.search(r"permission denied|cross-device", caught.value.stderr, re.I)
    assert sorted(os.listdir(tmp_path)) == ["image", "other"]
    assert other.read_bytes() == b"content"
    run(("dd", "if=/dev/zero", f"of={image}", "bs=7", "count=1"), timeout=10, writes=(str(image),))
    assert image.read_bytes() == bytes(7)
    assert run(("cat", str(other)), timeout=10, writes=(str(image),)).stdout == b"content"


def test_what_cannot_be_restricted_is_not_started(tmp_path: Path) -> None:
    """A kernel takes 16 sets of rules, one inside of the other; here all are in use."""
    code = (
        "import ctypes; from mapper_core.linux import landlock; from mapper_core.process import run\n"
        "ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)\n"
        "for _ in range(16): landlock.restrict(landlock.only_these(('/dev/null',)))\n"
        "try: run(('touch', '/dev/null'), timeout=10, writes=('/dev/null',))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("KernelError touch cannot be started: ")
    assert done.stdout.count("\n") == 1 and "Argument list too long" in done.stdout


def test_memory_is_limited() -> None:
    """S-19: a program that wants it all fails, and the host does not."""
    with pytest.raises(CommandFailed, match="memory exhausted"):
        run(("dd", "if=/dev/zero", "of=/dev/null", f"bs={MEMORY_LIMIT}", "count=1"), timeout=30)


def test_the_daemon_of_a_disk(mapped: tuple[Mapper, MappedDisk]) -> None:
    """It lives as long as the disk is mapped. It mounts its export itself, and for that has to be CAP_SYS_ADMIN."""
    mapper, disk = mapped
    directory = f"{mapper.runtime.exports}/{disk.id}"
    process = Path(f"/proc/{int(Path(directory, 'pid').read_text())}")
    assert (process / "comm").read_text() == "qemu-storage-da\n"
    check_status((process / "status").read_text(), CAP_DAC_OVERRIDE, CAP_SYS_ADMIN)
    check_limits((process / "limits").read_text())
    environ = (process / "environ").read_bytes().decode().rstrip("\0").split("\0")
    assert dict(line.split("=", 1) for line in environ) == ENVIRONMENT
    assert os.readlink(process / "cwd") == "/"
    targets = {os.readlink(path) for path in (process / "fd").iterdir()}
    files = {path for path in targets if path.startswith("/") and not path.startswith("/dev/")}
    assert files == {disk.disk.source, f"{directory}/alive", f"{directory}/pid"}, "and nothing else of ours"


def test_state_is_for_root_alone(mapped: tuple[Mapper, MappedDisk], tmp_path: Path) -> None:
    """S-23, S-24: records, sockets and mounted trees; somebody else gets to none of them."""
    mapper, disk = mapped
    image = disks.make_filesystem(tmp_path / "data", Part("ext4", 8))
    tree = f"{mapper.runtime.mounts}/one-1.0"
    mount_tree(mapper, TreeRequest(Disk(str(image), "raw"), MapOptions(), tree))
    try:
        top = os.stat(mapper.runtime.root)
        assert (stat.S_IMODE(top.st_mode), top.st_uid) == (0o700, os.geteuid())
        for directory, names, leaves in os.walk(mapper.runtime.root):
            names[:] = [name for name in names if f"{directory}/{name}" != tree]
            assert stat.S_IMODE(os.lstat(directory).st_mode) == 0o700, directory
            for name in leaves:
                found = os.lstat(f"{directory}/{name}")
                assert found.st_uid == os.geteuid()
                # what qemu makes has the modes that qemu gives; the directory around it counts
                assert stat.S_ISSOCK(found.st_mode) or name == "pid" or not found.st_mode & 0o077, name
        socket_path = f"{mapper.runtime.exports}/{disk.id}/qmp.sock"
        with socket.socket(socket.AF_UNIX) as mine:
            mine.connect(socket_path)
        # somebody else, who has even been given a way in
        become = (
            f"import os; os.chdir({mapper.runtime.root!r}); os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})"
        )
        for attempt in (
            "os.listdir('.')",
            "os.listdir('mounts/one-1.0')",
            f"import socket; socket.socket(socket.AF_UNIX).connect('exports/{disk.id}/qmp.sock')",
        ):
            argv = [sys.executable, "-S", "-c", f"{become}; {attempt}"]
            done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
            assert "PermissionError" in done.stderr, (attempt, done)
    finally:
        unmount_tree(mapper, tree)
