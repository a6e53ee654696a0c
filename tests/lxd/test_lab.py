"""The labs themselves: they are the ground the other tests stand on, and the demo."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mapper_driver.lxd.client import LxdClient

from mapper_core.linux import process_info

from .conftest import PRODUCTS, Lab, MakeContainer, Staged, command, run

pytestmark = pytest.mark.lxd

DOWN = 3


@pytest.fixture
def own(product: str) -> Iterator[Lab]:
    """A lab of the test's own, not up."""
    lab = Lab(product, f"/run/mapper-lab/l{os.getpid()}")
    yield lab
    run(command(product), "down", lab.directory)


def status(lab: Lab) -> tuple[int, str]:
    argv = [command(lab.product), "status", lab.directory]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout.split()[0]


def traces(lab: Lab) -> list[str]:
    """What liblxc makes outside of the lab, for this lab or its container."""
    names = (os.path.basename(lab.directory), "lxc.payload.dead", "lxc.monitor.dead")
    return [
        f"{path}/{name}"
        for place in ("/run/lxc", "/sys/fs/cgroup")
        for path, below, _ in os.walk(place)
        for name in below
        if name.startswith(names)
    ]


def test_life(own: Lab) -> None:
    before = traces(own)
    assert status(own) == (DOWN, "down")
    lab_command = command(own.product)
    run(lab_command, "down", own.directory)
    run(lab_command, "up", own.directory)
    run(lab_command, "up", own.directory)
    assert status(own) == (0, "up")
    variables = own.variables
    assert variables[f"{own.product.upper()}_SOCKET"] == own.socket
    bridge = variables["MAPPER_LAB_BRIDGE"]
    assert os.path.isdir(f"/sys/class/net/{bridge}/bridge")
    assert own.lxc("storage", "list", "--format", "csv").stdout.startswith("default,dir,")
    other = command(next(name for name in PRODUCTS if name != own.product))
    refused = subprocess.run([other, "down", own.directory], capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1 and f"is a lab of labs/{own.product}" in refused.stderr
    run(lab_command, "down", own.directory)
    assert status(own) == (DOWN, "down")
    assert not os.path.exists(own.directory)
    assert not os.path.exists(f"/sys/class/net/{bridge}")
    assert traces(own) == before


def test_after_the_daemon_was_killed(own: Lab, staged: Staged, make_container: MakeContainer) -> None:
    """With a container running: it is stopped, and nothing below its root directory is deleted."""
    before = traces(own)
    run(command(own.product), "up", own.directory)
    bridge = own.variables["MAPPER_LAB_BRIDGE"]
    client = LxdClient.connect([own.socket])
    container = make_container(client, "dead", staged.directory)
    init = client.start("dead").pid
    make_container.undo.pop_all()  # the lab goes as a whole
    make_container.undo.callback(run, "umount", "--recursive", container.placement.staging)
    make_container.undo.callback(shutil.rmtree, f"{container.runtime.root}/driver")
    daemon = client.daemon_pid()
    begun = process_info.start_time(daemon)
    os.kill(daemon, signal.SIGKILL)
    process_info.wait_gone(daemon, begun, 20)
    assert status(own) == (DOWN, "dead")
    run(command(own.product), "down", own.directory)
    assert not os.path.exists(f"/proc/{init}/ns/mnt")
    assert not os.path.exists(own.directory)
    assert not os.path.exists(f"/sys/class/net/{bridge}")
    assert os.path.exists(f"{staged.directory}/home/greeting")
    assert traces(own) == before


def test_it_deletes_only_what_is_a_lab(product: str) -> None:
    path = f"/run/mapper-lab/n{os.getpid()}"
    os.makedirs(path)
    try:
        with open(f"{path}/precious", "w", encoding="ascii"):
            pass
        argv = [command(product), "down", path]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1 and "left alone" in done.stderr
        assert os.path.exists(f"{path}/precious")
    finally:
        os.unlink(f"{path}/precious")
        run(command(product), "down", path)
    assert not os.path.exists(path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_build_that_is_interrupted(tmp_path: Path, number: signal.Signals) -> None:
    """Incus' tree appears when it is complete. What a killed build has left goes with the next command."""
    if shutil.which("mmdebstrap") is None:
        pytest.skip("mmdebstrap is missing: run scripts/setup")
    environment = {**os.environ, "MAPPER_LAB_CACHE": str(tmp_path)}
    argv = [command("incus"), "build"]
    cache = tmp_path / "incus"
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as build:
        assert build.stderr is not None and build.stderr.readline().startswith(b"building Debian 13")
        build.send_signal(number)
        build.communicate(timeout=60)
    assert build.returncode in (-number, 128 + number)
    if number != signal.SIGKILL:
        assert list(cache.iterdir()) == []
    subprocess.run([*argv[:1], "clean"], env=environment, check=True, timeout=60)
    assert not cache.exists()
