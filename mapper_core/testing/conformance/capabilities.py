"""The optional hooks: what the plugin has works, and what it lacks is refused as ``NotSupported``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mapper_core import capabilities
from mapper_core.errors import AlreadyExists, NotSupported, Refused, SnapshotMissing
from mapper_core.model import Access, Disk
from mapper_core.testing.conformance.bench import MIB, Bench, OnBench, difference, pattern, proves, read


class OnCapabilities(OnBench):
    """As root: see the module."""

    @proves("capabilities", "resize")
    def test_a_disk_grows(self, bench: Bench) -> None:
        """Unmapped, then mapped (or that is refused); what was on it stays, what is new reads as zeros."""
        content = pattern(MIB)
        disk = bench.disk(content)
        if not self._can(bench, "resize", lambda: capabilities.resize(bench.mapper, disk, 2 * MIB)):
            return
        capabilities.resize(bench.mapper, disk, 2 * MIB)
        content += bytes(MIB)
        assert not difference(bench.content(disk), content)
        with pytest.raises(Refused):
            capabilities.resize(bench.mapper, disk, MIB)
        with bench.mapped(disk, Access.READ_WRITE) as found:
            try:
                capabilities.resize(bench.mapper, disk, 3 * MIB)
                content += bytes(MIB)
            except NotSupported:
                assert found.transport in ("nbd", "rbd-nbd")  # qemu-nbd cannot do it
            assert not difference(read(found.device), content)
        assert not difference(bench.content(disk), content)

    @proves("capabilities", "snapshots", "snapshot_create", "snapshot_revert", "snapshot_delete")
    def test_a_snapshot_brings_the_old_content_back(self, bench: Bench) -> None:
        """It is listed, and can be deleted."""
        before, after = pattern(MIB), pattern(MIB, seed=2)
        disk = bench.disk(before)
        if not self._can(bench, "snapshot_create", lambda: capabilities.snapshot_create(bench.mapper, disk, "kept")):
            return
        capabilities.snapshot_create(bench.mapper, disk, "kept")
        with bench.mapped(disk, Access.READ_WRITE) as found, open(found.device, "r+b") as device:
            device.write(after)
        assert not difference(bench.content(disk), after)
        assert [item.name for item in capabilities.snapshots(bench.mapper, disk)] == ["kept"]
        with pytest.raises(AlreadyExists):
            capabilities.snapshot_create(bench.mapper, disk, "kept")
        capabilities.snapshot_revert(bench.mapper, disk, "kept")
        assert not difference(bench.content(disk), before)
        capabilities.snapshot_delete(bench.mapper, disk, "kept")
        assert capabilities.snapshots(bench.mapper, disk) == ()
        with pytest.raises(SnapshotMissing):
            capabilities.snapshot_revert(bench.mapper, disk, "kept")

    def _can(self, bench: Bench, hook: str, call: Callable[[], object]) -> bool:
        """Whether the plugin has a hook; without it the call must be refused."""
        if bench.mapper.registry.can(self.format, hook) and self.access is Access.READ_WRITE:
            return True
        with pytest.raises((NotSupported, Refused)):
            call()
        return False


class OnImageCapabilities(OnCapabilities):
    """As root: those of formats whose disks are files."""

    @proves("capabilities", "create")
    def test_a_new_disk_reads_as_zeros(self, bench: Bench, tmp_path: Path) -> None:
        """Its file belongs to its owner alone; nothing is ever overwritten."""
        disk = Disk(str(tmp_path / "new"), self.format)
        if not self._can(bench, "create", lambda: capabilities.create(bench.mapper, disk, 2 * MIB)):
            return
        capabilities.create(bench.mapper, disk, 2 * MIB)
        assert (tmp_path / "new").stat().st_mode & 0o077 == 0
        assert not difference(bench.content(disk), bytes(2 * MIB))
        before = (tmp_path / "new").read_bytes()
        with pytest.raises(AlreadyExists):
            capabilities.create(bench.mapper, disk, MIB)
        assert not difference((tmp_path / "new").read_bytes(), before)
