"""The real command, run as a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mapper_core.testing import disks
from mapper_core.testing.disks import Part

PROGRAM = str(Path(sys.executable).with_name("mapper-cli"))
SECONDS = 60


@dataclass(frozen=True)
class Result:
    """What a command left: exit status and output."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        """The error that ``--json`` prints as the last line of stderr."""
        found: dict[str, Any] = json.loads(self.err.splitlines()[-1])["error"]
        return found


class Cli:
    """Runs ``mapper-cli``."""

    def __call__(self, *words: object, **how: Any) -> Result:
        """Run it, whatever comes out."""
        argv = [PROGRAM, *map(str, words)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL, **how)
        return Result(done.returncode, done.stdout, done.stderr)

    def ok(self, *words: object) -> str:
        """Run it; it must succeed. Returns its output without the last newline."""
        done = self(*words)
        assert done.status == 0, done.err
        return done.out.rstrip("\n")

    def fails(self, status: int, kind: str, *words: object) -> dict[str, Any]:
        """Run it with ``--json``; it must fail with this exit status and error class, and print no data."""
        done = self(*words, "--json")
        assert (done.status, done.error["type"], done.out) == (status, kind, ""), done.err
        assert done.error["exit_code"] == status
        return done.error


@pytest.fixture
def cli() -> Cli:
    return Cli()


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A raw image with one ext4."""
    return disks.make_filesystem(tmp_path / "data.raw", Part("ext4", 16, ("-L", "data"), (("/hello", "world\n"),)))


@pytest.fixture
def parted(tmp_path: Path) -> Path:
    """A raw disk with an ESP and two other partitions."""
    return disks.make_disk(
        tmp_path / "parted.raw", (Part("vfat", 8, type="U"), Part("ext4", 8, ("-L", "one")), Part("", 4))
    )


@pytest.fixture
def qcow2(parted: Path, tmp_path: Path) -> Path:
    """The same disk as a qcow2 image."""
    return disks.convert(parted, "qcow2", tmp_path / "parted.qcow2")


SYSTEM_UUID = "11111111-2222-4333-8444-555555555555"


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """A system: root and /home, with an fstab that has something to skip."""
    fstab = (
        f"UUID={SYSTEM_UUID} / ext4 defaults 0 1\nLABEL=home /home ext4 defaults 0 2\n"
        "/dev/sdb1 none swap sw 0 0\nproc /proc proc defaults 0 0\n"
    )
    files = (
        ("/etc/fstab", fstab),
        ("/sbin/init", "#!/bin/sh\n"),
        ("/etc/os-release", "ID=debian\n"),
        ("/home/.keep", ""),
    )
    home = Part("ext4", 8, ("-L", "home"), (("/user/file", "mine\n"),))
    return disks.make_disk(tmp_path / "system.raw", (Part("ext4", 16, ("-U", SYSTEM_UUID), files), home))
