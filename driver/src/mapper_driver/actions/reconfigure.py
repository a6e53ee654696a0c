"""``reconfigure``: the context ISO was written anew; the container gets its files and is told."""

from __future__ import annotations

from mapper_core.errors import DeadlineExceeded, MapperError, UsageError
from mapper_driver.actions import leftovers
from mapper_driver.actions.detach_disk import disk_number
from mapper_driver.actions.handover import Handover, show_if_cut_off, taken_back_on_failure
from mapper_driver.actions.node import Node
from mapper_driver.devices import CONTEXT, CONTEXT_PATH, context_device
from mapper_driver.lxd import idmap, inside
from mapper_driver.lxd.model import Instance, Status
from mapper_driver.opennebula.argv import Reconfigure
from mapper_driver.opennebula.vm import Context, VirtualMachine

#: How the contextualisation service of OpenNebula's guest packages is started again, on systemd, OpenRC and others.
_SERVICES = (
    ("systemctl", "--no-block", "restart", "one-context-reconfigure.service"),
    ("rc-service", "one-context-reconfigure", "restart"),
    ("service", "one-context-reconfigure", "restart"),
)
_SERVICE_SECONDS = 30.0


def reconfigure(given: Reconfigure, vm: VirtualMachine, node: Node) -> None:
    """Show the files of the new context ISO in the container, and start its contextualisation again.

    They are replaced in the filesystem that the container has mounted: nothing is unmounted, whoever has a file or the directory
    open is not disturbed (Y-09).

    :raises InstanceNotFound: there is no container.
    :raises BadImage: the ISO cannot be read; the old files stay.
    """
    container = vm.container
    found = node.client.instance(container)
    if not given.context_path or vm.is_wild:
        node.log.info(
            "the container was made by hand, it gets no context" if vm.is_wild else "the machine has no context"
        )
        return
    context = vm.context
    if context is None or disk_number(given.context_path) != context.disk_id:
        raise UsageError(f"the XML has no context {given.context_path}", subject=container)
    if _shows_it(context, found, node):
        node.storage(container).restage_context(context, idmap.current_map(found.all_config, subject=container))
    else:
        _add(context, found, node)
    if found.status is Status.RUNNING:
        _tell(container, node)


def _shows_it(context: Context, found: Instance, node: Node) -> bool:
    """Whether the container has the files of a context, so that they only have to be replaced."""
    storage = node.storage(found.name)
    if storage.tree(context.disk_id) is None or CONTEXT not in found.devices:
        return False
    pid = node.client.state(found.name).pid
    return not pid or inside.has_disk(pid, CONTEXT_PATH, storage.directory(context.disk_id))


def _add(context: Context, found: Instance, node: Node) -> None:
    """The machine had no context when it was deployed, or does not see it any more."""
    container, storage = found.name, node.storage(found.name)
    pid = node.client.state(container).pid
    leftovers.take_one_away(found, context.disk_id, node)
    new = Handover(context.disk_id, CONTEXT_PATH, pid, storage)
    with taken_back_on_failure(new, node):
        staged = storage.stage_context(context, idmap.current_map(found.all_config, subject=container))
        node.client.set_devices(container, {CONTEXT: context_device(staged.directory)})
        if pid:
            show_if_cut_off(new, staged.directory, node)
            inside.check_disk(pid, CONTEXT_PATH, staged.directory, container)


def _tell(container: str, node: Node) -> None:
    """Start the guest's service. What the guest makes of it is its own business: a guest without it is no failure."""
    reasons = []
    for argv in _SERVICES:
        try:
            done = node.client.execute(container, argv, deadline_seconds=_SERVICE_SECONDS)
        except DeadlineExceeded:
            node.log.info(f"the guest still works on the new context ({' '.join(argv)})")
            return
        except MapperError as error:  # LXD 5.0 answers so when there is no such command
            reasons.append(f"{argv[0]}: {error.message}")
            continue
        if done.status == 0:
            node.log.info(f"told the guest: {' '.join(argv)}")
            return
        reasons.append(f"{argv[0]}: exit status {done.status}")
    node.log.warning(f"the guest has the new context, but could not be told ({'; '.join(reasons)})")
