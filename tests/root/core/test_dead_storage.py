"""Storage that does not answer, or died: what is mapped from it can still be listed and released, and nobody else is hindered."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from mapper_core import capabilities, snapshots
from mapper_core.errors import DeadlineExceeded
from mapper_core.linux import loop, loop_status
from mapper_core.linux.flush import flush_within
from mapper_core.mapping import Mapper
from mapper_core.model import Disk, MapOptions
from mapper_core.testing.disks import run
from mapper_core.transports import loop as loop_transport

pytestmark = pytest.mark.root

USER = "test"


def kill_server(runtime_dir: Path, record_id: str, sig: signal.Signals) -> int:
    pid = int((runtime_dir / "exports" / record_id / "pid").read_text())
    os.kill(pid, sig)
    return pid


def wait_until_the_kernel_asks_the_server(device: str) -> None:
    """It remembers the attributes of a file of FUSE for a second, and no event tells when it forgets."""
    deadline = time.monotonic() + 10
    fd = os.open(device, os.O_RDONLY)
    try:
        while time.monotonic() < deadline:
            try:
                loop_status.read_info(fd)
            except OSError as error:
                assert error.errno == errno.ENOTCONN
                return
            time.sleep(0.05)
    finally:
        os.close(fd)
    pytest.fail("the kernel never asked the dead server")


@pytest.fixture
def qcow2(tmp_path: Path) -> Disk:
    image = tmp_path / "disk.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", str(image), "8M")
    return Disk(str(image), "qcow2")


def test_a_dead_server_hinders_nobody(qcow2: Disk, tmp_path: Path, runtime_dir: Path) -> None:
    mapper = Mapper.open()
    mapped = mapper.map(qcow2, MapOptions(transport="storage_daemon"), user=USER)
    kill_server(runtime_dir, mapped.id, signal.SIGKILL)
    wait_until_the_kernel_asks_the_server(mapped.device)

    status = loop.status(mapped.device)
    assert status is not None and status.tag == f"mapper:{mapped.id}"
    assert [found.device for found in mapper.mapped()] == [mapped.device]
    other = tmp_path / "other.raw"
    other.write_bytes(bytes(1 << 20))
    # the devices of all others are looked through, for one that writes the same file
    mapper.map(Disk(str(other), "raw"), MapOptions(), user=USER)
    mapper.unmap(str(other), user=USER)

    mapper.unmap(qcow2.source, user=USER)
    assert mapper.mapped() == ()
    assert loop.status(mapped.device) is None


def test_what_does_not_answer_is_given_up_in_time(qcow2: Disk, runtime_dir: Path) -> None:
    """The server is stopped, as if its storage had gone: a flush would wait for ever, and could not be killed (C-08)."""
    mapper = Mapper.open()
    mapped = mapper.map(qcow2, MapOptions(transport="storage_daemon"), user=USER)
    with open(mapped.device, "r+b", buffering=0) as device:
        device.write(bytes(4096))  # into the page cache only
        pid = kill_server(runtime_dir, mapped.id, signal.SIGSTOP)
        before = time.monotonic()
        with pytest.raises(DeadlineExceeded, match="has not answered"):
            flush_within(mapped.device, 0.5)
        assert time.monotonic() - before < 5
        os.kill(pid, signal.SIGCONT)
        assert flush_within(mapped.device, 30)
    mapper.unmap(qcow2.source, user=USER)


def test_a_server_that_hangs_keeps_nobody_waiting(
    qcow2: Disk, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M-23: what is mapped can be listed, and to unmap it ends in time. The kernel would ask the server for each of that."""
    mapper = Mapper.open()
    mapped = mapper.map(qcow2, MapOptions(transport="storage_daemon"), user=USER)
    pid = kill_server(runtime_dir, mapped.id, signal.SIGSTOP)
    safety = threading.Timer(15, os.kill, (pid, signal.SIGCONT))
    safety.start()
    device = os.open(mapped.device, os.O_RDWR)
    try:
        time.sleep(1.1)  # as long as the kernel remembers what it was told
        began = time.monotonic()
        assert mapper.mapped() == (mapped,)
        assert mapper.find(mapped.device) == mapped
        status = loop.status(mapped.device)
        assert status is not None and status.tag == f"mapper:{mapped.id}"
        assert status in loop.list_devices()
        os.write(device, bytes(4096))  # into the page cache only
        monkeypatch.setattr(snapshots, "FLUSH_SECONDS", 0.5)
        with pytest.raises(DeadlineExceeded, match="has not answered"):
            snapshots.create(mapper, (qcow2,), "before")
        monkeypatch.setattr(loop_transport, "FLUSH_SECONDS", 0.5)
        with pytest.raises(DeadlineExceeded, match="has not answered"):
            mapper.unmap(qcow2.source, user=USER)
        assert time.monotonic() - began < 5
    finally:
        safety.cancel()
        os.kill(pid, signal.SIGCONT)
        os.close(device)
    snapshots.create(mapper, (qcow2,), "after")
    assert [item.name for item in capabilities.snapshots(mapper, qcow2)] == ["after"]
    mapper.unmap(qcow2.source, user=USER)
    assert mapper.mapped() == ()


def test_a_device_that_is_gone_is_no_failure() -> None:
    assert not flush_within("/dev/mapper-test-none", 5)


INTERRUPTED = """
import os, signal, sys
from mapper_core.linux import flush

def handler(number, frame):
    raise KeyboardInterrupt

signal.signal(signal.SIGTERM, handler)
fork = os.fork

def fork_and_be_interrupted():
    pid = fork()
    if pid == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    return pid

os.fork = fork_and_be_interrupted
try:
    print(flush.flush_within(sys.argv[1], 10))
finally:
    print("undone", flush=True)
"""


def test_a_signal_for_the_process_that_waits_undoes_nothing(tmp_path: Path) -> None:
    """Its handler would raise in the copy of this program, which would then undo what is not its own."""
    (tmp_path / "file").touch()
    done = run(sys.executable, "-c", INTERRUPTED, str(tmp_path / "file"))
    assert done.split() in (["True", "undone"], ["False", "undone"]), done
