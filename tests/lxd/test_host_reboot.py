"""After the host was booted: no device, no mount, no record, a daemon that starts anew. Incus gets a new mount namespace at each
start, with what is mounted by then.
"""

from __future__ import annotations

import os

import pytest
from mapper_driver import inventory
from mapper_driver.lxd import inside
from mapper_driver.lxd.model import Status

from mapper_core.linux import mountinfo
from mapper_core.mapping import Mapper

from .conftest import lxd_is_enough
from .host import Host, wait_for
from .machine import CONTEXT, Machine, ok
from .plug import Plug

pytestmark = [pytest.mark.lxd, pytest.mark.timeout(240)]


def test_containers_with_autostart_come_back_with_all_disks_others_are_switched_off(host: Host) -> None:
    """Y-01, N-05."""
    back, off = host.machine(41, "boot.autostart=true"), host.machine(42)
    for machine in (back, off):
        ok(machine.deploy(**host.state))
        machine.inside("sh", "-c", "echo kept > /data/kept; echo kept > /home/kept")
    said = host.boot()
    assert said.startswith("0 ") and "one-41" in said and "one-42" not in said
    back, off = back.on(host.one, host.client), off.on(host.one, host.client)
    wait_for(host.client, "one-41", Status.RUNNING)
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
    wait_for(host.client, "one-43", Status.RUNNING)
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
    wait_for(host.client, "one-46", Status.RUNNING)
    lost = lost.on(host.one, host.client)
    assert lost.status() is Status.STOPPED
    assert lost.power("poll", **host.state).stdout == "STATE=d\n"
    os.rename(host.one.vm_dir(45) / "elsewhere", host.one.vm_dir(45) / "disk.1")
    ok(lost.deploy(**host.state))
    assert lost.inside("cat", "/data/hello") == "world"


def test_a_daemon_that_was_replaced_attaches_and_detaches(host: Host) -> None:
    """L-03: Incus has another mount namespace then than its containers, as the snap of LXD has after each refresh. Such a daemon
    says that it has attached a disk, and has not; so the disk is mounted in the container without it, and a context that the
    machine did not have as well.
    """
    machine = host.machine(48)
    ok(host.one.deploy(48, machine.xml.replace(CONTEXT, ""), **host.state))
    ok(Plug(machine).attach(3, Plug(machine).make(3), **host.state))
    host.kill_daemon()
    host.start_daemon()
    machine = machine.on(host.one, host.client)
    plug = Plug(machine)
    _new_contexts(plug, host)
    disk = plug.make(2)
    for _ in range(2):
        ok(plug.attach(2, disk, **host.state))
        assert machine.inside("cat", "/media/2/number") == "2"
        assert machine.inside("stat", "-c", "%u:%g", "/media/2", "/media/2/number").split() == ["0:0"] * 2
    ok(plug.detach(2, **host.state))
    assert "/media/2" not in machine.seen() and Mapper.open().find(str(plug.path(2))) is None
    ok(plug.attach(2, disk, **host.state))
    machine = _once_more(host, machine)
    plug = Plug(machine)
    ok(plug.detach(2, **host.state))
    assert Mapper.open().find(str(plug.path(2))) is None
    ok(plug.attach(2, disk, **host.state))
    ok(plug.detach(3, **host.state))
    assert "/media/3" not in machine.seen() and Mapper.open().find(str(plug.path(3))) is None
    ok(machine.power("reset", **host.state))
    assert machine.inside("cat", "/media/2/number") == "2"
    assert "VALUE='last'" in machine.inside("cat", "/context/context.sh")
    ok(plug.detach(2, **host.state))
    assert "/media/2" not in machine.seen()
    assert machine.all_disks()
    for instance in host.client.instances():
        ok(
            machine.one.end(
                int(instance.name[4:]), host.one.vm_xml(int(instance.name[4:]), "", deployed=True), **host.state
            )
        )
    machine.nothing_left()


def _once_more(host: Host, machine: Machine) -> Machine:
    """Replace the daemon again, while a container that it has started keeps the mount namespace that it had."""
    if host.lab.product == "lxd":
        return machine
    host.small_machine(53, "").set_up()
    host.kill_daemon()
    host.start_daemon()
    return machine.on(host.one, host.client)


def _new_contexts(plug: Plug, host: Host) -> None:
    """One that the machine did not have; then with another content, after the guest has unmounted it."""
    machine, iso = plug.machine, plug.path(9)
    pid = machine.client.state(machine.name).pid
    assert inside.is_cut_off(pid, machine.client.daemon_pid()) == (host.lab.product == "incus")
    assert "/context" not in machine.seen()
    for value in ("first", "last"):
        iso.unlink()
        host.images.build_context(str(iso), {"VALUE": value})
        if value == "last":
            machine.inside("umount", "/context")
        ok(plug.call("reconfigure", "hda", str(iso), **host.state))
        assert f"VALUE='{value}'" in machine.inside("cat", "/context/context.sh")
        assert machine.inside("stat", "-c", "%u:%g", "/context", "/context/context.sh").split() == ["0:0"] * 2
        assert "ro" in mountinfo.at("/context", pid=pid)[-1].options
    assert machine.inside("grep", "-c", " /context ", "/proc/mounts") == "1\n"
