"""The command that takes a disk away from another host: break-lock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mapper_core.cli.sources import disk_from
from mapper_core.mapping import Mapper

if TYPE_CHECKING:
    from mapper_core.cli.output import Output
    from mapper_core.cli.parser import Arguments


def break_lock(arguments: Arguments, output: Output) -> int:
    """Break the lock of a disk."""
    from mapper_core import capabilities

    mapper = Mapper.open()
    capabilities.break_lock(mapper, disk_from(arguments, mapper.registry, output))
    return 0
