"""What OpenNebula is told about a container: its state, in the words oned reacts to, and what it uses. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from mapper_driver.instance import STATUS_KEY
from mapper_driver.lxd.blockio import Transfers
from mapper_driver.lxd.model import Instance, InstanceState, Status
from mapper_driver.restarting import is_restarting


class MachineState(enum.Enum):
    """The states oned reacts to (``InformationManager``; it ignores every other word, ``PAUSED`` too)."""

    RUNNING = "RUNNING"
    SUSPENDED = "SUSPENDED"
    POWEROFF = "POWEROFF"
    FAILURE = "FAILURE"


_STATES = {
    Status.RUNNING: MachineState.RUNNING,
    Status.FREEZING: MachineState.SUSPENDED,
    Status.FROZEN: MachineState.SUSPENDED,
    Status.STOPPED: MachineState.POWEROFF,
    Status.ERROR: MachineState.FAILURE,
}

#: The letters of ``poll``.
_LETTERS = {
    MachineState.RUNNING: "a",
    MachineState.SUSPENDED: "p",
    MachineState.POWEROFF: "d",
    MachineState.FAILURE: "e",
    None: "-",
}


class Work(enum.Enum):
    """Whether an action works on a container now."""

    NONE = "none"
    UNDER_WAY = "under way"


def machine_state(found: Instance, work: Work, now: float) -> MachineState | None:
    """The state to be reported; ``None``: it is about to change, and to report it would mislead oned.

    oned takes POWEROFF for the end of a shutdown or for something that the guest did. So nothing is said while an action works
    on the container, between the two calls of a restart, and while a container is not finished.

    :param now: seconds since the epoch.
    """
    if work is Work.UNDER_WAY or found.config.get(STATUS_KEY) == "0" or is_restarting(found.config, now):
        return None
    return _STATES.get(found.status)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a running machine uses. What is not known is ``None`` and never 0.

    :param memory_kib: in use, KiB.
    :param received: bytes received on all interfaces since the start.
    :param sent: bytes sent, likewise.
    :param cpu: percent of one processor, since an earlier look.
    :param disks: what went through its disks since the start.
    """

    memory_kib: int | None = None
    received: int | None = None
    sent: int | None = None
    cpu: float | None = None
    disks: Transfers | None = None


def usage(state: InstanceState, cpu: float | None = None, disks: Transfers | None = None) -> Usage:
    """What it uses now; nothing when it does not run."""
    if state.status is not Status.RUNNING:
        return Usage()
    memory = None if state.memory is None else state.memory // 1024
    return Usage(memory, state.received, state.sent, cpu, disks)


def poll_line(state: MachineState | None, used: Usage) -> str:
    """The answer of ``poll``."""
    values = {"STATE": _LETTERS[state], **attributes(used)}
    return " ".join(f"{name}={value}" for name, value in values.items())


def attributes(used: Usage) -> dict[str, str]:
    """What is known, in OpenNebula's words."""
    values: dict[str, float | None] = {
        "CPU": used.cpu,
        "MEMORY": used.memory_kib,
        "NETRX": used.received,
        "NETTX": used.sent,
    }
    if used.disks is not None:
        values["DISKRDBYTES"] = used.disks.read_bytes
        values["DISKWRBYTES"] = used.disks.written_bytes
        values["DISKRDIOPS"] = used.disks.reads
        values["DISKWRIOPS"] = used.disks.writes
    return {name: str(value) for name, value in values.items() if value is not None}
