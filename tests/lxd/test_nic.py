"""attach_nic and detach_nic on a running container: seen inside, on the bridge, and in the host's traffic control."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from mapper_driver import pci
from mapper_driver.devices import pci_device
from mapper_driver.errors import LxdFailed
from mapper_driver.lxd.client import LxdClient
from mapper_driver.lxd.model import InstanceSpec
from mapper_driver.opennebula.vm import PciDevice, PciNic

from .conftest import Lab, lxd_is_enough, run
from .machine import Machine, ok
from .one import One
from .plug import Plug

pytestmark = [pytest.mark.lxd, pytest.mark.timeout(240)]

VM = 61
MAC = "02:00:0a:63:00:0c"
TARGET = f"one-{VM}-2"


@pytest.fixture(autouse=True)
def _no_interface_is_left() -> Iterator[None]:
    yield
    assert not Path(f"/sys/class/net/{TARGET}").exists()


@pytest.fixture
def bridge(lab: Lab) -> str:
    return lab.variables["MAPPER_LAB_BRIDGE"]


def nic_xml(bridge: str, tag: str = "NIC", **elements: str) -> str:
    values = {
        "NIC_ID": "2",
        "ATTACH": "YES",
        "BRIDGE": bridge,
        "BRIDGE_TYPE": "linux",
        "MAC": MAC,
        "TARGET": TARGET,
        "VN_MAD": "dummy",
        **elements,
    }
    return f"<{tag}>" + "".join(f"<{name}><![CDATA[{text}]]></{name}>" for name, text in values.items()) + f"</{tag}>"


def interfaces() -> set[str]:
    return {path.name for path in Path("/sys/class/net").iterdir()}


def test_attach_and_detach(plug: Plug, bridge: str) -> None:
    machine, before, host = plug.machine, plug.state(), interfaces()
    nic = nic_xml(bridge, INBOUND_AVG_BW="1000", INBOUND_PEAK_BW="2000", INBOUND_PEAK_KB="3000")
    done = ok(plug.attach_nic(MAC, bridge, TARGET, nic, MAPPER_ONE_VERSION="7.0.0"))
    assert "INBOUND_PEAK_BW and INBOUND_PEAK_KB have no equal in LXD" in done.stderr
    assert machine.inside("cat", "/sys/class/net/eth2/address").strip() == MAC
    assert Path(f"/sys/class/net/{TARGET}/master").resolve().name == bridge
    assert TARGET in run("bridge", "link", "show", "dev", TARGET)
    assert "rate 8Mbit" in run("tc", "class", "show", "dev", TARGET), "1000 kB/s"
    machine.inside("ip", "link", "set", "eth2", "up")

    after = plug.state()
    assert "already" in ok(plug.attach_nic(MAC, bridge, TARGET, nic, MAPPER_ONE_VERSION="7.0.0")).stderr
    assert plug.state() == after
    machine.client.restart(machine.name)
    assert machine.inside("cat", "/sys/class/net/eth2/address").strip() == MAC
    assert "rate 8Mbit" in run("tc", "class", "show", "dev", TARGET)

    for _ in range(2):
        ok(plug.detach_nic(MAC, nic))
    assert "eth2" not in machine.inside("ls", "/sys/class/net")
    assert interfaces() == host
    assert plug.state()[1] == before[1]  # type: ignore[index]


def test_the_other_direction(plug: Plug, bridge: str) -> None:
    """LXD polices it; a kernel without that action makes LXD refuse, and then nothing of the interface is left."""
    before, host = plug.state(), interfaces()
    done = plug.attach_nic(MAC, bridge, TARGET, nic_xml(bridge, OUTBOUND_AVG_BW="1000"))
    if done.returncode == 0:
        assert "8Mbit" in run("tc", "filter", "show", "dev", TARGET, "ingress")
        ok(plug.detach_nic(MAC))
    else:
        assert done.returncode == 13 and "police" in done.stderr
    assert (plug.state(), interfaces()) == (before, host)
    ok(plug.attach_nic(MAC, bridge, TARGET, nic_xml(bridge)))


@lxd_is_enough
def test_an_alias_is_no_interface(plug: Plug, bridge: str) -> None:
    before = plug.state()
    ok(plug.attach_nic(MAC, bridge, TARGET, nic_xml(bridge, "NIC_ALIAS", PARENT_ID="0")))
    ok(plug.detach_nic(MAC, nic_xml(bridge, "NIC_ALIAS", PARENT_ID="0")))
    assert plug.state() == before


def test_what_cannot_be_attached_leaves_everything_as_it_was(plug: Plug, bridge: str) -> None:
    before = plug.state()
    run("ip", "link", "add", TARGET, "type", "veth", "peer", "name", f"{TARGET}p")
    try:
        host = interfaces()
        cases = (
            ("the host has one of that name", nic_xml(bridge), 5, TARGET),
            ("no bridge", nic_xml("nobr0", TARGET="one-61-9"), 13, "nobr0"),
            ("bridge for virtual machines", nic_xml(bridge, BRIDGE_TYPE="openvswitch_dpdk"), 6, "openvswitch_dpdk"),
            ("no such interface in the XML", nic_xml(bridge, MAC="02:00:00:00:00:99"), 2, MAC),
            ("hostile name", nic_xml(bridge, TARGET="a/../b"), 2, "TARGET"),
            ("cut off", nic_xml(bridge) + "<NIC><NIC_ID>", 2, "standard input"),
        )
        for case, nic, status, word in cases:
            done = plug.attach_nic(MAC, bridge, TARGET, nic)
            assert (done.returncode, word in done.stderr) == (status, True), (case, done)
            assert len(done.stderr.strip().splitlines()) == 1, case
            assert (plug.state(), interfaces()) == (before, host), case
    finally:
        run("ip", "link", "del", TARGET)
    ok(plug.attach_nic(MAC, bridge, TARGET, nic_xml(bridge)))
    done = plug.attach_nic(
        "02:00:0a:63:00:0d", bridge, "one-61-8", nic_xml(bridge, MAC="02:00:0a:63:00:0d", TARGET="one-61-8")
    )
    assert done.returncode == 12 and "eth2" in done.stderr, "NIC_ID 2 belongs to another interface"


def test_a_container_that_does_not_run_or_is_gone(plug: Plug, bridge: str) -> None:
    machine = plug.machine
    ok(plug.attach_nic(MAC, bridge, TARGET, nic_xml(bridge)))
    machine.client.stop(machine.name)
    other = nic_xml(bridge, NIC_ID="3", MAC="02:00:0a:63:00:0d", TARGET="one-61-3")
    assert plug.attach_nic("02:00:0a:63:00:0d", bridge, "one-61-3", other).returncode == 12
    ok(plug.detach_nic(MAC))
    assert "eth2" not in machine.client.instance(machine.name).devices
    ok(machine.power("cancel"))
    assert plug.attach_nic(MAC, bridge, TARGET, nic_xml(bridge)).returncode == 3
    ok(plug.detach_nic(MAC))


def test_a_network_card_of_the_host(plug: Plug) -> None:
    """No spare card is here; one end of a veth takes its place, from where the address is turned into a name."""
    machine = plug.machine
    card = PciDevice(0, "0000:41:00.0", "0200", PciNic(4, "02:00:0a:63:00:44"))
    run("ip", "link", "add", "mtestnic0", "type", "veth", "peer", "name", "mtestnic1")
    try:
        device = pci_device(card, {card.address: "mtestnic0"})
        machine.client.set_devices(machine.name, {card.device_name: device})
        assert machine.inside("cat", "/sys/class/net/eth4/address").strip() == "02:00:0a:63:00:44"
        assert not Path("/sys/class/net/mtestnic0").exists(), "it is the container's now"
        ok(plug.detach_nic("02:00:0a:63:00:44"))
        assert Path("/sys/class/net/mtestnic0").exists(), "and the host's again"
    finally:
        subprocess.run(["ip", "link", "del", "mtestnic1"], check=False)


def test_cards_that_are_not_there(lab: Lab, client: LxdClient, images: ModuleType, tmp_path: Path) -> None:
    """LXD accepts the description of a graphics card, and finds none when the container starts; nothing is left."""
    machine = Machine.build(One(tmp_path, lab.socket), client, images, VM)

    def refused(parts: str, status: int, word: str) -> None:
        plug = f"<PCI><ADDRESS>0000:fe:1f:7</ADDRESS>{parts}</PCI>"
        done = machine.one.deploy(VM, machine.xml.replace("<VMID>", f"{plug}<VMID>", 1))
        assert (done.returncode, word in done.stderr) == (status, True), done
        machine.nothing_left()

    refused("<CLASS>0c03</CLASS>", 6, "class 0c03")
    refused("<CLASS>0200</CLASS><TYPE>NIC</TYPE><NIC_ID>1</NIC_ID>", 3, "0000:fe:1f.7")
    refused("<CLASS>0300</CLASS>", 13, "0000:fe:1f.7")
    device = pci_device(PciDevice(0, "0000:fe:1f.7", "0302"), pci.interfaces(()))
    created = client.create(InstanceSpec("one-62", devices={"pci0": device}))
    client.delete("one-62")
    assert created.devices["pci0"] == device
    with pytest.raises(LxdFailed, match=r"(?i)invalid"):
        client.create(InstanceSpec("one-62", devices={"pci0": {**device, "pci": "nonsense"}}))
