"""Ending daemons. A script is the daemon here, as qemu's lose one signal in some thousand only."""

import os
import time
from pathlib import Path

import pytest

from mapper_core.errors import DeadlineExceeded
from mapper_core.linux import process_info
from mapper_core.transports import daemon

pytestmark = pytest.mark.root

PROGRAM = "python3"
#: Ends at the signal with the given number.
SCRIPT = """
import os, signal, sys
ready, when_ready = os.pipe()
if os.fork():
    os._exit(os.read(ready, 1) != b"r")
left = list(range(int(sys.argv[1])))
signal.signal(signal.SIGTERM, lambda *_: left.pop() or os._exit(0))
for number in (0, 1, 2):
    os.dup2(os.open(os.devnull, os.O_RDWR), number)
with open(sys.argv[2], "w") as file:
    file.write(str(os.getpid()))
os.write(when_ready, b"r")
signal.alarm(60)
while True:
    signal.pause()
"""


@pytest.mark.parametrize("has_pid_file", [True, False])
def test_one_that_has_not_noticed_the_signal_gets_another(tmp_path: Path, has_pid_file: bool) -> None:
    directory = str(tmp_path / "daemon")
    pid = _start(directory, signals=2)
    if not has_pid_file:
        os.unlink(daemon.pid_file(directory))
    began = time.monotonic()
    daemon.stop(directory, PROGRAM, seconds=30)
    assert time.monotonic() - began < 15
    left = process_info.info(pid)
    assert left is None or left.gone


def test_one_that_does_not_end_is_named(tmp_path: Path) -> None:
    directory = str(tmp_path / "daemon")
    pid = _start(directory, signals=1000)
    with pytest.raises(DeadlineExceeded, match=rf"python3 \(pid {pid}\) did not end within 0\.3 s"):
        daemon.stop(directory, PROGRAM, seconds=0.3)
    daemon.kill(directory, seconds=30)


def _start(directory: str, *, signals: int) -> int:
    os.mkdir(directory)
    pid_file = daemon.pid_file(directory)
    daemon.start((PROGRAM, "-c", SCRIPT, str(signals), pid_file), directory, seconds=30, subject=directory)
    return int(Path(pid_file).read_text())
