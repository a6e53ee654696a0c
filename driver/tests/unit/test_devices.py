"""Network interfaces and PCI devices as devices of LXD."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from mapper_driver import pci
from mapper_driver.devices import nic_device, nic_warnings, pci_device
from mapper_driver.opennebula.vm import Nic, PciDevice, PciNic, VirtualMachine

from mapper_core.errors import NotFound, NotSupported, UsageError

pytestmark = pytest.mark.unit

MakeVm = Callable[..., VirtualMachine]
MAC = "02:00:00:00:00:01"


def nic(bridge_type: str = "", **bandwidth: int) -> Nic:
    return Nic(2, MAC, "br0", "one-42-2", bridge_type, **bandwidth)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["", "linux", "openvswitch"])
def test_bridged(kind: str) -> None:
    """LXD asks the host itself whether the bridge is one of Open vSwitch."""
    assert nic_device(nic(kind)) == {
        "type": "nic",
        "nictype": "bridged",
        "name": "eth2",
        "host_name": "one-42-2",
        "parent": "br0",
        "hwaddr": MAC,
    }


def test_bridges_that_containers_cannot_use() -> None:
    with pytest.raises(NotSupported, match="openvswitch_dpdk"):
        nic_device(nic("openvswitch_dpdk"))


@pytest.mark.parametrize(
    ("bandwidth", "limits", "warning"),
    [
        ({"inbound_avg": 1000, "outbound_avg": 20}, {"limits.ingress": "8000kbit", "limits.egress": "160kbit"}, ""),
        (
            {"inbound_avg": 1000, "inbound_peak": 2000, "inbound_burst": 3000},
            {"limits.ingress": "8000kbit"},
            "INBOUND_PEAK_BW and INBOUND_PEAK_KB have no equal",
        ),
        ({"outbound_peak": 2000}, {"limits.egress": "16000kbit"}, "is taken as the most"),
        ({"outbound_burst": 2000}, {}, "OUTBOUND_PEAK_KB without OUTBOUND_AVG_BW is left out"),
        ({}, {}, ""),
    ],
)
def test_bandwidth(bandwidth: dict[str, int], limits: dict[str, str], warning: str) -> None:
    device = nic_device(nic("", **bandwidth))
    assert {key: value for key, value in device.items() if key.startswith("limits.")} == limits
    assert warning in "".join(nic_warnings(nic("", **bandwidth)))
    assert bool(nic_warnings(nic("", **bandwidth))) is bool(warning)


def test_open_vswitch_does_not_keep_limits() -> None:
    assert "Open vSwitch" in "".join(nic_warnings(nic("openvswitch", inbound_avg=1)))
    assert not nic_warnings(nic("openvswitch"))


def test_zero_is_no_limit(make_vm: MakeVm) -> None:
    parsed = make_vm(
        f"<NIC><NIC_ID>0</NIC_ID><MAC>{MAC}</MAC><BRIDGE>br0</BRIDGE><INBOUND_PEAK_BW>0</INBOUND_PEAK_BW></NIC>"
    ).nics[0]
    assert parsed.inbound_peak is None


# --- PCI -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device_class", ["0300", "0302", "0380"])
def test_a_graphics_card(device_class: str) -> None:
    card = PciDevice(1, "0000:41:00.0", device_class)
    assert (card.device_name, pci_device(card, {})) == (
        "pci1",
        {"type": "gpu", "gputype": "physical", "pci": "0000:41:00.0"},
    )


@pytest.mark.parametrize("mac", ["", MAC])
def test_a_network_card(mac: str) -> None:
    card = PciDevice(0, "0000:41:00.1", "0200", PciNic(3, mac))
    wanted = {"type": "nic", "nictype": "physical", "parent": "ens1f1", "name": "eth3"}
    assert card.device_name == "eth3"
    assert pci_device(card, {"0000:41:00.1": "ens1f1"}) == wanted | ({"hwaddr": mac} if mac else {})


def test_a_network_card_that_a_virtual_machine_was_to_have() -> None:
    with pytest.raises(NotFound, match=r"0000:41:00\.1") as caught:
        pci_device(PciDevice(0, "0000:41:00.1", "0200", PciNic(3)), {"0000:41:00.0": "ens1f0"})
    assert "vfio-pci" in caught.value.hint


@pytest.mark.parametrize("device_class", ["0106", "0c03", ""])
def test_other_devices_are_not_left_out_in_silence(device_class: str) -> None:
    with pytest.raises(NotSupported, match=device_class or "unknown"):
        pci_device(PciDevice(0, "0000:41:00.1", device_class), {})


@pytest.mark.parametrize("written", ["0000:41:1f:7", "0000:41:1F.7"])
def test_addresses(make_vm: MakeVm, written: str) -> None:
    vm = make_vm(
        f"<PCI><ADDRESS>{written}</ADDRESS><CLASS>0300</CLASS></PCI>"
        f"<PCI><ADDRESS>{written}</ADDRESS><CLASS>0200</CLASS><TYPE>NIC</TYPE><NIC_ID>1</NIC_ID><MAC>{MAC}</MAC>"
        "<ATTACH>YES</ATTACH></PCI>"
    )
    assert vm.pci == (
        PciDevice(0, "0000:41:1f.7", "0300"),
        PciDevice(1, "0000:41:1f.7", "0200", PciNic(1, MAC), attach=True),
    )


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ("<ADDRESS>0000:41:20.0</ADDRESS>", "ADDRESS"),
        ("<ADDRESS>../41:00.0</ADDRESS>", "ADDRESS"),
        ("", "ADDRESS"),
        ("<ADDRESS>0000:41:00:0</ADDRESS><CLASS>display</CLASS>", "CLASS"),
        ("<ADDRESS>0000:41:00:0</ADDRESS><TYPE>NIC</TYPE>", "NIC_ID"),
        ("<ADDRESS>0000:41:00:0</ADDRESS><TYPE>NIC</TYPE><NIC_ID>1</NIC_ID><MAC>ff:00:00:00:00:01</MAC>", "MAC"),
    ],
)
def test_wrong_pci(make_vm: MakeVm, parts: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_vm(f"<PCI>{parts}</PCI>")


def test_ids_of_interfaces_are_used_once(make_vm: MakeVm) -> None:
    with pytest.raises(UsageError, match="NIC_ID 1 is used twice"):
        make_vm(
            f"<NIC><NIC_ID>1</NIC_ID><MAC>{MAC}</MAC><BRIDGE>br0</BRIDGE></NIC>"
            "<PCI><ADDRESS>0000:41:00:0</ADDRESS><TYPE>NIC</TYPE><NIC_ID>1</NIC_ID></PCI>"
        )


def test_aliases(make_vm: MakeVm) -> None:
    assert make_vm(f"<NIC_ALIAS><NIC_ID>3</NIC_ID><MAC>{MAC}</MAC></NIC_ALIAS>").alias_macs == (MAC,)


def test_interfaces_of_cards(tmp_path: Path) -> None:
    (tmp_path / "0000:41:00.0/net/ens1f0").mkdir(parents=True)
    (tmp_path / "0000:00:03.0/virtio1/net/eth7").mkdir(parents=True)
    (tmp_path / "0000:42:00.0/driver").mkdir(parents=True)
    addresses = ("0000:41:00.0", "0000:00:03.0", "0000:42:00.0", "0000:99:00.0")
    cards = [PciDevice(number, address, "0200", PciNic(number)) for number, address in enumerate(addresses)]
    assert pci.interfaces(cards, str(tmp_path)) == {"0000:41:00.0": "ens1f0", "0000:00:03.0": "eth7"}
    assert pci.interfaces([PciDevice(0, "0000:41:00.0", "0300")], str(tmp_path)) == {}
