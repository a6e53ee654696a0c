"""Snapshots of an image, and the clones that stand on them."""

from __future__ import annotations

import calendar
from typing import TYPE_CHECKING

from mapper_core.errors import NotSupported
from mapper_core.model import Snapshot
from mapper_rbd.session import Volume

if TYPE_CHECKING:
    import datetime


def list_all(volume: Volume) -> tuple[Snapshot, ...]:
    """Return the snapshots of an open image, the oldest first."""
    image = volume.image
    found = sorted(image.list_snaps(), key=lambda snapshot: int(snapshot["id"]))
    return tuple(
        Snapshot(
            name=snapshot["name"],
            size=int(snapshot["size"]),
            created=seconds_of(image.get_snap_timestamp(snapshot["id"])),
            protected=bool(children(volume, snapshot["name"])),
        )
        for snapshot in found
        if snapshot["namespace"] == volume.session.rbd.RBD_SNAP_NAMESPACE_TYPE_USER
    )


def seconds_of(moment: datetime.datetime) -> int:
    """Return seconds since the epoch: Ceph's bindings (16) give UTC that does not say so, and would be taken for local time."""
    return calendar.timegm(moment.utctimetuple())


def children(volume: Volume, name: str) -> tuple[str, ...]:
    """Names of the clones that stand on a snapshot, those in the trash included."""
    volume.image.set_snap(name)
    try:
        return tuple(
            sorted(
                "/".join(child[key] for key in ("pool", "pool_namespace", "image") if child[key])
                + (" (in the trash)" if child["trash"] else "")
                for child in volume.image.list_children2()
            )
        )
    finally:
        volume.image.set_snap(None)


def delete(volume: Volume, name: str) -> None:
    """Remove a snapshot, its protection too.

    :raises NotSupported: clones stand on it.
    """
    if clones := children(volume, name):
        raise NotSupported(
            f"clones stand on the snapshot {name}: {', '.join(clones)}",
            subject=str(volume.name),
            hint=f"remove them, or make them independent: rbd flatten {clones[0]}",
        )
    image = volume.image
    if image.is_protected_snap(name):
        image.unprotect_snap(name)
    image.remove_snap(name)
