"""A guest that powers itself off: its disks become images again without any call of oned; one that reboots keeps them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
from mapper_driver.lxd import placement
from mapper_driver.lxd.client import LxdClient
from mapper_driver.lxd.model import Status
from mapper_driver.poweroff import OFF_SECONDS

from mapper_core.linux import mountinfo
from mapper_core.mapping import Mapper
from mapper_core.tree import mounted

from .conftest import Lab
from .machine import Machine, ok
from .one import One

pytestmark = [pytest.mark.lxd, pytest.mark.timeout(240)]

VM = 93


@pytest.fixture
def machine(lab: Lab, client: LxdClient, images: ModuleType, tmp_path: Path) -> Iterator[Machine]:
    found = Machine.build(One(tmp_path, lab.socket), client, images, VM)
    found.set_up()
    yield found
    found.tear_down()


def _wait(reached: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < until
        time.sleep(0.05)


def _mark(machine: Machine) -> Path:
    return Path(placement.off_path(placement.record_path(Mapper.open().runtime, machine.name)))


def _let_time_pass(machine: Machine) -> None:
    """As if it had been seen stopped a while ago."""
    found = json.loads(_mark(machine).read_text(encoding="utf-8"))
    found["since"] -= OFF_SECONDS
    _mark(machine).write_text(json.dumps(found), encoding="utf-8")


def _has_disks() -> bool:
    mapper = Mapper.open()
    return mapper.journal.ids() != () or mounted.records(mapper) != () or mountinfo.under(mapper.runtime.mounts) != ()


def _poll(machine: Machine) -> str:
    return ok(machine.power("poll")).stdout.split()[0]


def test_its_disks_are_released_and_it_can_be_resumed(machine: Machine) -> None:
    machine.inside("sh", "-c", "echo kept > /data/kept; echo kept > /home/kept; poweroff")
    _wait(lambda: machine.status() is Status.STOPPED)
    assert _poll(machine) == "STATE=d"
    _wait(lambda: machine.client.instance(machine.name).config["volatile.last_state.power"] == "STOPPED")
    assert _poll(machine) == "STATE=d"
    assert _has_disks(), "it may be a reboot"
    _let_time_pass(machine)
    assert ok(machine.power("poll", MAPPER_ONE_VERSION="7.0.0")).stdout == "STATE=d\n"
    assert not _has_disks() and not _mark(machine).exists()
    assert _poll(machine) == "STATE=d"

    # oned does not know yet and asks for a restart: everything is there again
    ok(machine.power("reset"))
    assert machine.all_disks()
    machine.inside("poweroff")
    _wait(lambda: machine.status() is Status.STOPPED)
    assert _poll(machine) == "STATE=d"
    _let_time_pass(machine)
    held = subprocess.Popen([sys.executable, "-c", _HOLD.format(name=machine.name)], stdin=-1, stdout=-1)
    assert held.stdin is not None and held.stdout is not None and held.stdout.readline() == b"held\n"
    assert _poll(machine) == "STATE=-"
    assert _has_disks(), "never while an action works on it"
    held.communicate(b"\n")
    assert _poll(machine) == "STATE=d"
    assert not _has_disks()

    ok(machine.deploy())  # resume
    assert machine.inside("cat", "/data/kept", "/home/kept") == "kept\n" * 2
    assert machine.all_disks()


_HOLD = """
import sys
from mapper_core.mapping import Mapper
from mapper_driver.ownership import lock
with lock(Mapper.open(), {name!r}):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_guest_that_reboots_keeps_its_disks_however_often_it_is_looked_at(machine: Machine) -> None:
    """A mark of an earlier power-off is worth nothing after a start."""
    before = machine.all_disks()
    machine.client.stop(machine.name)
    assert _poll(machine) == "STATE=d"
    _let_time_pass(machine)
    stale = _mark(machine).read_text(encoding="utf-8")
    ok(machine.power("reset"))
    pid = machine.client.state(machine.name).pid
    machine.inside("reboot")
    seen = set()
    while machine.status() is Status.STOPPED or machine.client.state(machine.name).pid == pid:
        _mark(machine).write_text(stale, encoding="utf-8")
        seen.add(_poll(machine))
    assert seen <= {"STATE=a", "STATE=d"}
    _wait(lambda: machine.status() is Status.RUNNING)
    assert machine.all_disks() == before
    assert machine.boots() == "boot boot shutdown boot"


def test_an_action_waits_for_a_release_that_has_begun(machine: Machine) -> None:
    machine.client.stop(machine.name)
    release = _HOLD.replace("lock\n", "lock_for_release\n").replace("lock(", "lock_for_release(")
    held = subprocess.Popen([sys.executable, "-c", release.format(name=machine.name)], stdin=-1, stdout=-1)
    assert held.stdin is not None and held.stdout is not None and held.stdout.readline() == b"held\n"
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(machine.power, "reset")
        lock = Path(Mapper.open().runtime.locks) / f"container-{machine.name}"
        _wait(lock.exists)
        assert _poll(machine) == "STATE=-", "it waits with its own lock"
        assert not under_way.done()
        held.communicate(b"\n")
        ok(under_way.result())
    assert machine.all_disks()
