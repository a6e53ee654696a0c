"""One mapping of an image from beginning to end, and what of it is found in the journal."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

from mapper_core.errors import AccessDenied, DeadlineExceeded, ImageNotFound
from mapper_core.linux import block, uevents
from mapper_core.linux.flush import flush_within
from mapper_core.model import Access, Attachment, Disk, MapOptions
from mapper_core.resources import PluginResource
from mapper_core.runtime import boot_id
from mapper_core.transports import Transports
from mapper_core.transports.blockgraph import BlockNode, Protocol
from mapper_rbd import claims, cluster, conffile, host, krbd, names, rbd_nbd, session
from mapper_rbd.claims import Claim
from mapper_rbd.cluster import Cluster
from mapper_rbd.names import VolumeName
from mapper_rbd.session import Volume

CONF = "rbd-conf"
CLAIM = "rbd-claim"

#: A rollback copies the whole image; its claim ends by itself when the program is killed meanwhile.
_REVERT_SECONDS = 3600
#: What to do when the cluster is away while something is taken back.
_WHEN_BACK = "when the cluster is back (see: ceph -s), try again or run: mapper-cli reconcile"
#: Clients learn of a new size by a notification.
_RESIZE_SECONDS = 30


def attach(disk: Disk, options: MapOptions, transports: Transports) -> Attachment:
    """Claim an image and make a device of it.

    :raises InUseElsewhere: another host, or a client that we do not know, uses it.
    """
    name, reach = names.parse(disk.source), cluster.from_settings(disk.settings)
    conf = transports.path("conf")
    transports.record(PluginResource(CONF, (("path", conf),)))
    conffile.write(conf, reach)

    claim = claims.new(options.access, name.snapshot, host.name_of(reach), boot_id(), transports.id)
    transports.record(PluginResource(CLAIM, (("cookie", claim.cookie),)))
    # the connection ends before any program is started: its threads would not survive the fork
    with session.open_volume(name, reach) as volume:
        claims.take(volume, claim)
        before = claims.watchers(volume)
        identity = _identity(volume)
        features = int(volume.image.features())
    own = (
        krbd.KrbdTransport(name, identity, features, reach.user, conf, reach.patience),
        rbd_nbd.RbdNbdTransport(name, reach.user, conf, reach.patience),
    )
    try:
        attachment = transports.attach(node_of(name, reach, conf), options, own)
    except DeadlineExceeded as error:
        error.hint = "see: ceph -s; a longer wait: -o timeout=SECONDS"
        raise
    with session.open_volume(name, reach) as volume:
        claims.publish(volume, claim, before)
    return attachment


def node_of(name: VolumeName, reach: Cluster, conf: str) -> BlockNode:
    """Return the image as qemu knows it.

    :param conf: configuration file, in which keys and monitors are found.
    """
    options = (
        ("pool", name.pool),
        ("namespace", name.namespace),
        ("image", name.image),
        ("snapshot", name.snapshot),
        ("conf", conf),
        ("user", reach.user),
    )
    return BlockNode("raw", str(name), protocol=Protocol("rbd", tuple(pair for pair in options if pair[1])))


def _identity(volume: Volume) -> krbd.Identity:
    connection, name = volume.session, volume.name
    return krbd.Identity(connection.fsid, str(connection.pool_id), name.namespace, volume.id, name.snapshot or "-")


def check_answers(disk: Disk, attachment: Attachment) -> None:
    """Make sure that the end of a mapping will not wait for the cluster: clients that end say so to it.

    :raises DeadlineExceeded: the cluster does not answer. A server that was killed waits for nothing, and is not asked for; the
        kernel's client waits also when its device reports errors.
    """
    if attachment.transport == rbd_nbd.NAME and not rbd_nbd.is_served(attachment.device):
        return
    reach = cluster.from_settings(disk.settings)
    with contextlib.suppress(DeadlineExceeded):  # it may be just slow, with much to write
        if not flush_within(attachment.device, reach.timeout) and attachment.transport != krbd.NAME:
            return
    name = dataclasses.replace(names.parse(disk.source), snapshot="")
    try:
        with contextlib.suppress(ImageNotFound, AccessDenied), session.open_volume(name, reach):
            pass
    except DeadlineExceeded as error:
        error.hint = f"the disk is as it was; {_WHEN_BACK}"
        raise


# --- what the journal holds ---------------------------------------------------------------------------------


def release(disk: Disk, resource: PluginResource) -> None:
    """Take away one thing that was recorded."""
    values = dict(resource.values)
    if resource.kind == krbd.NAME:
        krbd.release(resource, cluster.from_settings(disk.settings).patience)
    elif resource.kind == rbd_nbd.NAME:
        rbd_nbd.release(resource, cluster.from_settings(disk.settings).patience)
    elif resource.kind == CLAIM:
        _release_claim(disk, values["cookie"])
    else:
        conffile.remove(values["path"])


def owns(device: str, resources: tuple[PluginResource, ...]) -> bool:
    """Say whether a device is the one that was recorded."""
    judges = {krbd.NAME: krbd.owns, rbd_nbd.NAME: rbd_nbd.owns}
    return any(judges[resource.kind](resource, device) for resource in resources if resource.kind in judges)


def _release_claim(disk: Disk, cookie: str) -> None:
    """Give the image back; one that was deleted has no locks any more."""
    claim = claims.parse(cookie)
    assert claim is not None
    name = dataclasses.replace(names.parse(disk.source), snapshot="")
    try:
        with session.open_volume(name, cluster.from_settings(disk.settings)) as volume:
            claims.release(volume, claim)
    except ImageNotFound:
        return
    except DeadlineExceeded as error:
        error.hint = f"the lock of the image stays; {_WHEN_BACK}"
        raise


# --- besides mapping ----------------------------------------------------------------------------------------


def revert(disk: Disk, snapshot: str) -> None:
    """Bring an image back to a snapshot.

    :raises InUseElsewhere: somebody uses it.
    """
    name, reach = names.parse(disk.source), cluster.from_settings(disk.settings)
    claim = claims.new(Access.READ_WRITE, "", host.name_of(reach), boot_id(), "revert")
    with (
        session.open_volume(name, reach) as volume,
        _held(volume, claim),
        session.open_volume(name, reach, writable=True) as writable,
    ):
        writable.image.rollback_to_snap(snapshot)


@contextmanager
def _held(volume: Volume, claim: Claim) -> Iterator[None]:
    claims.take(volume, claim, seconds=_REVERT_SECONDS)
    try:
        yield
    finally:
        claims.release(volume, claim)


def wait_for_size(device: str, size: int) -> None:
    """Wait until a device of ours has followed its image.

    :raises DeadlineExceeded: it has not.
    """
    path = f"{block.sysfs_directory(block.device_number(device))}/size"
    with uevents.listen() as events:
        if not events.wait_until(lambda: int(block.read_attribute(path)) * 512 == size, _RESIZE_SECONDS):
            raise DeadlineExceeded(f"does not have {size} bytes {_RESIZE_SECONDS} s after its image", subject=device)
