"""For the tests of sudden death."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mapper_core.mapping import Mapper
from mapper_core.testing import disks


@pytest.fixture
def in_memory(tmp_path: Path, runtime_dir: Path) -> Iterator[None]:
    """Records are in memory on real hosts, too; and so are the images here, because there are thousands of them."""
    with ExitStack() as undo:
        for path in (tmp_path, runtime_dir):
            disks.run("mount", "-t", "tmpfs", "-o", "mode=700", "tmpfs", str(path))
            undo.callback(disks.run, "umount", str(path))
        yield


@pytest.fixture
def mapper(in_memory: None) -> Mapper:
    """A mapper on a runtime directory of its own."""
    return Mapper.open()
