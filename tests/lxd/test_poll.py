"""poll by OpenNebula's own script: the state that oned is to believe."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from mapper_driver.instance import STATUS_KEY
from mapper_driver.lxd.client import LxdClient
from mapper_driver.ownership import lock

from mapper_core.mapping import Mapper

from .conftest import Lab, lxd_is_enough
from .machine import Machine, ok
from .one import One

pytestmark = [pytest.mark.lxd, pytest.mark.timeout(240)]


@pytest.fixture
def machine(lab: Lab, client: LxdClient, images: ModuleType, tmp_path: Path) -> Iterator[Machine]:
    found = Machine.build(One(tmp_path, lab.socket), client, images, 71)
    found.set_up()
    yield found
    found.tear_down()


def _poll(machine: Machine) -> dict[str, str]:
    return dict(word.split("=", 1) for word in ok(machine.power("poll")).stdout.split())


def test_states_and_usage(machine: Machine) -> None:
    """N-03, N-04, N-06: what is not known is left out, and never 0."""
    before = _poll(machine)
    assert before["STATE"] == "a"
    machine.inside("sh", "-c", "head -c 20000000 /dev/zero > /tmp/x")
    assert int(_poll(machine)["MEMORY"]) > int(before["MEMORY"]) > 0
    machine.client.freeze(machine.name)
    assert _poll(machine) == {"STATE": "p"}
    machine.client.unfreeze(machine.name)
    machine.client.stop(machine.name)
    assert _poll(machine) == {"STATE": "d"}
    ok(machine.power("cancel"))
    assert _poll(machine) == {"STATE": "d"}


def test_nothing_is_said_while_an_action_works_and_poll_is_in_nobodys_way(machine: Machine) -> None:
    """one#5581: POWEROFF in the middle of a shutdown would end it for oned."""
    with lock(Mapper.open(), machine.name):
        assert _poll(machine)["STATE"] == "-"
    assert _poll(machine)["STATE"] == "a"
    machine.client.set_config(machine.name, {STATUS_KEY: "0"})  # a deploy that was killed
    assert _poll(machine)["STATE"] == "-"
    machine.client.set_config(machine.name, {STATUS_KEY: None})
    slow = subprocess.Popen([sys.executable, "-c", _HOLD.format(name=machine.name)], stdout=subprocess.PIPE)
    try:
        assert slow.stdout is not None and slow.stdout.readline() == b"held\n"
        assert _poll(machine)["STATE"] == "-"
    finally:
        slow.kill()
        slow.communicate()
    assert _poll(machine)["STATE"] == "a", "the lock went with its holder"


_HOLD = """
import signal
from mapper_core.mapping import Mapper
from mapper_driver.ownership import lock
with lock(Mapper.open(), {name!r}):
    print("held", flush=True)
    signal.pause()
"""


def test_one_request(machine: Machine) -> None:
    """Besides the greeting that every connection begins with."""
    client = LxdClient.connect([machine.one.socket])
    asked: list[str] = []
    session = client._connection.api.session
    session.hooks["response"].append(lambda answer, **_: asked.append(answer.request.path_url))
    found, state = client.instance_and_state(machine.name)
    assert (found.status, state.status) == (state.status, found.status)
    assert json.dumps(asked).count("/1.0/instances/") == len(asked) == 1


@lxd_is_enough
def test_the_daemon_is_down(machine: Machine) -> None:
    done = machine.power("poll", LXD_SOCKET="/nonexistent/socket")
    assert done.returncode == 11 and done.stdout == ""
