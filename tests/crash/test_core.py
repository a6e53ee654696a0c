"""Every action of the core, killed with -9 at every point at which it changes the world."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from mapper_core.mapping import Mapper
from mapper_core.model import IdMap, IdRange

from . import scenes
from .killing import Scene, die_everywhere

pytestmark = [pytest.mark.crash, pytest.mark.timeout(1800)]

IDS = (IdRange(0, 100000, 65536),)
OWNERS = IdMap(IDS, IDS)
KINDS = ("raw", "qcow2", "vmdk")


def _mount(scene: type[scenes.Mount], kind: str, idmap: IdMap | None, mapper: Mapper, directory: Path) -> Scene:
    """With a map of ids below the runtime directory, as the driver does it; else on any directory, as mapper-cli does."""
    target = directory / "tree"
    target.mkdir()
    image = scenes.table(directory, kind)
    return scene(mapper, image, f"{mapper.runtime.mounts}/one-1.0" if idmap else str(target), idmap)


def _bare(scene: Callable[..., Scene], kind: str, mapper: Mapper, directory: Path, **more: object) -> Scene:
    return scene(mapper, scenes.bare(directory, kind), **more)


def _snapshot_mounted(mapper: Mapper, directory: Path) -> Scene:
    return scenes.Snapshot(mapper, scenes.bare(directory, "qcow2"), directory=f"{mapper.runtime.mounts}/tree")


def _grow(is_mapped: bool, label: str, mapper: Mapper, directory: Path) -> Scene:
    return scenes.Grow(mapper, scenes.table(directory, "raw", label), is_mapped)


SCENES: dict[str, Callable[[Mapper, Path], Scene]] = {
    **{f"map {kind}": partial(_bare, scenes.Map, kind) for kind in KINDS},
    **{f"unmap {kind}": partial(_bare, scenes.Unmap, kind) for kind in KINDS},
    "mount raw, idmapped": partial(_mount, scenes.Mount, "raw", OWNERS),
    "mount qcow2": partial(_mount, scenes.Mount, "qcow2", None),
    "umount raw, idmapped": partial(_mount, scenes.Umount, "raw", OWNERS),
    "umount qcow2": partial(_mount, scenes.Umount, "qcow2", None),
    "mount files": partial(_bare, scenes.Scratch, "raw"),
    "refill files": partial(_bare, scenes.Refill, "raw"),
    **{f"create {kind}": partial(_bare, scenes.Create, kind) for kind in KINDS},
    **{f"resize {kind}": partial(_bare, scenes.Resize, kind, is_mapped=False) for kind in KINDS[:2]},
    **{f"resize {kind}, mapped": partial(_bare, scenes.Resize, kind, is_mapped=True) for kind in KINDS[:2]},
    "grow gpt": partial(_grow, False, "gpt"),
    "grow gpt, mapped": partial(_grow, True, "gpt"),
    "grow dos, mapped": partial(_grow, True, "dos"),
    "snapshot create": partial(_bare, scenes.Snapshot, "qcow2"),
    "snapshot create, mapped": partial(_bare, scenes.Snapshot, "qcow2", is_mapped=True),
    "snapshot create, mounted": _snapshot_mounted,
    "snapshot delete": partial(_bare, scenes.SnapshotDelete, "qcow2"),
    "snapshot delete, mapped": partial(_bare, scenes.SnapshotDelete, "qcow2", is_mapped=True),
    "snapshot revert": partial(_bare, scenes.SnapshotRevert, "qcow2"),
    "reconcile": partial(_bare, scenes.Reconcile, "qcow2"),
}


#: These take long, and others go through the same points: only each so many-th moment, unless all are asked for.
STRIDES = {
    "map qcow2": 2,
    "map vmdk": 5,
    "unmap vmdk": 3,
    "mount qcow2": 6,
    "umount qcow2": 3,
    "mount raw, idmapped": 3,
    "mount files": 2,
    "grow gpt": 6,
    "grow gpt, mapped": 3,
    "grow dos, mapped": 3,
}


@pytest.mark.parametrize("name", SCENES)
def test_killed_at_every_point(
    mapper: Mapper, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, name: str, request: pytest.FixtureRequest
) -> None:
    scene, option = SCENES[name](mapper, tmp_path), request.config.getoption
    scope = str(tmp_path_factory.getbasetemp())
    is_all = option("crash_all")
    stride = 1 if is_all else STRIDES.get(name, 1)
    figures = die_everywhere(scene, scope, stride=stride, every_ending=is_all, settle=option("settle"))
    print(name, figures)
    report = request.getfixturevalue("report")
    report.count(name, cases=figures.moments, runs=figures.runs)
