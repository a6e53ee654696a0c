"""``resize``: another share of memory and processors for a container, also while it runs."""

from __future__ import annotations

import contextlib
import functools

from mapper_core.errors import Refused
from mapper_driver.actions.node import Node
from mapper_driver.errors import LxdFailed
from mapper_driver.instance import SIZE_KEYS, size_keys
from mapper_driver.lxd import cgroups
from mapper_driver.lxd.model import Status
from mapper_driver.opennebula.argv import Resize
from mapper_driver.opennebula.vm import VirtualMachine

MIB = 1 << 20


def resize(given: Resize, vm: VirtualMachine, node: Node) -> None:
    """Set the limits that follow from ``MEMORY``, ``CPU`` and ``VCPU``.

    LXD sets one key after the other, and when the kernel refuses one it leaves those before as they are, though it reports the
    old ones. So they are set one by one, and set back one by one.

    :raises Refused: the guest needs more memory than it would have.
    :raises LxdFailed: LXD or the kernel refuses; then everything is as it was.
    """
    container = vm.container
    found = node.client.instance(container)
    wanted = size_keys(vm, node.config)
    pid = node.client.state(container).pid if found.status is not Status.STOPPED else 0
    if pid:
        _check_memory(vm, wanted, pid)
    with contextlib.ExitStack() as undo:
        for key in SIZE_KEYS:
            if found.config.get(key) == wanted[key]:
                continue
            old = found.config.get(key)
            node.client.set_config(container, {key: wanted[key]})
            undo.callback(node.try_to, functools.partial(node.client.set_config, container, {key: old}))
        if pid:
            _verify(vm, wanted, pid)
        undo.pop_all()
    node.log.info(", ".join(f"{key} is {wanted[key] or 'not set'}" for key in SIZE_KEYS))


def _is_plain(vm: VirtualMachine, wanted: dict[str, str | None]) -> bool:
    """Whether the limit of memory is ``MEMORY``, and not something that the administrator lets RAW set."""
    return wanted["limits.memory"] == f"{vm.memory_mib}MiB"


def _check_memory(vm: VirtualMachine, wanted: dict[str, str | None], pid: int) -> None:
    """A limit below what is in use makes the kernel kill processes of the guest (cgroup v2)."""
    kept = cgroups.memory_kept(cgroups.group_of("memory", pid))
    if _is_plain(vm, wanted) and kept > vm.memory_mib * MIB:
        raise Refused(
            f"the guest uses {kept // MIB} MiB that cannot be taken back, it cannot have {vm.memory_mib} MiB",
            subject=vm.container,
            hint="free memory in the guest, or resize the machine when it is off",
        )


def _verify(vm: VirtualMachine, wanted: dict[str, str | None], pid: int) -> None:
    limit = cgroups.memory_limit(cgroups.group_of("memory", pid))
    if _is_plain(vm, wanted) and limit != vm.memory_mib * MIB:
        raise LxdFailed(f"LXD says that it is done, but the limit of memory is {limit} bytes", subject=vm.container)
