"""``mapper-driver boot``: after the host was booted, before LXD starts.

LXD looks for the sources of a container's disks before it starts LXC, and refuses to start or even to change a container when one
is missing. So the disks of those containers that it is going to start by itself (``boot.autostart``) are mounted here, from
what was kept about them. All others stay as they are, images that belong to OpenNebula, until it deploys them again.
"""

from __future__ import annotations

import sys

from mapper_core.errors import Busy, MapperError
from mapper_core.mapping import Mapper
from mapper_driver import inventory
from mapper_driver.ownership import lock
from mapper_driver.restage import restage


def boot() -> int:
    """Mount the disks of all containers that LXD starts; the exit status of the first failure, which stops no other.

    It says on the standard error what it did; run it as often as you like.
    """
    mapper, status = Mapper.open(), 0
    for kept in inventory.read_all(mapper.runtime):
        if not kept.starts_at_boot:
            continue
        try:
            with lock(mapper, kept.container):
                restage(mapper, kept)
        except Busy:
            continue  # an action works on it, and knows better
        except (MapperError, OSError) as error:
            print(f"mapper-driver: error: container {kept.container} cannot be started: {error}", file=sys.stderr)
            status = status or (error.exit_code if isinstance(error, MapperError) else 1)
        else:
            print(f"mapper-driver: the disks of container {kept.container} are mounted", file=sys.stderr)
    return status
