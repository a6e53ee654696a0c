"""Unmounting in the mount namespace of another process: at once or not at all."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mapper_core.errors import DeviceBusy, NotMapped
from mapper_core.linux import mountinfo, namespaces

pytestmark = pytest.mark.root


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[int]:
    """A process in a mount namespace of its own, with a tmpfs at ``guest``."""
    (tmp_path / "guest").mkdir()
    # as in a container: what is mounted reaches the namespaces of its services
    script = f"mount --make-rshared / && mount -t tmpfs none {tmp_path}/guest && echo ready && exec sleep 1000"
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    yield process.pid
    process.kill()
    process.wait()
    process.stdout.close()


def test_unmount(guest: int, tmp_path: Path) -> None:
    target = str(tmp_path / "guest")
    assert mountinfo.at(target, pid=guest)
    here = os.getcwd()
    namespaces.unmount_in(guest, target)
    assert not mountinfo.at(target, pid=guest)
    assert os.getcwd() == here
    with pytest.raises(NotMapped):
        namespaces.unmount_in(guest, target)
    with pytest.raises(NotMapped):
        namespaces.unmount_in(guest, f"{target}/none")


@pytest.mark.parametrize("apart", [False, True], ids=["same namespace", "its own namespace"])
def test_busy(guest: int, tmp_path: Path, apart: bool) -> None:
    """The holder is named, also one whose namespace only gets the mounts of the other (a service with PrivateTmp)."""
    target = str(tmp_path / "guest")
    enter = ["nsenter", "-t", str(guest), "-m"]
    slave = ["unshare", "--mount", "--propagation", "slave"] if apart else []
    script = f"cd {target} && echo ready && exec sleep 1000"
    holder = subprocess.Popen([*enter, *slave, "sh", "-c", script], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"ready\n"
        with pytest.raises(DeviceBusy, match=rf"process {holder.pid} \(sleep\)"):
            namespaces.unmount_in(guest, target)
        assert mountinfo.at(target, pid=guest), "nothing is changed"
    finally:
        holder.kill()
        holder.wait()
        if holder.stdout is not None:
            holder.stdout.close()
    namespaces.unmount_in(guest, target)


def test_a_mount_below_is_named(guest: int, tmp_path: Path) -> None:
    target = str(tmp_path / "guest")
    below = f"mkdir {target}/sub && mount -t tmpfs none {target}/sub"
    subprocess.run(["nsenter", "-t", str(guest), "-m", "sh", "-c", below], check=True)
    with pytest.raises(DeviceBusy, match=f"{target}/sub"):
        namespaces.unmount_in(guest, target)
