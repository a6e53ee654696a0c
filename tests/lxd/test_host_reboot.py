"""After the host was booted: no device, no mount, no record, a daemon that starts anew.

The daemon is real and is really stopped and started. What a boot takes away (mounts, devices, the runtime directory) is
taken away by hand. Incus gets a new mount namespace at each start, with what is mounted by then.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from mapper_driver import inventory
from mapper_driver.errors import LxdUnavailable
from mapper_driver.lxd.client import LxdClient
from mapper_driver.lxd.model import Status

from mapper_core.errors import DeviceBusy
from mapper_core.linux import mountinfo
from mapper_core.mapping import Mapper
from mapper_core.runtime import ENVIRONMENT
from mapper_core.tree import mounted
from mapper_core.tree.record import TreeRecord

from .conftest import ROOT, Lab, command, lxd_is_enough, run
from .machine import Machine, ok
from .one import One, disk_xml
from .plug import Plug

pytestmark = [pytest.mark.lxd, pytest.mark.timeout(240)]


class Host:
    """A node of its own that can be booted."""

    def __init__(self, lab: Lab, daemons: Any, models: Any, images: ModuleType, one: One) -> None:
        self.lab, self.one, self.images = lab, one, images
        self._daemons, self._models = daemons, models
        self.state = {"MAPPER_STATE_DIR": str(one.directory / "state")}

    @property
    def client(self) -> LxdClient:
        return LxdClient.connect([self.lab.socket])

    def machine(self, vm: int, raw: str = "") -> Machine:
        return Machine.build(self.one, self.client, self.images, vm, raw)

    def small_machine(self, vm: int, raw: str) -> Machine:
        """One disk only."""
        self.images.build_bare(str(self.one.vm_dir(vm) / "disk.0"))
        template = f"<RAW><TYPE>lxd</TYPE><DATA><![CDATA[{raw}]]></DATA></RAW>"
        return Machine(self.one, self.client, vm, self.one.vm_xml(vm, disk_xml(0), deployed=True, template=template))

    def boot(self, unit: str = "mapper-driver boot") -> str:
        """Go down and up again; returns what the unit said that runs before the daemon."""
        lab = self._models.Lab.load(self.lab.directory, self._models.PRODUCTS[self.lab.product])
        self._daemons.ask_to_end(lab)
        assert self._daemons.ended(lab.pid, 30)
        self._daemons.kill_left_over(lab)  # no monitor of LXC outlives a boot
        mapper = Mapper.open()
        for entry in reversed(mountinfo.under(lab.home)):
            run("umount", entry.target)
        for tree in mounted.records(mapper):
            _dismantle(mapper, tree)
        for entry in reversed(mountinfo.under(mapper.runtime.root)):
            run("umount", entry.target)
        shutil.rmtree(mapper.runtime.root)
        said = self.driver("boot") if unit else ""
        self._daemons.start_daemon(lab, False)
        return said

    def kill_daemon(self) -> None:
        """Its containers live on."""
        lab = self._models.Lab.load(self.lab.directory, self._models.PRODUCTS[self.lab.product])
        os.kill(lab.pid, signal.SIGKILL)
        assert self._daemons.ended(lab.pid, 10)

    def start_daemon(self) -> None:
        lab = self._models.Lab.load(self.lab.directory, self._models.PRODUCTS[self.lab.product])
        self._daemons.start_daemon(lab, False)

    def driver(self, *argv: str) -> str:
        done = subprocess.run(
            [str(Path(sys.executable).parent / "mapper-driver"), *argv],
            env={**os.environ, **self.state, "LXD_SOCKET": self.lab.socket},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return f"{done.returncode} {done.stderr}"


@pytest.fixture
def host(product: str, images: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.syspath_prepend(str(ROOT / "labs"))
    import containers_daemon  # type: ignore[import-not-found]
    import containers_model  # type: ignore[import-not-found]

    lab = Lab(product, f"/run/mapper-lab/b{os.getpid()}")
    run(command(product), "up", lab.directory)
    runtime = Path(lab.directory) / "host" / "mapper"  # where a daemon sees it that has a root directory of its own
    runtime.mkdir(0o700, parents=True)
    monkeypatch.setenv(ENVIRONMENT, str(runtime))
    found = Host(lab, containers_daemon, containers_model, images, One(tmp_path, lab.socket))
    monkeypatch.setenv("MAPPER_STATE_DIR", found.state["MAPPER_STATE_DIR"])
    try:
        yield found
    finally:
        for instance in found.client.instances():
            found.client.stop(instance.name)
            machine = Machine(found.one, found.client, int(instance.name[4:]), "")
            vm = found.one.vm_xml(machine.id, "", deployed=True)
            ok(found.one.end(machine.id, vm, **found.state))
        mapper = Mapper.open()
        assert mounted.records(mapper) == () and mapper.journal.ids() == ()
        assert mapper.runtime.root == str(runtime)
        run(command(product), "down", lab.directory)


def _dismantle(mapper: Mapper, tree: TreeRecord) -> None:
    """The mounts of a process that was killed outlive it for a moment, and nobody is told when they have gone."""
    until = time.monotonic() + 10
    while True:
        try:
            return mounted.dismantle(mapper, tree)
        except DeviceBusy:
            if time.monotonic() > until:
                raise
        time.sleep(0.05)


def _wait_for(client: LxdClient, name: str, status: Status) -> None:
    """The daemon starts containers after it has begun to answer."""
    until = time.monotonic() + 30
    while client.instance(name).status is not status:
        assert time.monotonic() < until, f"{name} is not {status}"
        time.sleep(0.1)


def test_containers_with_autostart_come_back_with_all_disks_others_are_switched_off(host: Host) -> None:
    """Y-01, N-05."""
    back, off = host.machine(41, "boot.autostart=true"), host.machine(42)
    for machine in (back, off):
        ok(machine.deploy(**host.state))
        machine.inside("sh", "-c", "echo kept > /data/kept; echo kept > /home/kept")
    said = host.boot()
    assert said.startswith("0 ") and "one-41" in said and "one-42" not in said
    back, off = back.on(host.one, host.client), off.on(host.one, host.client)
    _wait_for(host.client, "one-41", Status.RUNNING)
    assert back.all_disks()
    assert back.inside("cat", "/data/kept", "/home/kept") == "kept\n" * 2
    assert back.inside("stat", "-c", "%u:%g", "/etc/fstab", "/data/hello", "/context/context.sh").split() == ["0:0"] * 3
    assert back.power("poll", **host.state).stdout.startswith("STATE=a ")
    assert off.status() is Status.STOPPED
    assert off.power("poll", **host.state).stdout == "STATE=d\n"
    # the one that came back lives on: restart, and the second boot
    ok(back.power("reset", **host.state))
    assert back.all_disks()
    # resume of the other: its disks are deployed again, with what was on them
    ok(off.deploy(**host.state))
    assert off.inside("cat", "/data/kept", "/home/kept") == "kept\n" * 2
    for machine in (back, off):
        ok(machine.power("shutdown", **host.state))
    back.nothing_left()
    assert inventory.paths(Mapper.open().runtime) == ()


def test_the_hook_alone_brings_a_container_with_one_disk_back(host: Host) -> None:
    """Also when nothing ran before the daemon, and when a person starts it."""
    machine = host.small_machine(43, "boot.autostart=true")
    ok(machine.deploy(**host.state))
    machine.inside("sh", "-c", "echo kept > /kept")
    host.boot(unit="")
    machine = machine.on(host.one, host.client)
    _wait_for(host.client, "one-43", Status.RUNNING)
    assert machine.inside("cat", "/kept") == "kept\n"
    assert machine.inside("stat", "-c", "%u", "/kept").strip() == "0"
    ok(machine.power("cancel", **host.state))
    machine.nothing_left()


def test_what_is_switched_off_can_be_terminated_restarted_and_deployed(host: Host) -> None:
    """LXD refuses to change a container whose disks are missing; the actions do not mind."""
    machine = host.machine(44)
    ok(machine.deploy(**host.state))
    host.boot()
    machine = machine.on(host.one, host.client)
    ok(machine.power("reboot", MAPPER_ONE_VERSION="5.12.13", **host.state))
    ok(machine.power("reboot", MAPPER_ONE_VERSION="5.12.13", **host.state))
    assert machine.all_disks()
    host.boot()
    machine = machine.on(host.one, host.client)
    ok(machine.power("shutdown", **host.state))
    machine.nothing_left()


@lxd_is_enough
def test_an_image_that_is_gone_is_said_and_stops_no_other(host: Host) -> None:
    lost, back = host.machine(45, "boot.autostart=true"), host.small_machine(46, "boot.autostart=true")
    for machine in (lost, back):
        ok(machine.deploy(**host.state))
    os.rename(host.one.vm_dir(45) / "disk.1", host.one.vm_dir(45) / "elsewhere")
    said = host.boot()
    assert said.startswith("3 ") and "disk.1: " in said and "container one-45 cannot be started" in said
    _wait_for(host.client, "one-46", Status.RUNNING)
    lost = lost.on(host.one, host.client)
    assert lost.status() is Status.STOPPED
    assert lost.power("poll", **host.state).stdout == "STATE=d\n"
    os.rename(host.one.vm_dir(45) / "elsewhere", host.one.vm_dir(45) / "disk.1")
    ok(lost.deploy(**host.state))
    assert lost.inside("cat", "/data/hello") == "world"


def test_a_daemon_that_was_replaced_attaches_and_detaches(host: Host) -> None:
    """L-03: Incus has another mount namespace then than its containers, as the snap of LXD has after each refresh. Such a daemon
    says that it has attached a disk, and has not.
    """
    machine = host.machine(48)
    ok(machine.deploy(**host.state))
    ok(Plug(machine).attach(3, Plug(machine).make(3), **host.state))
    host.kill_daemon()
    host.start_daemon()
    machine = machine.on(host.one, host.client)
    plug = Plug(machine)
    disk, before = plug.make(2), plug.state()
    done = plug.attach(2, disk, **host.state)
    if host.lab.product == "incus":
        assert done.returncode == 14 and "reboot the virtual machine first" in done.stderr
        assert plug.state() == before
    else:
        ok(done)
    ok(plug.detach(3, **host.state))
    assert "/media/3" not in machine.seen() and Mapper.open().find(str(plug.path(3))) is None
    ok(machine.power("reset", **host.state))
    ok(plug.attach(2, disk, **host.state))
    assert machine.inside("cat", "/media/2/number") == "2"
    ok(plug.detach(2, **host.state))
    assert "/media/2" not in machine.seen()
    assert machine.all_disks()
    ok(machine.power("cancel", **host.state))
    machine.nothing_left()


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
            _wait_for(host.client, machine.name, Status.FREEZING)
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
