"""The daemon dies while a machine is started, stopped or saved: what was under way says so, and when the daemon is back the same
call succeeds. What changes a machine that runs is in test_daemon_dies_changing.py.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mapper_driver.actions.node import Node
from mapper_driver.errors import LxdUnavailable
from mapper_driver.lxd.model import Status
from mapper_driver.opennebula.config import Config
from mapper_driver.opennebula.framing import Log
from mapper_driver.opennebula.vm import VmIdentity
from mapper_driver.session import open_node

from mapper_core.linux import namespaces
from mapper_core.mapping import Mapper

from .host import Host, wait_for
from .machine import Machine, ok
from .plug import Plug

pytestmark = [pytest.mark.lxd, pytest.mark.timeout(240)]


def test_the_daemon_dies_in_the_middle_of_each_action_and_the_next_call_works(host: Host) -> None:
    """What was under way fails with the reason; when the daemon is back, the same call succeeds."""
    machine = host.machine(47)
    options = f"datastore_location: {host.one.directory}/datastores\nsave: {{suspend: freeze, stop: shutdown}}\n"
    (host.one.directory / "lxdrc").write_text(options, encoding="utf-8")
    disk = Plug(machine).make(2)
    calls: dict[str, Callable[[], subprocess.CompletedProcess[str]]] = {
        "deploy": lambda: machine.deploy(**host.state),
        "attach_disk": lambda: Plug(machine).attach(2, disk, **host.state),
        "detach_disk": lambda: Plug(machine).detach(2, **host.state),
        "reset": lambda: machine.power("reset", **host.state),
        "save": lambda: machine.about_to(5).save(**host.state),
        "restore": lambda: machine.restore(**host.state),
        "suspend": lambda: machine.about_to(6).save(**host.state),
        "resume": lambda: machine.restore(**host.state),
        "poll": lambda: machine.power("poll", **host.state),
        "shutdown": lambda: machine.power("shutdown", **host.state),
    }
    if host.lab.product == "incus":
        calls = {name: calls[name] for name in ("deploy", "reset", "shutdown")}
    for name, call in calls.items():
        with ThreadPoolExecutor(1) as pool:
            under_way = pool.submit(call)
            time.sleep(0.9)  # the moment does not matter: before, in or after the work of the daemon
            host.kill_daemon()
            first = under_way.result()
        host.start_daemon()
        assert "Traceback" not in first.stderr and "internal error" not in first.stderr, (name, first.stderr)
        assert first.returncode in (0, 9, 11, 12, 13, 14), (name, first.stderr)
        machine = machine.on(host.one, host.client)
        if name != "deploy" or first.returncode != 0:  # a machine that runs is not deployed again
            ok(call())
        if name in ("deploy", "attach_disk", "reset", "restore", "resume"):
            assert machine.all_disks(), name
        assert name != "attach_disk" or machine.inside("cat", "/media/2/number") == "2"
    machine.nothing_left()


def _die_while_freezing(host: Host, machine: Machine) -> Machine:
    """Kill the daemon while it freezes a container whose process waits for its disk: until then that cannot be frozen."""
    mapper = Mapper.open()
    mapped = mapper.find(str(host.one.vm_dir(machine.id) / "disk.0"))
    assert mapped is not None
    server = int((Path(mapper.runtime.root) / "exports" / mapped.id / "pid").read_text())
    write = ("dd", "if=/dev/zero", "of=/home/slow", "bs=64k", "count=8", "conv=fsync")
    os.kill(server, signal.SIGSTOP)
    with ThreadPoolExecutor(2) as pool:
        try:
            pool.submit(host.client.execute, machine.name, write)
            time.sleep(0.5)  # for the process to begin to wait
            freezing = pool.submit(host.client.freeze, machine.name)
            wait_for(host.client, machine.name, Status.FREEZING)
            host.kill_daemon()
        finally:
            os.kill(server, signal.SIGCONT)
        assert isinstance(freezing.exception(), LxdUnavailable)
    host.start_daemon()
    assert host.client.instance(machine.name).status is Status.FREEZING
    return machine.on(host.one, host.client)


def test_a_daemon_that_dies_while_it_freezes_leaves_a_container_that_can_be_used(host: Host) -> None:
    """It would be "freezing" for ever."""
    options = f"datastore_location: {host.one.directory}/datastores\nsave: {{suspend: freeze}}\n"
    (host.one.directory / "lxdrc").write_text(options, encoding="utf-8")
    machine = host.machine(50)
    ok(machine.deploy(**host.state))
    machine = _die_while_freezing(host, machine)
    assert machine.power("poll", **host.state).stdout.startswith("STATE=p")
    ok(machine.restore(**host.state))
    assert machine.status() is Status.RUNNING and machine.all_disks()
    machine = _die_while_freezing(host, machine)
    ok(machine.about_to(6).save(**host.state))
    assert machine.status() is Status.FROZEN
    ok(machine.restore(**host.state))
    assert machine.inside("cat", "/data/hello") == "world"
    machine = _die_while_freezing(host, machine)
    ok(machine.power("cancel", **host.state))
    machine.nothing_left()


# pylxd leaves a socket that it could not connect to the garbage collector
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
def test_a_daemon_that_dies_between_two_requests_is_said_to_be_gone(host: Host) -> None:
    """What was seen of it before, its process, is none any more: that is neither "not supported" nor the end of the container."""
    vm = VmIdentity(51, "", "one-51", 0, str(host.one.directory))
    looks: tuple[Callable[[Node], object], ...] = (
        lambda node: node.storage("one-51"),
        lambda node: namespaces.mount_namespace_id(node.client.server.pid),
    )
    for look in looks:
        log = Log("poll", "7.0", io.StringIO())
        gone = pytest.raises(LxdUnavailable, match="the daemon is gone")
        with gone, open_node(vm, Config(socket=host.lab.socket), log) as node:
            host.kill_daemon()
            look(node)
        host.start_daemon()
        with pytest.raises(LxdUnavailable, match="the daemon was replaced"):
            node.client.daemon_pid()
