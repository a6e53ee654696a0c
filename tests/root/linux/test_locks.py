"""Waiting for a lock: until it is free, or until the time is up."""

from __future__ import annotations

import os
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
