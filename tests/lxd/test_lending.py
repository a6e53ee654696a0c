"""Disks for a daemon in a mount namespace of its own. All tests with Incus are about that too."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from mapper_driver.errors import TreeNotPlaced
from mapper_driver.lxd import lending, placement
from mapper_driver.lxd.client import LxdClient

from mapper_core.linux import mountinfo, unmounting
from mapper_core.mapping import Mapper
from mapper_core.reconcile import reconcile

from .conftest import Lab, Staged, run
from .machine import Machine, ok
from .one import One

pytestmark = [pytest.mark.lxd, pytest.mark.timeout(240)]


@pytest.fixture
def elsewhere() -> Iterator[int]:
    """A process in a mount namespace of its own, which has nothing that is mounted later."""
    argv = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", "echo ready; read line"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        yield process.pid
        process.communicate(b"\n")


def test_lend_and_withdraw(elsewhere: int, staged: Staged) -> None:
    tree = staged.directory
    lending.lend(tree, elsewhere)
    lending.lend(tree, elsewhere)
    assert [entry.device for entry in mountinfo.at(tree, pid=elsewhere)] == [mountinfo.at(tree)[-1].device]
    assert [entry.target for entry in mountinfo.below(tree, pid=elsewhere)] == [f"{tree}/home"]
    run("mount", "-t", "tmpfs", "none", tree)  # another disk with the number of this one
    try:
        lending.lend(tree, elsewhere)
        assert [entry.fstype for entry in mountinfo.at(tree, pid=elsewhere)] == ["tmpfs"]
        assert mountinfo.below(tree, pid=elsewhere) == ()
    finally:
        run("umount", tree)
    assert lending.withdraw(tree, elsewhere)
    assert not lending.withdraw(tree, elsewhere)
    assert mountinfo.at(tree, pid=elsewhere) == ()
    assert os.path.exists(f"{tree}/home/greeting")


def test_our_own_namespace_is_left_alone(staged: Staged) -> None:
    before = mountinfo.under(staged.directory)
    lending.lend(staged.directory, os.getpid())
    assert not lending.withdraw(staged.directory, os.getpid())
    assert mountinfo.under(staged.directory) == before


def test_only_what_is_mounted_is_lent(elsewhere: int, tmp_path: Path) -> None:
    with pytest.raises(TreeNotPlaced, match="no tree"):
        lending.lend(str(tmp_path), elsewhere)
    assert mountinfo.at(str(tmp_path), pid=elsewhere) == ()


def test_a_machine_with_several_disks(
    private_lab: Lab, images: ModuleType, tmp_path: Path, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after the daemon was replaced by one in a new namespace, as a refresh of the snap does; reconcile takes all of them back
    when the container is gone.
    """
    client = LxdClient.connect([private_lab.socket])
    daemon, mounts = client.daemon_pid(), f"{runtime_dir}/mounts"
    machine = Machine.build(One(tmp_path, private_lab.socket), client, images, 36)
    ok(machine.deploy())
    before = machine.all_disks()
    lent = [entry.target for entry in mountinfo.under(mounts, pid=daemon)]
    assert lent == [f"{mounts}/one-36.1", f"{mounts}/one-36.9"]
    ok(machine.power("reset"))
    assert machine.all_disks() == before
    ok(machine.power("reset", MAPPER_ONE_VERSION="5.12.13"))
    for target in lent:
        unmounting.unmount_in(daemon, target)
    ok(machine.power("reset", MAPPER_ONE_VERSION="5.12.13"))
    assert machine.all_disks() == before
    client.stop(machine.name)  # as a shutdown does that is killed when it has deleted the container
    mapper = Mapper.open()
    record = placement.read(placement.record_path(mapper.runtime, machine.name))
    assert record is not None
    placement.unplace(record, daemon)
    client.delete(machine.name)
    monkeypatch.setenv("LXD_SOCKET", private_lab.socket)
    assert reconcile(mapper).problems == ()
    machine.nothing_left()
    assert mountinfo.under(mounts, pid=daemon) == ()
