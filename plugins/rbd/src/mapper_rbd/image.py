"""What is known about an image: its identity, its size, who uses it."""

from __future__ import annotations

from mapper_core.model import ImageInfo
from mapper_rbd import claims, features
from mapper_rbd.session import Volume


def identity(volume: Volume) -> str:
    """Name the image by numbers that are never given out again: names are (C-11, C-13)."""
    session, snapshot = volume.session, volume.name.snapshot
    number = f"@{volume.image.snap_get_id(snapshot)}" if snapshot else ""
    return f"{session.fsid}/{session.pool_id}/{volume.name.namespace}/{volume.id}{number}"


def inspect(volume: Volume) -> ImageInfo:
    """Read the header."""
    image, name = volume.image, volume.name
    size = int(image.size())
    return ImageInfo(
        path=str(name),
        format="rbd",
        variant="snapshot" if name.snapshot else "",
        virtual_size=size,
        file_size=size,
        writable=not name.snapshot,
        detail=(
            ("id", volume.id),
            ("features", ", ".join(features.names(int(image.features())))),
            ("object size", str(image.stat()["obj_size"])),
            ("parent", _parent(volume) or "none"),
            ("snapshots", ", ".join(snapshot["name"] for snapshot in image.list_snaps()) or "none"),
            ("watchers", ", ".join(sorted(claims.watchers(volume))) or "none"),
            ("locks", "; ".join(_locks(volume)) or "none"),
        ),
    )


def _parent(volume: Volume) -> str:
    rbd = volume.session.rbd
    try:
        spec = volume.image.get_parent_image_spec()
    except rbd.ImageNotFound:
        return ""
    path = "/".join(spec[key] for key in ("pool_name", "pool_namespace", "image_name") if spec[key])
    return f"{path}@{spec['snap_name']}"


def _locks(volume: Volume) -> tuple[str, ...]:
    ours = tuple(locker.description or locker.cookie for locker in claims.info(volume, claims.LOCK).lockers)
    other = volume.image.list_lockers() or {}
    return (*ours, *(f"librbd: {client} at {address}" for client, _cookie, address in other.get("lockers", ())))
