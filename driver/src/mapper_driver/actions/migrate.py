"""``migrate`` and ``migrate_local``: OpenNebula wants a running machine to go on on another node, without stopping.

That would need its memory and processes to be moved, which nothing can do for a container on mapped disks: LXD's live
migration hands over to CRIU and copies the container's directory, knowing nothing of the images. So it is refused before
anything is touched, and oned lets the machine run where it is. Migrations that are not live are ``save`` and ``restore``, or, of a
machine that is powered off, ``deploy`` on the other node.
"""

from __future__ import annotations

from typing import NoReturn

from mapper_core.errors import NotSupported
from mapper_driver.opennebula.argv import Migrate


def migrate(given: Migrate) -> NoReturn:
    """Refuse.

    :raises NotSupported: always.
    """
    raise NotSupported(
        f"a running container cannot be moved to {given.destination}, it runs on",
        subject=given.deploy_id,
        hint="migrate it while it is powered off: onevm poweroff, onevm migrate, onevm resume",
    )
