"""The configuration file that Ceph's programs are given: the cluster's own, and behind it what the settings say.

A later value of an option wins, and a section may be there twice. So no setting has to appear on a command line, and each program
reaches the same cluster in the same way.
"""

from __future__ import annotations

import contextlib
import os

from mapper_core.errors import AccessDenied, UsageError
from mapper_rbd.cluster import Cluster

#: More is no configuration file.
_MAX_BYTES = 1 << 20


def text(cluster: Cluster) -> str:
    """Return what is to be in the file.

    :raises UsageError: the configuration file of the cluster cannot be read.
    """
    own = _read(cluster.conf_file) if cluster.conf_file else ""
    lines = "".join(f"{name} = {value}\n" for name, value in cluster.overrides())
    return f"{own}\n[client.{cluster.user}]\n{lines}" if lines else own


def write(path: str, cluster: Cluster) -> None:
    """Make the file, for root only."""
    content = text(cluster)
    remove(path)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(content)


def remove(path: str) -> None:
    """Remove the file; one that is not there is fine."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read(_MAX_BYTES)
    except PermissionError as error:
        raise AccessDenied("the configuration file may not be read", subject=path) from error
    except OSError as error:
        raise UsageError(f"the configuration file cannot be read: {error.strerror}", subject=path) from error
