"""``<NIC>``, ``<NIC_ALIAS>`` and ``<PCI>``: interfaces of the machine, and devices of the host that it gets for itself."""

from __future__ import annotations

import re

from . import fields
from .fields import Fields
from .vm import Nic, PciDevice, PciNic, VmIdentity

MAX_NIC_ID = 9999

_INTERFACE = "a name of a network interface (at most 15 characters)"
# OpenNebula writes the address with three colons, 0000:41:00:0; the kernel with a dot at the end.
_ADDRESS = re.compile(r"([0-9a-f]{4}):([0-9a-f]{2}):([01][0-9a-f])[:.]([0-7])")
_CLASS = re.compile(r"[0-9a-f]{4}")


def parse_nic(nic: Fields, vm: VmIdentity) -> Nic:
    """Read one ``<NIC>``.

    :raises UsageError: naming the element and its value.
    """
    nic_id = nic.needed("NIC_ID", nic.integer("NIC_ID", maximum=MAX_NIC_ID))
    mac = nic.needed("MAC", parse_mac(nic))
    target = nic.matching("TARGET", fields.INTERFACE, _INTERFACE) or f"one-{vm.id}-{nic_id}"
    if not fields.INTERFACE.fullmatch(target):
        raise nic.bad("TARGET", target, f"not {_INTERFACE}")

    def rate(tag: str) -> int | None:
        return nic.integer(tag) or None  # 0: no limit

    return Nic(
        id=nic_id,
        mac=mac,
        bridge=nic.needed("BRIDGE", nic.matching("BRIDGE", fields.INTERFACE, _INTERFACE)),
        target=target,
        bridge_type=nic.matching("BRIDGE_TYPE", fields.WORD, "a type of bridge"),
        vn_mad=nic.matching("VN_MAD", fields.WORD, "a name of a network driver"),
        inbound_avg=rate("INBOUND_AVG_BW"),
        outbound_avg=rate("OUTBOUND_AVG_BW"),
        inbound_peak=rate("INBOUND_PEAK_BW"),
        outbound_peak=rate("OUTBOUND_PEAK_BW"),
        inbound_burst=rate("INBOUND_PEAK_KB"),
        outbound_burst=rate("OUTBOUND_PEAK_KB"),
        attach=nic.flag("ATTACH"),
    )


def parse_mac(nic: Fields) -> str:
    """``MAC`` in lower case; empty when there is none.

    :raises UsageError: for anything but the address of a single card.
    """
    mac = nic.text("MAC").lower()
    if mac and (not fields.MAC.fullmatch(mac) or int(mac[:2], 16) & 1):
        raise nic.bad("MAC", mac, "not an address of a single network card")
    return mac


def parse_pci(pci: Fields, number: int) -> PciDevice:
    """Read one ``<PCI>``.

    :param number: its place among them.
    :raises UsageError: naming the element and its value.
    """
    written = pci.needed("ADDRESS", pci.text("ADDRESS").lower())
    match = _ADDRESS.fullmatch(written)
    if match is None:
        raise pci.bad("ADDRESS", written, "not an address of a PCI device")
    device_class = pci.text("CLASS").lower()
    if device_class and not _CLASS.fullmatch(device_class):
        raise pci.bad("CLASS", device_class, "not a class of PCI devices")
    nic = None
    if pci.text("TYPE").upper() == "NIC":
        nic = PciNic(pci.needed("NIC_ID", pci.integer("NIC_ID", maximum=MAX_NIC_ID)), parse_mac(pci))
    domain, bus, slot, function = match.groups()
    return PciDevice(number, f"{domain}:{bus}:{slot}.{function}", device_class, nic, pci.flag("ATTACH"))
