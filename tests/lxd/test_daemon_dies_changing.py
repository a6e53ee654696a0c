"""The daemon dies while a machine is changed that runs: what was under way says so, and when the daemon is back the same call
succeeds, as is seen inside.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
from mapper_driver.actions import exec as execution
from mapper_driver.lxd import cgroups, monitors

from mapper_core.linux import mountinfo, process_info
from mapper_core.mapping import Mapper
from mapper_core.testing import disks
from mapper_core.testing.disks import Part

from .dying import Door, Moment
from .host import Host
from .machine import CONTEXT, Machine, ok
from .one import disk_xml
from .plug import Done, Plug
from .test_nic import nic_xml
from .test_reconfigure import SERVICE

pytestmark = [pytest.mark.lxd, pytest.mark.timeout(240)]

VM = 49
MAC = "02:00:0a:63:00:31"
FIRST, TARGET = f"one-{VM}-0", f"one-{VM}-2"
#: How an action ends that could not: the storage or the guest was too slow, the daemon is gone, the container is in another
#: state, the daemon refuses, the tree is not where it should be.
TYPED = (9, 11, 12, 13, 14)


@dataclass
class Shaken:
    """A machine whose daemon dies while something is changed.

    :param machine: its client is that of the last daemon.
    """

    host: Host
    door: Door
    machine: Machine

    @property
    def pid(self) -> int:
        return self.machine.client.state(self.machine.name).pid

    @property
    def plug(self) -> Plug:
        return Plug(self.machine)

    def dies(self, moment: Moment, call: Callable[..., Done]) -> None:
        """Kill the daemon in the middle of a call, start it again, and call again."""
        self.dies_once(moment, call)
        ok(call(**self.host.state))

    def dies_once(self, moment: Moment, call: Callable[..., Done]) -> None:
        """Kill the daemon in the middle of a call, and start it again."""
        self.door.arm(moment)
        first = call(LXD_SOCKET=self.door.path, **self.host.state)
        assert self.door.has_killed(), first
        self.host.start_daemon()
        self.machine = self.machine.on(self.host.one, self.host.client)
        assert "Traceback" not in first.stderr and "internal error" not in first.stderr, first
        assert first.returncode in ((-signal.SIGKILL,) if moment.with_driver else (0, *TYPED)), first

    def inside(self, *argv: str) -> str:
        return self.machine.inside(*argv)


@pytest.fixture
def shaken(host: Host) -> Iterator[Shaken]:
    """Its disks keep snapshots, and the second one can grow; a service of the guest waits for new contexts. The daemon dies when
    it creates the container, and when it has made the interface and the container does not run yet.
    """
    one, directory = host.one, host.one.vm_dir(VM)
    host.images.build_system(str(directory / "disk.0"), format_="qcow2", seed="shaken")
    disks.convert(disks.make_filesystem(directory / "piece", Part("btrfs", 128)), "qcow2", directory / "disk.1")
    host.images.build_context(str(directory / "disk.9"))
    each = disk_xml(0, kind="qcow2") + disk_xml(1, kind="qcow2", TARGET="/data", SIZE="128")
    nic = nic_xml(
        host.lab.variables["MAPPER_LAB_BRIDGE"], NIC_ID="0", ATTACH="NO", MAC="02:00:0a:63:00:30", TARGET=FIRST
    )
    machine = Machine(one, host.client, VM, one.vm_xml(VM, each + nic, deployed=True, template=CONTEXT))
    with Door(host.lab.socket, host.kill_daemon).open() as door:
        found = Shaken(host, door, machine)

        def deploy(**environment: str) -> Done:
            return found.machine.deploy(**environment)

        found.dies_once(Moment(), deploy)
        found.dies(Moment(number=4, when=lambda: _is_half(FIRST)), deploy)
        found.inside("sh", "-c", f"printf '%s' '{SERVICE}' > /bin/service; chmod +x /bin/service")
        yield found
        assert "eth0" in found.inside("ls", "/sys/class/net")
        ok(found.machine.power("cancel", **host.state))
        found.machine.nothing_left()
        assert not any(name.startswith(f"one-{VM}-") for name in os.listdir("/sys/class/net"))


def _is_half(name: str = TARGET) -> bool:
    """Whether there is a new pair, and the end that the container is to have is still the host's."""
    number = _link_number(name, "iflink")
    return number > 0 and any(
        _link_number(other, "ifindex") == number and _link_number(other, "iflink") == _link_number(name, "ifindex")
        for other in os.listdir("/sys/class/net")
    )


def _link_number(name: str, file: str) -> int:
    try:
        return int(Path(f"/sys/class/net/{name}/{file}").read_text())
    except (OSError, ValueError):
        return 0


def _attach_and_detach_an_interface(shaken: Shaken) -> None:
    """At the worst moment: the daemon has given it to the container, and has not written that down."""
    bridge = shaken.host.lab.variables["MAPPER_LAB_BRIDGE"]
    nic = nic_xml(bridge, MAC=MAC, TARGET=TARGET)

    def attach(**environment: str) -> Done:
        return shaken.plug.attach_nic(MAC, bridge, TARGET, nic, **environment)

    def detach(**environment: str) -> Done:
        return shaken.plug.detach_nic(MAC, nic, **environment)

    def is_given() -> bool:
        return not is_gone() and not _is_half()

    def is_gone() -> bool:
        return not Path(f"/sys/class/net/{TARGET}").exists()

    for attaching in (Moment(when=is_given), Moment(when=is_given, with_driver=True)):
        shaken.dies(attaching, attach)
        assert shaken.inside("cat", "/sys/class/net/eth2/address").strip() == MAC
        assert Path(f"/sys/class/net/{TARGET}/master").resolve().name == bridge
        if attaching.with_driver:
            ok(detach(**shaken.host.state))
        else:
            shaken.dies(Moment(when=is_gone), detach)
        assert "eth2" not in shaken.inside("ls", "/sys/class/net")
        assert is_gone()


def _attach_and_detach_a_disk(shaken: Shaken) -> None:
    disk = shaken.plug.make(2)

    def attach(**environment: str) -> Done:
        return shaken.plug.attach(2, disk, **environment)

    def detach(**environment: str) -> Done:
        return shaken.plug.detach(2, **environment)

    pid = shaken.pid

    def is_seen() -> bool:
        return any(entry.target == "/media/2" for entry in mountinfo.entries(pid))

    shaken.dies(Moment(when=is_seen, with_driver=True), attach)
    assert shaken.inside("cat", "/media/2/number") == "2"
    shaken.dies(Moment(), detach)
    assert not is_seen() and Mapper.open().find(str(shaken.plug.path(2))) is None
    if shaken.host.lab.product == "incus":  # from here on its daemon cannot attach a disk to this container
        shaken.dies(Moment(), attach)
        assert shaken.inside("cat", "/media/2/number") == "2"
        ok(detach(**shaken.host.state))


def _renew_the_context(shaken: Shaken) -> None:
    images, iso = shaken.host.images, shaken.plug.path(9)

    def prereconfigure(**environment: str) -> Done:
        return shaken.plug.call("prereconfigure", "hda", **environment)

    def reconfigure(**environment: str) -> Done:
        return shaken.plug.call("reconfigure", "hda", str(iso).replace("/datastores", "//datastores"), **environment)

    shaken.dies(Moment(number=2, changing=False), prereconfigure)
    iso.unlink()
    images.build_context(str(iso), {"VALUE": "new"})
    shaken.dies(Moment(), reconfigure)
    assert "VALUE='new'" in shaken.inside("cat", "/context/context.sh")
    assert shaken.inside("tail", "-n", "1", "/told") == "VALUE='new'\n"


def _resize(shaken: Shaken) -> None:
    def resize(**environment: str) -> Done:
        xml = shaken.machine.xml
        for old, new in {"<CPU>0.5": "<CPU>0.9", "<VCPU>1": "<VCPU>2", "<MEMORY>128": "<MEMORY>192"}.items():
            xml = xml.replace(old, new, 1)
        data = f"<VMM_DRIVER_ACTION_DATA><HOST>node</HOST>{xml}</VMM_DRIVER_ACTION_DATA>"
        return shaken.host.one.run("resize", shaken.machine.name, str(VM), "node", xml=data, **environment)

    group, (before, weight) = cgroups.group_of("memory", shaken.pid), _limits(shaken.pid)
    shaken.dies(Moment(number=3, when=lambda: cgroups.memory_limit(group) == 192 << 20), resize)
    assert before == 128 << 20
    memory, new_weight = _limits(shaken.pid)
    assert memory == 192 << 20 and new_weight > weight
    assert shaken.inside("busybox", "nproc") == "2\n"


def _limits(pid: int) -> tuple[int | None, int]:
    """Bytes of memory and weight of processors."""
    cpu = cgroups.group_of("cpu", pid)
    weight = cpu.read("cpu.shares" if cpu.version is cgroups.Version.V1 else "cpu.weight")
    return cgroups.memory_limit(cgroups.group_of("memory", pid)), int(weight)


def _let_a_disk_grow(shaken: Shaken) -> None:
    def resize(**environment: str) -> Done:
        sizes = "<SIZE><![CDATA[300]]></SIZE><SIZE_PREV>128</SIZE_PREV><RESIZE>YES</RESIZE>"
        machine = shaken.machine.about_to(62)
        grown = Machine(
            machine.one, machine.client, VM, re.sub(r"<SIZE><!\[CDATA\[128]]></SIZE>", sizes, machine.xml), 62
        )
        return grown.call("resize_disk", grown.name, "1", "300", "copy-of-stdin", "node", **environment)

    shaken.inside("sh", "-c", "echo kept > /data/kept")
    shaken.dies(Moment(number=4, changing=False), resize)
    assert int(shaken.inside("df", "-P", "-k", "/data").splitlines()[-1].split()[1]) > 280 * 1024
    assert shaken.inside("cat", "/data/kept") == "kept\n"


def _snapshot(shaken: Shaken, what: str, argument: str) -> Callable[..., Done]:
    return lambda **environment: shaken.machine.about_to(24).call(
        f"snapshot_{what}", shaken.machine.name, argument, **environment
    )


def _make_and_delete_a_snapshot(shaken: Shaken) -> None:
    def names() -> set[int]:
        listed = [disks.run("qemu-img", "snapshot", "-U", "-l", str(shaken.plug.path(number))) for number in (0, 1)]
        return {text.count(f"mapper-{VM}-5") for text in listed}

    shaken.dies(Moment(number=3, changing=False), _snapshot(shaken, "create", "5"))
    assert names() == {1}
    shaken.dies(Moment(number=3, changing=False), _snapshot(shaken, "delete", f"mapper-{VM}-5"))
    assert names() == {0}


def _revert_to_a_snapshot(shaken: Shaken) -> None:
    """The daemon dies when the container has ended, and when it is about to start again."""
    containers = f"{os.path.dirname(shaken.host.lab.socket)}/containers"

    def write(text: str) -> None:
        shaken.inside("sh", "-c", f"echo {text} | tee /word > /data/word")

    def has_monitor() -> bool:
        return bool(monitors.of_container(containers, shaken.machine.name))

    write("first")
    ok(_snapshot(shaken, "create", "0")(**shaken.host.state))
    for moment in (Moment(when=lambda: not has_monitor()), Moment(number=2, when=has_monitor)):
        write("second")
        shaken.dies(moment, _snapshot(shaken, "revert", f"mapper-{VM}-0"))
        assert shaken.inside("cat", "/word", "/data/word") == "first\n" * 2
        assert {"/", "/home", "/data", "/context"} <= shaken.machine.seen().keys()


def _start_a_command(shaken: Shaken) -> None:
    """Nothing of the first call goes on, and the second one runs."""

    def execute(**environment: str) -> Done:
        line = "sh -c 'echo $$; sleep 4321'"
        section = f"<QEMU_GA_EXEC><COMMAND>{escape(line)}</COMMAND><STDIN></STDIN></QEMU_GA_EXEC>"
        xml = shaken.machine.xml.replace("<VMID>", f"{section}<VMID>", 1)
        data = f"<VMM_DRIVER_ACTION_DATA><HOST>node</HOST>{xml}</VMM_DRIVER_ACTION_DATA>"
        return shaken.host.one.run("exec", str(VM), "node", line, xml=data, **environment)

    def is_running() -> bool:
        return bool(process_info.find_by_argument("sleep", "4321"))

    shaken.dies(Moment(when=is_running), execute)
    assert shaken.inside("ps").count("sleep 4321") == 2, "our shell with the whole command, and the last part of that"
    ok(shaken.machine.call("exec_cancel", **shaken.host.state))
    assert "sleep 4321" not in shaken.inside("ps")
    found = execution.result(shaken.machine.name, shaken.machine.client)
    assert found is not None and found.status == 137


#: With both daemons: in which they differ. The first while the daemon is the one that has started the container.
DEVICES = (_attach_and_detach_a_disk, _attach_and_detach_an_interface)
#: What a daemon does with its own records, or is only asked about.
OTHERS = (
    _revert_to_a_snapshot,
    _make_and_delete_a_snapshot,
    _renew_the_context,
    _resize,
    _let_a_disk_grow,
    _start_a_command,
)


def test_it_dies_while_a_machine_is_changed_that_runs(shaken: Shaken) -> None:
    """One machine for all, which saves its deployments."""
    for change in (*DEVICES, *(OTHERS if shaken.host.lab.product == "lxd" else ())):
        change(shaken)
