"""Waiting for a lock: until it is free, or until the time is up."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from mapper_core.errors import Busy
from mapper_core.linux import locks

pytestmark = pytest.mark.root


def test_whoever_waits_gets_it_as_soon_as_it_is_free(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    held = locks.open_lock(path)
    threading.Timer(0.2, os.close, (held,)).start()
    began = time.monotonic()
    with locks.try_lock_of(path, lambda: False, patience=20):
        assert 0.1 < time.monotonic() - began < 10
        with pytest.raises(Busy, match="works on it now"):
            locks.open_lock(path)
    assert not os.path.exists(path)


def test_all_who_wait_get_it_one_after_the_other(tmp_path: Path) -> None:
    """Although each removes the file."""
    path, inside, most = str(tmp_path / "lock"), [], []

    def work() -> None:
        with locks.try_lock_of(path, lambda: False, patience=60):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.002)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == [1] * 30


def test_a_lock_that_comes_too_late_is_given_back(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    held = locks.open_lock(path)
    with pytest.raises(Busy, match="works on it now"):
        locks.open_lock(path, patience=0.1)
    waiting = [thread for thread in threading.enumerate() if thread.daemon and thread is not threading.current_thread()]
    os.close(held)
    for thread in waiting:
        thread.join(10)
    os.close(locks.open_lock(path))


def _orphaned(path: str, seconds: float) -> int:
    """A process that took the lock and was killed while a child of it, which has inherited the lock, goes on for a while."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        locks.open_lock(path)
        if os.fork() == 0:
            os.write(writer, b"!")
            time.sleep(seconds)
            os._exit(0)
        time.sleep(60)
        os._exit(0)
    os.close(writer)
    taken = os.read(reader, 1)
    os.close(reader)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert taken
    return pid


def test_what_a_killed_process_was_starting_is_waited_for(tmp_path: Path) -> None:
    """A child of it that is about to be another program still has its lock: not somebody at work."""
    path = str(tmp_path / "lock")
    _orphaned(path, 0.3)
    began = time.monotonic()
    with locks.try_lock(path):
        assert 0.05 < time.monotonic() - began < locks.ORPHAN_SECONDS


def test_what_outlives_a_killed_process_is_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "lock")
    monkeypatch.setattr(locks, "ORPHAN_SECONDS", 0.2)
    pid = _orphaned(path, 2)
    with pytest.raises(Busy, match=f"a child of process {pid}, which is gone, works on it now"):
        locks.open_lock(path)
    with locks.try_lock_of(path, lambda: False, patience=20):
        pass


def test_whoever_works_is_not_waited_for(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with locks.try_lock(path):
        began = time.monotonic()
        with pytest.raises(Busy, match=rf"process {os.getpid()} \(.+\) works on it now"):
            locks.open_lock(path)
        assert time.monotonic() - began < locks.ORPHAN_SECONDS / 2
