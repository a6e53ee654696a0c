#!/usr/bin/python3
"""Takes away what tests and labs left on the host when they were killed, or when the machine was cut off.

    labs/sweep          end, unmount and detach it; one line for each thing
    labs/sweep --list   only show it
    labs/sweep DIR      no labs, and only temporary directories of pytest below DIR

Only what has lost its owner is touched: labs below /run/mapper-lab whose daemon is gone, and temporary directories of
pytest whose process is gone. Tests that are running, on the same machine too, keep what they have. It matters because
such rests do harm: `mkfs.btrfs` looks at every loop device of the host, and fails when the file behind one is in a
FUSE filesystem without a server.

Needs root. Only the standard library of /usr/bin/python3 (3.11) is used.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from common import LabError, end, run
from containers_traces import mounts_below, unmount_below

LABS = Path("/run/mapper-lab")
HERE = Path(__file__).resolve().parent


def dead_labs() -> list[tuple[str, Path]]:
    """Labs with containers of which nothing runs any more: which kind they are, and their directories."""
    found = []
    for record in sorted(LABS.glob("*/lab.json")):
        directory = record.parent
        kind = "incus" if (directory / "incus").is_dir() else "lxd"
        status = subprocess.run(
            [f"{HERE}/{kind}", "status", str(directory)], capture_output=True, text=True, timeout=30, check=False
        )
        if status.stdout.startswith("dead"):
            found.append((kind, directory))
    return found


def dead_runs(parent: str) -> list[Path]:
    """Temporary directories of runs of pytest that were killed: one that ends in peace removes its lock."""
    found = []
    for lock in sorted(glob.glob(f"{parent}/pytest-of-*/pytest-*/.lock")):
        try:
            owner = int(Path(lock).read_text(encoding="ascii"))
            alive = b"pytest" in Path(f"/proc/{owner}/cmdline").read_bytes()
        except (OSError, ValueError):
            alive = False
        if not alive:
            found.append(Path(lock).parent)
    return found


def processes_of(directory: Path) -> list[tuple[int, str]]:
    """Processes with an argument in a directory, as a daemon has that exports a file there."""
    found = []
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = Path(path).read_bytes().decode(errors="replace").split("\0")
            if any(f"{directory}/" in word for word in words):
                found.append((int(path.split("/")[2]), words[0]))
    return found


def loops_of(directory: Path) -> list[str]:
    """Loop devices whose file is below a directory."""
    found = []
    for path in glob.glob("/sys/block/loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if Path(path).read_text(encoding="utf-8", errors="surrogateescape").startswith(f"{directory}/"):
                found.append(f"/dev/{path.split('/')[3]}")
    return found


def sweep(directory: Path) -> None:
    """Take away what uses one directory: processes, mounts, and the loop devices that they used."""
    loops = loops_of(directory)  # not found any more once their file is out of sight
    for pid, _ in processes_of(directory):
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            try:
                end(pidfd, signal.SIGKILL, 10)
            finally:
                os.close(pidfd)
    unmount_below(str(directory))
    for device in loops:
        run("losetup", "--detach", device)


def main() -> int:
    """Find, show, and take away."""
    parser = argparse.ArgumentParser(
        prog="labs/sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dir", nargs="?", metavar="DIR")
    parser.add_argument("--list", action="store_true", help="change nothing")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("must run as root")
    failed = False
    for kind, directory in [] if options.dir else dead_labs():
        print(f"lab: {directory}")
        if not options.list:
            failed |= (
                subprocess.run([f"{HERE}/{kind}", "down", str(directory)], timeout=120, check=False).returncode != 0
            )
    for directory in dead_runs(options.dir or tempfile.gettempdir()):
        things = [f"process: {pid} {name}" for pid, name in processes_of(directory)]
        things += [f"mount: {point}" for point in mounts_below(str(directory))]
        things += [f"loop: {device}" for device in loops_of(directory)]
        for thing in things:
            print(thing)
        if things and not options.list:
            try:
                sweep(directory)
            except (LabError, OSError) as error:
                print(f"labs/sweep: {error}", file=sys.stderr)
                failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
