"""What serves a disk outlives the session in which it was mapped, an ssh session for example, as systemd may end that."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mapper_core.linux import cgroup
from mapper_core.mapping import Mapper
from mapper_core.testing import disks

pytestmark = pytest.mark.root

CLI = str(Path(sys.executable).parent / "mapper-cli")


class Session:
    """A group of processes as systemd makes one for a session, in each hierarchy that it could use."""

    def __init__(self) -> None:
        roots = (Path(hierarchy) for hierarchy in cgroup.HIERARCHIES)
        self.groups = [root / f"mapper-test-{os.getpid()}" for root in roots if (root / "cgroup.procs").exists()]
        assert self.groups, "this host has no control groups"

    def run(self, *argv: str) -> None:
        """Run a command in it."""
        enter = "".join(f"echo $$ > {group}/cgroup.procs; " for group in self.groups)
        subprocess.run(["sh", "-ec", f'{enter}exec "$@"', "sh", *argv], check=True, timeout=60)

    def end(self) -> None:
        """Kill whoever is left."""
        for group in self.groups:
            for pid in (group / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)


@pytest.fixture
def session() -> Iterator[Session]:
    found = Session()
    for group in found.groups:
        group.mkdir()
    yield found
    found.end()
    for group in found.groups:
        group.rmdir()


def test_a_mapped_disk_outlives_the_session(session: Session, mapper: Mapper, tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    disks.run("qemu-img", "create", "-q", "-f", "qcow2", str(image), "16M")
    session.run(CLI, "map", "-f", "qcow2", "--transport", "storage_daemon", str(image))
    mapped = mapper.find(str(image))
    assert mapped is not None
    try:
        session.end()
        with open(mapped.device, "r+b", buffering=0) as device:
            device.write(b"x" * 4096)
            os.fsync(device.fileno())
        server = Path(f"{mapper.runtime.exports}/{mapped.id}/pid").read_text().strip()
        assert f":/{cgroup.NAME}\n" in Path(f"/proc/{server}/cgroup").read_text()
    finally:
        subprocess.run([CLI, "unmap", str(image)], check=True, timeout=60)
