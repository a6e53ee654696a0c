"""The nouns of the framework: frozen, typed, without behaviour that touches the system.

Sizes and offsets are bytes unless a name says ``sectors``. A sector is ``sector_size`` bytes (512 or 4096, of CD-ROMs 2048).
"""

from __future__ import annotations

import enum

from mapper_core.frozen import dataclass


class Access(enum.Enum):
    """What a mapping may do with the image."""

    READ_WRITE = "rw"
    READ_ONLY = "ro"


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk as the caller declares it.

    :param source: absolute path of the image file or block device; a volume name for formats that are not files.
    :param format: name of the plugin that handles it, such as ``qcow2``. It comes from the caller, never from
        the content of the image.
    :param allowed_dirs: directories in which the files that the image refers to (backing files, extents) may
        lie, besides the image's own directory. Absolute paths.
    :param settings: (name, value) pairs that only the plugin understands, such as how to reach a storage cluster;
        it refuses names that it does not know. They are kept in the journal: names of key files, never keys.
    """

    source: str
    format: str
    allowed_dirs: tuple[str, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class MapOptions:
    """How a disk is to be mapped.

    :param access: read-write, or read-only.
    :param transport: name of the transport to use; ``None`` takes the first that works on this host.
    :param max_virtual_size: refuse images that pretend to be larger, in bytes; ``None``: no limit.
    """

    access: Access = Access.READ_WRITE
    transport: str | None = None
    max_virtual_size: int | None = None


class ReferenceKind(enum.Enum):
    """Why an image file refers to another file."""

    BACKING = "backing"  # qcow2 backing file, vmdk parent
    DATA = "data"  # qcow2 external data file
    EXTENT = "extent"  # vmdk extent


@dataclass(frozen=True, slots=True)
class Reference:
    """A file that an image refers to.

    :param written: the name as it is written in the image.
    :param path: the real, absolute path it leads to, all symbolic links resolved.
    :param format: format the image declares for it; empty when it does not say.
    """

    kind: ReferenceKind
    written: str
    path: str
    format: str = ""


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What a plugin reads from the header of an image, without any external program.

    :param path: the real path of the image, symbolic links resolved.
    :param format: plugin name.
    :param variant: sub-format, such as ``monolithicSparse`` or ``v3``; empty when there is only one.
    :param virtual_size: size of the disk that the guest sees, bytes.
    :param file_size: size of the image file(s), bytes (apparent, not allocated).
    :param references: files named by this image, in the order in which the image names them.
    :param backing: the image below this one; ``None`` at the end of the chain.
    :param writable: whether the variant can be written at all.
    :param detail: (name, value) pairs worth showing to a person, such as ``("cluster size", "65536")``.
    """

    path: str
    format: str
    virtual_size: int
    file_size: int
    variant: str = ""
    references: tuple[Reference, ...] = ()
    backing: ImageInfo | None = None
    writable: bool = True
    detail: tuple[tuple[str, str], ...] = ()

    def chain(self) -> tuple[ImageInfo, ...]:
        """This image and all below it, the top first."""
        images: list[ImageInfo] = []
        image: ImageInfo | None = self
        while image is not None:
            images.append(image)
            image = image.backing
        return tuple(images)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state of a disk that was kept.

    :param name: unique for the disk.
    :param size: size of the disk at that time, bytes.
    :param created: seconds since the epoch, UTC; 0 when the format does not keep it.
    :param protected: it cannot be deleted now, because something depends on it (clones).
    """

    name: str
    size: int
    created: int = 0
    protected: bool = False


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition, or a whole device without a table (``number`` 0).

    :param number: the number the kernel uses in the node name (logical MBR partitions start at 5).
    :param start: first byte on the device.
    :param size: length in bytes.
    :param type: GPT type GUID (lower case), MBR type (``0x83``), or empty.
    :param uuid: PARTUUID as ``blkid`` prints it, lower case; empty without one.
    :param label: GPT partition name; empty without one.
    :param device: block device node, such as ``/dev/loop0p1``; empty while there is none.
    :param names: device nodes by which the guest calls it, if not by disk and number: ``/dev/mapper/vg-root``.
    """

    number: int
    start: int
    size: int
    type: str = ""
    uuid: str = ""
    label: str = ""
    device: str = ""
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PartitionTable:
    """What was found on a device.

    :param scheme: ``gpt``, ``dos``, ``none`` (a bare filesystem, or an empty device), or what a plugin has found.
    :param sector_size: logical sector size of the table, bytes.
    :param partitions: in table order; for ``none`` one partition with number 0 that spans the device.
    :param uuid: disk GUID or ``dos`` disk signature, lower case.
    :param warnings: damage that did not prevent reading the table, such as a lost backup GPT.
    """

    scheme: str
    sector_size: int
    partitions: tuple[Partition, ...]
    uuid: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Filesystem:
    """What the superblock of a partition says.

    :param type: kernel name (``ext4``, ``xfs``, ``btrfs``, ``vfat``, ``swap`` ...), or a container
        (``LVM2_member``, ``crypto_LUKS``, ``linux_raid_member``); empty when nothing is recognised.
    :param uuid: as ``blkid`` prints it.
    :param label: volume label.
    """

    type: str = ""
    uuid: str = ""
    label: str = ""


@dataclass(frozen=True, slots=True)
class Volume:
    """A partition with the filesystem found on it: what can be mounted."""

    partition: Partition
    filesystem: Filesystem


@dataclass(frozen=True, slots=True)
class Attachment:
    """What a plugin's ``map`` returns: the disk is a block device now.

    :param device: block device node, such as ``/dev/loop0``.
    :param transport: name of the transport that made it; a plugin that makes its own devices names its own way.
    """

    device: str
    transport: str


@dataclass(frozen=True, slots=True)
class MappedDisk:
    """A disk that is a block device now.

    :param id: key of the mapping in the journal; the same file has the same id whatever its name.
    :param device: block device node, such as ``/dev/loop0``.
    :param transport: name of the transport that made it.
    :param size: size of the device, bytes.
    :param table: partitions, with their device nodes.
    :param users: who asked for the mapping; it goes away with the last of them.
    """

    id: str
    disk: Disk
    device: str
    transport: str
    access: Access
    size: int
    table: PartitionTable
    users: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class IdRange:
    """``count`` ids that start at ``inside`` in the container and at ``host`` on the host."""

    inside: int
    host: int
    count: int


@dataclass(frozen=True, slots=True)
class IdMap:
    """Ids of a user namespace, see user_namespaces(7)."""

    uid: tuple[IdRange, ...]
    gid: tuple[IdRange, ...]


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount of a plan.

    :param volume: what is mounted.
    :param target: absolute path inside the tree, normalised textually (``/``, ``/home``). It is data of the
        image: it is resolved inside the tree when it is opened, never on the host.
    :param fstype: filesystem type handed to the kernel.
    :param options: filesystem options (already filtered by the allow-list).
    :param access: read-only or read-write.
    :param optional: a failure is a warning (``nofail``, an ESP this kernel cannot mount).
    :param subvolume: btrfs subvolume path, empty for the default.
    """

    volume: Volume
    target: str
    fstype: str
    options: tuple[str, ...] = ()
    access: Access = Access.READ_WRITE
    optional: bool = False
    subvolume: str = ""


@dataclass(frozen=True, slots=True)
class Skipped:
    """An fstab line that is not mounted, and why."""

    line: str
    reason: str


@dataclass(frozen=True, slots=True)
class MountPlan:
    """What will be mounted where, parents first.

    :param mounts: the root is the first one.
    :param skipped: what fstab names and we leave out.
    :param warnings: things a person should know.
    """

    mounts: tuple[Mount, ...]
    skipped: tuple[Skipped, ...] = ()
    warnings: tuple[str, ...] = ()
