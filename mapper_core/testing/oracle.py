"""Whether this process can map disks for tests, and whether a test has left something in use."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress

from mapper_core.testing import leaks, observe

#: How long a resource may take to go away, seconds.
SETTLE = 5.0


def missing_privilege() -> str:
    """Say why this process cannot attach a loop device and mount it; empty when it can, which is tried."""
    with tempfile.TemporaryDirectory(prefix="mapper-probe-") as directory:
        image, target = f"{directory}/image", f"{directory}/target"
        os.mkdir(target)
        with open(image, "wb") as file:
            file.truncate(1 << 20)
        try:
            _run("mkfs.ext4", "-q", image)
            _run("mount", "-o", "loop", image, target)  # umount detaches such a loop device
            _run("umount", target)
        except (OSError, subprocess.SubprocessError) as error:
            stderr = getattr(error, "stderr", "") or ""
            return f"this process cannot loop and mount: {stderr.strip() or error}"
    return ""


def left(
    before: leaks.Snapshot,
    runtime_dirs: Sequence[str],
    own: Sequence[str],
    scope: Sequence[str] | None,
    settle: float = SETTLE,
) -> leaks.Leaks:
    """Say what is in use now and was not before; what of it surely is ours is taken away.

    :param own: directories of this run: only what belongs to one is touched, the host may have other users.
    :param scope: directories; only what belongs to one of them counts. ``None`` counts everything.
    :param settle: how long something may take to go away, seconds.
    """
    found = leaks.diff(before, leaks.snapshot(runtime_dirs), scope)
    if found:
        gc.collect()  # a descriptor that only a reference cycle keeps open is no leak
        found = leaks.wait_for_none(before, settle, runtime_dirs, scope)
    if found:
        _clean(leaks.diff(before, leaks.snapshot(runtime_dirs), own))
    return found


def _clean(found: leaks.Leaks) -> None:
    """Take away what leaked: mounts, the last first, then devices, then the processes that serve them.

    :param found: leaks within this run's own directories. Never pass others: this unmounts and kills.
    """
    for item in reversed(found.items):
        if item.kind in ("mount", "fuse") and item.pid:
            _try("nsenter", "-t", str(item.pid), "-m", "umount", "--lazy", item.touches[0])
    for item in found.items:
        device = f"/dev/{item.key.split()[1]}"
        if item.kind == "loop":
            _try("losetup", "--detach", device)
        elif item.kind == "nbd":
            _try("qemu-nbd", "--disconnect", device)
    alive = {item.key: item.pid for item in observe.processes()}
    for item in found.items:
        if item.kind in ("process", "child") and item.key in alive:
            with suppress(ProcessLookupError):
                os.kill(item.pid, signal.SIGTERM)
        elif item.kind in ("file", "temporary"):
            _try("rm", "-rf", "--one-file-system", item.touches[0])


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60)


def _try(*argv: str) -> None:
    with suppress(OSError, subprocess.SubprocessError):
        _run(*argv)
