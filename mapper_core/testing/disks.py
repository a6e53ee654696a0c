"""Small real disks for tests: made by the system's own tools, without root.

Only for tests; nothing of the product imports this.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """A partition of a test disk.

    :param filesystem: ``ext4``, ``xfs``, ``btrfs``, ``vfat``, ``swap``; empty leaves it empty.
    :param size: MiB.
    :param options: more arguments for the program that makes the filesystem.
    :param files: content, by absolute path inside (ext4 only).
    :param type: sfdisk's type: ``L``, ``U`` (ESP), ``S`` (swap), or a GUID.
    """

    filesystem: str
    size: int
    options: tuple[str, ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    type: str = "L"


def run(*argv: str, stdin: str | None = None) -> str:
    """Run a program; return its standard output."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    done = subprocess.run(
        argv,
        input=stdin,
        stdin=None if stdin is not None else subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={"PATH": path, "LC_ALL": "C"},
    )
    if done.returncode != 0:
        raise RuntimeError(f"{argv} ended with {done.returncode}: {done.stderr}")
    return done.stdout


def make_filesystem(path: Path, part: Part) -> Path:
    """Make a file of ``part.size`` MiB with its filesystem."""
    with path.open("wb") as file:
        file.truncate(part.size * MIB)
    if part.filesystem == "ext4":
        content = path.with_name(path.name + ".content")
        for name, text in part.files:
            target = content / name.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
            if name.startswith("/sbin/"):
                target.chmod(0o755)
        source = ("-d", str(content)) if part.files else ()
        run("mkfs.ext4", "-q", "-F", *source, *part.options, str(path))
    elif part.filesystem == "swap":
        path.chmod(0o600)
        run("mkswap", "-q", *part.options, str(path))
    elif part.filesystem:
        quiet = ("-q",) if part.filesystem in ("xfs", "btrfs") else ()
        run(f"mkfs.{part.filesystem}", *quiet, *part.options, str(path))
    return path


def make_disk(path: Path, parts: tuple[Part, ...], *, label: str = "gpt") -> Path:
    """Make a raw disk with a partition table and its filesystems."""
    total = sum(part.size for part in parts) + 4
    with path.open("wb") as file:
        file.truncate(total * MIB)
    script = f"label: {label}\n" + "".join(f"size={part.size}M,type={part.type}\n" for part in parts)
    run("sfdisk", "-q", str(path), stdin=script)
    for number, part in enumerate(parts, start=1):
        if part.filesystem:
            piece = make_filesystem(path.with_name(f"{path.name}.{number}"), part)
            start = int(run("partx", "-g", "-o", "START", "-n", str(number), str(path)).strip())
            run("dd", f"if={piece}", f"of={path}", "bs=512", f"seek={start}", "conv=notrunc,sparse", "status=none")
            piece.unlink()
    return path


def partition_uuid(path: Path, number: int) -> str:
    """PARTUUID of a partition."""
    return run("sfdisk", "--part-uuid", str(path), str(number)).strip().lower()


def convert(path: Path, driver: str, target: Path, *options: str) -> Path:
    """Convert a raw disk to another format."""
    run("qemu-img", "convert", "-f", "raw", "-O", driver, *options, str(path), str(target))
    return target
