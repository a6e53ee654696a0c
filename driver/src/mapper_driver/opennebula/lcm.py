"""What oned is about to do with a machine: ``LCM_STATE``, as numbered in OpenNebula's ``include/VirtualMachine.h``."""

from __future__ import annotations

import enum

from .fields import Fields
from .xml import Document


class Saving(enum.Enum):
    """Why a machine is saved."""

    SUSPEND = "suspend"  # it stays on this node with its disks
    STOP = "stop"  # its disks are moved away: for stop, and for a migration that is not live


_SAVE_SUSPEND = 6  # 5 is SAVE_STOP, 7 is SAVE_MIGRATE


def saving_of(document: Document) -> Saving:
    """Why the machine is saved. Everything but a suspend may move the disks.

    :raises UsageError: ``LCM_STATE`` is no number.
    """
    state = Fields(document.vm, "VM").integer("LCM_STATE")
    return Saving.SUSPEND if state == _SAVE_SUSPEND else Saving.STOP
