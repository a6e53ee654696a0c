"""A daemon of LXD or Incus, and all that can be asked of it without changing anything."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Self
from urllib.parse import quote

from mapper_core.errors import NotSupported
from mapper_core.linux import process_info
from mapper_core.model import IdMap
from mapper_driver.errors import InstanceNotFound, LxdFailed, LxdUnavailable
from mapper_driver.lxd import answers, idmap
from mapper_driver.lxd.connection import Connection
from mapper_driver.lxd.model import Instance, InstanceState, check_name, root_pool

#: Where packages put the socket: Debian's lxd, the snap, Incus.
SOCKETS = (
    "/var/lib/lxd/unix.socket",
    "/var/snap/lxd/common/lxd/unix.socket",
    "/var/lib/incus/unix.socket",
)


def socket_candidates(environment: Mapping[str, str], known: tuple[str, ...] = SOCKETS) -> tuple[str, ...]:
    """Sockets to try. One that the environment names is the only one, and so is the first that is there: never fall back to
    another daemon than was meant. The other one of a node that has two knows none of the machines, and they would seem gone.
    """
    for variable in ("LXD_SOCKET", "INCUS_SOCKET"):
        if environment.get(variable):
            return (environment[variable],)
    for variable in ("LXD_DIR", "INCUS_DIR"):
        if environment.get(variable):
            return (f"{environment[variable]}/unix.socket",)
    there = tuple(path for path in known if os.path.lexists(path))
    return there[:1] or known


class Reader:
    """A daemon; made by :meth:`connect`.

    :ivar server: what it says about itself.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.server = answers.server(connection.about)

    @classmethod
    def connect(cls, sockets: Sequence[str] | None = None) -> Self:
        """Connect to the first daemon that answers.

        :param sockets: paths; ``None`` takes :func:`socket_candidates` of this process' environment.
        :raises LxdUnavailable: none answers; the message says what was tried.
        """
        tried = []
        for path in socket_candidates(os.environ) if sockets is None else sockets:
            try:
                return cls(Connection(path))
            except LxdUnavailable as error:
                tried.append(error.message)
        raise LxdUnavailable(
            f"no LXD or Incus daemon answers ({'; '.join(tried)})",
            hint="start the daemon, or name its socket with LXD_SOCKET",
        )

    @property
    def socket(self) -> str:
        """Real path of the daemon's socket."""
        return self._connection.socket

    @property
    def api_seconds(self) -> float:
        """Time spent in requests so far, seconds: waiting for the daemon, not our own work."""
        return self._connection.seconds

    def instance(self, name: str) -> Instance:
        """Describe an instance.

        :raises InstanceNotFound: there is none.
        """
        answer = self._connection.get(self._node(name), "look at the instance", name)
        return answers.instance(answer.json()["metadata"], answer.headers.get("ETag", ""))

    def instances(self) -> tuple[Instance, ...]:
        """Describe all containers."""
        answer = self._connection.get(
            self._connection.api.instances, "list the instances", "", params={"recursion": "1"}
        )
        found = (item for item in answer.json()["metadata"] if item.get("type", "container") == "container")
        return tuple(answers.instance(item, "") for item in found)

    def exists(self, name: str) -> bool:
        """Whether there is an instance of that name."""
        try:
            self.instance(name)
        except InstanceNotFound:
            return False
        return True

    def state(self, name: str) -> InstanceState:
        """What an instance uses now.

        :raises InstanceNotFound: there is none.
        """
        answer = self._connection.get(self._node(name).state, "read the state of the instance", name)
        return answers.state(answer.json()["metadata"])

    def instance_and_state(self, name: str) -> tuple[Instance, InstanceState]:
        """Both at once, in one request.

        :raises InstanceNotFound: there is none.
        """
        answer = self._connection.get(self._node(name), "look at the instance", name, params={"recursion": "1"})
        found = answer.json()["metadata"]
        return answers.instance(found, ""), answers.state(found.get("state") or {})

    def idmap(self, name: str) -> IdMap | None:
        """The map of ids of the next start; ``None`` for a privileged container."""
        return idmap.next_map(self.instance(name).all_config, subject=name)

    def directory(self, instance: Instance) -> str:
        """The container's directory, as path in the mount namespace of the daemon.

        All versions of LXD and Incus mount or link the volume of a container at this place, whatever the pool is.

        :raises LxdFailed: it has no root disk.
        """
        if not instance.root_pool:
            raise LxdFailed("the instance has no root disk", subject=instance.name, hint="see its profiles")
        home = os.path.dirname(self.socket)
        return f"{home}/storage-pools/{instance.root_pool}/containers/{check_name(instance.name)}"

    def default_pool(self, profile: str) -> str:
        """Name of the storage pool of a profile's root disk.

        :raises LxdFailed: the profile is missing or has no root disk.
        """
        try:
            answer = self._connection.get(
                self._connection.api.profiles[quote(profile, safe="")], "look at the profile", profile
            )
        except InstanceNotFound as error:
            raise LxdFailed("LXD has no such profile", subject=profile, hint="see: lxc profile list") from error
        pool = root_pool(answer.json()["metadata"].get("devices") or {})
        if pool:
            return pool
        raise LxdFailed(
            "the profile has no root disk, so no storage pool is known",
            subject=profile,
            hint="set the option pool in the lxdrc of the node, or run: lxd init --auto",
        )

    def rootfs(self, instance: Instance) -> str:
        """Where the daemon expects the container's files; LXC calls it LXC_ROOTFS_PATH."""
        return f"{self.directory(instance)}/rootfs"

    def daemon_pid(self) -> int:
        """Process id of the daemon, seen from here.

        The API is asked and not the socket: behind a socket of systemd, SO_PEERCRED names process 1.

        :raises NotSupported: it runs in another pid namespace, so that its mounts cannot be looked at.
        :raises LxdUnavailable: it has ended since it was connected to.
        """
        found = process_info.info(self.server.pid) if self.server.pid > 0 else None
        if found is None or found.gone or not found.name.startswith(("lxd", "incus")):
            self.check_lives()
            raise NotSupported(
                f"the daemon says it is process {self.server.pid}, which is none here",
                subject=self.socket,
                hint="a daemon in another container cannot be used",
            )
        return found.pid

    def check_lives(self) -> None:
        """Make sure that the daemon is still the process that was connected to.

        :raises LxdUnavailable: it has ended, or another has taken its place.
        """
        answer = self._connection.get(self._connection.api, "see whether it still runs", "")
        if answers.server(answer.json()["metadata"]).pid != self.server.pid:
            raise LxdUnavailable("the daemon was replaced meanwhile", subject=self.socket, hint="call the action again")

    def settle(self, name: str, *, deadline_seconds: float = 20) -> None:
        """Wait until the daemon works on an instance no more: what was asked for by an action that was killed goes on.

        When the time is over it returns too; the next request says what is wrong.
        """
        self._connection.settle(name, deadline_seconds)

    def _node(self, name: str) -> Any:
        return self._connection.api.instances[check_name(name)]
