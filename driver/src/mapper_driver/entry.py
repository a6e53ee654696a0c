"""``mapper-driver-root``: the one command that OpenNebula's user may run as root, by sudo(8).

Whoever calls it is not trusted: the environment is thrown away, the place of the scripts (it decides which options apply) must
belong to root or to the caller, and what follows is read like all else that comes from OpenNebula, as hostile.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence

USAGE = """\
usage: mapper-driver-root run SCRIPT_DIR ACTION ARGUMENT... <XML
       mapper-driver-root probe PROBE_DIR ARGUMENT... <XML

Called by OpenNebula's scripts through sudo, and not by hand; see mapper-driver --help.
"""

#: What programs that are started may see. Nothing of the caller's is among it.
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}
_COMMANDS = ("run", "probe")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if len(words) < 3 or words[0] not in _COMMANDS or any("\0" in word for word in words):
        print(USAGE, end="", file=sys.stderr)
        return 2
    caller = os.environ.get("SUDO_UID", "")
    os.environ.clear()
    os.environ.update(_ENVIRONMENT)
    os.umask(0o022)
    try:
        directory = trusted_directory(words[1], int(caller) if caller.isdecimal() else os.getuid())
        refuse_links(directory)
        os.chdir("/")
    except (OSError, ValueError) as error:
        print(f"{words[1]!r}: {error}", file=sys.stderr)
        return 2
    from mapper_driver.main import main as run

    return run([words[0], directory, *words[2:]])


def trusted_directory(path: str, caller: int) -> str:
    """The real path of a directory, if nobody but root and the caller could have put anything into it.

    :param caller: user id.
    :raises ValueError: others could; the message says where.
    :raises OSError: it cannot be looked at.
    """
    if not path.startswith("/"):
        raise ValueError("is not an absolute path")
    real = os.path.realpath(path, strict=True)
    if not stat.S_ISDIR(os.stat(real).st_mode):
        raise ValueError("is not a directory")
    # options and version lie two directories up; what is further up could replace those
    place = real
    while place != "/":
        found = os.stat(place)
        others_write = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if found.st_uid not in (0, caller):
            raise ValueError(f"{place} belongs to user {found.st_uid}")
        if others_write and not found.st_mode & stat.S_ISVTX:
            raise ValueError(f"others than its owner may write to {place}")
        place = os.path.dirname(place)
    return real


def refuse_links(directory: str) -> None:
    """Make sure that nothing which root reads beside the scripts leads to a file that the caller may not read.

    :raises ValueError: something does.
    """
    for up in ("../..", "../../../.."):  # of an action, of a probe
        for name in ("VERSION", "etc/vmm/lxd/lxdrc"):
            path = os.path.normpath(f"{directory}/{up}/{name}")
            if os.path.islink(path):
                raise ValueError(f"{path} is a symbolic link")


if __name__ == "__main__":
    sys.exit(main())
