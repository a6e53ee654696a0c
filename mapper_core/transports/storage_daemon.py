"""Transport ``storage_daemon``: qemu-storage-daemon exports the disk as a FUSE file, and a loop device is bound to
that.

For hosts whose kernel has no nbd. One daemon for each mapping, so that the end of one takes no other disk with it.

The FUSE export of qemu up to 7.2 at least corrupts data when two writes are in flight: ``fuse_write()`` polls while
its data is still in a buffer that the next request overwrites. One request at a time on the FUSE connection
(``max_background`` of fusectl, see Documentation/filesystems/fuse.rst) avoids it; it is set before the first byte is
written.

The same export (until qemu 8.0) takes a hole that is to be punched for a mere discard, and says that it is done where nothing was.
A loop device has holes punched also where a filesystem wants zeros (``lo_fallocate`` of ``drivers/block/loop.c``), and what was
there before would show through. So a filter refuses discards (:func:`_definition`): then the kernel writes the zeros.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time

from mapper_core.errors import DeadlineExceeded, NotFound, Refused
from mapper_core.linux import block, fuse, loop, mountinfo, uevents, unmounting
from mapper_core.linux.syscalls import size_from_server
from mapper_core.model import Access, Attachment
from mapper_core.process import find_program
from mapper_core.resources import DaemonResource, Resource
from mapper_core.transports import daemon
from mapper_core.transports.base import Availability, Scope
from mapper_core.transports.blockgraph import ROOT_NODE, BlockNode, to_json
from mapper_core.transports.loop import LoopTransport
from mapper_core.transports.qmp import Monitor

PROGRAM = "qemu-storage-daemon"
START_SECONDS = 30
STOP_SECONDS = 60  # it writes its caches back
MONITOR_SECONDS = 30  # a snapshot writes all caches back, and copies tables, while filesystems stand still
SIZE_SECONDS = 10.0  # until the device has the size of its export
_AGAIN_SECONDS = 0.05  # until it is told once more to take that over


class StorageDaemonTransport:
    """See the module."""

    name = "storage_daemon"

    def __init__(self, loop: LoopTransport) -> None:
        self._loop = loop

    def availability(self) -> Availability:
        """Needs the program, FUSE, fusectl and loop."""
        if find_program(PROGRAM) is None:
            return Availability(f"{PROGRAM} is not installed", "install the package qemu-system-common")
        if not os.path.exists("/dev/fuse"):
            return Availability("the kernel has no FUSE (/dev/fuse is missing)", "run: modprobe fuse")
        return self._loop.availability()

    def accepts(self, node: BlockNode) -> bool:
        """Whatever qemu has a driver for."""
        return bool(node.driver)

    def attach(self, node: BlockNode, access: Access, scope: Scope) -> Attachment:
        """Start the daemon, limit it to one request, bind its file.

        :raises ImageInUse: qemu's own image lock is held by another program.
        """
        resource = DaemonResource(scope.directory)
        scope.ledger.record(resource)
        export = _make_directory(scope.directory)
        writable = "on" if access is Access.READ_WRITE else "off"
        daemon.start(
            (
                PROGRAM,
                "--daemonize",
                "--pidfile", daemon.pid_file(scope.directory),
                "--chardev", f"socket,id=qmp,path={_escape(_socket(scope.directory))},server=on,wait=off",
                "--monitor", "qmp",
                "--blockdev", json.dumps(_definition(node, access)),
                "--export",
                f"type=fuse,id=disk,node-name={ROOT_NODE},mountpoint={_escape(export)},writable={writable},allow-other=off",
            ),
            scope.directory,
            seconds=START_SECONDS,
            subject=node.filename,
        )  # fmt: skip
        # --daemonize returns when the export is mounted (qemu 7.2): there is nothing to wait for
        fuse.limit_background(export)
        fd = os.open(export, (os.O_RDONLY if access is Access.READ_ONLY else os.O_RDWR) | os.O_CLOEXEC)
        try:
            attachment = self._loop.bind(fd, access, scope)
        finally:
            os.close(fd)
        return Attachment(attachment.device, self.name)

    def resize(self, size: int, scope: Scope) -> None:
        """Let the daemon enlarge the image, then the loop device follow its export.

        :raises Refused: the disk is larger already.
        :raises NotFound: the daemon is gone.
        :raises DeadlineExceeded: the image has grown, and the device has not followed; the same call again goes on there.
        """
        export = f"{scope.directory}/disk"
        try:
            present = size_from_server(export)
        except OSError as error:
            raise NotFound(
                f"its daemon cannot be reached: {error.strerror}",
                subject=scope.ledger.device,
                hint="reads and writes fail, too: release the disk, then map it again",
            ) from error
        if present > size:  # the daemon would do that
            raise Refused(
                f"has {present} bytes, more than {size}; a disk is never made smaller", subject=scope.ledger.device
            )
        if present < size:
            with self._monitor(scope) as monitor:
                monitor.execute("block_resize", node_name=ROOT_NODE, size=size)
        deadline = time.monotonic() + SIZE_SECONDS
        while (found := _follow(export, scope.ledger.device)) != size:
            if time.monotonic() > deadline:
                raise DeadlineExceeded(
                    f"the image has {size} bytes now, and its device {found} after {SIZE_SECONDS:g} s",
                    subject=scope.ledger.device,
                    hint="nothing is lost: try again when less is written to it",
                )
            with uevents.listen() as events:  # not before: that a device looks at its size again is an event
                events.wait_until(lambda: block.size_of(scope.ledger.device) == size, _AGAIN_SECONDS)

    def snapshot_create(self, name: str, scope: Scope) -> None:
        """Keep the present state in the image."""
        with self._monitor(scope) as monitor:
            monitor.execute("blockdev-snapshot-internal-sync", device=ROOT_NODE, name=name)

    def snapshot_delete(self, identifier: str, name: str, scope: Scope) -> None:
        """Forget a state that is kept in the image."""
        with self._monitor(scope) as monitor:
            monitor.execute("blockdev-snapshot-delete-internal-sync", device=ROOT_NODE, id=identifier, name=name)

    def settle(self, scope: Scope) -> None:
        """Wait until the daemon has done, or forgotten, what it was told before. It serves one connection after the other, forgets
        what it has not begun when one ends, and does the rest in order: the negotiation of a new one comes after that (qemu 7.2,
        ``monitor/qmp.c``).
        """
        with contextlib.suppress(NotFound), self._monitor(scope):
            pass

    def _monitor(self, scope: Scope) -> Monitor:
        return Monitor(_socket(scope.directory), seconds=MONITOR_SECONDS, subject=scope.ledger.device)

    def release(self, resource: Resource, scope: Scope) -> None:
        """End the daemon and remove its files. The loop device, recorded later, is gone by now."""
        assert isinstance(resource, DaemonResource)
        daemon.stop(resource.directory, PROGRAM, seconds=STOP_SECONDS)
        _unmount_export(resource.directory)
        daemon.remove_files(resource.directory, "disk", "qmp.sock")


def _definition(node: BlockNode, access: Access) -> dict[str, object]:
    """Return what is exported: the image, and above it the filter that refuses discards; see the module.

    After ENOSYS the kernel knows that this server has no fallocate (``fuse_file_fallocate`` of ``fs/fuse/file.c``); of another
    error it would make a write that has failed. Later versions of qemu write zeros into the hole and discard nothing.
    """
    return {
        "driver": "blkdebug",
        "node-name": ROOT_NODE,
        "read-only": access is Access.READ_ONLY,
        "discard": "unmap",  # otherwise they would not come as far as this, and succeed
        "detect-zeroes": "on",  # so that zeros take no more room than a hole
        "inject-error": [{"event": "none", "iotype": "discard", "errno": errno.ENOSYS}],
        "image": {**to_json(node, access), "node-name": f"{ROOT_NODE}-image"},
    }


def _follow(export: str, device: str) -> int:
    """Let a loop device take over the size of its export; return what it has then, bytes.

    The kernel would remember the old size for a second (attr_timeout of the export). And it takes no answer about the size that it
    asked for before a write has ended (attr_version, fs/fuse/inode.c), and says so to nobody: it has to be asked again.
    """
    size_from_server(export)
    loop.set_capacity(device)
    return block.size_of(device)


def _socket(directory: str) -> str:
    return f"{directory}/qmp.sock"


def _escape(value: str) -> str:
    """Write a value of an option list (QemuOpts), in which a comma ends it."""
    return value.replace(",", ",,")


def _make_directory(directory: str) -> str:
    """Create the directory and the file on which the export is mounted; return that file."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory, 0o700)
    export = f"{directory}/disk"
    os.close(os.open(export, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    return export


def _unmount_export(directory: str) -> None:
    """Unmount what a daemon that was killed left behind; one that ended by itself has done that."""
    export = f"{directory}/disk"
    for entry in mountinfo.at(export):
        unmounting.unmount(entry.target)
