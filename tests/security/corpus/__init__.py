"""The corpus: real hostile images, each made of bytes or by the tools of its format, and what must become of it.

A case is built into a directory of its own; its disk is the file ``disk`` there. Outside of that directory lies what no
image may reach, the canary: ``@`` in a name stands for its directory. Every action on a case is either refused, with one
of the errors that the case names, or, where the case says so, harmless.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .case import Case
from .filesystems import filesystems
from .guests import guests
from .partition_tables import partition_tables
from .qcow2 import qcow2_images
from .raw import raw
from .vmdk import vmdk_images

FAMILIES: dict[str, Callable[[], Iterator[Case]]] = {
    "raw": raw,
    "qcow2": qcow2_images,
    "vmdk": vmdk_images,
    "partition tables": partition_tables,
    "filesystems": filesystems,
    "guests": guests,
}
