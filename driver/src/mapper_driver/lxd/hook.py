"""LXC's pre-start hook: places the tree of a container before every start. Run by LXC as root, see lxc.container.conf(5).

After a boot of the host nothing is mounted: then the hook maps and mounts the container's disks first, from its inventory
(:mod:`mapper_driver.inventory`). That is enough for a container with one disk. LXD looks for the sources of the others before
it starts LXC, so those are mounted by ``mapper-driver boot`` before the daemon starts.

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
from mapper_core.runtime import Runtime, boot_id
from mapper_driver.errors import TreeNotPlaced
from mapper_driver.lxd import placement
from mapper_driver.lxd.placement import Placement


def command(runtime: Runtime, container: str, daemon_pid: int) -> str:
    """The value of ``lxc.hook.pre-start``."""
    from mapper_driver import inventory

    files = (placement.record_path(runtime, container), inventory.path_of(runtime, container))
    return start(__name__, files, daemon_pid)


def start(module: str, arguments: Sequence[str], daemon_pid: int) -> str:
    """How LXC starts one of our modules as a hook. LXC hands it to ``/bin/sh -c``.

    A daemon with a mount namespace of its own may not see our interpreter (the snap does not), so the hook is started in
    the first namespace and finds the way back by its parent, LXC's monitor.
    """
    argv = [sys.executable, "-I", "-m", module, *arguments]
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


def run(record: str, kept: str, environment: Mapping[str, str], parent: int) -> None:
    """Place the tree of the container that LXC is about to start.

    :param record: file with the placement.
    :param kept: file with the inventory.
    :param environment: with LXC_NAME and LXC_ROOTFS_PATH.
    :param parent: process of LXC; the mount namespace it is in is the one the container is made from.
    """
    wanted = placement.read(record)
    if wanted is None or wanted.boot != boot_id():
        wanted = _after_boot(record, kept, environment.get("LXC_NAME", record))
    # "dir:/path" when lxc.rootfs.path has the prefix and LXC has not taken it off
    rootfs = environment.get("LXC_ROOTFS_PATH", "").removeprefix("dir:")
    if rootfs != wanted.rootfs:
        raise TreeNotPlaced(f"LXC starts it from {rootfs}, and not from {wanted.rootfs}", subject=wanted.container)
    placement.place(wanted, parent)


def _after_boot(record: str, kept: str, name: str) -> Placement:
    """Map and mount all disks of the container.

    :raises TreeNotPlaced: nothing is known about them.
    """
    from mapper_driver import inventory

    found = inventory.read(kept)
    if found is None or found.container != name:
        raise TreeNotPlaced(
            "its disks are not mounted, the host was probably booted since",
            subject=name,
            hint="let OpenNebula deploy the virtual machine again",
        )
    from mapper_core.mapping import Mapper
    from mapper_core.registry import Registry
    from mapper_driver.restage import restage

    runtime = Runtime(os.path.dirname(os.path.dirname(record)))  # the environment is LXC's, it names no directory
    runtime.prepare()
    return restage(Mapper(runtime, Registry.load()), found)


def main(arguments: Sequence[str]) -> int:
    """Run the hook; the exit status other than 0 ends the start. LXC may append arguments of its own."""
    record, kept = (*arguments[:2], "", "")[:2]
    if not record.endswith(".json") or not kept.endswith(".json"):
        print("usage: python -m mapper_driver.lxd.hook PLACEMENT.json INVENTORY.json", file=sys.stderr)
        return 2
    try:
        run(record, kept, os.environ, os.getppid())
    except MapperError as error:
        return failed(record, error)
    except Exception as error:  # a bug must not end in silence: nobody sees a traceback here
        return failed(record, TreeNotPlaced(f"unexpected {type(error).__name__}: {error}"))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(placement.failure_path(record))
    return 0


def failed(record: str, error: MapperError) -> int:
    """Leave the reason of a failure where a person and :func:`last_failure` find it.

    :param record: file with the placement.
    :returns: exit status of the hook.
    """
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
