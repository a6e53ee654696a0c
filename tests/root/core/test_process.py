"""Running programs: argument lists, a deadline, all of the output, and never an error that looks like a result."""

import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mapper_core.errors import CommandFailed, DeadlineExceeded, ToolMissing, UsageError
from mapper_core.linux import process_info
from mapper_core.process import Lifetime, run

pytestmark = pytest.mark.root


def test_output_beyond_a_pipe_buffer_does_not_block() -> None:
    """M-25: 10 MiB on both streams; the first bytes are kept, the rest is read and dropped."""
    script = "head -c 10485760 /dev/zero; head -c 10485760 /dev/zero >&2"
    done = run(("sh", "-c", script), timeout=30, limit=1 << 20)
    assert (len(done.stdout), len(done.stderr)) == (1 << 20, 1 << 20)


def test_a_failure_carries_status_and_reason() -> None:
    """M-19."""
    with pytest.raises(CommandFailed, match="No such file") as caught:
        run(("ls", "/nonexistent"), timeout=10, subject="the disk")
    assert caught.value.status == 2
    assert caught.value.subject == "the disk"


def test_a_signal_is_told() -> None:
    with pytest.raises(CommandFailed, match="signal 9") as caught:
        run(("sh", "-c", "kill -9 $$"), timeout=10)
    assert caught.value.status == -9


def test_the_deadline_ends_the_whole_group(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="sh did not finish"):
        run(("sh", "-c", f"sleep 60 & echo $! > {tmp_path}/pid; sleep 60"), timeout=1.5)
    assert time.monotonic() - started < 10
    child = process_info.info(int((tmp_path / "pid").read_text()))
    if child is not None:  # it was sent its signal by then, and needs no more than that
        process_info.wait_gone(child.pid, child.start_time, 10)


def test_arguments_are_arguments(tmp_path: Path) -> None:
    """S-12: nothing is ever read by a shell."""
    hostile = f"$(touch {tmp_path}/canary);`touch {tmp_path}/canary`\n; touch {tmp_path}/canary #é"
    assert run(("printf", "%s", hostile), timeout=10).stdout.decode() == hostile
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("argv", [(), ("",), ("ls", "a\0b"), ("ls", None), ("ls", b"x")])
def test_impossible_arguments_are_refused_before_anything_runs(argv: tuple[object, ...]) -> None:
    """M-02."""
    with pytest.raises(UsageError):
        run(argv, timeout=10)  # type: ignore[arg-type]


def test_a_missing_program_names_its_package() -> None:
    with pytest.raises(ToolMissing, match="no-such-program"):
        run(("no-such-program",), timeout=10)


def test_the_environment_is_minimal_and_in_the_c_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.setenv("PATH", "/tmp/evil")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    names = dict(line.split("=", 1) for line in run(("env",), timeout=10).stdout.decode().splitlines())
    assert names["LC_ALL"] == "C"
    assert "SECRET" not in names
    assert "/tmp/evil" not in names["PATH"]


def test_standard_input_is_empty() -> None:
    assert run(("cat",), timeout=10).stdout == b""


def test_a_short_command_is_not_slowed_down() -> None:
    """A polling wait of 100 ms would be paid by every action."""
    run(("true",), timeout=10)
    seconds = []
    for _ in range(5):
        started = time.monotonic()
        run(("true",), timeout=10)
        seconds.append(time.monotonic() - started)
    assert min(seconds) < 0.08


def test_no_descriptor_is_left_open() -> None:
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        run(("true",), timeout=10)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_program_is_started_without_loading_asyncio() -> None:
    code = (
        "import sys; from mapper_core.process import run; run(('true',), timeout=10);"
        "print(sorted({'asyncio', 'importlib.metadata', 'sh'} & set(sys.modules)))"
    )
    assert run_python(code) == "[]"


def test_programs_can_be_started_inside_of_an_event_loop() -> None:
    code = (
        "import asyncio; from mapper_core.process import run\n"
        "async def main(): return run(('echo', 'started'), timeout=10).stdout.decode().strip()\n"
        "print(asyncio.run(main()))"
    )
    assert run_python(code) == "started"


def run_python(code: str) -> str:
    """Run a new interpreter, which has loaded nothing yet."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("lifetime", [Lifetime.OURS, Lifetime.OWN])
def test_a_program_outlives_us_unless_it_is_not_to(tmp_path: Path, lifetime: Lifetime) -> None:
    """A command that was killed is repeated: what it had begun must not happen after that has looked at the image."""
    say = f"echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; exec cat"
    script = f"""
from mapper_core.process import Lifetime, run
run(("sh", "-c", {say!r}), timeout=60, stdin=0, lifetime={lifetime})
"""
    # as long as its standard input is open, cat does not end by itself
    caller = subprocess.Popen((sys.executable, "-c", script), stdin=subprocess.PIPE)
    try:
        until = time.monotonic() + 30
        while not (tmp_path / "pid").exists():
            assert time.monotonic() < until and caller.poll() is None
            time.sleep(0.01)
        program = os.pidfd_open(int((tmp_path / "pid").read_text()))
        caller.kill()
        caller.wait(30)
        is_ours = lifetime is Lifetime.OURS
        assert bool(select.select([program], [], [], 30 if is_ours else 0.5)[0]) == is_ours
    finally:
        assert caller.stdin is not None
        caller.stdin.close()
        caller.kill()
        caller.wait(30)
    assert select.select([program], [], [], 30)[0]
    os.close(program)
