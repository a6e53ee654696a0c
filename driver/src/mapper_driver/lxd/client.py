"""The typed client of LXD and Incus: what the driver asks for, in its own words.

It looks (:mod:`~mapper_driver.lxd.reader`), starts and stops (:mod:`~mapper_driver.lxd.power`), runs commands inside
(:mod:`~mapper_driver.lxd.commands`), and here it creates, changes and deletes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from mapper_driver.errors import InstanceExists, InstanceNotFound, InstanceRunning, LxdFailed
from mapper_driver.lxd import idmap, placement
from mapper_driver.lxd.commands import Commands
from mapper_driver.lxd.connection import OPERATION_SECONDS
from mapper_driver.lxd.model import AUTOSTART, Device, Instance, InstanceSpec, Status, check_name
from mapper_driver.lxd.power import Power

#: Keeps ``lxc delete`` of a person or a script from deleting what is mounted in the container.
PROTECTION = "security.protection.delete"


class LxdClient(Power, Commands):
    """A daemon, and everything that can be done with it; made by :meth:`connect`."""

    def create(self, spec: InstanceSpec, *, deadline_seconds: float = OPERATION_SECONDS) -> Instance:
        """Create a container without any files (source ``none``), protected against ``lxc delete``, and started by nobody but
        who asks: LXD would start it at its own start if it ran when the host went down.

        :raises InstanceExists: there is one of that name.
        :raises LxdFailed: LXD refuses the description.
        """
        if self.exists(spec.name):
            raise InstanceExists("an instance of that name exists already", subject=spec.name)
        body = {
            "name": check_name(spec.name),
            "type": "container",
            "source": {"type": "none"},
            "config": {PROTECTION: "true", AUTOSTART: "false", **spec.config},
            "devices": {name: dict(device) for name, device in spec.devices.items()},
            "profiles": list(spec.profiles),
            "description": spec.description,
        }
        what = "create the instance"
        try:
            answer = self._connection.send(self._connection.api.instances.post, what, spec.name, json=body)
            self._connection.wait(answer, what, spec.name, lambda: self.exists(spec.name), deadline_seconds)
        except InstanceNotFound as error:  # 404 is about a profile or pool here
            raise LxdFailed(error.message, subject=spec.name) from error
        except LxdFailed as error:
            if "already exists" in error.message:  # another process was faster
                raise InstanceExists("an instance of that name exists already", subject=spec.name) from error
            raise
        return self.instance(spec.name)

    def set_config(self, name: str, changes: Mapping[str, str | None]) -> None:
        """Change configuration keys; ``None`` removes a key."""

        def edit(body: dict[str, Any]) -> None:
            for key, value in changes.items():
                if value is None:
                    body["config"].pop(key, None)
                else:
                    body["config"][key] = value

        self._connection.change(self._node(name), "change the configuration of the instance", name, edit)

    def set_devices(self, name: str, changes: Mapping[str, Device | None]) -> None:
        """Add, replace or (``None``) remove devices, in a running container at once.

        Whether a disk really appeared is to be seen in the container's mountinfo (L-04).
        """

        def edit(body: dict[str, Any]) -> None:
            for key, device in changes.items():
                if device is None:
                    body["devices"].pop(key, None)
                else:
                    body["devices"][key] = dict(device)

        self._connection.change(self._node(name), "change the devices of the instance", name, edit)

    def keep_owners(self, name: str) -> None:
        """Tell the daemon that the files have the owners its next start wants, so that it does not chown the tree.

        It is true of an idmapped tree, and of one that an earlier container has shifted.
        """
        following = self.instance(name).all_config.get(idmap.NEXT)
        if following is None:
            raise LxdFailed(f"LXD has no {idmap.NEXT} for this instance", subject=name)
        self.set_config(name, {idmap.LAST: following})

    def delete(self, name: str, *, deadline_seconds: float = OPERATION_SECONDS) -> None:
        """Delete a stopped container. Nothing happens when there is none.

        The daemon deletes everything it finds below the container's directory. So nothing is deleted while anything is mounted
        there, in the daemon's own mount namespace (U-12: a deleted container took the data with it).

        :raises InstanceRunning: it runs.
        :raises TreeStillPlaced: something is mounted below its directory.
        """
        try:
            found = self.instance(name)
        except InstanceNotFound:
            return
        if found.status is not Status.STOPPED:
            raise InstanceRunning(f"the instance must be stopped first, it is {found.status.name}", subject=name)
        if found.root_pool:
            placement.check_clear(self.directory(found), self.daemon_pid())
        if PROTECTION in found.config:
            try:
                self._unprotect(name)
            except LxdFailed:
                # a daemon that died while it created the instance misses its directory, after it has made the change
                if PROTECTION in self.instance(name).config:
                    raise
        what = "delete the instance"
        with contextlib.suppress(InstanceNotFound):
            answer = self._connection.send(self._node(name).delete, what, name)
            self._connection.wait(answer, what, name, lambda: not self.exists(name), deadline_seconds)

    # --- helpers --------------------------------------------------------------------------------------

    def _unprotect(self, name: str) -> None:
        """Allow an instance to be deleted. Its disks go in the same step: LXD refuses every change of an instance while the
        source of one is missing, as all are after a boot of the host.
        """

        def edit(body: dict[str, Any]) -> None:
            body["config"].pop(PROTECTION, None)
            body["devices"] = {key: device for key, device in body["devices"].items() if "source" not in device}

        self._connection.change(self._node(name), "prepare the instance to be deleted", name, edit)
