"""LXC's pre-start hook: places the tree of a container before every start. Run by LXC as root, see lxc.container.conf(5).

It must be fast, and end the start with a clear line when there is no tree to place. LXC shows a hook's output in its log only at a
level that LXD does not set, so the reason also goes to syslog and into a file next to the placement, where
:func:`last_failure` finds it.

LXD 5.0 reports a start that a hook has refused only after 30 s: its own stop hook waits for the lock of the start. So whoever
starts a container by the API looks first whether its tree can be placed; the hook is for all other starts.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence

from mapper_core.errors import MapperError
from mapper_core.linux import namespaces
from mapper_core.runtime import Runtime
from mapper_driver.errors import TreeNotPlaced
from mapper_driver.lxd import placement


def command(runtime: Runtime, container: str, daemon_pid: int) -> str:
    """The value of ``lxc.hook.pre-start``. LXC hands it to ``/bin/sh -c``.

    A daemon with a mount namespace of its own may not see our interpreter (the snap does not), so the hook is started in
    the first namespace and finds the way back by its parent, LXC's monitor.
    """
    argv = [sys.executable, "-I", "-m", __name__, placement.record_path(runtime, container)]
    here = namespaces.mount_namespace_id()
    if namespaces.mount_namespace_id(daemon_pid) != here:
        host = placement.host_process(here)
        if host:
            argv = ["nsenter", f"--mount=/proc/{host}/ns/mnt", "--", *argv]
    return shlex.join(argv)


def last_failure(runtime: Runtime, container: str) -> str:
    """Why the hook refused the last start; empty when it did not."""
    path = placement.failure_path(placement.record_path(runtime, container))
    with contextlib.suppress(FileNotFoundError, ValueError, AttributeError):
        with open(path, "rb") as file:
            found = json.loads(file.read())
        return f"{found.get('message', '')} ({found['hint']})" if found.get("hint") else str(found.get("message", ""))
    return ""


def run(record: str, environment: Mapping[str, str], parent: int) -> None:
    """Place the tree of the container that LXC is about to start.

    :param record: file with the placement.
    :param environment: with LXC_NAME and LXC_ROOTFS_PATH.
    :param parent: process of LXC; the mount namespace it is in is the one the container is made from.
    """
    wanted = placement.read(record)
    if wanted is None:
        raise TreeNotPlaced(
            "its disks are not mounted, the host was probably booted since",
            subject=environment.get("LXC_NAME", record),
            hint="let OpenNebula deploy the virtual machine again",
        )
    # "dir:/path" when lxc.rootfs.path has the prefix and LXC has not taken it off
    rootfs = environment.get("LXC_ROOTFS_PATH", "").removeprefix("dir:")
    if rootfs != wanted.rootfs:
        raise TreeNotPlaced(f"LXC starts it from {rootfs}, and not from {wanted.rootfs}", subject=wanted.container)
    placement.place(wanted, parent)


def main(arguments: Sequence[str]) -> int:
    """Run the hook; the exit status other than 0 ends the start. LXC may append arguments of its own."""
    if not arguments or not arguments[0].endswith(".json"):
        print("usage: python -m mapper_driver.lxd.hook RECORD.json", file=sys.stderr)
        return 2
    record = arguments[0]
    try:
        run(record, os.environ, os.getppid())
    except MapperError as error:
        return _failed(record, error)
    except Exception as error:  # a bug must not end in silence: nobody sees a traceback here
        return _failed(record, TreeNotPlaced(f"unexpected {type(error).__name__}: {error}"))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(placement.failure_path(record))
    return 0


def _failed(record: str, error: MapperError) -> int:
    import syslog

    name = os.environ.get("LXC_NAME", "?")
    text = f"container {name} cannot start: {error}"
    print(f"mapper: {text}", file=sys.stderr)
    syslog.openlog("mapper-driver", syslog.LOG_PID, syslog.LOG_DAEMON)
    syslog.syslog(syslog.LOG_ERR, text)
    with contextlib.suppress(OSError):
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(placement.failure_path(record), flags, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            json.dump(error.to_json(), file)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
