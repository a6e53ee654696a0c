"""What the kernel says, read without any code of the product."""

from __future__ import annotations

import os
import re
import subprocess
import time

NBD_DEVICES = 16


def read(device: str, offset: int, length: int) -> bytes:
    """Bytes of a device, by way of the page cache."""
    fd = os.open(device, os.O_RDONLY)
    try:
        pieces = bytearray()
        while len(pieces) < length and (piece := os.pread(fd, length - len(pieces), offset + len(pieces))):
            pieces += piece
        return bytes(pieces)
    finally:
        os.close(fd)


def connected() -> list[str]:
    """The nbd devices that have a server, or a size."""
    found = []
    for name in sorted(name for name in os.listdir("/sys/block") if name.startswith("nbd")):
        with open(f"/sys/block/{name}/size", encoding="ascii") as file:
            if os.path.exists(f"/sys/block/{name}/pid") or int(file.read()):
                found.append(f"/dev/{name}")
    return found


def partitions_of(device: str) -> list[int]:
    """Numbers of the partitions that the kernel has for a device."""
    name = os.path.basename(device)
    parts = [part for part in os.listdir(f"/sys/block/{name}") if os.path.exists(f"/sys/block/{name}/{part}/partition")]
    return sorted(int(part.removeprefix(f"{name}p")) for part in parts)


def trouble() -> list[str]:
    """Lines of the kernel's log that tell of lost input or output, of hung tasks and of worse.

    Left out are reads from devices that are being taken away: the kernel looks for partitions when udev opens a device that is just
    being disconnected (also by plain ``qemu-nbd --disconnect``), and reads ahead. Where a test reads, it sees the error itself.
    """
    shown = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout.splitlines()
    bad = re.compile(r"I/O error|blocked for more than|timed out|BUG:|Oops|corrupt", re.IGNORECASE)
    harmless = re.compile(r"dev (nbd|loop)\d+(p\d+)?, (sector \d+ op 0x0:\(READ\)|logical block \d+, async page read)")
    return [line for line in shown if bad.search(line) and not harmless.search(line)]


def unload_nbd() -> None:
    """Unload the module, which is in use as long as udev looks at a device."""
    until = time.monotonic() + 20
    while subprocess.run(["rmmod", "nbd"], capture_output=True, check=False).returncode != 0:
        assert time.monotonic() < until, "nbd is still in use"
        time.sleep(0.05)


def load_nbd(max_part: int = 16) -> None:
    """Load the module anew."""
    if os.path.isdir("/sys/module/nbd"):
        unload_nbd()
    subprocess.run(["modprobe", "nbd", f"nbds_max={NBD_DEVICES}", f"max_part={max_part}"], check=True)
