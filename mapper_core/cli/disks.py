"""The commands that work on images and devices: map, unmap, ls, partitions, inspect."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from mapper_core import users
from mapper_core.cli.output import Style, Talk, human_size, plain
from mapper_core.cli.sources import disk_from, existing_target
from mapper_core.errors import MapperError, NotSupported
from mapper_core.mapping import Mapper
from mapper_core.model import Access, MapOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mapper_core.cli.output import Output
    from mapper_core.cli.parser import Arguments
    from mapper_core.model import ImageInfo, MappedDisk
    from mapper_core.tree.record import TreeRecord


def map_image(arguments: Arguments, output: Output) -> int:
    """Map an image and print its device."""
    mapper = Mapper.open()
    disk = disk_from(arguments, mapper.registry, output)
    mapped = mapper.map(disk, options_from(arguments), user=users.CLI)
    for warning in mapped.table.warnings:
        output.remark(f"warning: {mapped.disk.source}: {warning}")
    if rest := _behind_the_last_sector(mapped):
        output.remark(
            f"warning: {mapped.disk.source}: its last {rest} bytes are no full sector, and not part of the disk"
        )
    if output.style is Style.JSON:
        output.json(mapped)
    else:
        output.line(mapped.device)
    return 0


def _behind_the_last_sector(mapped: MappedDisk) -> int:
    """How much of a raw file a device cannot show, bytes: a sign of a copy that was cut off."""
    if mapped.disk.format != "raw":
        return 0
    with contextlib.suppress(OSError):  # it has lost its name since
        return os.stat(mapped.disk.source).st_size % 512
    return 0


def options_from(arguments: Arguments) -> MapOptions:
    """Return how the caller wants an image to be mapped."""
    access = Access.READ_ONLY if arguments.read_only else Access.READ_WRITE
    return MapOptions(access, arguments.transport, arguments.max_size)


def unmap(arguments: Arguments, output: Output) -> int:
    """Unmap all that are named."""
    mapper = Mapper.open()

    def one(name: str) -> None:
        target = existing_target(mapper, name)
        if output.talk is Talk.VERBOSE and mapper.find(target) is None:
            output.debug(f"{name} is not mapped")
        mapper.unmap(target, user=users.CLI)

    return for_each(arguments.targets, one, output)


def for_each(names: Sequence[str], work: Callable[[str], None], output: Output) -> int:
    """Do the work for all names, also behind one that fails; the exit status is that of the first failure."""
    status = 0
    for name in names:
        try:
            work(name)
        except (MapperError, OSError) as error:
            from mapper_core.cli.main import as_mapper_error

            failure = as_mapper_error(error)
            output.error(failure)
            status = status or failure.exit_code
    return status


def ls(_arguments: Arguments, output: Output) -> int:
    """List mappings and trees. What cannot be read is reported, and does not hide the rest."""
    from mapper_core.tree import mounted

    mapper = Mapper.open()
    disks: list[MappedDisk] = []

    def add(record_id: str) -> None:
        found = mapper.find(record_id)
        if found is not None:
            disks.append(found)
        elif mapper.journal.read(record_id) is not None:
            output.note(f"{record_id} is in work, or was left half done by a crash (see: mapper-cli reconcile)")

    status = for_each(mapper.journal.ids(), add, output)
    for error in mounted.damaged(mapper):
        output.error(error)
        status = status or error.exit_code
    trees = mounted.records(mapper)
    if output.style is Style.JSON:
        output.json({"disks": disks, "trees": [_tree_as_json(tree, disks) for tree in trees]})
        return status
    output.table(
        ("DEVICE", "FORMAT", "ACCESS", "TRANSPORT", ">SIZE", "USERS", "SOURCE"),
        (
            (
                disk.device,
                disk.disk.format,
                disk.access.value,
                disk.transport,
                human_size(disk.size),
                ",".join(disk.users),
                disk.disk.source,
            )
            for disk in disks
        ),
    )
    if trees and disks:
        output.line("")
    output.table(
        ("DIRECTORY", "DEVICE", "OWNER", "STATE"),
        ((tree.directory, _device_of(tree, disks), tree.owner, _state_of(tree)) for tree in trees),
    )
    return status


def _tree_as_json(tree: TreeRecord, disks: list[MappedDisk]) -> dict[str, object]:
    return {
        "directory": tree.directory,
        "disk_id": tree.disk_id,
        "device": _device_of(tree, disks),
        "owner": tree.owner,
        "state": _state_of(tree),
    }


def _device_of(tree: TreeRecord, disks: list[MappedDisk]) -> str:
    return next((disk.device for disk in disks if disk.id == tree.disk_id), "")


def _state_of(tree: TreeRecord) -> str:
    return "mounted" if tree.complete else "half done"


def partitions(arguments: Arguments, output: Output) -> int:
    """List the partitions and filesystems of an image or a device."""
    from mapper_core.cli.contents import contents_of

    contents = contents_of(arguments, output)
    table = contents.table
    for warning in table.warnings:
        output.remark(f"warning: {contents.source}: {warning}")
    if output.style is Style.JSON:
        value = plain(table)
        assert isinstance(value, dict)
        rows = zip(value["partitions"], contents.filesystems, strict=True)
        output.json({**value, "partitions": [{**row, "filesystem": filesystem} for row, filesystem in rows]})
        return 0
    output.table(
        (">NUMBER", ">START", ">SIZE", "FSTYPE", "LABEL", "UUID", "PARTLABEL", "PARTTYPE", "DEVICE"),
        (
            (
                str(partition.number),
                human_size(partition.start),
                human_size(partition.size),
                filesystem.type,
                filesystem.label,
                filesystem.uuid,
                partition.label,
                partition.type,
                partition.device,
            )
            for partition, filesystem in zip(table.partitions, contents.filesystems, strict=True)
        ),
    )
    return 0


def inspect(arguments: Arguments, output: Output) -> int:
    """Show the header of an image and of all images below it."""
    from mapper_core.registry import Registry
    from mapper_core.runtime import Runtime

    mapper = Mapper(Runtime.from_environment(), Registry.load())  # not open(): this needs no root
    disk = disk_from(arguments, mapper.registry, output)
    image = mapper.inspect(disk)
    if image is None:
        raise NotSupported(
            f"the plugin {disk.format} cannot inspect images",
            subject=disk.source,
            hint="`mapper-cli plugins` shows what each format can",
        )
    if output.style is Style.JSON:
        output.json(image)
        return 0
    for position, layer in enumerate(image.chain()):
        if position:
            output.line("")
        _print_layer(layer, output)
    return 0


def _print_layer(image: ImageInfo, output: Output) -> None:
    pairs = [
        ("image", image.path),
        ("format", f"{image.format} ({image.variant})" if image.variant else image.format),
        ("virtual size", f"{human_size(image.virtual_size)} ({image.virtual_size} bytes)"),
        ("file size", f"{human_size(image.file_size)} ({image.file_size} bytes)"),
        ("writable", "yes" if image.writable else "no"),
        *(
            (reference.kind.value, _reference_as_text(reference.written, reference.path))
            for reference in image.references
        ),
        *image.detail,
    ]
    width = max(len(name) for name, _ in pairs) + 1
    for name, value in pairs:
        output.line(f"{name + ':':{width}} {value}")


def _reference_as_text(written: str, path: str) -> str:
    return path if written == path else f"{written} -> {path}"
