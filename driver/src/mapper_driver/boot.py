"""``mapper-driver boot``: after the host was booted, before LXD starts.

LXD looks for the sources of a container's disks before it starts LXC, and refuses to start or even to change a container when one
is missing. So the disks of those containers that it is going to start by itself (``boot.autostart``) are mounted here, from
what was kept about them. All others stay as they are, images that belong to OpenNebula, until it deploys them again.
"""

from __future__ import annotations

import os
import sys

from mapper_core.errors import Busy, MapperError
from mapper_core.mapping import Mapper
from mapper_driver import inventory
from mapper_driver.console import control
from mapper_driver.ownership import lock
from mapper_driver.restage import restage


def boot() -> int:
    """Mount the disks of all containers that LXD starts; the exit status of the first failure, which stops no other.

    It says on the standard error what it did; run it as often as you like.
    """
    mapper, status = Mapper.open(), 0
    for path in inventory.paths(mapper.runtime):
        try:
            said = _start(mapper, path)
        except (MapperError, OSError) as error:
            container = os.path.basename(path).removesuffix(".json")
            print(f"mapper-driver: error: container {container} cannot be started: {error}", file=sys.stderr)
            status = status or (error.exit_code if isinstance(error, MapperError) else 1)
        else:
            if said:
                print(f"mapper-driver: {said}", file=sys.stderr)
    try:
        control.reload(mapper.runtime)
    except (MapperError, OSError) as error:
        print(f"mapper-driver: error: there are no consoles: {error}", file=sys.stderr)
    return status


def _start(mapper: Mapper, path: str) -> str:
    """Mount the disks of the container with this inventory; say what was done."""
    kept = inventory.read(path)
    if kept is None or not kept.starts_at_boot:
        return ""
    try:
        with lock(mapper, kept.container):
            restage(mapper, kept)
    except Busy:
        return ""  # an action works on it, and knows better
    return f"the disks of container {kept.container} are mounted"
