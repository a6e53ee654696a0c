"""Command lines of ``rbd device``: pure, so that they can be compared letter by letter.

Every value is joined to its option, so that none can be taken for an option itself (C-02: and nothing depends on an order, as it
did in rbd-nbd of the release jewel). Keys and addresses are in the configuration file, not here: others can see command lines.
"""

from __future__ import annotations

from mapper_core.linux.confine import CAP_SYS_ADMIN
from mapper_core.model import Access
from mapper_rbd.names import VolumeName

PROGRAM = "rbd"
#: The kernel asks for it where images are mapped: rbd_add() of ``drivers/block/rbd.c``, and all of ``drivers/block/nbd.c``.
CAPABILITIES = (CAP_SYS_ADMIN,)

#: Our transport -> what ``--device-type`` calls it.
_TYPES = {"krbd": "krbd", "rbd-nbd": "nbd"}


def map_argv(transport: str, volume: VolumeName, user: str, conf: str, access: Access) -> tuple[str, ...]:
    """Return the command that maps an image and prints the device."""
    names = (("pool", volume.pool), ("namespace", volume.namespace), ("image", volume.image), ("snap", volume.snapshot))
    return (
        PROGRAM,
        "device",
        "map",
        f"--device-type={_TYPES[transport]}",
        f"--conf={conf}",
        f"--id={user}",
        *(f"--{option}={name}" for option, name in names if name),
        *(("--read-only",) if access is Access.READ_ONLY else ()),
    )


def unmap_argv(transport: str, device: str, conf: str) -> tuple[str, ...]:
    """Return the command that takes a device away; never with ``force`` (C-08)."""
    return (PROGRAM, "device", "unmap", f"--device-type={_TYPES[transport]}", f"--conf={conf}", device)
