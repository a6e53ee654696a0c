"""Where the state of the framework lives, and who is asking.

Everything is below one directory that only root can enter, on a tmpfs (``/run``): a reboot removes both the state
and the devices that it describes.
"""

from __future__ import annotations

import os
import stat

from mapper_core.errors import NeedsRoot, StateCorrupt, UsageError
from mapper_core.frozen import dataclass
from mapper_core.linux.files import read_bytes

#: Overrides the directory; for tests, and for nodes whose /run is something else.
ENVIRONMENT = "MAPPER_RUNTIME_DIR"
DEFAULT = "/run/mapper"

#: A unix socket address holds 107 bytes (unix(7)); the longest name below the directory is
#: ``exports/<id>/qmp.sock`` with an id of up to 40 characters.
MAX_LENGTH = 45


@dataclass(frozen=True, slots=True)
class Runtime:
    """The runtime directory.

    :param root: its absolute path.
    """

    root: str

    @classmethod
    def from_environment(cls) -> Runtime:
        """Take the directory from ``MAPPER_RUNTIME_DIR``, or the default."""
        return cls(os.environ.get(ENVIRONMENT) or DEFAULT)

    @property
    def disks(self) -> str:
        """One record for each mapped disk."""
        return f"{self.root}/disks"

    @property
    def locks(self) -> str:
        """One lock file for each disk that was ever mapped since boot."""
        return f"{self.root}/locks"

    @property
    def exports(self) -> str:
        """One directory for each storage daemon."""
        return f"{self.root}/exports"

    @property
    def trees(self) -> str:
        """One record for each mounted tree."""
        return f"{self.root}/trees"

    @property
    def mounts(self) -> str:
        """Mount points of trees that nobody asked to see at a place of his own."""
        return f"{self.root}/mounts"

    def prepare(self) -> None:
        """Create the directories, mode 0700.

        :raises UsageError: the path is relative or too long for the sockets in it.
        :raises NeedsRoot: it is root's, and the caller is not root.
        :raises StateCorrupt: something that is not a directory of root's stands there (S-24).
        """
        if not self.root.startswith("/") or len(os.fsencode(self.root)) > MAX_LENGTH:
            raise UsageError(
                f"the runtime directory must be an absolute path of at most {MAX_LENGTH} bytes",
                subject=self.root,
                hint=f"set {ENVIRONMENT} to a shorter path",
            )
        for directory in (self.root, self.disks, self.locks, self.exports, self.trees, self.mounts):
            if _make(directory):
                continue
            found = os.lstat(directory)
            if found.st_uid == 0 != os.geteuid():
                raise NeedsRoot(
                    "this needs root: what is mapped is written down here", subject=directory, hint="run it with sudo"
                )
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
                raise StateCorrupt(
                    "is not a directory that only its owner can enter",
                    subject=directory,
                    hint=f"look at it, then remove it or run: chmod 700 {directory}",
                )


def _make(directory: str) -> bool:
    """Make a directory; ``False`` when something of its name is there."""
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        return False
    except FileNotFoundError:
        os.makedirs(os.path.dirname(directory), exist_ok=True)
        return _make(directory)
    return True


def boot_id() -> str:
    """Return the identity of this boot (random(4), ``/proc/sys/kernel/random/boot_id``)."""
    return read_bytes("/proc/sys/kernel/random/boot_id").decode().strip()
