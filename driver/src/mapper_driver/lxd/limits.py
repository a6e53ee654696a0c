"""Limits of input and output, set in the control group of a container; and the hook of LXC that does so at every start.

The hook is ``lxc.hook.start-host`` (lxc.container.conf(5)): LXC runs it as root when the control group exists and before the
container's first process runs, which LXC_PID names.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from mapper_core.errors import MapperError
from mapper_core.linux import block
from mapper_core.mapping import Mapper
from mapper_core.registry import Registry
from mapper_core.runtime import Runtime
from mapper_core.tree import mounted
from mapper_driver import iolimits
from mapper_driver.iolimits import Limits
from mapper_driver.lxd import cgroups, hook, placement


def command(runtime: Runtime, container: str, daemon_pid: int) -> str:
    """The hook's command, to which the disks are appended."""
    return hook.start(__name__, (placement.record_path(runtime, container),), daemon_pid)


def device_of(mapper: Mapper, container: str, disk_id: int) -> tuple[int, int] | None:
    """(major, minor) of the block device of a container's disk; ``None`` when it has none: its files were copied, or it is
    not mounted.
    """
    tree = mounted.find(mapper, f"{mapper.runtime.mounts}/{container}.{disk_id}")
    disk = mapper.find(tree.disk_id) if tree is not None and tree.disk_id else None
    if disk is None:
        return None
    number = block.device_number(disk.device)
    return os.major(number), os.minor(number)


def apply(limits: Limits, device: tuple[int, int], pid: int) -> None:
    """Set the limits of one device for the container whose first process is ``pid``.

    :raises NotSupported: the kernel has no control group for that.
    :raises KernelError: it refuses.
    """
    group = cgroups.group_of("io", pid)
    for setting in iolimits.settings(limits, device, group.version):
        group.write(setting.file, setting.value)


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run the hook; the exit status other than 0 ends the start."""
    if not arguments or not arguments[0].endswith(".json"):
        print("usage: python -m mapper_driver.lxd.limits RECORD.json DISK:LIMIT=VALUE,...", file=sys.stderr)
        return 2
    record = arguments[0]
    container = os.path.basename(record).removesuffix(".json")
    try:
        # the environment is LXC's, it names no runtime directory; and no plugin is needed to look into the journal
        mapper = Mapper(Runtime(os.path.dirname(os.path.dirname(record))), Registry.load(()))
        for disk_id, limits in iolimits.parse_words(tuple(arguments[1:])).items():
            device = device_of(mapper, container, disk_id)
            if device is not None:
                apply(limits, device, int(environment["LXC_PID"]))
    except MapperError as error:
        return hook.failed(record, error)
    except Exception as error:  # a bug must not end in silence: nobody sees a traceback here
        return hook.failed(record, MapperError(f"unexpected {type(error).__name__}: {error}", subject=container))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
