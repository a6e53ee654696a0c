"""Disks that are being handed over to a container, written down so that they are not forgotten when that ends in the middle.

A disk is written down before it is mounted for the container, and struck out when the container has it, or when all of it was taken
back. One file for each container, beside the record of its placement.
"""

from __future__ import annotations

import os

from mapper_core.runtime import Runtime
from mapper_core.state_files import corrupt, read_json, remove_json, write_json
from mapper_driver.lxd.model import check_name

_VERSION = 1


def write_down(runtime: Runtime, container: str, disk_id: int) -> None:
    """Note that a disk is about to be handed over to a container."""
    _write(runtime, container, {*written_down(runtime, container), disk_id})


def strike_out(runtime: Runtime, container: str, disk_id: int) -> None:
    """Forget that; what is not there is forgotten already."""
    numbers = set(written_down(runtime, container))
    if disk_id in numbers:
        _write(runtime, container, numbers - {disk_id})


def written_down(runtime: Runtime, container: str) -> tuple[int, ...]:
    """Numbers of the disks that were not struck out.

    :raises StateCorrupt: the file is damaged.
    """
    path = _path(runtime, container)
    data = read_json(path, _VERSION)
    if data is None:
        return ()
    try:
        return tuple(int(number) for number in data["disks"])
    except (KeyError, TypeError, ValueError) as error:
        raise corrupt(path, f"misses or garbles a field: {error!r}") from error


def forget(runtime: Runtime, container: str) -> None:
    """Remove the file, with the container."""
    remove_json(_path(runtime, container))


def _write(runtime: Runtime, container: str, numbers: set[int]) -> None:
    path = _path(runtime, container)
    if not numbers:
        remove_json(path)
        return
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    write_json(path, {"version": _VERSION, "disks": sorted(numbers)})


def _path(runtime: Runtime, container: str) -> str:
    return f"{runtime.root}/driver/{check_name(container)}.handover"
