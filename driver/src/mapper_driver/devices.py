"""Disks, network interfaces and PCI devices of a machine as devices of LXD or Incus. Pure: it decides, others act."""

from __future__ import annotations

from collections.abc import Mapping

from mapper_core.errors import NotFound, NotSupported, UsageError

from .lxd.model import Device
from .opennebula.vm import Nic, PciDevice, VmDisk

CONTEXT = "context"
"""Name of the device with the files of the contextualisation ISO."""
CONTEXT_PATH = "/context"
_RESERVED_PATHS = ("/proc", "/sys", "/dev", CONTEXT_PATH)
_OPEN_VSWITCH = "openvswitch"
_BRIDGED = frozenset({"", "linux", _OPEN_VSWITCH})
_DISPLAY = "03"  # base class of display controllers (PCI Code and ID Assignment Specification)


def disk_name(disk_id: int) -> str:
    """Name of the device of a disk; that of the root is ``root``."""
    return f"disk{disk_id}"


def root_device(disk: VmDisk, pool: str) -> Device:
    """The root. LXD wants it in a pool; what is in it is the tree that the hook places there."""
    options = {"type": "disk", "path": "/", "pool": pool}
    if disk.read_only:
        options["readonly"] = "true"
    return options


def disk_device(disk: VmDisk, source: str) -> Device:
    """Another disk: its tree, with all that is mounted in it.

    There is no ``readonly`` beside ``recursive`` (LXD 5.0: "Recursive read-only bind-mounts aren't currently
    supported by the kernel"). A read-only disk is a read-only block device and mounted read-only at its source.

    :raises UsageError: when ``TARGET`` is a path where nothing may be mounted.
    """
    return {"type": "disk", "source": source, "path": guest_path(disk), "recursive": "true"}


def context_device(source: str) -> Device:
    """The files of the contextualisation ISO."""
    return {"type": "disk", "source": source, "path": CONTEXT_PATH, "readonly": "true"}


def nic_device(nic: Nic) -> Device:
    """A network interface: one end in the container, the other on OpenNebula's bridge under OpenNebula's name. LXD finds
    out itself whether that is a bridge of Linux or of Open vSwitch.

    OpenNebula counts kilobytes, LXD bits per second.

    :raises NotSupported: for a bridge that only virtual machines can use.
    """
    if nic.bridge_type not in _BRIDGED:
        raise NotSupported(f"interface {nic.id} is on a bridge of type {nic.bridge_type}", subject=nic.bridge)
    options = {
        "type": "nic",
        "nictype": "bridged",
        "name": f"eth{nic.id}",
        "host_name": nic.target,
        "parent": nic.bridge,
        "hwaddr": nic.mac,
    }
    for key, average, peak in (
        ("limits.ingress", nic.inbound_avg, nic.inbound_peak),
        ("limits.egress", nic.outbound_avg, nic.outbound_peak),
    ):
        rate = average or peak
        if rate is not None:
            options[key] = f"{rate * 8}kbit"
    return options


def nic_warnings(nic: Nic) -> tuple[str, ...]:
    """What of the bandwidth LXD cannot do: it knows one rate for each direction (``limits.max`` is both directions at once),
    and sets the size of bursts itself.

    Open vSwitch removes the queueing discipline with which LXD limits a port (ovs-vswitchd.conf.db(5), QoS type linux-noop).
    """
    found = []
    if nic.bridge_type == _OPEN_VSWITCH and any(key.startswith("limits.") for key in nic_device(nic)):
        found.append(
            f"interface {nic.id}: Open vSwitch limits its ports itself, LXD's limits of bandwidth do not last there"
        )
    for name, average, peak, burst in (
        ("INBOUND", nic.inbound_avg, nic.inbound_peak, nic.inbound_burst),
        ("OUTBOUND", nic.outbound_avg, nic.outbound_peak, nic.outbound_burst),
    ):
        given = [f"{name}_PEAK_{unit}" for unit, value in (("BW", peak), ("KB", burst)) if value is not None]
        if average is not None and given:
            found.append(
                f"interface {nic.id}: {' and '.join(given)} have no equal in LXD; {name}_AVG_BW, {average} kB/s, is the most"
            )
        elif given:
            limit = "is taken as the most" if peak is not None else "is left out"
            found.append(f"interface {nic.id}: {' and '.join(given)} without {name}_AVG_BW {limit}")
    return tuple(found)


def pci_device(pci: PciDevice, interfaces: Mapping[str, str]) -> Device:
    """A device of the host that the container gets for itself: a graphics card, or a network card.

    :param interfaces: names of the host's network interfaces, by PCI address.
    :raises NotSupported: for any other class; only a virtual machine can drive it.
    :raises NotFound: when the network card has no interface on the host.
    """
    if pci.nic is not None:
        name = interfaces.get(pci.address)
        if not name:
            raise NotFound(
                "this network card has no interface on the host",
                subject=pci.address,
                hint="bind it to its own driver: for a virtual machine it is bound to vfio-pci",
            )
        options = {"type": "nic", "nictype": "physical", "parent": name, "name": f"eth{pci.nic.id}"}
        return options | ({"hwaddr": pci.nic.mac} if pci.nic.mac else {})
    if pci.device_class.startswith(_DISPLAY):
        return {"type": "gpu", "gputype": "physical", "pci": pci.address}
    raise NotSupported(
        f"a container cannot have a PCI device of class {pci.device_class or 'unknown'}",
        subject=pci.address,
        hint="graphics cards and network cards can be handed over",
    )


def guest_path(disk: VmDisk) -> str:
    """Where the disk is in the container: ``TARGET`` if it is a path, else ``/media/<id>``.

    :raises UsageError: for the root, and for directories that belong to the system.
    """
    if not disk.target.startswith("/"):
        return f"/media/{disk.id}"
    if disk.target == "/" or any(_is_in(disk.target, reserved) for reserved in _RESERVED_PATHS):
        raise UsageError(f"disk {disk.id} cannot be mounted on {disk.target}", subject=f"disk {disk.id}")
    return disk.target


def _is_in(path: str, directory: str) -> bool:
    return path == directory or path.startswith(f"{directory}/")
