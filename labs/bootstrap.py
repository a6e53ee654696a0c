"""Trees of Debian packages, built by mmdebstrap(1), and the directories in which they are built and kept."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from common import LabError

MIRROR = "http://deb.debian.org/debian"
BUILD_SECONDS = 1200.0
#: Where labs keep what takes long to build; each in a directory of its own below.
CACHE_VARIABLE = "MAPPER_LAB_CACHE"
DEFAULT_CACHE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), ".mapper-lab")


def cache(name: str) -> str:
    """The directory in which a lab keeps what it has built."""
    return os.path.join(os.path.abspath(os.environ.get(CACHE_VARIABLE) or DEFAULT_CACHE), name)


@contextlib.contextmanager
def workplace(directory: str, prefix: str) -> Iterator[str]:
    """A new directory that is removed at the end, if it is still there; those of killed processes are removed first.

    It is locked while this process, or a program that was given the lock, lives.
    """
    os.makedirs(directory, mode=0o755, exist_ok=True)
    for path in workplaces(directory, prefix):
        if is_free(path):
            shutil.rmtree(path, ignore_errors=True)
    place = f"{directory}/{prefix}{secrets.token_hex(4)}"
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, place, ignore_errors=True)  # before it is there: ^C may come at any moment
        os.mkdir(place, 0o700)
        lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        undo.callback(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.set_inheritable(lock, True)
        yield place


def workplaces(directory: str, prefix: str) -> list[str]:
    """Paths of the work directories, in use or abandoned."""
    try:
        return [f"{directory}/{name}" for name in os.listdir(directory) if name.startswith(prefix)]
    except FileNotFoundError:
        return []


def is_free(directory: str) -> bool:
    """Whether nobody who lives has locked it."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def kept_tree(directory: str, title: str, made_of: Sequence[str], build: Callable[[str, str], None]) -> str:
    """Path of a tree, which is built first when it is not there. One builds, the others wait until it has.

    :param directory: of the lab, from :func:`cache`.
    :param title: what is built, for whoever waits.
    :param made_of: what the tree is made of; with anything else it is another tree.
    :param build: makes it; gets the new directory and the file of a log.
    :raises LabError: it cannot be built.
    """
    content = hashlib.sha256(" ".join((made_of[0], os.uname().machine, *made_of[1:])).encode())
    path = f"{directory}/tree-{content.hexdigest()[:16]}"
    os.makedirs(directory, exist_ok=True)
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.isdir(path):
            began = time.monotonic()
            print(f"building {title} in {directory}", file=sys.stderr)
            with workplace(directory, "build-") as place:
                build(f"{place}/tree", f"{place}/log")
                os.chmod(f"{place}/tree", 0o700)  # its setuid programs are for nobody
                os.rename(f"{place}/tree", path)
            print(f"built in {time.monotonic() - began:.1f} s", file=sys.stderr)
    finally:
        os.close(lock)
    return path


def sources(suite: str) -> list[str]:
    """Lines of sources.list: the mirrors that this host uses for Debian, asked for another release of it."""
    wanted = "$(SITE)|$(CODENAME)|$(COMPONENT)"
    try:
        argv = ["apt-get", "indextargets", "--format", wanted, "Created-By: Packages", "Origin: Debian"]
        lines = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
        here = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    except (OSError, subprocess.SubprocessError):
        return [f"deb {MIRROR} {suite} main"]
    fields = [line.split("|") for line in dict.fromkeys(lines)]
    found = [
        f"deb {site} {name.replace(here, suite, 1)} main"
        for site, name, part in fields
        if here and name.startswith(here) and part == "main"
    ]
    return found or [f"deb {MIRROR} {suite} main"]


def bootstrap(tree: str, suite: str, packages: Sequence[str], log_file: str, *options: str) -> None:
    """Make a tree of packages; all mounts of that are in a namespace which goes with the process.

    :param tree: the new directory, in a :func:`workplace`.
    :param options: of mmdebstrap.
    :raises LabError: with the last lines of what it said.
    """
    argv = ["nice", "setpriv", "--pdeathsig", "TERM", "unshare", "--mount", "--propagation", "private"]
    argv += ["mmdebstrap", "--quiet", "--mode=root", f"--include={','.join(packages)}"]
    argv += ['--aptopt=APT::Install-Recommends "false"', "--aptopt=Acquire::Retries 3"]
    argv += [*options, suite, tree, *sources(suite)]
    with open(log_file, "w+", encoding="utf-8", errors="replace") as log:
        builder = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "TMPDIR": os.path.dirname(tree)},
            start_new_session=True,  # ^C reaches us, and we end it
            close_fds=False,  # it holds the lock of the directory
        )
        try:
            status = builder.wait(BUILD_SECONDS)
        except BaseException:
            builder.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                builder.wait(30)
            builder.kill()
            builder.wait()
            raise
        if status != 0:
            log.seek(0)
            raise LabError(f"mmdebstrap ended with {status}:\n{''.join(log.readlines()[-20:])}")
