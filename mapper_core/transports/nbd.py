"""Transport ``nbd``: the kernel's network block device, served by qemu-nbd on a unix socket."""

from __future__ import annotations

import contextlib
import os

from mapper_core.errors import Busy, DeadlineExceeded, DeviceBusy, NoFreeDevice, NotFound, NotSupported
from mapper_core.linux import block, locks, process_info, uevents
from mapper_core.model import Access, Attachment
from mapper_core.process import find_program, run
from mapper_core.resources import NbdResource, Resource
from mapper_core.transports import daemon
from mapper_core.transports.base import Availability, Scope
from mapper_core.transports.blockgraph import BlockNode, to_file_name

PROGRAM = "qemu-nbd"
START_SECONDS = 30
STOP_SECONDS = 60


class NbdTransport:
    """See the module."""

    name = "nbd"

    def availability(self) -> Availability:
        """Needs the kernel module and the program."""
        if not os.path.isdir("/sys/block/nbd0"):
            return Availability("the kernel module nbd is not loaded", "run: modprobe nbd nbds_max=256")
        if find_program(PROGRAM) is None:
            return Availability(f"{PROGRAM} is not installed", "install the package qemu-utils")
        return Availability()

    def accepts(self, node: BlockNode) -> bool:
        """Whatever qemu has a driver for."""
        return bool(node.driver)

    def attach(self, node: BlockNode, access: Access, scope: Scope) -> Attachment:
        """Take a free device under its lock and connect it.

        The lock is held from the choice until the kernel shows the connection, so that no other process of ours can
        choose the same device (M-05); a device that anybody else holds fails the exclusive open (M-07, M-10).

        :raises NoFreeDevice: all are in use.
        """
        with contextlib.ExitStack() as stack:
            device = _take_free_device(scope.locks, stack)
            resource = NbdResource(device, scope.directory)
            scope.ledger.record(resource)
            read_only = ("--read-only",) if access is Access.READ_ONLY else ()
            daemon.start(
                (
                    PROGRAM,
                    f"--connect={device}",
                    "--fork",
                    f"--pid-file={daemon.pid_file(scope.directory)}",
                    f"--socket={scope.directory}/nbd.sock",
                    "--cache=none",
                    "--discard=unmap",
                    *read_only,
                    to_file_name(node, access),
                ),
                scope.directory,
                seconds=START_SECONDS,
                subject=node.filename,
            )  # fmt: skip
            # --fork returns when the server runs; the kernel is connected by another thread of it
            with uevents.listen() as events:
                if not events.wait_until(lambda: _connected(device), START_SECONDS):
                    raise DeadlineExceeded(
                        f"{device} was not connected within {START_SECONDS} s", subject=node.filename
                    )
        return Attachment(device, self.name)

    def resize(self, size: int, scope: Scope) -> None:
        """Not possible: qemu-nbd (7.2) has no monitor, and tells its clients the size once."""
        raise NotSupported(
            "a disk that is mapped by the transport nbd cannot be resized while it is in use",
            subject=scope.ledger.device,
            hint="unmap it first, or map it with the transport storage_daemon",
        )

    def release(self, resource: Resource, scope: Scope) -> None:
        """Disconnect; true only when sysfs shows neither a server nor a size (M-08)."""
        assert isinstance(resource, NbdResource)
        device = resource.device
        if _connected(device) and _is_served_from(device, resource.directory):
            with block.exclusive(device):
                pass
            run((PROGRAM, f"--disconnect={device}"), timeout=START_SECONDS, subject=device)
            with uevents.listen() as events:
                if not events.wait_until(lambda: not _connected(device), STOP_SECONDS):
                    raise DeviceBusy(
                        f"{device} is still connected {STOP_SECONDS} s after it was told to disconnect", subject=device
                    )
        daemon.stop(resource.directory, PROGRAM, seconds=STOP_SECONDS)
        daemon.remove_files(resource.directory, "nbd.sock")


def _take_free_device(lock_directory: str, stack: contextlib.ExitStack) -> str:
    numbers = sorted(
        int(name[3:]) for name in os.listdir("/sys/block") if name.startswith("nbd") and name[3:].isdigit()
    )
    for number in numbers:
        device = f"/dev/nbd{number}"
        if _connected(device):
            continue
        attempt = contextlib.ExitStack()
        try:
            path = f"{lock_directory}/nbd{number}"
            attempt.enter_context(locks.try_lock(path))
            attempt.callback(locks.remove, path)
            if _connected(device):
                raise Busy("taken meanwhile", subject=device)
            with block.exclusive(device):
                pass
        except (Busy, NotFound):
            attempt.close()
            continue
        stack.enter_context(attempt)
        return device
    raise NoFreeDevice(
        f"all {len(numbers)} nbd devices are in use", hint="load the module with more: modprobe nbd nbds_max=256"
    )


def _is_served_from(device: str, directory: str) -> bool:
    """Say whether the server of a device is the one of a directory; the device may be somebody else's by now."""
    try:
        with open(f"/sys/block/{os.path.basename(device)}/pid", encoding="ascii") as file:
            pid = int(file.read())
    except (FileNotFoundError, ValueError):
        return False
    argument = f"--pid-file={daemon.pid_file(directory)}"
    return pid in {process.pid for process in process_info.find_by_argument(PROGRAM, argument)}


def _connected(device: str) -> bool:
    """Say whether the kernel has a server for the device, or still remembers its size."""
    name = os.path.basename(device)
    if os.path.exists(f"/sys/block/{name}/pid"):
        return True
    try:
        with open(f"/sys/block/{name}/size", encoding="ascii") as file:
            return int(file.read()) != 0
    except FileNotFoundError:
        return False
