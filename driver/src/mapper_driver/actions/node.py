"""What every action needs: the node it runs on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass

from mapper_core.errors import MapperError
from mapper_core.mapping import Mapper
from mapper_core.tree import mounted
from mapper_driver import inventory, iolimits, unfinished
from mapper_driver.errors import InstanceNotFound, InstanceNotRunning
from mapper_driver.iolimits import Limits
from mapper_driver.lxd import limits, links, placement
from mapper_driver.lxd.client import LxdClient
from mapper_driver.lxd.model import Instance, Status
from mapper_driver.opennebula.config import Config
from mapper_driver.opennebula.framing import Log
from mapper_driver.raw import RAW_LXC
from mapper_driver.storage import Storage


@dataclass(frozen=True, slots=True)
class Node:
    """The node: its daemon, its disks, its options."""

    mapper: Mapper
    client: LxdClient
    config: Config
    log: Log

    def storage(self, container: str) -> Storage:
        """The disks of a container."""
        home = os.path.dirname(self.client.socket)
        return Storage(self.mapper, container, self.config, self.log, self.client.daemon_pid(), home)

    def check_storage(self, container: str) -> None:
        """Make sure that the storage of a container's disks is there, before its processes are ended: one that waits for it
        cannot be.

        :raises DeadlineExceeded: it does not answer.
        """
        owner = self.storage(container).owner
        for tree in mounted.records(self.mapper):
            if tree.owner == owner:
                mounted.check_answers(self.mapper, tree)

    def remove(self, container: str) -> None:
        """Remove a stopped container and take its disks back. Whatever is gone already is fine.

        The tree is taken out of the container's directory before the daemon deletes that, and the daemon is only
        asked when nothing is mounted there (U-12).

        :raises InstanceRunning: it runs.
        :raises TreeStillPlaced: something is mounted in its directory that cannot be taken away.
        :raises DeviceBusy: a disk is still in use.
        """
        self.hide_console(container)
        record = placement.read(placement.record_path(self.mapper.runtime, container))
        if record is not None:
            placement.unplace(record, self.client.daemon_pid())
        with contextlib.suppress(InstanceNotFound):
            self.remove_unfinished_interfaces(self.client.instance(container))
            self.client.delete(container)
        # before the trees: they are what reconcile finds when we are killed here, nobody looks for the records alone
        placement.forget(self.mapper.runtime, container)
        inventory.forget(self.mapper.runtime, container)
        unfinished.forget(self.mapper.runtime, container)
        self.storage(container).release()

    def remove_unfinished_interfaces(self, found: Instance) -> None:
        """Remove the network interfaces that a daemon has made for a container and not given to it, because it died: with them in
        the way the container does not start.
        """
        for device in found.devices.values():
            name = device.get("host_name", "")
            if name and links.is_unfinished(name):
                self.log.info(f"removing {name}, which an interrupted start has left")
                links.remove(name)

    def hide_console(self, container: str) -> None:
        """Take the console of a container away, if it has one."""
        from mapper_driver.console import control

        control.hide(self.mapper.runtime, container, self.log)

    def running(self, container: str) -> tuple[Instance, int]:
        """A container that runs, and its first process.

        :raises InstanceNotFound: there is none.
        :raises InstanceNotRunning: it does not run.
        """
        found = self.client.instance(container)
        if found.status is not Status.RUNNING:
            raise InstanceNotRunning(
                f"the container is {found.status.name.lower()} and not running",
                subject=container,
                hint="start the virtual machine first",
            )
        return found, self.client.state(container).pid

    def set_start_limits(self, container: str, disk_id: int, wanted: Limits) -> None:
        """Change what limits a disk's input and output from the next start on.

        :param wanted: empty for no limits.
        """
        hook = limits.command(self.mapper.runtime, container, self.client.daemon_pid())
        lines = self.client.instance(container).config.get(RAW_LXC, "")
        changed = iolimits.with_disk(lines, hook, disk_id, wanted)
        if changed != lines:
            self.client.set_config(container, {RAW_LXC: changed or None})

    def try_to(self, act: Callable[[], object]) -> None:
        """Carry out one step of a clean-up; a failure is logged and does not stop the other steps."""
        try:
            act()
        except MapperError as error:
            self.log.warning(f"the clean-up is not complete: {error}; run: mapper-cli reconcile")

    def undo(self, container: str) -> None:
        """Remove what a failed action has made, as far as possible; what is left is for ``mapper-cli reconcile``."""

        def stop_and_remove() -> None:
            with contextlib.suppress(InstanceNotFound):
                self.client.stop(container)
            self.remove(container)

        self.try_to(stop_and_remove)
