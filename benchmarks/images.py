"""The images that are measured with, made without mounting anything."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

MEBIBYTE = 1 << 20


def _run(*argv: str | Path, stdin: str = "") -> None:
    subprocess.run(argv, check=True, capture_output=True, input=stdin, text=True, timeout=120)


def ext4(path: Path) -> Path:
    """A raw image of 64 MiB with nothing but an ext4 filesystem on it."""
    with path.open("wb") as file:
        file.truncate(64 * MEBIBYTE)
    _run("mkfs.ext4", "-q", path)
    return path


def qcow2_system(path: Path) -> Path:
    """A qcow2 image with a GPT: a root filesystem, and /home by its label."""
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        tree, raw = Path(directory) / "tree", Path(directory) / "raw"
        for name in ("etc", "home", "sbin", "usr", "bin", "proc", "dev"):
            (tree / name).mkdir(parents=True)
        (tree / "etc/fstab").write_text("LABEL=system / ext4 defaults 0 1\nLABEL=people /home ext4 defaults 0 2\n")
        (tree / "etc/os-release").write_text("ID=bench\n")
        (tree / "sbin/init").write_text("#!/bin/sh\n")
        with raw.open("wb") as file:
            file.truncate(256 * MEBIBYTE)
        _run("sfdisk", "--quiet", raw, stdin="label: gpt\nstart=1MiB, size=128MiB\nstart=129MiB, size=64MiB\n")
        _mkfs(raw, 1, 128, "system", "-d", str(tree))
        _mkfs(raw, 129, 64, "people")
        _run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path)
    return path


def _mkfs(raw: Path, start: int, size: int, label: str, *more: str) -> None:
    """Make an ext4 filesystem at an offset; ``start`` and ``size`` in MiB."""
    _run("mkfs.ext4", "-q", "-L", label, "-E", f"offset={start * MEBIBYTE}", *more, raw, f"{size}M")
