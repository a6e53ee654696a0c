"""Processes, locks and mount namespaces."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mapper_core.errors import Busy, DeadlineExceeded, KernelError, NotFound, Refused
from mapper_core.linux import locks, mountinfo, namespaces, process_info

pytestmark = pytest.mark.root

UNSHARE = ("unshare", "--mount", "--propagation", "private")
Elsewhere = Callable[..., int]


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait(timeout=10)


# --- processes ------------------------------------------------------------------------------------------------


def test_a_living_process(sleeper: subprocess.Popen[bytes]) -> None:
    started = process_info.start_time(sleeper.pid)
    assert process_info.is_alive(sleeper.pid, started)
    found = process_info.info(sleeper.pid)
    assert found is not None
    assert (found.pid, found.start_time, found.name) == (sleeper.pid, started, "sleep")


def test_a_zombie_is_gone(sleeper: subprocess.Popen[bytes]) -> None:
    """``kill -0`` says that it lives."""
    started = process_info.start_time(sleeper.pid)
    sleeper.kill()
    process_info.wait_gone(sleeper.pid, started, 10)
    found = process_info.info(sleeper.pid)
    assert found is not None
    assert found.state == "Z"
    assert not process_info.is_alive(sleeper.pid, started)
    with pytest.raises(NotFound):
        process_info.start_time(sleeper.pid)
    assert not process_info.terminate(sleeper.pid, started)


def test_waiting_has_an_end(sleeper: subprocess.Popen[bytes]) -> None:
    started = process_info.start_time(sleeper.pid)
    before = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        process_info.wait_gone(sleeper.pid, started, 0.2)
    assert 0.19 < time.monotonic() - before < 5


def test_waiting_ends_with_the_process(sleeper: subprocess.Popen[bytes]) -> None:
    started = process_info.start_time(sleeper.pid)
    timer = threading.Timer(0.2, sleeper.kill)
    timer.start()
    process_info.wait_gone(sleeper.pid, started, 30)
    assert not process_info.is_alive(sleeper.pid, started)
    timer.join()


def test_waiting_for_an_end_of_several(sleeper: subprocess.Popen[bytes]) -> None:
    """Also of none, and of one that has ended already."""
    here, other = process_info.info(os.getpid()), process_info.info(sleeper.pid)
    assert here is not None and other is not None
    for processes in ((), (here, other)):
        before = time.monotonic()
        process_info.wait_for_an_end(processes, 0.1)
        assert 0.09 < time.monotonic() - before < 5
    timer = threading.Timer(0.1, sleeper.kill)
    timer.start()
    for _ in range(2):
        process_info.wait_for_an_end((here, other), 30)
        assert not process_info.is_alive(other.pid, other.start_time)
    timer.join()


def test_a_signal_for_exactly_this_process(sleeper: subprocess.Popen[bytes]) -> None:
    started = process_info.start_time(sleeper.pid)
    assert process_info.terminate(sleeper.pid, started, signal.SIGUSR1)
    assert sleeper.wait(timeout=10) == -signal.SIGUSR1


def test_another_process_with_that_pid_is_spared(sleeper: subprocess.Popen[bytes]) -> None:
    started = process_info.start_time(sleeper.pid)
    assert not process_info.terminate(sleeper.pid, started - 1)
    process_info.wait_gone(sleeper.pid, started - 1, 0)
    with pytest.raises(subprocess.TimeoutExpired):
        sleeper.wait(timeout=0.2)


def test_found_by_argument(tmp_path: Path) -> None:
    path = str(tmp_path / "pid")
    command = ["sh", "-c", "echo ready; read wait", "sh", path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # the command line of a new program is empty for a moment
        assert [found.pid for found in process_info.find_by_argument("sh", path)] == [process.pid]
        assert process_info.find_by_argument("sh", path[:-1]) == ()
        assert process_info.find_by_argument("bash", path) == ()
        process.communicate(b"\n", timeout=10)
    assert process_info.find_by_argument("sh", path) == ()


# --- locks ----------------------------------------------------------------------------------------------------


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with locks.try_lock(path):
        assert os.stat(path).st_mode & 0o777 == 0o600
        with pytest.raises(Busy, match=f"process {os.getpid()} "), locks.try_lock(path):
            pass
    with locks.try_lock(path):
        pass


def test_a_lock_goes_with_its_process(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    code = """
import sys
from mapper_core.linux import locks
locks.open_lock(sys.argv[1])
print(flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen([sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(Busy, match=f"process {process.pid} "), locks.try_lock(path):
            pass
        process.kill()
    with locks.try_lock(path):
        pass


def test_a_lock_is_not_inherited(tmp_path: Path) -> None:
    """A daemon that we start must not keep our lock."""
    with locks.try_lock(str(tmp_path / "lock")) as fd:
        process = subprocess.Popen(["sleep", "1000"], close_fds=False)
        assert not os.path.exists(f"/proc/{process.pid}/fd/{fd}")
    try:
        with locks.try_lock(str(tmp_path / "lock")):
            pass
    finally:
        process.kill()
        process.wait(timeout=10)


@pytest.mark.parametrize("kind", ["link", "dangling", "fifo", "directory"])
def test_a_lock_is_a_regular_file(tmp_path: Path, kind: str) -> None:
    """S-24."""
    path = tmp_path / "lock"
    victim = tmp_path / "victim"
    if kind == "link":
        victim.touch()
        path.symlink_to(victim)
    elif kind == "dangling":
        path.symlink_to(victim)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises((Refused, KernelError)), locks.try_lock(str(path)):
        pass
    assert victim.exists() is (kind == "link")


def test_a_lock_whose_file_is_replaced(tmp_path: Path) -> None:
    """Two processes that lock two files of one name would both go on."""
    path = tmp_path / "lock"
    inside = 0
    problems: list[str] = []
    stop = threading.Event()

    def remove() -> None:
        while not stop.is_set():
            path.unlink(missing_ok=True)

    def work() -> None:
        nonlocal inside
        for _ in range(300):
            try:
                with locks.try_lock(str(path)) as fd:
                    if os.fstat(fd).st_nlink and not os.path.samestat(os.fstat(fd), os.stat(path)):
                        problems.append("locked a file of another name")
            except (Busy, FileNotFoundError):
                continue

    remover = threading.Thread(target=remove)
    remover.start()
    try:
        work()
    finally:
        stop.set()
        remover.join()
    assert problems == []


def test_a_lock_whose_file_was_removed_before_we_got_it(tmp_path: Path) -> None:
    """The holder removes the file and leaves; who has opened the old file meanwhile must not believe it."""
    path = tmp_path / "lock"
    old = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        path.unlink()
        path.touch()
        assert not locks._take(old, str(path), 0.0)
        path.unlink()
        assert not locks._take(old, str(path), 0.0)
    finally:
        os.close(old)


# --- mount namespaces -----------------------------------------------------------------------------------------


def test_there_and_back(elsewhere: Elsewhere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pid = elsewhere('mount -t tmpfs x "$1"; touch "$1/inside"', tmp_path)
    home = namespaces.mount_namespace_id("thread-self")
    with namespaces.in_mount_namespace(pid):
        assert (tmp_path / "inside").exists()
        assert namespaces.mount_namespace_id("thread-self") == namespaces.mount_namespace_id(pid) != home
        fd = os.open(tmp_path / "inside", os.O_PATH)
    assert namespaces.mount_namespace_id("thread-self") == home
    assert not (tmp_path / "inside").exists()
    assert os.getcwd() == str(tmp_path)
    assert os.readlink(f"/proc/self/fd/{fd}").endswith("inside")
    os.close(fd)


def test_back_after_an_error(elsewhere: Elsewhere) -> None:
    home = namespaces.mount_namespace_id("thread-self")
    with pytest.raises(ZeroDivisionError), namespaces.in_mount_namespace(elsewhere("")):
        raise ZeroDivisionError
    assert namespaces.mount_namespace_id("thread-self") == home


def test_other_threads_stay(elsewhere: Elsewhere) -> None:
    pid = elsewhere("")
    home = namespaces.mount_namespace_id("thread-self")
    seen: list[int] = []

    def work() -> None:
        with namespaces.in_mount_namespace(pid):
            seen.append(namespaces.mount_namespace_id("thread-self"))
            seen.append(namespaces.mount_namespace_id("self"))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [namespaces.mount_namespace_id(pid), home]
    assert namespaces.mount_namespace_id("thread-self") == home


def test_back_while_a_thread_of_the_other_side_lives(elsewhere: Elsewhere) -> None:
    """It shares root and working directory with us, and setns() answers EINVAL to who shares them."""
    pid = elsewhere("")
    home = namespaces.mount_namespace_id("thread-self")
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    try:
        with namespaces.in_mount_namespace(pid):
            thread.start()
        assert namespaces.mount_namespace_id("thread-self") == home
    finally:
        stop.set()
        thread.join()


def test_the_own_namespace_is_no_journey() -> None:
    with namespaces.in_mount_namespace(os.getpid()):
        assert mountinfo.at("/")


def test_a_chroot_is_entered_again(elsewhere: Elsewhere, tmp_path: Path) -> None:
    """A program in a chroot must not find itself outside of it afterwards."""
    code = """
import os, sys
from mapper_core.linux import namespaces, syscalls
syscalls.libc()  # in the chroot it is out of reach
os.chroot(sys.argv[1])
os.chdir("/")
with namespaces.in_mount_namespace(int(sys.argv[2])):
    assert os.path.exists("/etc")
assert os.listdir("/") == ["proc"], os.listdir("/")
"""
    (tmp_path / "proc").mkdir()
    script = 'mount -t proc proc "$1/proc"; exec "$2" -c "$3" "$1" "$4"'
    pid = elsewhere("")
    child = subprocess.run(
        [*UNSHARE, "sh", "-ec", script, "sh", tmp_path, sys.executable, code, str(pid)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert child.returncode == 0, child.stderr


def test_no_such_process(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.kill()
    sleeper.wait(timeout=10)
    with pytest.raises(NotFound), namespaces.in_mount_namespace(sleeper.pid):
        pass
    with pytest.raises(NotFound):
        namespaces.mount_namespace_id(sleeper.pid)
