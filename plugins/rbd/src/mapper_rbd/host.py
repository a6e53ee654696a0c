"""Which host this is, as other hosts see it in a lock."""

from __future__ import annotations

import os
import re

from mapper_rbd.cluster import Cluster


def name_of(cluster: Cluster) -> str:
    """Return the name of this host.

    The id of the machine alone does not do: virtual machines that were cloned share it.
    """
    if cluster.host:
        return cluster.host
    node = re.sub(r"[^\w.-]", "_", os.uname().nodename, flags=re.ASCII)[:48] or "host"
    return f"{node}.{_machine_id()[:12]}"


def _machine_id() -> str:
    try:
        with open("/etc/machine-id", encoding="ascii") as file:
            return file.read().strip() or "0"
    except (OSError, UnicodeDecodeError):
        return "0"  # a system without systemd or D-Bus
