"""Transport ``nbd``: the kernel's network block device, served by qemu-nbd on a unix socket."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Generator

from mapper_core.errors import Busy, CommandFailed, DeadlineExceeded, NoFreeDevice, NotFound, NotSupported
from mapper_core.linux import blkpg, block, locks, nbd, udev, uevents
from mapper_core.linux.syscalls import kernel_error
from mapper_core.model import Access, Attachment
from mapper_core.process import find_program, run
from mapper_core.resources import NbdResource, Resource
from mapper_core.transports import daemon
from mapper_core.transports.base import Availability, Scope
from mapper_core.transports.blockgraph import BlockNode, to_file_name
from mapper_core.transports.loop import open_image

PROGRAM = "qemu-nbd"
START_SECONDS = 30
STOP_SECONDS = 60
PROBE_SECONDS = 10  # for those who look at the device for a moment, such as udev
START_STOP_SECONDS = 10  # for a server to end that has not served anybody yet
PART_SECONDS = 2  # for qemu-nbd to open and close the device once


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
        choose the same device (M-05). One that somebody else holds fails the exclusive open, and one that somebody else
        is connecting fails the connection: then it is the turn of the next (M-07, M-10).

        :raises NoFreeDevice: all are in use.
        :raises ReadOnlyImage: write access is asked for and not permitted (U-06).
        """
        if access is Access.READ_WRITE and node.protocol is None:
            os.close(open_image(node.filename, access))
        with contextlib.closing(_free_devices(scope.locks)) as devices:
            for device in devices:
                scope.ledger.record(NbdResource(device, scope.directory))
                if _connect(device, node, access, scope.directory):
                    return Attachment(device, self.name)
        raise NoFreeDevice(
            f"all {len(nbd.names())} nbd devices are in use",
            hint="load the module with more: modprobe nbd nbds_max=256",
        )

    def resize(self, size: int, scope: Scope) -> None:
        """Not possible: qemu-nbd (7.2) has no monitor, and tells its clients the size once."""
        raise NotSupported(
            "a disk that is mapped by the transport nbd cannot be resized while it is in use",
            subject=scope.ledger.device,
            hint="unmap it first, or map it with the transport storage_daemon",
        )

    def release(self, resource: Resource, scope: Scope) -> None:
        """Disconnect; true only when sysfs shows neither a server nor a size (M-08).

        :raises DeviceBusy: naming those who hold the device, which is as it was then.
        :raises KernelError: EIO when it is disconnected, but its last writes could not be stored.
        """
        assert isinstance(resource, NbdResource)
        device, lost = resource.device, None
        if is_ours(resource):
            with block.exclusive(device) as fd:
                lost = _disconnect(fd, device)
            daemon.stop(resource.directory, PROGRAM, seconds=STOP_SECONDS)
        elif scope.ledger.device:
            daemon.stop(resource.directory, PROGRAM, seconds=STOP_SECONDS)
        else:
            _stop_starting(resource.directory)
        # a server's number stays until the last one, often udev, closes the device, also when it was killed
        with uevents.listen() as events:
            if not events.wait_until(lambda: not nbd.is_left_over(device), PROBE_SECONDS):
                raise block.busy(device)
        daemon.remove_files(resource.directory, "nbd.sock")
        if lost is not None:
            raise kernel_error(
                lost,
                "the device is disconnected, but its last writes could not be stored",
                subject=device,
                hint="check the storage below the image, then the filesystems in it",
            )


def is_ours(resource: NbdResource) -> bool:
    """Say whether a device is still served for a mapping; it may be somebody else's by now, or its server may be dead."""
    return nbd.is_served_by(resource.device, PROGRAM, _pid_argument(resource.directory))


def _stop_starting(directory: str) -> None:
    """End a server whose maker was killed before anybody could write to the device.

    SIGTERM in the wrong moment of its start makes qemu-nbd (7.2) wait for itself for ever.
    """
    try:
        daemon.stop(directory, PROGRAM, seconds=START_STOP_SECONDS)
    except DeadlineExceeded:
        daemon.kill(directory, seconds=START_STOP_SECONDS)


def _pid_argument(directory: str) -> str:
    return f"--pid-file={daemon.pid_file(directory)}"


def _free_devices(lock_directory: str) -> Generator[str, None, None]:
    """One device after the other that nobody uses, each while its lock is held."""
    for name in nbd.names():
        device = f"/dev/{name}"
        if nbd.is_connected(device):
            continue
        with contextlib.ExitStack() as held:
            try:
                path = f"{lock_directory}/{name}"
                held.enter_context(locks.try_lock(path))
                held.callback(locks.remove, path)
                fd = None if nbd.is_connected(device) else block.try_exclusive(device)
            except (Busy, NotFound):
                continue
            if fd is not None:
                os.close(fd)
                yield device


def _connect(device: str, node: BlockNode, access: Access, directory: str) -> bool:
    """Start the server; return when the kernel shows it, or False when somebody else is connecting the device."""
    read_only = ("--read-only",) if access is Access.READ_ONLY else ()
    argv = (
        PROGRAM,
        f"--connect={device}",
        "--fork",
        _pid_argument(directory),
        f"--socket={directory}/nbd.sock",
        f"--cache={_cache_mode(node)}",
        "--discard=unmap",
        *read_only,
        to_file_name(node, access),
    )
    with udev.kept_away(device, PROBE_SECONDS) as writers:
        try:
            daemon.start(argv, directory, seconds=START_SECONDS, subject=node.filename)
        except CommandFailed as error:
            if "Failed to set NBD socket" in error.stderr:
                return False
            raise
        # --fork returns when the socket is set (qemu 7.2); a thread of the server starts the device after that
        with uevents.listen() as events:
            if not events.wait_until(lambda: nbd.server(device) != 0, START_SECONDS):
                raise DeadlineExceeded(f"{device} was not connected within {START_SECONDS} s", subject=node.filename)
        # another thread opens the device for writing, to make the kernel look for partitions, and closes it at once; udev
        # would read the table again then, just when we have made the partitions (M-09), so it is to miss that
        if writers.wait(PART_SECONDS) and os.path.exists(udev.CONTROL) and find_program("udevadm") is not None:
            with contextlib.suppress(
                CommandFailed, DeadlineExceeded
            ):  # it answers when it has seen all closes up to now
                run(("udevadm", "control", "--ping"), timeout=PROBE_SECONDS, subject=device)
    return True


def _cache_mode(node: BlockNode) -> str:
    """``none``: a server that writes through the page cache can block for ever when memory is short, and the device with it
    (M-03). Where the filesystem of an image has no O_DIRECT (tmpfs, some FUSE) there is no choice.
    """
    layer: BlockNode | None = node
    while layer is not None:
        for part in (layer, layer.data_file):
            if part is not None and part.protocol is None and not _has_direct_io(part.filename):
                return "writeback"
        layer = layer.backing
    return "none"


def _has_direct_io(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        return error.errno != errno.EINVAL
    return True


def _disconnect(fd: int, device: str) -> OSError | None:
    """Flush, delete the partitions, disconnect; return the error of the flush, when data was lost.

    :param fd: the device, held exclusively.
    :raises DeviceBusy: somebody reads a partition; nothing was changed.
    """
    with uevents.listen() as events:
        if not events.wait_until(lambda: _seal(fd), PROBE_SECONDS):
            raise block.busy(device)
    lost = None
    try:
        block.flush(fd)  # closing writes back only if nobody else has the device open, and udev may have
    except OSError as error:
        lost = error  # a dead server: it must be possible to clean up all the same
    try:
        nbd.disconnect(fd)
    except OSError as error:
        raise kernel_error(error, "cannot disconnect the device", subject=device) from error
    return lost


def _seal(fd: int) -> bool:
    """Keep udev away, which else reads while we disconnect, and take the partitions from all others (M-04)."""
    try:
        if not udev.try_lock(fd):
            return False
        blkpg.delete_all(fd)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        raise
    return True
