"""A virtual machine of OpenNebula as a container of LXD or Incus. Pure: it decides, others act.

The units are those of LXD's documentation: ``limits.memory`` in MiB, since that is what OpenNebula's ``MEMORY`` means
(OpenNebula's own driver wrote ``MB``, which is 5 % less), network limits in kbit/s, disk limits in bytes/s or iops.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mapper_core.errors import NotMapped, NotSupported, Refused, UsageError

from .lxd.model import Device, InstanceSpec
from .opennebula.config import Config
from .opennebula.vm import DiskKind, IoLimits, Nic, VirtualMachine, VmDisk
from .raw import RAW_LXC, parse_raw

CONTEXT_PATH = "/context"
STATUS_KEY = "user.one_status"
"""Set to ``0`` while an action works on the container, so that the probes leave it out; removed at its end."""
_RESERVED_PATHS = ("/proc", "/sys", "/dev", CONTEXT_PATH)
_BRIDGED = frozenset({"", "linux", "openvswitch"})


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What is known about the node.

    :param pool: storage pool of the root device.
    :param hook: command that LXC runs before the container's own mounts, to place its tree; empty: none.
    """

    pool: str
    hook: str = ""


@dataclass(frozen=True, slots=True)
class BuiltInstance:
    """What a machine becomes.

    :param spec: the container, its keys and devices in a stable order.
    :param warnings: what could not be done as wished, one sentence each.
    """

    spec: InstanceSpec
    warnings: tuple[str, ...] = ()


def build_instance(vm: VirtualMachine, config: Config, host: HostFacts, sources: Mapping[int, str]) -> BuiltInstance:
    """Say what container the machine is.

    :param sources: directory on the host where the tree of a disk is mounted, by disk id; of every disk that has a
        device: all but the root (its tree is placed by the hook) and swap, and the context.
    :raises Refused: for a wish that the node does not allow.
    :raises NotSupported: for something a container cannot have.
    :raises UsageError: for a wish that makes no sense.
    :raises NotMapped: when a source is missing.
    """
    if vm.pci_devices:
        raise NotSupported("the machine wants PCI devices, which a container cannot have yet", subject=vm.container)
    root = vm.root_disk()
    others = [disk for disk in vm.disks if disk.id != root.id and disk.kind is not DiskKind.SWAP]
    devices = {"root": root_device(root, host.pool)}
    devices |= {f"disk{disk.id}": disk_device(disk, _source(sources, disk.id)) for disk in others}
    if vm.context is not None:
        devices["context"] = context_device(_source(sources, vm.context.disk_id))
    devices |= {f"eth{nic.id}": nic_device(nic) for nic in vm.nics}
    _refuse_same_path(devices)
    return BuiltInstance(
        InstanceSpec(
            name=vm.container,
            config=_config(vm, config, host),
            devices=devices,
            profiles=vm.wishes.profiles or (config.profile,),
        ),
        warnings=tuple(
            f"disk {disk.id}: LXD knows one limit of each kind, the iops are left out"
            for disk in (root, *others)
            if _dropped(disk.limits)
        ),
    )


def _source(sources: Mapping[int, str], disk_id: int) -> str:
    source = sources.get(disk_id)
    if not source:
        raise NotMapped(f"disk {disk_id} is not mounted", subject=f"disk {disk_id}")
    return source


# --- configuration keys -------------------------------------------------------------------------------


def _config(vm: VirtualMachine, config: Config, host: HostFacts) -> dict[str, str]:
    keys = {
        "limits.memory": f"{vm.memory_mib}MiB",
        "limits.cpu.allowance": cpu_allowance(vm.cpu),
        "security.privileged": _wish(vm.wishes.privileged, "privileged", config),
        "security.nesting": _wish(vm.wishes.nesting, "nesting", config),
        STATUS_KEY: "0",
    }
    cpus = limits_cpu(vm)
    if cpus:
        keys["limits.cpu"] = cpus
    raw = parse_raw(vm.raw, config.security.raw_allow)
    keys.update(raw.config)  # of ours only those that the administrator lets a template set
    lines = raw_lxc(raw.lxc, host.hook)
    if lines:
        keys[RAW_LXC] = lines
    return dict(sorted(keys.items()))


def _wish(wanted: bool, name: str, config: Config) -> str:
    if wanted and name not in config.security.allow:
        raise Refused(
            f"the machine wants LXD_SECURITY_{name.upper()}, which this node does not allow",
            subject=name,
            hint="remove it from the template, or allow it in the lxdrc of the node",
        )
    return "true" if wanted else "false"


def cpu_allowance(cpu: float) -> str:
    """``limits.cpu.allowance``: a share of processor time, used when they are contended; at least 1 %."""
    return f"{max(1, round(cpu * 100))}%"


def limits_cpu(vm: VirtualMachine) -> str:
    """``limits.cpu``: the processors it is pinned to, else how many it sees; empty: all.

    LXD reads ``3`` as three processors and ``3-3`` as the one with number 3.
    """
    if not vm.pinned_cpus:
        return "" if vm.vcpu is None else str(vm.vcpu)
    if len(vm.pinned_cpus) == 1:
        return f"{vm.pinned_cpus[0]}-{vm.pinned_cpus[0]}"
    ranges: list[list[int]] = []
    for cpu in vm.pinned_cpus:
        if ranges and cpu == ranges[-1][1] + 1:
            ranges[-1][1] = cpu
        else:
            ranges.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def raw_lxc(lines: Iterable[str], hook: str) -> str:
    """``raw.lxc``: the lines of the template, then our hook, so that none of them can take it away."""
    ours = []
    if hook:
        if not hook.isprintable():
            raise UsageError("the command of the hook is not one line", subject=hook)
        ours.append(f"lxc.hook.pre-start = {hook}")
    return "\n".join((*lines, *ours))


# --- devices ------------------------------------------------------------------------------------------


def root_device(disk: VmDisk, pool: str) -> Device:
    """The root. LXD wants it in a pool; what is in it is the tree that the hook places there."""
    options = {"type": "disk", "path": "/", "pool": pool, **_io_limits(disk.limits)}
    if disk.read_only:
        options["readonly"] = "true"
    return options


def disk_device(disk: VmDisk, source: str) -> Device:
    """Another disk: its tree, with all that is mounted in it.

    There is no ``readonly`` beside ``recursive`` (LXD 5.0: "Recursive read-only bind-mounts aren't currently
    supported by the kernel"). A read-only disk is a read-only block device and mounted read-only at its source.

    :raises UsageError: when ``TARGET`` is a path where nothing may be mounted.
    """
    options = {"type": "disk", "source": source, "path": guest_path(disk), "recursive": "true"}
    return options | _io_limits(disk.limits)


def context_device(source: str) -> Device:
    """The files of the contextualisation ISO."""
    return {"type": "disk", "source": source, "path": CONTEXT_PATH, "readonly": "true"}


def nic_device(nic: Nic) -> Device:
    """A network interface: one end in the container, the other on OpenNebula's bridge under OpenNebula's name.

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
    # OpenNebula's unit is kilobytes per second. LXD has no bursts: the PEAK attributes have no equal.
    if nic.inbound_avg is not None:
        options["limits.ingress"] = f"{nic.inbound_avg * 8}kbit"
    if nic.outbound_avg is not None:
        options["limits.egress"] = f"{nic.outbound_avg * 8}kbit"
    return options


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


def _refuse_same_path(devices: Mapping[str, Device]) -> None:
    seen: dict[str, str] = {}
    for name, device in devices.items():
        path = device.get("path")
        if path is None:
            continue
        if path in seen:
            raise UsageError(f"{seen[path]} and {name} have the same path {path}", subject=path)
        seen[path] = name


def _io_limits(limits: IoLimits) -> dict[str, str]:
    """One limit for both directions if there is one, else one for each; bytes before operations."""

    def one(size: int | None, iops: int | None) -> str:
        if size is not None:
            return str(size)
        return "" if iops is None else f"{iops}iops"

    total = one(limits.total_bytes, limits.total_iops)
    if total:
        return {"limits.max": total}
    read, write = one(limits.read_bytes, limits.read_iops), one(limits.write_bytes, limits.write_iops)
    return {key: value for key, value in (("limits.read", read), ("limits.write", write)) if value}


def _dropped(limits: IoLimits) -> bool:
    """Whether a limit had to be left out."""
    given = [
        limits.total_bytes,
        limits.read_bytes,
        limits.write_bytes,
        limits.total_iops,
        limits.read_iops,
        limits.write_iops,
    ]
    return sum(value is not None for value in given) > len(_io_limits(limits))
