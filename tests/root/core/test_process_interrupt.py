"""A signal handler that raises while a program runs: the program is gone before anybody undoes anything."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from mapper_core.linux import process_info
from mapper_core.process import run

pytestmark = pytest.mark.root


class Interrupted(BaseException):
    """What the handler raises."""


@pytest.fixture(autouse=True)
def _handler() -> Iterator[None]:
    def raise_it(_number: int, _frame: FrameType | None) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGTERM, raise_it)
    yield
    signal.signal(signal.SIGTERM, before)


def sleepers(argument: str) -> tuple[process_info.ProcessInfo, ...]:
    return process_info.find_by_argument("sleep", argument)


# an exception at any moment may come between open() and the `with` that closes the file; Python closes it, and warns
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("milliseconds", [0, 1, 2, 4, 6, 8, 10, 15, 20, 40, 80])
def test_whenever_it_comes_no_program_is_left(milliseconds: int) -> None:
    argument = f"30.0{os.getpid()}{milliseconds}"
    timer = threading.Timer(milliseconds / 1000, os.kill, (os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        timer.start()
        run(("sleep", argument), timeout=5)
        time.sleep(5)  # not reached
    timer.join()
    assert sleepers(argument) == ()


def test_the_program_itself_can_be_ended_by_signals(tmp_path: Path) -> None:
    """Nothing of the handling is inherited."""
    run(("sh", "-c", f"grep -E '^Sig(Blk|Ign)' /proc/self/status > {tmp_path}/signals"), timeout=10)
    found = dict(line.split(":\t") for line in (tmp_path / "signals").read_text().splitlines())
    bit = 1 << (signal.SIGTERM - 1)
    assert int(found["SigBlk"], 16) & bit == int(found["SigIgn"], 16) & bit == 0


def test_the_handler_is_back_afterwards() -> None:
    run(("true",), timeout=10)
    with pytest.raises(Interrupted):
        signal.raise_signal(signal.SIGTERM)
