"""The runtime directory, and what is in it when several begin or clean up at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mapper_core import reconcile
from mapper_core.errors import StateCorrupt, UsageError
from mapper_core.linux import process_info
from mapper_core.mapping import Mapper
from mapper_core.registry import Registry
from mapper_core.runtime import Runtime

pytestmark = pytest.mark.unit


@pytest.fixture
def runtime(short_dir: Path) -> Runtime:
    return Runtime(f"{short_dir}/a/b")


def test_it_is_made_with_all_above_it(runtime: Runtime) -> None:
    runtime.prepare()
    runtime.prepare()
    assert os.stat(runtime.disks).st_mode & 0o777 == 0o700


def test_another_process_makes_it_at_the_same_time(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    above = os.makedirs

    def makedirs(name: str, exist_ok: bool) -> None:
        above(name, exist_ok=exist_ok)
        os.mkdir(runtime.root, 0o700)

    monkeypatch.setattr(os, "makedirs", makedirs)
    runtime.prepare()
    assert os.path.isdir(runtime.mounts)


def test_what_is_not_ours_alone_is_refused(runtime: Runtime) -> None:
    runtime.prepare()
    os.chmod(runtime.disks, 0o755)
    with pytest.raises(StateCorrupt, match="only its owner can enter"):
        runtime.prepare()
    with pytest.raises(UsageError, match="absolute path of at most"):
        Runtime("relative").prepare()


def test_another_reconcile_removes_the_same_file(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime.prepare()
    left = Path(runtime.disks, ".f-1-2.json.999999999")
    left.touch()

    def is_running(_pid: int) -> bool:
        left.unlink()
        return False

    monkeypatch.setattr(process_info, "is_running", is_running)
    mapper = Mapper(runtime, Registry.load(()))
    assert reconcile.reconcile(mapper) == reconcile.Report((), ())
