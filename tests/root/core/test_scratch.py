"""Files shown as a tree: replaced under the eyes of whoever has them mounted."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mapper_core.errors import ImageInUse, NotMapped, Refused
from mapper_core.linux import mountinfo, mounts
from mapper_core.mapping import Mapper
from mapper_core.tree import mounted
from mapper_core.tree.scratch import refill_tree, scratch_tree

pytestmark = pytest.mark.root

MIB = 1 << 20


def filling(**files: str) -> Callable[[int], None]:
    def fill(top: int) -> None:
        for name, text in files.items():
            path, _, leaf = name.rpartition("__")
            if path:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(path, dir_fd=top)
            fd = os.open(f"{path}/{leaf}" if path else leaf, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=top)
            with os.fdopen(fd, "w") as file:
                file.write(text)

    return fill


@pytest.fixture
def tree(mapper: Mapper) -> Path:
    fill = filling(one="1", two="2", sub__a="a", was_dir__x="x")
    return Path(scratch_tree(mapper, "t", owner="me", size=MIB, uid=0, gid=0, fill=fill))


@pytest.fixture(autouse=True)
def dismantled(mapper: Mapper) -> object:
    yield
    for record in mounted.records(mapper):
        mounted.dismantle(mapper, record)


def contents(directory: Path) -> dict[str, str]:
    return {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*") if path.is_file()}


def test_other_mounts_of_the_tree_see_the_new_files(mapper: Mapper, tree: Path, tmp_path: Path) -> None:
    """Y-09: also when somebody is in it, and more than fitted before."""
    view = tmp_path / "view"
    view.mkdir()
    subprocess.run(["mount", "--bind", tree, view], check=True)
    shell = subprocess.Popen(["sleep", "1000"], cwd=view)
    try:
        large = "x" * (3 * MIB)
        fresh = filling(one="new", large=large, was_dir="a file now", sub__b="b", new_dir__c="c")
        refill_tree(mapper, "t", owner="me", size=4 * MIB, fill=fresh)
        wanted = {"one": "new", "large": large, "was_dir": "a file now", "sub/b": "b", "new_dir/c": "c"}
        assert contents(view) == contents(tree) == wanted
        assert sorted(os.listdir(view)) == ["large", "new_dir", "one", "sub", "was_dir"]
    finally:
        shell.kill()
        shell.wait()
        subprocess.run(["umount", view], check=True)
    with pytest.raises(OSError, match="Read-only"):
        (tree / "one").write_text("still read-only")


def test_a_failure_leaves_the_old_files(mapper: Mapper, tree: Path) -> None:
    before = contents(tree)

    def fill(top: int) -> None:
        filling(one="half")(top)
        raise Refused("no more")

    with pytest.raises(Refused):
        refill_tree(mapper, "t", owner="me", size=MIB, fill=fill)
    with pytest.raises(OSError, match="No space"):
        refill_tree(mapper, "t", owner="me", size=MIB, fill=filling(large="x" * (3 * MIB)))
    assert contents(tree) == before
    assert not (tree / ".incoming").exists()


def test_what_a_killed_call_left_is_removed(mapper: Mapper, tree: Path) -> None:
    clone = mounts.clone_tree(str(tree), recursive=False)
    mounts.set_attributes(clone, clear=mounts.MountAttribute.READ_ONLY)
    os.mkdir(".incoming", dir_fd=clone)
    os.symlink("/etc", ".incoming/etc", dir_fd=clone)
    os.close(clone)
    refill_tree(mapper, "t", owner="me", size=MIB, fill=filling(one="1"))
    assert contents(tree) == {"one": "1"}
    assert os.path.exists("/etc/passwd")


def test_only_its_owner_and_only_when_it_is_there(mapper: Mapper, tree: Path) -> None:
    with pytest.raises(ImageInUse, match="me"):
        refill_tree(mapper, "t", owner="you", size=MIB, fill=filling())
    with pytest.raises(NotMapped):
        refill_tree(mapper, "u", owner="me", size=MIB, fill=filling())
    assert mountinfo.at(str(tree))
