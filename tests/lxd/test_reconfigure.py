"""prereconfigure and reconfigure, resize: what changes in a container that runs, seen from inside."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from mapper_driver.lxd import cgroups
from mapper_driver.lxd.client import LxdClient

from .conftest import Lab, lxd_is_enough
from .machine import CONTEXT, Machine, ok
from .one import One
from .plug import Done, Plug

pytestmark = [pytest.mark.lxd, pytest.mark.timeout(240)]

VM = 63
#: Takes the place of the guest's contextualisation service: says what it was asked for, and what it found then.
SERVICE = '#!/bin/sh\n(echo "$@"; grep VALUE /context/context.sh) >> /told\n'


@pytest.fixture
def plug(lab: Lab, client: LxdClient, images: ModuleType, tmp_path: Path) -> Iterator[Plug]:
    machine = Machine.build(One(tmp_path, lab.socket), client, images, VM)
    machine.set_up()
    try:
        yield Plug(machine)
    finally:
        machine.tear_down()


def reconfigure(plug: Plug, path: str | None = None, **environment: str) -> Done:
    iso = str(plug.path(9)).replace("/datastores", "//datastores") if path is None else path
    return plug.call("reconfigure", "hda", iso, **environment)


def test_the_new_context_reaches_the_container(plug: Plug, images: ModuleType) -> None:
    """Y-09: with a shell that sits in /context; Y-02: and again after a restart. oned replaces the ISO between both calls."""
    machine = plug.machine
    machine.inside("sh", "-c", f"printf '%s' '{SERVICE}' > /bin/service; chmod +x /bin/service")
    plug.start_inside("sh", "-c", "cd /context; exec sleep 1000")
    mounted = machine.seen()["/context"]
    for value in ("one", "two"):
        ok(plug.call("prereconfigure", "hda"))
        plug.path(9).unlink()
        images.build_context(str(plug.path(9)), {"VALUE": value})
        done = ok(reconfigure(plug, MAPPER_ONE_VERSION="7.0.0"))
        assert "told the guest: service one-context-reconfigure restart" in done.stderr
        assert f"VALUE='{value}'" in machine.inside("cat", "/context/context.sh")
        assert machine.inside("tail", "-n", "2", "/told") == f"one-context-reconfigure restart\nVALUE='{value}'\n"
        assert machine.inside("stat", "-c", "%u:%g %a", "/context/context.sh").split()[0] == "0:0"
    assert machine.seen()["/context"] == mounted
    assert machine.inside("ls", "-A", "/context").split() == ["context.sh"]
    machine.client.restart(machine.name)
    assert "VALUE='two'" in machine.inside("cat", "/context/context.sh")
    machine.client.stop(machine.name)
    images.build_context(str(plug.path(9)), {"VALUE": "three"})
    ok(reconfigure(plug))
    machine.client.start(machine.name)
    assert "VALUE='three'" in machine.inside("cat", "/context/context.sh")


@lxd_is_enough
def test_a_guest_without_the_service_is_no_failure(plug: Plug, images: ModuleType) -> None:
    images.build_context(str(plug.path(9)), {"VALUE": "x"})
    done = ok(reconfigure(plug, MAPPER_ONE_VERSION="7.0.0"))
    assert "could not be told" in done.stderr
    ok(reconfigure(plug, ""))  # no context: oned's argument is empty


@lxd_is_enough
def test_an_iso_that_cannot_be_read_leaves_the_old_files(plug: Plug, images: ModuleType) -> None:
    machine, before = plug.machine, plug.state()
    old = machine.inside("cat", "/context/context.sh")
    good = plug.path(9).read_bytes()
    for content, status, word in (
        (b"no ISO" * 9999, 4, "ISO 9660"),
        (good[:33_000], 4, "disk.9"),
        (None, 3, "disk.9"),
    ):
        plug.path(9).unlink(missing_ok=True)
        if content is not None:
            plug.path(9).write_bytes(content)
        done = reconfigure(plug)
        assert (done.returncode, word in done.stderr) == (status, True), done
        assert machine.inside("cat", "/context/context.sh") == old
        assert machine.inside("ls", "-A", "/context").split() == ["context.sh"]
        assert plug.state() == before
    assert reconfigure(plug, "/var/lib/one/datastores/0/63/disk.8").returncode == 2
    images.build_context(str(plug.path(9)), {"VALUE": "good"})
    ok(reconfigure(plug))
    assert "VALUE='good'" in machine.inside("cat", "/context/context.sh")


def test_a_context_that_the_machine_did_not_have(
    lab: Lab, client: LxdClient, images: ModuleType, tmp_path: Path
) -> None:
    machine = Machine.build(One(tmp_path, lab.socket), client, images, VM)
    ok(machine.one.deploy(VM, machine.xml.replace(CONTEXT, "")))
    assert "/context" not in machine.seen()
    images.build_context(str(machine.one.vm_dir(VM) / "disk.9"), {"VALUE": "late"})
    for _ in range(2):
        ok(reconfigure(Plug(machine)))
    assert "VALUE='late'" in machine.inside("cat", "/context/context.sh")
    ok(machine.power("cancel"))
    for action in ("reconfigure", "prereconfigure"):
        argv = ("hda", str(machine.one.vm_dir(VM) / "disk.9")) if action == "reconfigure" else ("hda",)
        assert Plug(machine).call(action, *argv).returncode == 3
    machine.nothing_left()


# --- resize --------------------------------------------------------------------------------------------


def resized(plug: Plug, memory: int, cpu: float, vcpu: int, **environment: str) -> Done:
    machine = plug.machine
    sizes = {"<CPU>0.5": f"<CPU>{cpu}", "<VCPU>1": f"<VCPU>{vcpu}", "<MEMORY>128": f"<MEMORY>{memory}"}
    xml = machine.xml
    for old, new in sizes.items():
        xml = xml.replace(old, new, 1)
    data = f"<VMM_DRIVER_ACTION_DATA><HOST>node</HOST>{xml}</VMM_DRIVER_ACTION_DATA>"
    return machine.one.run("resize", machine.name, str(VM), "node", xml=data, **environment)


def limits(plug: Plug) -> tuple[int | None, str]:
    """Bytes of memory and weight of processors, from the container's own control groups."""
    pid = plug.machine.client.state(plug.machine.name).pid
    memory, cpu = (cgroups.group_of(name, pid) for name in ("memory", "cpu"))
    weight = cpu.read("cpu.shares" if cpu.version is cgroups.Version.V1 else "cpu.weight")
    return cgroups.memory_limit(memory), weight.strip()


def _processors(plug: Plug, wanted: int) -> None:
    """How many there are. Which they are LXD decides a moment later, and again whenever any container changes."""
    until = time.monotonic() + 15
    while int(plug.machine.inside("busybox", "nproc")) != wanted:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_resize(plug: Plug) -> None:
    machine = plug.machine
    _processors(plug, 1)
    memory, weight = limits(plug)
    assert memory == 128 << 20
    ok(resized(plug, 192, 1.0, 2))
    new_memory, new_weight = limits(plug)
    assert new_memory == 192 << 20
    assert int(new_weight) > int(weight)
    _processors(plug, 2)
    ok(resized(plug, 192, 1.0, 2))
    ok(resized(plug, 128, 0.5, 1))
    assert limits(plug) == (memory, weight)
    _processors(plug, 1)
    machine.client.stop(machine.name)
    ok(resized(plug, 160, 0.5, 1))
    machine.client.start(machine.name)
    assert limits(plug)[0] == 160 << 20


def test_less_memory_than_the_guest_uses(plug: Plug) -> None:
    """Refused before the kernel would kill; the limits are as they were, also that of the processors."""
    machine = plug.machine
    machine.inside("sh", "-c", "mkdir /m; mount -t tmpfs none /m; dd if=/dev/zero of=/m/x bs=1M count=40")
    before, state = limits(plug), plug.state()
    done = resized(plug, 16, 1.0, 1)
    assert (done.returncode == 7 and "40 MiB" in done.stderr) or "41 MiB" in done.stderr, done
    assert (limits(plug), plug.state()) == (before, state)
    _processors(plug, 1)
    machine.inside("rm", "/m/x")
    ok(resized(plug, 16, 1.0, 1))
    assert limits(plug)[0] == 16 << 20


def test_a_resize_that_the_daemon_refuses_half_way(plug: Plug) -> None:
    """Processors are changed, then LXD cannot set the memory: the processors are set back, which LXD itself does not do."""
    machine = plug.machine
    lxdrc = machine.one.directory / "lxdrc"
    lxdrc.write_text(lxdrc.read_text() + ":security:\n  :raw_allow: [limits.memory]\n")
    machine.inside("sh", "-c", "mkdir /m; mount -t tmpfs none /m; dd if=/dev/zero of=/m/x bs=1M count=40")
    before, state = limits(plug), plug.state()
    raw = "<RAW><TYPE>lxd</TYPE><DATA>limits.memory=8MiB</DATA></RAW><VMID>"
    changed = machine.xml.replace("<VMID>", raw, 1).replace("<CPU>0.5", "<CPU>0.9", 1).replace("<VCPU>1", "<VCPU>2", 1)
    data = f"<VMM_DRIVER_ACTION_DATA><HOST>node</HOST>{changed}</VMM_DRIVER_ACTION_DATA>"
    done = machine.one.run("resize", machine.name, str(VM), "node", xml=data)
    if cgroups.group_of("memory", machine.client.state(machine.name).pid).version is cgroups.Version.V1:
        assert done.returncode == 13, done
        assert (limits(plug), plug.state()) == (before, state)
        _processors(plug, 1)
    ok(resized(plug, 256, 0.9, 1))
    assert limits(plug)[0] == 256 << 20


@lxd_is_enough
def test_bad_input_of_resize(plug: Plug) -> None:
    machine, before = plug.machine, plug.state()
    data = f"<VMM_DRIVER_ACTION_DATA>{machine.xml}</VMM_DRIVER_ACTION_DATA>"
    cases = (
        (data[: len(data) // 2], str(VM), 2),
        (data.replace("<MEMORY>128", "<MEMORY>-1"), str(VM), 2),
        (data, "64", 2),
    )
    for xml, number, status in cases:
        done = machine.one.run("resize", machine.name, number, "node", xml=xml)
        assert done.returncode == status, done
        assert len(done.stderr.strip().splitlines()) == 1
    assert plug.state() == before
    ok(machine.power("cancel"))
    assert resized(plug, 128, 1, 1).returncode == 3


def test_memory_of_a_numa_node(lab: Lab, client: LxdClient, images: ModuleType, tmp_path: Path) -> None:
    """Processors and memory of a pinned machine; a node that the host has not is an error of the start."""
    machine = Machine.build(One(tmp_path, lab.socket), client, images, VM)

    def pinned(node: int) -> str:
        numa = f"<NUMA_NODE><CPUS>1</CPUS><MEMORY_NODE_ID>{node}</MEMORY_NODE_ID></NUMA_NODE>"
        return machine.xml.replace("<VMID>", f"{numa}<VMID>", 1)

    assert machine.one.deploy(VM, pinned(999)).returncode == 13
    machine.nothing_left()
    ok(machine.one.deploy(VM, pinned(0)))
    group = cgroups.group_of("cpuset", client.state(machine.name).pid)
    assert (group.read("cpuset.cpus").strip(), group.read("cpuset.mems").strip()) == ("1", "0")
    ok(machine.power("cancel"))
    machine.nothing_left()
