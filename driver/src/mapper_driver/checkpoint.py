"""The file that OpenNebula keeps for a saved machine. It has no memory of the machine in it, but says what became of it."""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass

from mapper_core.errors import NotFound, StateCorrupt, UsageError
from mapper_driver import machine_file

_WHAT = "checkpoint"


class Kind(enum.Enum):
    """What became of a machine that was saved."""

    FROZEN = "frozen"  # its container is on the node, frozen, with its memory
    SHUT_DOWN = "shutdown"  # its guest has shut down; it starts anew from its disks


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A saved machine.

    :param vm: its number.
    :param node: OpenNebula's name of the node on which it was saved.
    """

    vm: int
    kind: Kind
    node: str


def check_path(path: str, vm: int) -> None:
    """Make sure that a path is one of the machine's own directory. (While it migrates, which datastore that is in cannot
    be told from its description.)

    :raises UsageError: it is not.
    """
    if os.path.basename(os.path.dirname(path)) != str(vm):
        raise UsageError(f"the checkpoint does not lie in the directory of machine {vm}", subject=path)


def write(path: str, checkpoint: Checkpoint) -> None:
    """Make it durable.

    :raises Refused: there is something else than a file.
    :raises NotFound: there is no such directory.
    """
    content = {"vm": checkpoint.vm, "kind": checkpoint.kind.value, "node": checkpoint.node}
    machine_file.write(path, content, _WHAT)


def read(path: str, vm: int) -> Checkpoint:
    """Read the file of a machine.

    :raises NotFound: there is none.
    :raises StateCorrupt: it is not one of ours, damaged, or that of another machine.
    """
    found = machine_file.read(path, _WHAT)
    if found is None:
        hint = "nothing was started; recover the file, or terminate the virtual machine"
        raise NotFound("the checkpoint does not exist", subject=path, hint=hint)
    try:
        checkpoint = Checkpoint(int(found["vm"]), Kind(found["kind"]), str(found["node"]))
    except (ValueError, KeyError, TypeError) as error:
        raise machine_file.damaged(path, _WHAT) from error
    if checkpoint.vm != vm:
        raise StateCorrupt(f"this is the checkpoint of machine {checkpoint.vm}, not of {vm}", subject=path)
    return checkpoint


def remove(path: str) -> None:
    """Remove the file; a missing one is fine."""
    machine_file.remove(path)
