"""A small typed client of LXD and Incus: what the driver asks for, in its own words."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from mapper_core.errors import DeadlineExceeded, NotSupported
from mapper_core.linux import process_info
from mapper_core.model import IdMap
from mapper_driver.errors import (
    InstanceExists,
    InstanceNotFound,
    InstanceNotRunning,
    InstanceRunning,
    InstanceStartFailed,
    LxdFailed,
    LxdUnavailable,
)
from mapper_driver.lxd import answers, idmap, placement
from mapper_driver.lxd.connection import OPERATION_SECONDS, Connection
from mapper_driver.lxd.model import (
    Device,
    ExecResult,
    Instance,
    InstanceSpec,
    InstanceState,
    Status,
    check_name,
    root_pool,
)

#: Where packages put the socket: Debian's lxd, the snap, Incus.
SOCKETS = (
    "/var/lib/lxd/unix.socket",
    "/var/snap/lxd/common/lxd/unix.socket",
    "/var/lib/incus/unix.socket",
)

#: Keeps ``lxc delete`` of a person or a script from deleting what is mounted in the container.
PROTECTION = "security.protection.delete"

_LOG_LINES = 8


def socket_candidates(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Sockets to try. One that the environment names is the only one: never fall back to another daemon than was meant."""
    for variable in ("LXD_SOCKET", "INCUS_SOCKET"):
        if environment.get(variable):
            return (environment[variable],)
    for variable in ("LXD_DIR", "INCUS_DIR"):
        if environment.get(variable):
            return (f"{environment[variable]}/unix.socket",)
    return SOCKETS


class LxdClient:
    """A daemon; made by :meth:`connect`.

    :ivar server: what it says about itself.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.server = answers.server(connection.about)

    @classmethod
    def connect(cls, sockets: Sequence[str] | None = None) -> LxdClient:
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

    # --- looking --------------------------------------------------------------------------------------

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
        """
        found = process_info.info(self.server.pid) if self.server.pid > 0 else None
        if found is None or found.gone or not found.name.startswith(("lxd", "incus")):
            raise NotSupported(
                f"the daemon says it is process {self.server.pid}, which is none here",
                subject=self.socket,
                hint="a daemon in another container cannot be used",
            )
        return found.pid

    def settle(self, name: str, *, deadline_seconds: float = 20) -> None:
        """Wait until the daemon works on an instance no more: what was asked for by an action that was killed goes on.

        When the time is over it returns too; the next request says what is wrong.
        """
        api = self._connection.api
        answer = self._connection.get(api.operations, "list the operations", name, params={"recursion": "1"})
        for operation in (answer.json()["metadata"] or {}).get("running", ()):
            names = (operation.get("resources") or {}).get("instances", ())
            if any(str(item).rsplit("/", 1)[-1].split("?")[0] == name for item in names):
                seconds = {"timeout": str(round(deadline_seconds))}
                with contextlib.suppress(LxdFailed, InstanceNotFound):
                    self._connection.get(api.operations[operation["id"]].wait, "wait", name, params=seconds)

    # --- changing -------------------------------------------------------------------------------------

    def create(self, spec: InstanceSpec, *, deadline_seconds: float = OPERATION_SECONDS) -> Instance:
        """Create a container without any files (source ``none``), protected against ``lxc delete``.

        :raises InstanceExists: there is one of that name.
        :raises LxdFailed: LXD refuses the description.
        """
        if self.exists(spec.name):
            raise InstanceExists("an instance of that name exists already", subject=spec.name)
        body = {
            "name": check_name(spec.name),
            "type": "container",
            "source": {"type": "none"},
            "config": {PROTECTION: "true", **spec.config},
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

    def start(self, name: str, *, deadline_seconds: float = OPERATION_SECONDS) -> InstanceState:
        """Start an instance and return its state.

        :raises InstanceRunning: it runs already.
        :raises InstanceStartFailed: it did not start, or ended at once.
        """
        if self.state(name).status is Status.RUNNING:
            raise InstanceRunning("the instance runs already", subject=name)
        try:
            self._set_state(name, {"action": "start"}, Status.RUNNING, deadline_seconds)
        except LxdFailed as error:
            raise InstanceStartFailed(error.message, log=self._log_tail(name), subject=name) from error
        state = self.state(name)
        if state.status is not Status.RUNNING:
            raise InstanceStartFailed("the instance ended at once", log=self._log_tail(name), subject=name)
        return state

    def shutdown(self, name: str, *, grace_seconds: float, deadline_seconds: float = OPERATION_SECONDS) -> None:
        """Ask the guest to shut down. Nothing happens when it is stopped.

        :raises DeadlineExceeded: it still runs after ``grace_seconds``.
        """
        request = {"action": "stop", "force": False, "timeout": max(1, round(grace_seconds))}
        try:
            self._end(name, request, grace_seconds + deadline_seconds)
        except LxdFailed as error:
            hint = "stop it by force"
            text = f"the guest did not shut down within {grace_seconds:g} s"
            raise DeadlineExceeded(text, subject=name, hint=hint) from error

    def stop(self, name: str, *, deadline_seconds: float = OPERATION_SECONDS) -> None:
        """Stop an instance by force. Nothing happens when it is stopped."""
        self._end(name, {"action": "stop", "force": True, "timeout": -1}, deadline_seconds)

    def restart(self, name: str, *, deadline_seconds: float = OPERATION_SECONDS) -> InstanceState:
        """Stop by force and start again.

        :raises InstanceNotRunning: it does not run.
        """
        if self.state(name).status is not Status.RUNNING:
            raise InstanceNotRunning("the instance does not run", subject=name)
        self.stop(name, deadline_seconds=deadline_seconds)
        return self.start(name, deadline_seconds=deadline_seconds)

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
            self.set_config(name, {PROTECTION: None})
        what = "delete the instance"
        with contextlib.suppress(InstanceNotFound):
            answer = self._connection.send(self._node(name).delete, what, name)
            self._connection.wait(answer, what, name, lambda: not self.exists(name), deadline_seconds)

    def execute(self, name: str, argv: Sequence[str], *, deadline_seconds: float = OPERATION_SECONDS) -> ExecResult:
        """Run a command inside, without standard input, and return what it wrote.

        :raises InstanceNotRunning: the container does not run.
        """
        if self.state(name).status is not Status.RUNNING:
            raise InstanceNotRunning("the instance does not run", subject=name)
        body = {"command": list(argv), "wait-for-websocket": False, "interactive": False, "record-output": True}
        what = "run a command in the instance"
        answer = self._connection.send(self._node(name).exec.post, what, name, json=body)
        done = self._connection.wait(answer, what, name, lambda: False, deadline_seconds).get("metadata") or {}
        outputs = done.get("output") or {}
        texts = []
        for number in ("1", "2"):
            node = self._connection.api
            for part in str(outputs.get(number, "")).removeprefix("/1.0/").split("/"):
                node = node[part]
            if number not in outputs:
                texts.append(b"")
                continue
            texts.append(self._connection.get(node, "read the output of the command", name, is_api=False).content)
            with contextlib.suppress(LxdFailed, InstanceNotFound):
                self._connection.send(node.delete, "remove the output of the command", name)
        return ExecResult(int(done.get("return", -1)), texts[0], texts[1])

    # --- helpers --------------------------------------------------------------------------------------

    def _node(self, name: str) -> Any:
        return self._connection.api.instances[check_name(name)]

    def _set_state(self, name: str, request: dict[str, Any], wanted: Status, deadline_seconds: float) -> None:
        what = f"{request['action']} the instance"
        answer = self._connection.send(self._node(name).state.put, what, name, json=request)
        self._connection.wait(answer, what, name, lambda: self.state(name).status is wanted, deadline_seconds)

    def _end(self, name: str, request: dict[str, Any], deadline_seconds: float) -> None:
        """Stop, and wait for the end of LXC's monitor too: until then it holds the container's mount namespace open."""
        state = self.state(name)
        if state.status is Status.STOPPED:
            return
        monitor = placement.monitor_of(state.pid)
        try:
            self._set_state(name, request, Status.STOPPED, deadline_seconds)
        except LxdFailed:
            if self.state(name).status is not Status.STOPPED:
                raise
        if monitor is not None:
            process_info.wait_gone(monitor.pid, monitor.start_time, deadline_seconds)

    def _log_tail(self, name: str) -> tuple[str, ...]:
        with contextlib.suppress(LxdFailed, InstanceNotFound):
            node = self._node(name).logs["lxc.log"]
            log = self._connection.get(node, "read the log of the instance", name, is_api=False)
            return tuple(log.content.decode(errors="replace").splitlines()[-_LOG_LINES:])
        return ()
