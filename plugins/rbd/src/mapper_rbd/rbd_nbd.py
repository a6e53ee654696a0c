"""Transport ``rbd-nbd``: the kernel's network block device, served by Ceph's own librbd.

For images whose features the kernel's client lacks. The server is found by the configuration file on its command line, which only
this mapping has, and its device by the server. Gone is gone when the kernel shows neither a server nor a size, and the process
has ended: ``rbd device unmap`` itself returned before that in some releases (C-03, C-04).
"""

from __future__ import annotations

import os

from mapper_core.errors import DeadlineExceeded, DeviceBusy
from mapper_core.linux import block, process_info, uevents
from mapper_core.linux.flush import flush_within
from mapper_core.model import Access, Attachment
from mapper_core.process import Lifetime, find_program, run
from mapper_core.resources import PluginResource
from mapper_core.transports.base import Availability, Scope
from mapper_core.transports.blockgraph import BlockNode
from mapper_rbd import tool, waiting
from mapper_rbd.names import VolumeName

NAME = "rbd-nbd"
PROGRAM = "rbd-nbd"


class RbdNbdTransport:
    """See the module.

    :param conf: configuration file for the server; no other mapping has the same.
    :param seconds: longest wait for the server.
    """

    name = NAME

    def __init__(self, volume: VolumeName, user: str, conf: str, seconds: float) -> None:
        self._volume = volume
        self._user = user
        self._conf = conf
        self._seconds = seconds

    def availability(self) -> Availability:
        """Needs the module and two programs."""
        if not os.path.isdir("/sys/block/nbd0"):
            return Availability("the kernel module nbd is not loaded", "run: modprobe nbd nbds_max=256")
        if find_program(PROGRAM) is None:
            return Availability(f"{PROGRAM} is not installed", f"install the package {PROGRAM}")
        if find_program(tool.PROGRAM) is None:
            return Availability(f"{tool.PROGRAM} is not installed", "install the package ceph-common")
        return Availability()

    def accepts(self, node: BlockNode) -> bool:
        """Images of RBD only."""
        return node.protocol is not None and node.protocol.driver == "rbd"

    def attach(self, node: BlockNode, access: Access, scope: Scope) -> Attachment:
        """Start the server; it takes a free device by itself.

        :raises DeadlineExceeded: the cluster does not answer the server, or the kernel does not show the device in time.
        """
        scope.ledger.record(PluginResource(NAME, (("conf", self._conf),)))
        argv = tool.map_argv(NAME, self._volume, self._user, self._conf, access)
        run(
            argv,
            timeout=self._seconds,
            subject=node.filename,
            capabilities=tool.CAPABILITIES,
            lifetime=Lifetime.DISK,
        )
        with uevents.listen() as events:
            if not events.wait_until(lambda: bool(devices(self._conf)), self._seconds):
                raise DeadlineExceeded(f"{PROGRAM} has no device after {self._seconds:g} s", subject=str(self._volume))
        return Attachment(block.ensure_node(devices(self._conf)[0]), NAME)


def release(resource: PluginResource, seconds: float) -> None:
    """Disconnect the device and wait for the server's end.

    :param seconds: longest wait for each.
    :raises DeviceBusy: something holds the device.
    :raises DeadlineExceeded: it still has something to write, or did not end in time (C-05).
    """
    conf = dict(resource.values)["conf"]
    _wait_until_it_is_clear(conf, seconds)
    for device in devices(conf):
        with block.exclusive(device):
            flush_within(device, seconds)  # nothing reaches the server after it is disconnected
        waiting.run_or_leave(tool.unmap_argv(NAME, device, conf), seconds=seconds, subject=device)
        with uevents.listen() as events:
            if not events.wait_until(lambda device=device: not _connected(device), seconds):  # type: ignore[misc]
                raise DeviceBusy(f"is still connected {seconds:g} s after it was unmapped", subject=device)
    for server in _servers(conf):
        try:  # not ended by a signal: one that closes its image would leave librbd's lock behind
            process_info.wait_gone(server.pid, server.start_time, seconds)
        except DeadlineExceeded as error:
            error.message, error.hint = f"{PROGRAM} still waits for the cluster after {seconds:g} s", waiting.HINT
            raise


def _wait_until_it_is_clear(conf: str, seconds: float) -> None:
    """Wait for a server without a device: one that a crash has left may still get it, one that is disconnected will end."""
    if devices(conf) or not (servers := _servers(conf)):
        return
    with uevents.listen() as events:
        events.wait_until(
            lambda: (
                bool(_served_by(servers)) or not any(process_info.is_alive(one.pid, one.start_time) for one in servers)
            ),
            seconds,
        )


def is_served(device: str) -> bool:
    """Say whether a device has a server, whose ever it is."""
    return _server_of(os.path.basename(device)) != 0


def owns(resource: PluginResource, device: str) -> bool:
    """Say whether a device is served for a record."""
    return device in devices(dict(resource.values)["conf"])


def devices(conf: str) -> tuple[str, ...]:
    """Device nodes that are served with a configuration file."""
    return _served_by(_servers(conf))


def _served_by(servers: tuple[process_info.ProcessInfo, ...]) -> tuple[str, ...]:
    pids = {server.pid for server in servers}
    names = sorted(name for name in os.listdir("/sys/block") if name.startswith("nbd"))
    return tuple(f"/dev/{name}" for name in names if _server_of(name) in pids)


def _servers(conf: str) -> tuple[process_info.ProcessInfo, ...]:
    both = (f"--conf={conf}", conf)  # rbd hands it on as two words
    return tuple(server for argument in both for server in process_info.find_by_argument(PROGRAM, argument))


def _server_of(name: str) -> int:
    try:
        return int(block.read_attribute(f"/sys/block/{name}/pid"))
    except (FileNotFoundError, ValueError):
        return 0


def _connected(device: str) -> bool:
    name = os.path.basename(device)
    try:
        return bool(_server_of(name)) or int(block.read_attribute(f"/sys/block/{name}/size")) != 0
    except FileNotFoundError:
        return False
