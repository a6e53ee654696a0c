"""reboot, reset, shutdown and cancel by OpenNebula's own scripts: the container comes back on its disks, or goes with all."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
from mapper_driver.instance import STATUS_KEY
from mapper_driver.lxd.client import LxdClient
from mapper_driver.lxd.model import Status
from mapper_driver.restarting import RESTART_KEY

from .conftest import Lab, lxd_is_enough
from .machine import Machine, ok
from .one import One

pytestmark = [pytest.mark.lxd, pytest.mark.timeout(240)]


@pytest.fixture
def machine(lab: Lab, client: LxdClient, images: ModuleType, tmp_path: Path) -> Iterator[Machine]:
    """A machine that runs."""
    found = Machine.build(One(tmp_path, lab.socket), client, images, 31)
    found.set_up()
    yield found
    found.tear_down()


def test_one_call_restarts_with_every_disk(machine: Machine) -> None:
    """OpenNebula 6.9 and later: the script stops and starts. L-01, L-04."""
    before, pid = machine.all_disks(), machine.client.state(machine.name).pid
    machine.inside("sh", "-c", "echo kept > /data/kept")
    for action in ("reboot", "reset"):
        done = ok(machine.power(action))
        assert done.stdout == ""
        assert machine.all_disks() == before
        assert machine.client.state(machine.name).pid != pid
    assert machine.inside("cat", "/data/kept") == "kept\n"
    assert machine.boots() == "boot shutdown boot boot", "reboot asks the guest, reset does not"
    # one that is stopped is started
    machine.client.stop(machine.name)
    ok(machine.power("reset"))
    assert machine.all_disks() == before
    ok(machine.power("cancel"))
    machine.nothing_left()


def test_two_calls_restart_with_every_disk(machine: Machine) -> None:
    """OpenNebula 5.10 to 6.8: the first call stops, the second starts; meanwhile it is not reported as switched off."""
    before = machine.all_disks()
    for action, version in (("reboot", "5.12.13"), ("reset", "6.8.3")):
        ok(machine.power(action, MAPPER_ONE_VERSION=version))
        assert machine.status() is Status.STOPPED
        assert machine.power("poll").stdout.split()[0] == "STATE=-"
        ok(machine.power(action, MAPPER_ONE_VERSION=version))
        assert machine.all_disks() == before
        assert machine.power("poll").stdout.split()[0] == "STATE=a"
        assert RESTART_KEY not in machine.client.instance(machine.name).config
    # the guest has gone meanwhile: two calls still end with a machine that runs
    machine.client.stop(machine.name)
    for _ in range(2):
        ok(machine.power("reboot", MAPPER_ONE_VERSION=version))
    assert machine.all_disks() == before


@lxd_is_enough
def test_a_second_call_that_never_came_is_forgotten(machine: Machine) -> None:
    """The network failed in between; the next restart begins anew and the machine does not end switched off."""
    ok(machine.power("reboot", MAPPER_ONE_VERSION="5.12.13"))
    machine.client.set_config(machine.name, {RESTART_KEY: "1000000000"})
    assert machine.power("poll").stdout.split()[0] == "STATE=d"
    for _ in range(2):
        ok(machine.power("reset", MAPPER_ONE_VERSION="5.12.13"))
    assert machine.status() is Status.RUNNING


@lxd_is_enough
def test_a_container_that_is_gone(machine: Machine) -> None:
    ok(machine.power("cancel"))
    for action in ("reboot", "reset"):
        done = machine.power(action)
        assert done.returncode == 3
        assert "one-31" in done.stderr and "Traceback" not in done.stderr
    machine.nothing_left()
    ok(machine.deploy())
    assert machine.all_disks()


def test_two_restarts_at_once(machine: Machine) -> None:
    """Y-05: one works, the other is told so, and the container runs."""
    before = machine.all_disks()
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda _: machine.power("reset"), range(2)))
    assert sorted(item.returncode for item in done) == [0, 5], [item.stderr for item in done]
    assert machine.all_disks() == before


@lxd_is_enough
def test_live_migration_is_refused_at_once_and_the_machine_runs_on(machine: Machine) -> None:
    pid = machine.client.state(machine.name).pid
    for action in ("migrate", "migrate_local"):
        done = machine.call(action, machine.name, "other", "node")
        assert done.returncode == 6
        assert "one-31" in done.stderr and "onevm poweroff" in done.stderr
    assert machine.client.state(machine.name).pid == pid
    assert machine.all_disks()


def test_a_deployment_that_nobody_finished_is_done_again(machine: Machine) -> None:
    """The daemon went away after it had started the container, so that the failed call could not undo that."""
    refused = machine.deploy()
    assert refused.returncode != 0 and "exists and is running" in refused.stderr
    machine.client.set_config(machine.name, {STATUS_KEY: "0"})
    pid = machine.client.state(machine.name).pid
    ok(machine.deploy())
    assert machine.client.state(machine.name).pid != pid
    assert machine.all_disks()
    assert STATUS_KEY not in machine.client.instance(machine.name).config
