"""A new image with a system in it: a filesystem on the whole disk, as the images of containers have it.

The system comes as a tar archive: of a container that runs, of a directory, or of Debian's packages (mmdebstrap(1)). Then what
applies OpenNebula's context at each start is added (:data:`SERVICE`).
"""

from __future__ import annotations

import contextlib
import importlib.resources
import os
import stat
import tempfile
from collections.abc import Callable, Iterator

from mapper_core import process, users
from mapper_core.copying import mapped, new_disk
from mapper_core.errors import AlreadyExists, CommandFailed, MapperError, NoRootFound, NotFound, UsageError
from mapper_core.frozen import dataclass
from mapper_core.linux import beneath, confine
from mapper_core.linux.syscalls import kernel_error
from mapper_core.mapping import Mapper
from mapper_core.model import Disk, MapOptions
from mapper_core.tree.mounted import TreeRequest, mount_tree, unmount_tree

#: Where an init can be.
INITS = ("/sbin/init", "/usr/sbin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd", "/init", "/bin/init")

#: Commands that make a filesystem, and those that are offered.
MKFS = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-L"),
    "xfs": ("mkfs.xfs", "-q", "-f", "-L"),
    "btrfs": ("mkfs.btrfs", "-q", "-f", "-L"),
}
LABEL = "root"

#: An archive from standard input: a file, a pipe, or a socket, as ssh(1) gives it to a program.
STDIN = "-"

_MKFS_SECONDS = 300
_UNPACK_SECONDS = 3600
_PACKAGES_SECONDS = 3600

#: Files that are added, with their modes: in the image, in the package's directory ``context``.
SERVICE = (
    ("/usr/lib/mapper/context", "context.sh", 0o755),
    ("/etc/systemd/system/mapper-context.service", "context.service", 0o644),
    ("/etc/systemd/system/mapper-context-script.service", "context-script.service", 0o644),
    ("/etc/init.d/mapper-context", "context.init", 0o755),
)
_WANTED = "/etc/systemd/system/multi-user.target.wants"

#: Links that have these started: by systemd, and by inits that run ``/etc/rcS.d``.
_STARTED = (
    (f"{_WANTED}/mapper-context.service", "../mapper-context.service"),
    (f"{_WANTED}/mapper-context-script.service", "../mapper-context-script.service"),
    ("/etc/rcS.d/S20mapper-context", "../init.d/mapper-context"),
)

#: For tar(1): owners, special files, modes and capabilities as in the archive.
_CAPABILITIES = (
    confine.CAP_CHOWN,
    confine.CAP_FOWNER,
    confine.CAP_MKNOD,
    confine.CAP_SETFCAP,
    confine.CAP_FSETID,
    confine.CAP_SYS_ADMIN,
)

#: Ends of lines of tar and mmdebstrap that stand beside the one with the reason.
_SAYS_NOTHING = (
    "from member names",
    "from hard link targets",
    "Error is not recoverable: exiting now",
    "Exiting with failure status due to previous errors",
    "mmdebstrap failed to run",
)

#: Directories of the image whose content belongs to the host that the archive is from.
_EMPTY = ("proc", "sys", "dev", "run")

#: mmdebstrap runs what packages bring along, in a tree of its own.
_EVERYTHING = tuple(range(64))


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is built.

    :param size: of the disk, bytes.
    :param filesystem: one of :data:`MKFS`.
    :param archive: path of a tar archive with the system, compressed or not, or :data:`STDIN`; empty: Debian's packages.
    :param suite: release of Debian, such as ``bookworm``.
    :param mirror: of its packages; empty: mmdebstrap's own.
    :param packages: besides those that every system has.
    """

    size: int
    filesystem: str = "ext4"
    archive: str = ""
    suite: str = ""
    mirror: str = ""
    packages: tuple[str, ...] = ()


def build(mapper: Mapper, disk: Disk, recipe: Recipe, say: Callable[[str], None]) -> None:
    """Make an image.

    :param disk: does not exist. When something fails it is removed again, if it is a file.
    :param say: is told what comes next.
    :raises NotFound: there is no such archive.
    :raises NoRootFound: what was unpacked is no system that can start.
    :raises CommandFailed: a program cannot do its part; the error has its words.
    """
    if recipe.filesystem not in MKFS:
        raise UsageError(f"cannot make {recipe.filesystem}", subject="--filesystem", hint=f"one of: {', '.join(MKFS)}")
    with contextlib.ExitStack() as undo:
        archive = recipe.archive or undo.enter_context(_packages(recipe, say))
        fd = undo.enter_context(_opened(archive))
        say(f"making {disk.source}")
        undo.enter_context(new_disk(mapper, disk, recipe.size))
        with mapped(mapper, disk, MapOptions()) as found:
            process.run(
                (*MKFS[recipe.filesystem], LABEL, found.device),
                timeout=_MKFS_SECONDS,
                subject=disk.source,
                capabilities=(confine.CAP_SYS_ADMIN,),
            )
        directory, owner = f"{mapper.runtime.mounts}/build-{os.getpid()}", users.this_process()
        mount_tree(mapper, TreeRequest(disk, MapOptions(), directory, owner=owner))
        try:
            say(f"unpacking {'standard input' if archive == STDIN else archive}")
            _unpack(fd, archive, directory)
            _check(directory, disk)
            say("adding what applies OpenNebula's context")
            _contextualize(directory)
        finally:
            unmount_tree(mapper, directory, owner=owner)


@contextlib.contextmanager
def _packages(recipe: Recipe, say: Callable[[str], None]) -> Iterator[str]:
    """Let mmdebstrap(1) make an archive; its path."""
    with tempfile.TemporaryDirectory(prefix="mapper-build-") as directory:
        archive = f"{directory}/system.tar"
        say(f"fetching and installing packages of {recipe.suite}")
        include = ",".join(("systemd-sysv", "iproute2", *recipe.packages))
        mirror = (recipe.mirror,) if recipe.mirror else ()
        argv = ("mmdebstrap", "--quiet", "--variant=minbase", f"--include={include}", recipe.suite, archive, *mirror)
        try:
            process.run(argv, timeout=_PACKAGES_SECONDS, subject=recipe.suite, capabilities=_EVERYTHING)
        except CommandFailed as error:
            hint = "is that the name of a release, and can its mirror be reached?"
            raise _with_its_reason(error, recipe.suite, hint) from error
        yield archive


@contextlib.contextmanager
def _opened(archive: str) -> Iterator[int]:
    """Open an archive, before anything is made of it."""
    try:
        fd = os.dup(0) if archive == STDIN else os.open(archive, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        hint = "check the path; with - it is read from standard input"
        raise NotFound("there is no such archive", subject=archive, hint=hint) from error
    except OSError as error:
        raise kernel_error(error, "the archive cannot be opened", subject=archive) from error
    try:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            hint = f"make an archive of it: tar -C {archive} -c . | mapper-cli image build ... --from-tar -"
            raise UsageError("is a directory, and no archive", subject=archive, hint=hint)
        yield fd
    finally:
        os.close(fd)


def _with_its_reason(error: CommandFailed, subject: str, hint: str = "") -> CommandFailed:
    """The error of a program that says why first, and then that it has failed."""
    said = [line for line in error.stderr.splitlines() if not line.endswith(_SAYS_NOTHING)]
    return CommandFailed(error.argv, error.status, "\n".join(said[:1]), subject=subject, hint=hint)


def _unpack(fd: int, archive: str, directory: str) -> None:
    # what is no file cannot be opened again, as tar does to unpack what is compressed
    is_stream = not stat.S_ISREG(os.fstat(fd).st_mode)
    os.set_inheritable(fd, not is_stream)
    try:
        argv = (
            *(
                "tar",
                "--extract",
                "--file=-" if is_stream else f"--file=/proc/self/fd/{fd}",
                f"--directory={directory}",
            ),
            *("--numeric-owner", "--same-permissions", "--delay-directory-restore", "--warning=none"),
            *("--xattrs", "--xattrs-include=*", "--acls", "--sparse"),
            *("--anchored", *(f"--exclude={start}{name}/*" for name in _EMPTY for start in ("", "./"))),
        )
        process.run(
            argv,
            timeout=_UNPACK_SECONDS,
            subject=archive,
            stdin=fd if is_stream else None,
            inherit=() if is_stream else (fd,),
            capabilities=_CAPABILITIES,
        )
    except CommandFailed as error:
        if "Archive is compressed" in error.stderr:
            raise UsageError(
                "what comes from a pipe must not be compressed",
                subject=archive,
                hint="unpack it on its way: gunzip, unxz",
            ) from error
        raise _with_its_reason(error, archive) from error


def _check(directory: str, disk: Disk) -> None:
    """Look for an init; symbolic links are followed inside of the tree."""
    root = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for path in INITS:
            with contextlib.suppress(MapperError, OSError):
                os.close(beneath.open_in_root(root, path, os.O_PATH))
                return
    finally:
        os.close(root)
    raise NoRootFound(
        f"what was unpacked has none of {', '.join(INITS)}",
        subject=disk.source,
        hint="add a package such as systemd-sysv",
    )


def _contextualize(directory: str) -> None:
    """Add our service, for systemd and for inits that run ``/etc/rcS.d``; what is there already stays."""
    files = importlib.resources.files("mapper_core") / "context"
    root = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for path, name, mode in SERVICE:
            os.close(beneath.open_directory_in_root(root, os.path.dirname(path), create=0o755))
            with contextlib.suppress(AlreadyExists, FileExistsError):
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
                with open(beneath.open_in_root(root, path, flags, mode), "wb") as file:
                    file.write((files / name).read_bytes())
                    os.fchmod(file.fileno(), mode)
        for path, target in _STARTED:
            parent = beneath.open_directory_in_root(root, os.path.dirname(path), create=0o755)
            try:
                with contextlib.suppress(FileExistsError):
                    os.symlink(target, os.path.basename(path), dir_fd=parent)
            finally:
                os.close(parent)
    finally:
        os.close(root)
