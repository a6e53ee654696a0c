"""Where a demo lives: one directory with the daemon, the images and the virtual machine's description."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

ROOT = os.path.realpath(f"{os.path.dirname(__file__)}/../..")
BIN = f"{ROOT}/.venv/bin"
DEFAULT_DIR = "/var/lib/mapper-demo"  # not /run: an image on a tmpfs is no fair example, and needs memory
LOCK_SECONDS = 120


class DemoError(Exception):
    """Is raised when a step fails; the text is for people."""


@dataclass(frozen=True)
class Place:
    """The directory and what is in it.

    :param dir: absolute path without symbolic links (LXC refuses them).
    """

    dir: str

    @property
    def vm_id(self) -> int:
        """Number of the machine: far from those of real machines on this node, and another one in another directory.

        It has six digits, and no more, for the name of the NIC (IFNAMSIZ).
        """
        return 900_000 + zlib.crc32(self.dir.encode()) % 100_000

    @property
    def container(self) -> str:
        """Name of the container."""
        return f"one-{self.vm_id}"

    @property
    def nic(self) -> str:
        """The host's end of the container's network."""
        return f"{self.container}-0"

    @property
    def lab(self) -> str:
        """Directory of the private LXD daemon, for ``labs/lxd``."""
        return f"{self.dir}/lxd"

    @property
    def datastores(self) -> str:
        """The datastores of the node."""
        return f"{self.dir}/datastores"

    @property
    def vm_dir(self) -> str:
        """The machine's directory in the system datastore."""
        return f"{self.datastores}/0/{self.vm_id}"

    def disk(self, number: int) -> str:
        """A disk of the machine."""
        return f"{self.vm_dir}/disk.{number}"

    @property
    def lxdrc(self) -> str:
        """Options of the driver."""
        return f"{self.dir}/lxdrc"

    @property
    def vm_xml(self) -> str:
        """What ``deploy`` reads."""
        return f"{self.dir}/deploy.xml"

    @property
    def action_xml(self) -> str:
        """What ``shutdown`` reads."""
        return f"{self.dir}/shutdown.xml"

    @property
    def look(self) -> str:
        """Mount point for looking into an image."""
        return f"{self.dir}/look"

    @property
    def kept(self) -> str:
        """What was in use before a demo that was kept; there is one while this file exists."""
        return f"{self.dir}/kept.json"

    @property
    def lock_file(self) -> str:
        """Is locked by a demo and its watchdog; also shows that the directory is a demo's."""
        return f"{self.dir}/.lock"

    @property
    def staged_root(self) -> str:
        """Where the driver mounts the root disk's tree on the host."""
        return f"{runtime_dir()}/mounts/{self.container}.0"

    def lock(self) -> int:
        """Make the directory and lock it; return the descriptor that holds the lock.

        :raises DemoError: it is something else's, or another demo has it.
        """
        while True:
            self._make()
            try:
                fd = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                continue  # the directory was removed just now
            except OSError as error:
                raise DemoError(f"{self.lock_file}: {error.strerror}") from error
            try:
                with deadline(LOCK_SECONDS, f"{self.dir}: another demo works there; choose another --dir"):
                    fcntl.flock(fd, fcntl.LOCK_EX)
            except BaseException:
                os.close(fd)
                raise
            if self.owns(fd):
                return fd
            os.close(fd)  # whoever had it has removed the directory

    def _make(self) -> None:
        try:
            os.mkdir(self.dir, 0o711)  # the container's root, who is nobody here, has to reach its tree
            os.chmod(self.dir, 0o711)
        except FileExistsError:
            found = os.lstat(self.dir)
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022:
                raise DemoError(f"{self.dir} is not a directory of root's; choose another --dir") from None
            if not os.path.lexists(self.lock_file) and os.listdir(self.dir):
                raise DemoError(
                    f"{self.dir} is not a demo's directory, it is left alone; choose another --dir"
                ) from None
        except OSError as error:
            raise DemoError(f"{self.dir}: {error.strerror}") from error

    def owns(self, fd: int) -> bool:
        """Whether a descriptor is that of the lock file which is there now."""
        with contextlib.suppress(OSError):
            return os.path.samestat(os.fstat(fd), os.lstat(self.lock_file))
        return False

    def is_used(self) -> bool:
        """Whether anything but the lock is there."""
        return any(name not in (".lock", "watchdog.log") for name in os.listdir(self.dir))

    def clear(self) -> None:
        """Remove everything but the lock.

        :raises DemoError: something is mounted below the directory: then nothing is removed.
        """
        if mounted := mounts_below(self.dir):
            raise DemoError(f"still mounted, nothing is removed: {', '.join(mounted)}")
        try:
            for name in os.listdir(self.dir):
                path = f"{self.dir}/{name}"
                if os.path.isdir(path) and not os.path.islink(path):
                    shutil.rmtree(path)
                elif path != self.lock_file:
                    os.unlink(path)
        except OSError as error:
            raise DemoError(f"{self.dir} cannot be removed: {error}") from error

    def remove(self) -> None:
        """Remove the directory, the lock last. For those who have the lock.

        :raises DemoError: as :meth:`clear`.
        """
        self.clear()
        os.unlink(self.lock_file)
        with contextlib.suppress(OSError):  # somebody has waited for the lock and uses the directory again
            os.rmdir(self.dir)


def runtime_dir() -> str:
    """Mapper's own directory: the one in which ``mapper-cli reconcile`` looks."""
    return os.environ.get("MAPPER_RUNTIME_DIR") or "/run/mapper"


def mounts_below(directory: str) -> list[str]:
    """Mount points below a directory in this mount namespace."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        points = [line.split(" ")[4] for line in file]
    return [point for point in points if point.startswith(f"{directory}/")]


@contextlib.contextmanager
def deadline(seconds: float, message: str) -> Iterator[None]:
    """Interrupt a blocking system call. In the main thread.

    :raises DemoError: with the message, when the time is over.
    """

    def late(_number: int, _frame: FrameType | None) -> None:
        raise DemoError(message)

    old = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
