"""A virtual machine of OpenNebula as a container of LXD or Incus. Pure: it decides, others act.

The units are those of LXD's documentation: ``limits.memory`` in MiB, since that is what OpenNebula's ``MEMORY`` means
(OpenNebula's own driver wrote ``MB``, which is 5 % less). Its devices are in :mod:`mapper_driver.devices`, the limits of its
disks in :mod:`mapper_driver.iolimits`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mapper_core.errors import NotMapped, Refused, UsageError

from . import iolimits
from .devices import context_device, disk_device, nic_device, nic_warnings, pci_device, root_device
from .lxd.cgroups import Version
from .lxd.model import Device, InstanceSpec
from .opennebula.config import Config
from .opennebula.vm import DiskKind, VirtualMachine
from .raw import RAW_LXC, parse_raw

STATUS_KEY = "user.one_status"
"""Set to ``0`` while an action works on the container, so that the probes leave it out; removed at its end."""
SIZE_KEYS = ("limits.cpu.allowance", "limits.cpu", "limits.memory")
"""What follows from OpenNebula's ``CPU``, ``VCPU`` and ``MEMORY``, and can change while the container runs. The last is the one
that the kernel may refuse."""


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What is known about the node.

    :param pool: storage pool of the root device.
    :param hook: command that LXC runs before the container's own mounts, to place its tree; empty: none.
    :param limit_hook: command that LXC runs to limit the disks' input and output; the limits are appended.
    :param interfaces: network interfaces of the machine's PCI devices, by address.
    :param cpuset: version of the control group that binds to processors and memory.
    """

    pool: str
    hook: str = ""
    limit_hook: str = ""
    interfaces: Mapping[str, str] = field(default_factory=dict)
    cpuset: Version = Version.V2


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
    root = vm.root_disk()
    others = [disk for disk in vm.disks if disk.id != root.id and disk.kind is not DiskKind.SWAP]
    devices = {"root": root_device(root, host.pool)}
    devices |= {f"disk{disk.id}": disk_device(disk, _source(sources, disk.id)) for disk in others}
    if vm.context is not None:
        devices["context"] = context_device(_source(sources, vm.context.disk_id))
    devices |= {f"eth{nic.id}": nic_device(nic) for nic in vm.nics}
    devices |= {pci.device_name: pci_device(pci, host.interfaces) for pci in vm.pci}
    _refuse_same_path(devices)
    return BuiltInstance(
        InstanceSpec(
            name=vm.container,
            config=_config(vm, config, host),
            devices=devices,
            profiles=vm.wishes.profiles or (config.profile,),
        ),
        warnings=tuple(warning for nic in vm.nics for warning in nic_warnings(nic)),
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
    limits = {disk.id: iolimits.of_disk(disk.limits) for disk in vm.disks if disk.kind is not DiskKind.SWAP}
    ours = (*_memory_nodes(vm, host.cpuset), *iolimits.hook_lines(host.limit_hook, limits))
    lines = raw_lxc((*raw.lxc, *ours), host.hook)
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


def size_keys(vm: VirtualMachine, config: Config) -> dict[str, str | None]:
    """The keys of :data:`SIZE_KEYS`; ``None`` for one that is not set."""
    keys = _config(vm, config, HostFacts(pool=""))
    return {key: keys.get(key) for key in SIZE_KEYS}


def _memory_nodes(vm: VirtualMachine, version: Version) -> tuple[str, ...]:
    """Bind its memory to NUMA nodes. LXD 5.0 has no key for that."""
    if not vm.memory_nodes:
        return ()
    return (f"lxc.{version.value}.cpuset.mems = {','.join(map(str, vm.memory_nodes))}",)


def raw_lxc(lines: Iterable[str], hook: str) -> str:
    """``raw.lxc``: the lines of the template, then our hook, so that none of them can take it away."""
    ours = []
    if hook:
        if not hook.isprintable():
            raise UsageError("the command of the hook is not one line", subject=hook)
        ours.append(f"lxc.hook.pre-start = {hook}")
    return "\n".join((*lines, *ours))


def _refuse_same_path(devices: Mapping[str, Device]) -> None:
    seen: dict[str, str] = {}
    for name, device in devices.items():
        path = device.get("path")
        if path is None:
            continue
        if path in seen:
            raise UsageError(f"{seen[path]} and {name} have the same path {path}", subject=path)
        seen[path] = name
