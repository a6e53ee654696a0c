"""User namespaces that are only maps."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from mapper_core.errors import UsageError
from mapper_core.linux import idmap, locks
from mapper_core.model import IdMap, IdRange

pytestmark = pytest.mark.root

WALL = 0x40000000
IDS = IdMap(uid=(IdRange(0, 100000, 1000), IdRange(5000, 200000, 7)), gid=(IdRange(0, 300000, 65536),))


def map_in(fd: int, name: str) -> list[list[int]]:
    """A map as a process in the namespace would see it from our own."""
    text = subprocess.run(
        ["nsenter", f"--user=/proc/self/fd/{fd}", "--preserve-credentials", "sleep", "0"],
        pass_fds=(fd,),
        capture_output=True,
        timeout=30,
    )
    assert text.returncode == 0, text.stderr
    process = subprocess.Popen(
        ["nsenter", f"--user=/proc/self/fd/{fd}", "--preserve-credentials", "sh", "-c", "echo; read wait"],
        pass_fds=(fd,),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        with open(f"/proc/{process.pid}/{name}", encoding="ascii") as file:
            found = [[int(number) for number in line.split()] for line in file]
        process.communicate(b"\n", timeout=30)
    return found


def test_the_maps_are_those_asked_for() -> None:
    fd = idmap.user_namespace(IDS)
    try:
        assert map_in(fd, "uid_map") == [[0, 100000, 1000], [5000, 200000, 7]]
        assert map_in(fd, "gid_map") == [[0, 300000, 65536]]
    finally:
        os.close(fd)


def test_the_most_ranges_the_kernel_takes() -> None:
    # 340 ranges, and less than a page of text (kernel/user_namespace.c: map_write()).
    ranges = tuple(IdRange(number, 1000 + 2 * number, 1) for number in range(340))
    os.close(idmap.user_namespace(IdMap(ranges, ranges)))
    with pytest.raises(UsageError):
        idmap.user_namespace(IdMap((*ranges, IdRange(400, 1, 1)), ranges))


def test_nothing_is_left() -> None:
    """No child, zombie or not, and no descriptor but the result; also after an error."""
    before = sorted(os.listdir("/proc/self/fd"))
    os.close(idmap.user_namespace(IDS))
    with pytest.raises(UsageError, match="does not accept"):
        idmap.user_namespace(IdMap((IdRange(0, 100000, 10), IdRange(5, 200000, 10)), IDS.gid))
    assert sorted(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG | WALL)


def test_a_process_that_is_killed_leaves_nobody_behind_who_holds_its_locks(tmp_path: Path) -> None:
    """What it has forked for the namespace has nothing open, and ends when it does."""
    path = str(tmp_path / "lock")
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            locks.open_lock(path)
            idmap._write_map = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            idmap.user_namespace(IDS)
        finally:
            os._exit(1)
    os.close(writer)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    with locks.try_lock(path):
        pass
    assert os.read(reader, 1) == b"", "the other end of the pipe is open in no process any more"
    os.close(reader)


def test_the_descriptor_is_not_inherited() -> None:
    fd = idmap.user_namespace(IDS)
    try:
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


def test_in_many_threads_at_once() -> None:
    """A fork of Python code could stop for ever on a lock that another thread holds."""
    problems: list[BaseException] = []
    inodes: set[int] = set()

    def work() -> None:
        try:
            for _ in range(15):
                fd = idmap.user_namespace(IDS)
                inodes.add(os.fstat(fd).st_ino)
                os.close(fd)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert problems == []
    assert inodes


def test_other_children_are_not_touched() -> None:
    """A program that waits for its own children gets no stranger, and loses none."""
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    os.close(idmap.user_namespace(IDS))
    assert os.waitpid(-1, os.WNOHANG)[0] == child.pid
    child.returncode = 0
