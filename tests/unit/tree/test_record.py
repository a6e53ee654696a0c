"""Records of trees: what is written is read, and marking one changes nothing else of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mapper_core.errors import KernelError
from mapper_core.tree import record
from mapper_core.tree.record import TreeRecord

pytestmark = pytest.mark.unit

TREE = TreeRecord("/srv/a tree", "f-1-2", "cli", "boot", own_directory=True)


@pytest.mark.parametrize("complete", [False, True])
def test_what_is_marked_and_marked_back_is_read(tmp_path: Path, complete: bool) -> None:
    trees = str(tmp_path)
    tree = dataclasses.replace(TREE, complete=complete)
    record.write(trees, tree)
    assert record.read(trees, tree.directory) == tree
    record.mark(trees, tree.directory, complete=not complete)
    assert record.read(trees, tree.directory) == dataclasses.replace(tree, complete=not complete)
    record.mark(trees, tree.directory, complete=complete)
    record.mark(trees, tree.directory, complete=complete)
    assert record.read_all(trees) == (tree,)


def test_no_record_is_made_by_marking(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="written down"):
        record.mark(str(tmp_path), TREE.directory, complete=True)
    assert list(tmp_path.iterdir()) == []
