"""What a container is made of, kept on disk so that it can be put together again after the host was booted.

A boot takes all devices and mounts away, and with ``/run`` all records of them. The container and its devices are still in
the daemon's database; which images are behind them is written here, one file for each container in
``/var/lib/mapper/containers``. It is taken from the journal after each action, so it has what was attached later as well.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mapper_core.errors import StateCorrupt
from mapper_core.linux import mountinfo
from mapper_core.mapping import Mapper
from mapper_core.model import Access, Disk, IdMap, IdRange
from mapper_core.runtime import DEFAULT, Runtime
from mapper_core.state_files import json_files, read_json, remove_json, write_json
from mapper_core.tree import mounted
from mapper_driver.lxd import placement
from mapper_driver.lxd.model import check_name

VERSION = 1

#: Overrides the directory.
ENVIRONMENT = "MAPPER_STATE_DIR"
DIRECTORY = "/var/lib/mapper"


@dataclass(frozen=True, slots=True)
class KeptDisk:
    """A disk whose filesystems are mounted for the container.

    :param tree: name of its directory below ``<runtime>/mounts``.
    :param idmapped: owners are shown by the container's map.
    """

    tree: str
    disk: Disk
    access: Access
    transport: str | None
    idmapped: bool


@dataclass(frozen=True, slots=True)
class KeptFiles:
    """An ISO image whose files are shown.

    :param tree: as for :class:`KeptDisk`.
    """

    tree: str
    image: str


@dataclass(frozen=True, slots=True)
class Inventory:
    """A container's parts.

    :param rootfs: where the daemon expects its files.
    :param root: ``tree`` of the disk that is its root.
    :param idmap: its map of ids; ``None`` when it is privileged.
    :param starts_at_boot: whether the daemon starts it at its own start.
    """

    container: str
    rootfs: str
    root: str
    disks: tuple[KeptDisk, ...]
    files: tuple[KeptFiles, ...] = ()
    idmap: IdMap | None = None
    starts_at_boot: bool = False


def directory(runtime: Runtime, environment: Mapping[str, str]) -> str:
    """Where the files are. A runtime directory that is not the usual one, as of a test, has them in itself."""
    state = environment.get(ENVIRONMENT) or (DIRECTORY if runtime.root == DEFAULT else runtime.root)
    return f"{state}/containers"


def path_of(runtime: Runtime, container: str) -> str:
    """The file of a container; the hook gets it as argument."""
    return f"{directory(runtime, os.environ)}/{check_name(container)}.json"


def collect(
    mapper: Mapper, container: str, owner: str, images: str, idmap: IdMap | None, starts_at_boot: bool
) -> Inventory | None:
    """Look what is mounted for a container now; ``None`` when it has no tree in place.

    :param owner: of its trees.
    :param images: directory of the machine's images, ``disk.<number>``.
    """
    placed = placement.read(placement.record_path(mapper.runtime, container))
    if placed is None:
        return None
    disks, files = [], []
    for tree in mounted.records(mapper):
        if tree.owner != owner or not tree.complete:
            continue
        name = os.path.basename(tree.directory)
        record = mapper.journal.read(tree.disk_id) if tree.disk_id else None
        if record is not None:
            shown = mountinfo.at(tree.directory)
            disks.append(
                KeptDisk(
                    name,
                    record.disk,
                    record.options.access,
                    record.options.transport,
                    bool(shown) and "idmapped" in shown[-1].options,
                )
            )
        elif not tree.disk_id:
            files.append(KeptFiles(name, f"{images}/disk.{name.rpartition('.')[2]}"))
    root = os.path.basename(placed.staging)
    return Inventory(container, placed.rootfs, root, tuple(disks), tuple(files), idmap, starts_at_boot)


def write(runtime: Runtime, inventory: Inventory) -> None:
    """Make it durable."""
    path = path_of(runtime, inventory.container)
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    data = dataclasses.asdict(inventory)
    for item, kept in zip(data["disks"], inventory.disks, strict=True):
        item["access"] = kept.access.value
        item["disk"] = {name: getattr(kept.disk, name) for name in kept.disk.__slots__}
    if inventory.idmap is not None:
        data["idmap"] = {"uid": _ranges(inventory.idmap.uid), "gid": _ranges(inventory.idmap.gid)}
    write_json(path, {"version": VERSION, **data})


def read(path: str) -> Inventory | None:
    """The inventory in a file; ``None`` when there is none.

    :raises StateCorrupt: it is damaged.
    """
    data = read_json(path, VERSION)
    if data is None:
        return None
    try:
        return _from_json(data)
    except (KeyError, TypeError, ValueError) as error:
        hint = "remove it, and let OpenNebula deploy the virtual machine again"
        raise StateCorrupt(f"misses or garbles a field: {error!r}", subject=path, hint=hint) from error


def paths(runtime: Runtime) -> tuple[str, ...]:
    """The files of all inventories, by name of the container."""
    return json_files(directory(runtime, os.environ))


def forget(runtime: Runtime, container: str) -> None:
    """Remove it; what is not there is removed already."""
    remove_json(path_of(runtime, container))


def _ranges(ranges: tuple[IdRange, ...]) -> list[list[int]]:
    return [[item.inside, item.host, item.count] for item in ranges]


def _from_json(data: dict[str, Any]) -> Inventory:
    def ranges(items: list[list[int]]) -> tuple[IdRange, ...]:
        return tuple(IdRange(*(int(number) for number in item)) for item in items)

    def disk(item: dict[str, Any]) -> Disk:
        settings = tuple((str(name), str(value)) for name, value in item["settings"])
        return Disk(item["source"], item["format"], tuple(item["allowed_dirs"]), settings)

    return Inventory(
        container=check_name(data["container"]),
        rootfs=data["rootfs"],
        root=data["root"],
        disks=tuple(
            KeptDisk(
                item["tree"], disk(item["disk"]), Access(item["access"]), item["transport"], item["idmapped"] is True
            )
            for item in data["disks"]
        ),
        files=tuple(KeptFiles(item["tree"], item["image"]) for item in data["files"]),
        idmap=IdMap(ranges(data["idmap"]["uid"]), ranges(data["idmap"]["gid"])) if data["idmap"] else None,
        starts_at_boot=data["starts_at_boot"] is True,
    )
