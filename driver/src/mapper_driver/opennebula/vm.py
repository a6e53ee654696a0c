"""A virtual machine as OpenNebula describes it: frozen types, every value checked before it gets here.

Sizes are MiB where OpenNebula writes them so (``*_mib``), everything else is in bytes. Paths are absolute and free
of ``..`` and double slashes, but symbolic links in them are not resolved: that is the work of who opens them.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from mapper_core.errors import UsageError


class DiskKind(enum.Enum):
    """What a disk is for (``DISK/TYPE``)."""

    IMAGE = "image"  # FILE, BLOCK, RBD: made from an image of a datastore
    CDROM = "cdrom"  # read-only, a filesystem of files, never a system
    VOLATILE_FS = "volatile-fs"  # empty; a filesystem is wanted on it
    SWAP = "swap"  # a container has no use for it


@dataclass(frozen=True, slots=True)
class IoLimits:
    """``*_BYTES_SEC`` (bytes per second) and ``*_IOPS_SEC`` (operations per second); None: no limit."""

    total_bytes: int | None = None
    read_bytes: int | None = None
    write_bytes: int | None = None
    total_iops: int | None = None
    read_iops: int | None = None
    write_iops: int | None = None


@dataclass(frozen=True, slots=True)
class Cluster:
    """How to reach the storage cluster of a network disk. The key itself is not part of it: the node has it.

    :param user: ``CEPH_USER``.
    :param conf: ``CEPH_CONF``, path of the client configuration; empty: the client's default.
    :param hosts: ``CEPH_HOST``, monitors as OpenNebula lists them, separated by blanks.
    :param keyfile: ``CEPH_KEY``, path of a file with nothing but the user's key.
    :param secret: ``CEPH_SECRET``, UUID under which libvirt has the key.
    """

    user: str = ""
    conf: str = ""
    hosts: str = ""
    keyfile: str = ""
    secret: str = ""


@dataclass(frozen=True, slots=True)
class VmDisk:
    """One ``<DISK>``.

    :param id: ``DISK_ID``.
    :param disk_type: ``DISK_TYPE`` in upper case, such as ``FILE``.
    :param format: name of the plugin that maps it: ``FORMAT``, else ``DRIVER``; of network disks their type.
    :param location: what is mapped: the path of the disk's file or device, or the name of its volume.
    :param filesystem: ``FS``, the wish for a volatile disk; empty: the node's default.
    :param size_mib: ``SIZE``; None when OpenNebula does not say.
    :param original_size_mib: ``ORIGINAL_SIZE``, of the image the disk was made from.
    :param previous_size_mib: ``SIZE_PREV``, set while the disk is resized.
    :param target: ``TARGET``: a device name such as ``sda``, or a path inside of the container.
    :param source: ``SOURCE``: the image as the front-end or the cluster knows it; never opened by us.
    :param datastore_id: ``DATASTORE_ID``: the datastore of the image; of volatile disks the system datastore.
    :param clone: ``CLONE``: the disk is a copy, not the image itself.
    :param pool: ``POOL_NAME`` of network disks.
    :param attach: ``ATTACH``: this is the disk that ``attach_disk`` or ``detach_disk`` is about.
    :param resize: ``RESIZE``: this is the disk that ``resize_disk`` is about.
    """

    id: int
    kind: DiskKind
    disk_type: str
    format: str
    location: str
    filesystem: str = ""
    size_mib: int | None = None
    original_size_mib: int | None = None
    previous_size_mib: int | None = None
    target: str = ""
    read_only: bool = False
    source: str = ""
    datastore_id: int | None = None
    clone: bool = False
    pool: str = ""
    cluster: Cluster | None = None
    limits: IoLimits = IoLimits()
    attach: bool = False
    resize: bool = False

    @property
    def is_enlarged(self) -> bool:
        """Whether its owner has asked for more than its image had, when it was instantiated or later."""
        return (
            self.size_mib is not None and self.original_size_mib is not None and self.size_mib > self.original_size_mib
        )


@dataclass(frozen=True, slots=True)
class Nic:
    """One ``<NIC>``. Aliases (``<NIC_ALIAS>``) are addresses inside of the guest and not listed.

    :param target: name of the interface on the host.
    :param inbound_avg: ``INBOUND_AVG_BW``, kilobytes per second into the guest; None: no limit.
    :param outbound_avg: ``OUTBOUND_AVG_BW``, kilobytes per second out of the guest; None: no limit.
    :param inbound_peak: ``INBOUND_PEAK_BW``, kilobytes per second.
    :param outbound_peak: ``OUTBOUND_PEAK_BW``, kilobytes per second.
    :param inbound_burst: ``INBOUND_PEAK_KB``, kilobytes that may come at the peak rate.
    :param outbound_burst: ``OUTBOUND_PEAK_KB``, likewise.
    :param attach: ``ATTACH``: this is the interface that ``attach_nic`` or ``detach_nic`` is about.
    """

    id: int
    mac: str
    bridge: str
    target: str
    bridge_type: str = ""
    vn_mad: str = ""
    inbound_avg: int | None = None
    outbound_avg: int | None = None
    inbound_peak: int | None = None
    outbound_peak: int | None = None
    inbound_burst: int | None = None
    outbound_burst: int | None = None
    attach: bool = False


@dataclass(frozen=True, slots=True)
class PciNic:
    """What a PCI device with ``TYPE=NIC`` is besides: an interface of the machine.

    :param mac: empty: its own.
    """

    id: int
    mac: str = ""


@dataclass(frozen=True, slots=True)
class PciDevice:
    """One ``<PCI>``: a device of the host.

    :param number: place in the list, from 0.
    :param address: as the kernel writes it, such as ``0000:41:00.0``.
    :param device_class: ``CLASS``, four hexadecimal digits such as ``0300``; empty when OpenNebula does not say.
    :param attach: ``ATTACH``: this is what ``attach_nic`` is about.
    """

    number: int
    address: str
    device_class: str = ""
    nic: PciNic | None = None
    attach: bool = False

    @property
    def device_name(self) -> str:
        """Name of its device in the container's description."""
        return f"pci{self.number}" if self.nic is None else f"eth{self.nic.id}"


@dataclass(frozen=True, slots=True)
class Context:
    """The contextualisation ISO. It takes a disk id, but is not in the list of disks.

    :param location: path of the ISO.
    :param target: ``TARGET``, the device name it would have in a virtual machine.
    """

    disk_id: int
    location: str
    target: str = ""


@dataclass(frozen=True, slots=True)
class Graphics:
    """The console OpenNebula wants.

    :param type: lower case, such as ``vnc``.
    :param port: TCP port on the node; None when it was not assigned.
    :param listen: address to listen on, as written.
    :param command: command to run inside; empty: the node's default.
    """

    type: str
    port: int | None = None
    listen: str = ""
    password: str = field(default="", repr=False)
    command: str = ""
    keymap: str = ""


class BootDevice(enum.Enum):
    """What ``OS/BOOT`` can name."""

    DISK = "disk"
    NIC = "nic"


@dataclass(frozen=True, slots=True)
class BootEntry:
    """One entry of ``OS/BOOT``: ``disk12`` is disk 12."""

    device: BootDevice
    id: int


@dataclass(frozen=True, slots=True)
class Wishes:
    """Attributes of the user template (``USER_TEMPLATE``) that this driver knows.

    :param privileged: ``LXD_SECURITY_PRIVILEGED``.
    :param nesting: ``LXD_SECURITY_NESTING``.
    :param profiles: ``LXD_PROFILE``, several separated by commas; empty: the node's default.
    """

    privileged: bool = False
    nesting: bool = False
    profiles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VmIdentity:
    """The little that every action needs, also when the rest of the description is no longer understood.

    :param id: OpenNebula's number of the machine.
    :param deploy_id: name of the container as OpenNebula knows it; empty before the first deployment.
    :param datastore_id: number of the system datastore.
    :param datastore_dir: directory of the system datastore on the node.
    """

    id: int
    name: str
    deploy_id: str
    datastore_id: int
    datastore_dir: str

    @property
    def container(self) -> str:
        """Name of the container."""
        return self.deploy_id or f"one-{self.id}"

    @property
    def is_wild(self) -> bool:
        """Whether the container was made by hand and imported: it has another name, and its storage is its own."""
        return self.container != f"one-{self.id}"

    @property
    def directory(self) -> str:
        """The machine's directory on the node: disks, checkpoint, deployment files."""
        return f"{self.datastore_dir}/{self.id}"


@dataclass(frozen=True, slots=True)
class VirtualMachine(VmIdentity):
    """All of the description that matters to a container.

    :param memory_mib: ``MEMORY``.
    :param cpu: ``CPU``: share of processors, 0.5 is half of one.
    :param vcpu: ``VCPU``: number of processors it sees; None: all.
    :param pinned_cpus: host processors it is bound to, of all NUMA nodes, ascending; empty: not pinned.
    :param boot: ``OS/BOOT``, in order.
    :param raw: ``RAW/DATA`` of type lxd, as it was written.
    :param memory_nodes: NUMA nodes of the host that its memory is bound to, ascending; empty: not bound.
    :param pci: devices of the host it gets for itself.
    :param alias_macs: addresses of ``<NIC_ALIAS>``: they have no interface of their own.
    """

    memory_mib: int
    cpu: float
    vcpu: int | None = None
    pinned_cpus: tuple[int, ...] = ()
    disks: tuple[VmDisk, ...] = ()
    nics: tuple[Nic, ...] = ()
    context: Context | None = None
    graphics: Graphics | None = None
    boot: tuple[BootEntry, ...] = ()
    raw: str = ""
    wishes: Wishes = Wishes()
    memory_nodes: tuple[int, ...] = ()
    pci: tuple[PciDevice, ...] = ()
    alias_macs: tuple[str, ...] = ()

    def disk(self, disk_id: int) -> VmDisk:
        """The disk of that number.

        :raises UsageError: when there is none.
        """
        for disk in self.disks:
            if disk.id == disk_id:
                return disk
        raise UsageError(f"the machine has no disk {disk_id}", subject=self.container)

    def root_disk(self) -> VmDisk:
        """The disk that holds the system: the first disk of ``OS/BOOT``, else the first made from an image.

        :raises UsageError: when there is none, or when ``OS/BOOT`` names one that cannot hold a system.
        """
        for entry in self.boot:
            if entry.device is BootDevice.DISK:
                disk = self.disk(entry.id)
                if disk.kind is not DiskKind.IMAGE:
                    raise UsageError(
                        f"OS/BOOT names disk {disk.id}, which is a {disk.kind.value} and not made from an image",
                        subject=self.container,
                    )
                return disk
        for disk in self.disks:
            if disk.kind is DiskKind.IMAGE:
                return disk
        raise UsageError("the machine has no disk made from an image to start from", subject=self.container)
