"""The lab itself: it is the ground the other tests stand on, and the demo."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest
from mapper_driver.lxd.client import LxdClient

from .conftest import LAB, Lab, MakeContainer, Staged, run

pytestmark = pytest.mark.lxd

DOWN = 3


@pytest.fixture
def directory() -> Iterator[str]:
    path = f"/run/mapper-lab/l{os.getpid()}"
    yield path
    run(LAB, "down", path)


def status(directory: str) -> tuple[int, str]:
    done = subprocess.run([LAB, "status", directory], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout.split()[0]


def traces(directory: str) -> list[str]:
    """What liblxc makes outside of the lab, for this lab or its container."""
    places = ["/run/lxc", "/sys/fs/cgroup", "/sys/class/net"]
    names = (os.path.basename(directory), "lxc.payload.dead", "lxc.monitor.dead", "mlab")
    return [
        f"{path}/{name}"
        for place in places
        for path, below, _ in os.walk(place)
        for name in below
        if name.startswith(names)
    ]


def test_life(directory: str) -> None:
    before = traces(directory)
    assert status(directory) == (DOWN, "down")
    run(LAB, "down", directory)
    run(LAB, "up", directory)
    run(LAB, "up", directory)
    assert status(directory) == (0, "up")
    variables = dict(line.removeprefix("export ").split("=", 1) for line in run(LAB, "env", directory).splitlines())
    assert variables["LXD_SOCKET"] == f"{directory}/lxd/unix.socket"
    assert os.path.isdir(f"/sys/class/net/{variables['MAPPER_LAB_BRIDGE']}/bridge")
    run(LAB, "down", directory)
    assert status(directory) == (DOWN, "down")
    assert not os.path.exists(directory)
    assert not os.path.exists(f"/sys/class/net/{variables['MAPPER_LAB_BRIDGE']}")
    assert traces(directory) == before


def test_after_the_daemon_was_killed(directory: str, staged: Staged, make_container: MakeContainer) -> None:
    """With a container running: it is stopped, and nothing below its root directory is deleted."""
    before = traces(directory)
    run(LAB, "up", directory)
    client = LxdClient.connect([Lab(directory).socket])
    container = make_container(client, "dead", staged.directory)
    init = client.start("dead").pid
    os.kill(client.daemon_pid(), signal.SIGKILL)
    make_container.undo.pop_all()  # the lab goes as a whole
    make_container.undo.callback(run, "umount", "--recursive", container.placement.staging)
    assert status(directory) == (DOWN, "dead")
    run(LAB, "down", directory)
    assert not os.path.exists(f"/proc/{init}/ns/mnt")
    assert not os.path.exists(directory)
    assert os.path.exists(f"{staged.directory}/home/greeting")
    assert traces(directory) == before
    for record in os.scandir(f"{container.runtime.root}/driver"):
        os.unlink(record.path)


def test_it_deletes_only_what_is_a_lab() -> None:
    path = f"/run/mapper-lab/n{os.getpid()}"
    os.makedirs(path)
    try:
        with open(f"{path}/precious", "w", encoding="ascii"):
            pass
        done = subprocess.run([LAB, "down", path], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1 and "left alone" in done.stderr
        assert os.path.exists(f"{path}/precious")
    finally:
        os.unlink(f"{path}/precious")
        run(LAB, "down", path)
    assert not os.path.exists(path)
