"""PCI devices of the host, as the kernel shows them in sysfs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

from mapper_driver.opennebula.vm import PciDevice

SYSFS = "/sys/bus/pci/devices"


def interfaces(devices: Iterable[PciDevice], sysfs: str = SYSFS) -> dict[str, str]:
    """Names of the network interfaces of network cards, by PCI address; a card that has none on the host is left out.

    It is the card's own interface, or that of a virtio device on it.
    """
    found = {}
    for device in devices:
        if device.nic is None:
            continue
        card = f"{sysfs}/{device.address}"
        below = (f"{card}/{name}" for name in _names(card) if name.startswith("virtio"))
        names = [name for place in (card, *below) for name in _names(f"{place}/net")]
        if names:
            found[device.address] = sorted(names)[0]
    return found


def _names(directory: str) -> list[str]:
    with contextlib.suppress(OSError):
        return sorted(os.listdir(directory))
    return []
