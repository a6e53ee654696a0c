"""What will be mounted where: a pure function of the disk's volumes, the image's fstab and a policy.

Decisions that are not obvious:

- Only what is on this disk is mounted. A line that names something else is an error, because a system without its
  ``/var`` that starts anyway does harm; ``nofail`` turns the error into a skipped line. LUKS, RAID, and
  logical volumes that no plugin has found (``/dev/mapper/...``, ``/dev/md0``) are such lines.
- What the guest itself mounts (``tmpfs``, ``proc``, binds, overlays, network) is skipped, also at reserved places such
  as ``/run``. A *block* filesystem at ``/proc``, ``/sys``, ``/dev``, ``/run`` or below is refused, ``nofail`` or not.
- ``/boot``, ``/efi`` and ``/boot/efi`` are for boot loaders, a container starts without them: when this kernel
  cannot mount them they are skipped with a warning.
- The root has been chosen before. The line for ``/`` gives its options; when it names another partition that is a warning.
- Lines with ``noauto`` are skipped, ``x-systemd.*`` is ignored.
"""

from __future__ import annotations

from mapper_core.errors import AmbiguousRoot, BadFstab, UnknownFilesystem
from mapper_core.frozen import dataclass, replace
from mapper_core.model import Access, Mount, MountPlan, Skipped, Volume
from mapper_core.tree import dps
from mapper_core.tree.fstab import FstabEntry, FstabTable, bad_line
from mapper_core.tree.options import ALLOWED_FILESYSTEMS, EXT_FAMILY, driver, filter_options
from mapper_core.tree.resolve import own_disks, resolve, resolve_hint
from mapper_core.tree.roots import HINT, RootEvidence, choose_root, describe, no_root, root_subvolume
from mapper_core.tree.targets import depth, normalise, shown

__all__ = ["PlanPolicy", "RootEvidence", "choose_root", "data_disk", "plan", "root_subvolume"]

#: What the guest mounts itself, without a block device of ours.
# fmt: off
_VIRTUAL = frozenset({
    "9p", "aufs", "autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs",
    "efivarfs", "fuse", "fusectl", "hugetlbfs", "ignore", "mqueue", "none", "nfsd", "overlay", "proc", "pstore", "ramfs",
    "rootfs", "rpc_pipefs", "securityfs", "selinuxfs", "sysfs", "tmpfs", "tracefs", "usbfs", "virtiofs",
})
_NETWORK = frozenset({
    "afs", "ceph", "cifs", "coda", "davfs", "glusterfs", "lustre", "ncpfs", "nfs", "nfs4", "smb3", "smbfs", "sshfs",
})
# fmt: on

#: Mount points that only boot loaders need.
_BOOT_TARGETS = frozenset({"/boot", "/boot/efi", "/efi"})

_FAT_NAMES = frozenset({"vfat", "msdos", "fat", "umsdos"})


@dataclass(frozen=True, slots=True)
class PlanPolicy:
    """What the host can and wants.

    :param kernel_filesystems: types that this kernel can mount, now or after loading a module.
    :param access: read-only: everything is, and no journal is replayed.
    """

    kernel_filesystems: frozenset[str]
    access: Access = Access.READ_WRITE


def plan(
    volumes: tuple[Volume, ...],
    fstab: FstabTable | None,
    policy: PlanPolicy,
    root: Volume,
    *,
    subvolume: str = "",
) -> MountPlan:
    """Plan the mounts of a disk that has a root filesystem.

    :param volumes: all partitions of the disk.
    :param fstab: of the root; ``None`` when it has none, then only the root is mounted.
    :param root: one of ``volumes``, see :func:`choose_root`.
    :param subvolume: btrfs: where the root was seen, see :func:`root_subvolume`. The line for ``/`` counts more.
    :raises BadFstab: a line names what is not on this disk, or contradicts the disk or another line.
    :raises UnknownFilesystem: a filesystem is not on our list, or this kernel has no driver for it.
    :raises UnsafePath: a mount point leads out of the tree or is reserved.
    """
    return _Planner(volumes, fstab or FstabTable(), policy, root, subvolume).plan()


def data_disk(volumes: tuple[Volume, ...], policy: PlanPolicy, hint: str = "") -> MountPlan:
    """Plan the mount of a disk that is not a root: its one filesystem becomes the tree.

    :param hint: which partition, see :func:`mapper_core.tree.resolve.resolve_hint`.
    :raises NoRootFound: no filesystem is on it, or not the one asked for.
    :raises AmbiguousRoot: several are, and there is no hint.
    :raises UnknownFilesystem: it is not on our list, or this kernel has no driver for it.
    """
    if hint:
        match = resolve_hint(hint, volumes)
        if match.volume is None:
            raise no_root(volumes, f"{match.reason}; ")
        return MountPlan((_root_mount(match.volume, (), policy).mount,))
    found = [volume for volume in volumes if volume.filesystem.type in ALLOWED_FILESYSTEMS]
    if len(found) > 1:
        found = [volume for volume in found if volume.partition.type not in dps.BOOT_TYPES] or found
    if len(found) > 1:
        what = "; ".join(map(describe, found))
        raise AmbiguousRoot(f"the disk has several filesystems: {what}", hint=HINT)
    if not found:
        raise no_root(volumes, "the disk has no filesystem that can be mounted; ")
    return MountPlan((_root_mount(found[0], (), policy).mount,))


@dataclass(frozen=True, slots=True)
class _Planned:
    """A mount, and the options of its line that are not passed on."""

    mount: Mount
    dropped: tuple[str, ...]


class _Skip(Exception):
    """The line is not mounted; carries the reason, and whether a person should be warned."""

    def __init__(self, reason: str, warn: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.warn = warn


class _Planner:
    """One run over an fstab."""

    def __init__(
        self, volumes: tuple[Volume, ...], fstab: FstabTable, policy: PlanPolicy, root: Volume, subvolume: str
    ) -> None:
        self._volumes = volumes
        self._entries = fstab.entries
        self._policy = policy
        self._root = root
        self._mounts: dict[str, Mount] = {}
        self._skipped: list[Skipped] = []
        self._warnings: list[str] = [
            f"{describe(volume)}: a hibernated system; what it had not written yet is lost when the disk is used"
            for volume in volumes
            if volume.filesystem.type == "swsuspend"
        ]
        self._subvolume = subvolume
        root_spec = next((entry.spec for entry in self._entries if _names_root(entry)), "")
        named = {name for volume in volumes for name in volume.partition.names}
        specs = [entry.spec for entry in self._entries if entry.spec not in named]
        self._disks = own_disks(specs, "" if root_spec in named else root_spec)

    def plan(self) -> MountPlan:
        for entry in self._entries:
            try:
                self._add(entry)
            except _Skip as skip:
                self._skipped.append(Skipped(entry.raw, skip.reason))
                if skip.warn:
                    self._warnings.append(f"{shown(entry.target)} is not mounted: {skip.reason}")
        if "/" not in self._mounts:
            self._mounts["/"] = _root_mount(self._root, (), self._policy, self._subvolume).mount
        ordered = sorted(self._mounts.values(), key=lambda mount: (depth(mount.target), mount.target))
        return MountPlan(tuple(ordered), tuple(self._skipped), tuple(self._warnings))

    def _add(self, entry: FstabEntry) -> None:
        reason = _not_ours(entry)
        if reason:
            raise _Skip(reason)
        if _names_root(entry):
            planned = self._root_line(entry)
        elif "noauto" in entry.options:
            raise _Skip("noauto")
        else:
            planned = self._line(entry)
        mount = planned.mount
        if mount.target in self._mounts:
            raise bad_line(entry.line, f"{shown(mount.target)} is mounted by an earlier line already")
        self._mounts[mount.target] = mount
        if planned.dropped:
            names = shown(", ".join(planned.dropped))
            self._warnings.append(f"{shown(mount.target)}: options of the image that are not used: {names}")

    def _root_line(self, entry: FstabEntry) -> _Planned:
        match = resolve(entry.spec, self._volumes, self._disks, self._root)
        options = entry.options
        if match.volume is None:
            self._warnings.append(f"fstab line {entry.line} for /: {match.reason}")
        elif match.volume != self._root:
            options = ()
            self._warnings.append(
                f"fstab line {entry.line} says that / is {describe(match.volume)}, but the root chosen is "
                f"{describe(self._root)}"
            )
        planned = _root_mount(self._root, options, self._policy, self._subvolume)
        if self._subvolume and planned.mount.subvolume not in ("", self._subvolume):
            self._warnings.append(
                f"fstab line {entry.line} says that / is the subvolume {shown(planned.mount.subvolume)}, but it was "
                f"found in {shown(self._subvolume)}"
            )
        return planned

    def _line(self, entry: FstabEntry) -> _Planned:
        target = normalise(entry.target)
        match = resolve(entry.spec, self._volumes, self._disks, self._root)
        optional = "nofail" in entry.options
        try:
            if match.volume is None:
                raise bad_line(
                    entry.line, match.reason, hint="remove the line, or add the option nofail, if it is not needed"
                )
            return self._mount(entry, match.volume, target)
        except (BadFstab, UnknownFilesystem) as error:
            if optional:
                raise _Skip(f"{error.message} (nofail)") from error
            raise

    def _mount(self, entry: FstabEntry, volume: Volume, target: str) -> _Planned:
        actual = volume.filesystem.type
        if volume == self._root and actual != "btrfs":
            raise bad_line(entry.line, f"{shown(entry.spec)} is the root already; it cannot be {shown(target)} as well")
        earlier = [mount.target for mount in self._mounts.values() if mount.volume == volume and actual != "btrfs"]
        if earlier:
            raise bad_line(entry.line, f"{shown(entry.spec)} is mounted at {shown(earlier[0])} already")
        kernel_type = driver(actual, self._policy.kernel_filesystems)
        if not kernel_type:
            error = _unusable(volume)
            if target in _BOOT_TARGETS:
                raise _Skip(error.message, warn=True)
            raise error
        if actual and not _types_agree(entry.fstype, actual):
            raise bad_line(entry.line, f"the line says {shown(entry.fstype)}, but {describe(volume)}")
        filtered = filter_options(entry.options, actual, self._policy.access)
        mount = Mount(
            volume=volume,
            target=target,
            fstype=kernel_type,
            options=filtered.options,
            access=filtered.access,
            optional="nofail" in entry.options,
            subvolume=filtered.subvolume,
        )
        return _Planned(mount, filtered.dropped)


def _root_mount(volume: Volume, options: tuple[str, ...], policy: PlanPolicy, subvolume: str = "") -> _Planned:
    kernel_type = driver(volume.filesystem.type, policy.kernel_filesystems)
    if not kernel_type:
        raise _unusable(volume)
    filtered = filter_options(options, volume.filesystem.type, policy.access)
    mount = Mount(
        volume=volume,
        target="/",
        fstype=kernel_type,
        options=filtered.options,
        access=filtered.access,
        subvolume=filtered.subvolume,
    )
    if volume.filesystem.type == "btrfs" and not mount.subvolume and not _has_subvolume_id(mount.options):
        mount = replace(mount, subvolume=subvolume)
    return _Planned(mount, filtered.dropped)


def _has_subvolume_id(options: tuple[str, ...]) -> bool:
    return any(option.startswith("subvolid=") for option in options)


def _unusable(volume: Volume) -> UnknownFilesystem:
    kind = volume.filesystem.type
    if kind in ALLOWED_FILESYSTEMS:
        return UnknownFilesystem(
            f"{describe(volume)}, which this kernel cannot mount", hint=f"load the kernel module for {kind}"
        )
    reason = ", a type that is never mounted" if kind else ""
    return UnknownFilesystem(f"{describe(volume)}{reason}")


def _not_ours(entry: FstabEntry) -> str:
    """Return why a line is none of ours: no block filesystem that this disk could hold; empty otherwise."""
    kinds = set(entry.fstype.split(","))
    options = set(entry.options)
    if "swap" in kinds or entry.target in ("swap", "none"):
        return "swap" if "swap" in kinds or entry.target == "swap" else "it has no mount point"
    if options & {"bind", "rbind"}:
        return "a bind mount inside of the tree"
    if kinds & _NETWORK or entry.spec.startswith("//") or ":/" in entry.spec.partition("=")[0].removeprefix("/dev/"):
        return "a network filesystem"
    if kinds & _VIRTUAL or any(kind.startswith(("fuse.", "overlay")) for kind in kinds):
        return f"{shown(entry.fstype)} is mounted by the guest itself"
    return ""


def _names_root(entry: FstabEntry) -> bool:
    """Whether a line is the one for ``/``, also when it is written ``//`` or ``/.``."""
    return entry.target.startswith("/") and set(entry.target.split("/")) <= {"", "."} and not _not_ours(entry)


def _types_agree(written: str, actual: str) -> bool:
    kinds = set(written.split(","))
    if actual in EXT_FAMILY:
        kinds &= EXT_FAMILY | {"auto"}
        return bool(kinds)
    if actual == "vfat":
        return bool(kinds & (_FAT_NAMES | {"auto"}))
    return bool(kinds & {actual, "auto"})
