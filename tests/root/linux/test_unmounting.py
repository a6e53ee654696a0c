"""Unmounting in the mount namespace of another process: at once or not at all. And those who only pass."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mapper_core.errors import DeviceBusy, NotMapped
from mapper_core.linux import mountinfo, unmounting

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
    unmounting.unmount_in(guest, target)
    assert not mountinfo.at(target, pid=guest)
    assert os.getcwd() == here
    with pytest.raises(NotMapped):
        unmounting.unmount_in(guest, target)
    with pytest.raises(NotMapped):
        unmounting.unmount_in(guest, f"{target}/none")


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
            unmounting.unmount_in(guest, target)
        assert mountinfo.at(target, pid=guest), "nothing is changed"
    finally:
        holder.kill()
        holder.wait()
        if holder.stdout is not None:
            holder.stdout.close()
    unmounting.unmount_in(guest, target)


def test_a_mount_below_is_named(guest: int, tmp_path: Path) -> None:
    target = str(tmp_path / "guest")
    below = f"mkdir {target}/sub && mount -t tmpfs none {target}/sub"
    subprocess.run(["nsenter", "-t", str(guest), "-m", "sh", "-c", below], check=True)
    with pytest.raises(DeviceBusy, match=f"{target}/sub"):
        unmounting.unmount_in(guest, target)


Unmount = Callable[[], None]


@pytest.fixture(params=["here", "in another namespace"])
def mounted(request: pytest.FixtureRequest, guest: int, tmp_path: Path) -> Iterator[tuple[str, Unmount]]:
    """A directory of a filesystem, by a name that leads there from here, and what unmounts it."""
    target = str(tmp_path / "guest")
    if request.param == "here":
        subprocess.run(["mount", "-t", "tmpfs", "none", target], check=True)
        yield target, lambda: unmounting.unmount(target)
        subprocess.run(["umount", "--quiet", "--lazy", target], check=False)
    else:
        yield f"/proc/{guest}/root{target}", lambda: unmounting.unmount_in(guest, target)


@pytest.fixture
def unseen(mounted: tuple[str, Unmount]) -> Iterator[socket.socket]:
    """Use the filesystem as nobody can see: by a descriptor that is on its way, until its socket is closed."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fd = os.open(mounted[0], os.O_RDONLY | os.O_DIRECTORY)
        socket.send_fds(ours, [b"x"], [fd])
        os.close(fd)
        yield theirs


def test_who_only_passes_is_waited_for(mounted: tuple[str, Unmount], unseen: socket.socket) -> None:
    """df(1) within statfs(2), a process that is ending: nobody is to be seen, and a moment later it works."""
    began = time.monotonic()
    passing = threading.Timer(0.3, unseen.close)
    passing.start()
    mounted[1]()
    passing.join()
    assert 0.3 <= time.monotonic() - began < unmounting.PASSING_SECONDS
    with pytest.raises(NotMapped):
        mounted[1]()


def test_who_stays_unseen_is_an_error(
    mounted: tuple[str, Unmount], unseen: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unmounting, "PASSING_SECONDS", 0.2)
    began = time.monotonic()
    with pytest.raises(DeviceBusy, match="no mount and no process shows it"):
        mounted[1]()
    assert time.monotonic() - began >= 0.2
    unseen.close()
    mounted[1]()
