"""The commands that work on mounted trees: plan, mount, umount."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mapper_core.cli.disks import for_each, options_from
from mapper_core.cli.output import Style
from mapper_core.cli.sources import disk_from
from mapper_core.mapping import Mapper
from mapper_core.model import IdMap, IdRange
from mapper_core.tree import mounted

if TYPE_CHECKING:
    from mapper_core.cli.output import Output
    from mapper_core.cli.parser import Arguments
    from mapper_core.model import MountPlan


def plan(arguments: Arguments, output: Output) -> int:
    """Print what mount would do."""
    mapper = Mapper.open()
    disk = disk_from(arguments, mapper.registry, output)
    found = mounted.plan_tree(mapper, disk, root_hint=arguments.root)
    if output.style is Style.JSON:
        output.json(found)
        return 0
    output.table(
        ("TARGET", "PARTITION", "FSTYPE", "ACCESS", "OPTIONS", "NEEDED"),
        (
            (
                mount.target,
                _partition_name(mount.volume.partition.number),
                mount.fstype,
                mount.access.value,
                ",".join((*mount.options, *((f"subvol={mount.subvolume}",) if mount.subvolume else ()))),
                "no" if mount.optional else "yes",
            )
            for mount in found.mounts
        ),
    )
    if found.skipped:
        output.line("")
        output.table(("SKIPPED", "REASON"), ((" ".join(item.line.split()), item.reason) for item in found.skipped))
    _warn(found, output)
    return 0


def mount(arguments: Arguments, output: Output) -> int:
    """Mount an image's filesystems on a directory."""
    mapper = Mapper.open()
    disk = disk_from(arguments, mapper.registry, output)
    request = mounted.TreeRequest(
        disk,
        options_from(arguments),
        os.path.abspath(arguments.directory),
        idmap=_idmap(arguments.idmap),
        root_hint=arguments.root,
    )
    tree = mounted.mount_tree(mapper, request)
    if output.style is Style.JSON:
        output.json(tree)
        return 0
    for item in tree.plan.skipped:
        output.debug(f"skipped: {item.line}: {item.reason}")
    _warn(tree.plan, output)
    return 0


def umount(arguments: Arguments, output: Output) -> int:
    """Unmount trees."""
    mapper = Mapper.open()
    directories = [os.path.abspath(directory) for directory in arguments.directories]
    os.chdir("/")  # typed inside of the tree, this process would keep it in use, and be the one that is to be ended
    return for_each(directories, lambda directory: mounted.unmount_tree(mapper, directory), output)


def _idmap(wanted: tuple[int, int] | None) -> IdMap | None:
    if wanted is None:
        return None
    ranges = (IdRange(0, *wanted),)
    return IdMap(ranges, ranges)


def _partition_name(number: int) -> str:
    return str(number) if number else "whole disk"


def _warn(found: MountPlan, output: Output) -> None:
    for warning in found.warnings:
        output.remark(f"warning: {warning}")
