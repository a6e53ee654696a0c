"""The command snapshot: list, create, revert and delete the states of a disk that were kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mapper_core import capabilities
from mapper_core.cli.output import Style, human_size
from mapper_core.cli.sources import disk_from
from mapper_core.errors import UsageError
from mapper_core.mapping import Mapper

if TYPE_CHECKING:
    from mapper_core.cli.output import Output
    from mapper_core.cli.parser import Arguments
    from mapper_core.model import Disk


def snapshot(arguments: Arguments, output: Output) -> int:
    """Do what the first word says."""
    action, name = arguments.action, arguments.name
    if action == "list" and name is not None:
        raise UsageError("snapshot list takes no name", subject=name, hint="it lists all snapshots of the image")
    if action != "list" and name is None:
        raise UsageError(
            "the name of the snapshot is missing",
            subject=f"snapshot {action}",
            hint=f"mapper-cli snapshot {action} IMAGE NAME -f FORMAT",
        )
    mapper = Mapper.open()
    disk = disk_from(arguments, mapper.registry, output)
    if action == "list":
        _list(mapper, disk, output)
    elif action == "create":
        capabilities.snapshot_create(mapper, disk, name)
    elif action == "revert":
        capabilities.snapshot_revert(mapper, disk, name)
    else:
        capabilities.snapshot_delete(mapper, disk, name)
    return 0


def _list(mapper: Mapper, disk: Disk, output: Output) -> None:
    found = capabilities.snapshots(mapper, disk)
    if output.style is Style.JSON:
        output.json(found)
        return
    output.table(
        ("NAME", ">SIZE", "CREATED", "PROTECTED"),
        ((item.name, human_size(item.size), _date(item.created), "yes" if item.protected else "no") for item in found),
    )


def _date(seconds: int) -> str:
    import time

    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds)) if seconds else ""
