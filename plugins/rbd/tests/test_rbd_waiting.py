"""Programs that wait for a cluster, here for a writer of a FIFO: in time, typed, and left to end by themselves."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from mapper_rbd.waiting import run_or_leave

from mapper_core.errors import CommandFailed, DeadlineExceeded, ToolMissing
from mapper_core.linux import process_info

pytestmark = pytest.mark.root


def test_what_a_program_says() -> None:
    run_or_leave(("true",), seconds=20, subject="x")
    with pytest.raises(CommandFailed, match="No such file") as found:
        run_or_leave(("cat", "/nonexistent"), seconds=20, subject="x")
    assert (found.value.status, found.value.subject) == (1, "x")
    with pytest.raises(ToolMissing):
        run_or_leave(("mapper-no-such-program",), seconds=20, subject="x")


def test_c08_one_that_takes_something_away_is_left_to_end_by_itself(tmp_path: Path) -> None:
    """C-08: it is not killed, nobody waits for it, and it holds nothing of ours."""
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)
    before = time.monotonic()
    with (
        open(tmp_path / "lock", "w", encoding="ascii") as lock,
        pytest.raises(DeadlineExceeded, match=r"still waits for the cluster after 0\.5 s") as found,
    ):
        run_or_leave(("cat", fifo), seconds=0.5, subject="x")
    assert time.monotonic() - before < 5
    assert "reconcile" in found.value.hint
    [process] = process_info.find_by_argument("cat", fifo)
    assert lock.name not in [
        os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{process.pid}/fd")
    ]
    os.close(os.open(fifo, os.O_WRONLY))
    process_info.wait_gone(process.pid, process.start_time, 10)
