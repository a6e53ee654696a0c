"""``<DISK>`` and ``<CONTEXT>``: what is mapped, where it lies, and in which format.

The names of formats come from OpenNebula, never from here: this driver hands them to the registry of plugins.
"""

from __future__ import annotations

from mapper_core.errors import NotSupported

from . import fields
from .fields import Fields
from .vm import Cluster, Context, DiskKind, IoLimits, VmDisk, VmIdentity

MAX_DISK_ID = 9999

# DISK/DISK_TYPE, without the suffix _CDROM. The first are a path in the machine's directory. The second are volumes
# of a cluster, of which we know how OpenNebula names the copy for a machine; their type, in lower case, is the name
# of the plugin that maps them.
_PATH_TYPES = frozenset({"FILE", "BLOCK", "CDROM"})
_VOLUME_TYPES = frozenset({"RBD"})
_EMPTY_KINDS = frozenset({DiskKind.VOLATILE_FS, DiskKind.SWAP})


def parse_disk(disk: Fields, vm: VmIdentity, default_format: str) -> VmDisk:
    """Read one ``<DISK>``.

    :param default_format: format of a disk that has neither ``FORMAT`` nor ``DRIVER``; empty: that is an error.
    :raises UsageError: naming the element and its value.
    :raises NotSupported: for a ``TYPE`` or ``DISK_TYPE`` that cannot be handled; a disk is never left out.
    """
    disk_id = disk.needed("DISK_ID", disk.integer("DISK_ID", maximum=MAX_DISK_ID))
    kind = _kind(disk)
    disk_type = _disk_type(disk, kind)
    if disk_type.endswith("CDROM"):
        kind = DiskKind.CDROM
    storage = disk_type.removesuffix("_CDROM")
    if storage in _VOLUME_TYPES:
        form, location, cluster = storage.lower(), _volume(disk, vm, disk_id, kind), _cluster(disk)
    elif storage in _PATH_TYPES:
        form, location, cluster = _format(disk, kind, default_format), f"{vm.directory}/disk.{disk_id}", None
    else:
        raise NotSupported(f"disk {disk_id} has DISK_TYPE {disk_type}, which is not supported", subject=disk.path)
    return VmDisk(
        id=disk_id,
        kind=kind,
        disk_type=disk_type,
        format=form,
        location=location,
        filesystem=disk.matching("FS", fields.FILESYSTEM, "a name of a filesystem"),
        size_mib=disk.integer("SIZE"),
        original_size_mib=disk.integer("ORIGINAL_SIZE"),
        previous_size_mib=disk.integer("SIZE_PREV"),
        target=_target(disk),
        read_only=disk.flag("READONLY") or kind is DiskKind.CDROM,
        source=disk.text("SOURCE"),
        datastore_id=disk.integer("DATASTORE_ID"),
        clone=disk.flag("CLONE"),
        pool=disk.matching("POOL_NAME", fields.POOL, "a name of a pool"),
        cluster=cluster,
        limits=_limits(disk),
        attach=disk.flag("ATTACH"),
        resize=disk.flag("RESIZE"),
    )


def parse_context(context: Fields, vm: VmIdentity) -> Context:
    """Read ``<CONTEXT>``.

    :raises UsageError: naming the element and its value.
    """
    disk_id = context.needed("DISK_ID", context.integer("DISK_ID", maximum=MAX_DISK_ID))
    return Context(
        disk_id=disk_id,
        location=f"{vm.directory}/disk.{disk_id}",
        target=context.matching("TARGET", fields.WORD, "a device name"),
    )


def _kind(disk: Fields) -> DiskKind:
    written = disk.text("TYPE")
    name = written.upper()
    if name == "FS":
        return DiskKind.VOLATILE_FS
    if name == "SWAP":
        return DiskKind.SWAP
    if name.endswith("CDROM"):
        return DiskKind.CDROM
    if not name or name in _PATH_TYPES | _VOLUME_TYPES:
        return DiskKind.IMAGE
    raise NotSupported(f"{disk.path}/TYPE is {fields.shown(written)}, which is not supported", subject=disk.path)


def _disk_type(disk: Fields, kind: DiskKind) -> str:
    written = disk.matching("DISK_TYPE", fields.WORD, "a type of disk")
    if not written and kind not in _EMPTY_KINDS:
        written = disk.text("TYPE")  # of a disk made from an image both say the same
    return disk.needed("DISK_TYPE", written.upper())


def _format(disk: Fields, kind: DiskKind, default_format: str) -> str:
    # FORMAT first: oned sets it from the image or the datastore. DRIVER is all that OpenNebula 5 has, and where
    # neither image nor datastore sets one, the owner of the machine can type it.
    for tag in ("FORMAT", "DRIVER"):
        written = disk.text(tag).lower()
        if written and not fields.FORMAT.fullmatch(written):
            raise disk.bad(tag, written, "not a name of an image format")
        if written:
            return written
    if kind is DiskKind.SWAP:
        return default_format  # never mapped
    hint = "set DRIVER at the image or its datastore, or default_format in the lxdrc of the node"
    return disk.needed("FORMAT", default_format, hint)


def _volume(disk: Fields, vm: VmIdentity, disk_id: int, kind: DiskKind) -> str:
    """Name of the volume, as OpenNebula's storage driver builds it (tm/ceph/clone, tm/ceph/mkimage)."""
    if kind in _EMPTY_KINDS:
        pool = disk.needed("POOL_NAME", disk.matching("POOL_NAME", fields.POOL, "a name of a pool"))
        return f"{pool}/one-sys-{vm.id}-{disk_id}"
    source = disk.needed("SOURCE", disk.matching("SOURCE", fields.VOLUME, "a name POOL/VOLUME"))
    return f"{source}-{vm.id}-{disk_id}" if disk.flag("CLONE") else source


def _cluster(disk: Fields) -> Cluster:
    return Cluster(
        user=disk.matching("CEPH_USER", fields.WORD, "a name of a user"),
        conf=disk.path_name("CEPH_CONF"),
        hosts=disk.text("CEPH_HOST"),
        keyfile=disk.path_name("CEPH_KEY"),
        secret=disk.matching("CEPH_SECRET", fields.UUID, "a UUID"),
    )


def _target(disk: Fields) -> str:
    if disk.text("TARGET").startswith("/"):
        return disk.path_name("TARGET")
    return disk.matching("TARGET", fields.WORD, "a device name or an absolute path")


def _limits(disk: Fields) -> IoLimits:
    def limit(tag: str) -> int | None:
        return disk.integer(tag) or None  # 0 is libvirt's way to say "no limit"

    return IoLimits(
        total_bytes=limit("TOTAL_BYTES_SEC"),
        read_bytes=limit("READ_BYTES_SEC"),
        write_bytes=limit("WRITE_BYTES_SEC"),
        total_iops=limit("TOTAL_IOPS_SEC"),
        read_iops=limit("READ_IOPS_SEC"),
        write_iops=limit("WRITE_IOPS_SEC"),
    )
