"""scripts/demo, as a user runs it: to the end, interrupted, and killed at random moments."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import select
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mapper_core.runtime import ENVIRONMENT
from mapper_core.testing import leaks

pytestmark = [pytest.mark.lxd, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
#: Longer than the demo may take on two processors that others use as well; alone it takes 7 s.
SECONDS = 120
MOMENTS = 10


@dataclass
class Demo:
    """One demo in a directory and a runtime directory of its own.

    :param directory: for ``--dir``.
    :param runtime: for ``MAPPER_RUNTIME_DIR``.
    """

    directory: Path
    runtime: Path
    before: leaks.Snapshot = field(init=False)

    def __post_init__(self) -> None:
        self.before = leaks.snapshot((str(self.runtime),))

    @property
    def vm(self) -> int:
        return 900_000 + zlib.crc32(str(self.directory).encode()) % 100_000

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, ENVIRONMENT: str(self.runtime)}

    def start(self, *options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(ROOT / "scripts/demo"), "--dir", str(self.directory), *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment,
            start_new_session=True,
        )

    def finish(self, process: subprocess.Popen[str]) -> str:
        """Wait for its end; return what it printed."""
        return process.communicate(timeout=SECONDS)[0]

    def run(self, *options: str) -> tuple[int, str]:
        process = self.start(*options)
        printed = self.finish(process)
        return process.returncode, printed

    def reconcile(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / "mapper-cli"), "reconcile"],
            capture_output=True,
            text=True,
            timeout=60,
            env=self.environment,
            check=False,
        )

    def watchdogs(self) -> list[int]:
        """Processes that wait for the death of the demo, or clean up after it."""
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError):
                    words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
                    if str(self.directory).encode() in words and any(b"scripts/demo.d" in word for word in words):
                        found.append(int(name))
        return found

    def wait_for_watchdog(self) -> None:
        deadline = time.monotonic() + SECONDS
        while pids := self.watchdogs():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    fd = os.pidfd_open(pid)
                    assert select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0], "it does not end"
                    os.close(fd)

    def left(self) -> list[str]:
        """Everything that should be gone, also what the oracle does not know: the daemon, its bridge, the files."""
        scope = (str(self.directory), str(self.runtime)) if os.environ.get("MAPPER_TEST_SHARED_HOST") == "1" else None
        items = leaks.wait_for_none(self.before, 5.0, (str(self.runtime),), scope).items
        found = [item.text for item in items if item.kind not in leaks.OWN]
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError):
                    if f"MAPPER_DEMO={self.directory}".encode() in Path(f"/proc/{name}/environ").read_bytes():
                        found.append(Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode())
        bridge = Path("/sys/class/net/mlab" + hashlib.sha256(f"{self.directory}/lxd".encode()).hexdigest()[:8])
        nic = Path(f"/sys/class/net/one-{self.vm}-0")
        found += [str(path) for path in (bridge, nic, self.directory / "datastores", self.directory) if path.exists()]
        return found


def _demo(runtime: Path, name: str) -> Iterator[Demo]:
    demo = Demo(Path(f"/run/mapper-demo-{os.getpid()}-{name}"), runtime)  # short, for the daemon's sockets
    yield demo
    if demo.directory.exists():
        demo.run("--down")


@pytest.fixture
def demo(runtime_dir: Path) -> Iterator[Demo]:
    yield from _demo(runtime_dir, "t")


@dataclass(frozen=True)
class Told:
    """A demo that ran to its end."""

    status: int
    printed: str
    seconds: float
    left: tuple[str, ...]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    runtime = tmp_path_factory.getbasetemp() / "rdemo"
    for demo in _demo(runtime, "m"):
        began = time.monotonic()
        status, printed = demo.run()
        yield Told(status, printed, time.monotonic() - began, tuple(demo.left()))


def test_from_end_to_end(told: Told) -> None:
    """The main job: it shows what it promises, in time, and nothing is left (L-01, L-04, L-06, P-01, U-11)."""
    assert told.status == 0, told.printed
    assert told.left == ()
    assert told.seconds < 180
    assert told.printed.count("leaks: 0\n") == 1
    for tag in ("UUID=", "LABEL=", "PARTUUID="):
        assert re.search(rf"^ +{tag}\S+ /", told.printed, re.MULTILINE), tag
    for target in ("/", "/boot", "/home", "/data"):
        assert re.search(rf"^ +{target} +/dev/\S+ +ext4 +rw,\S*idmapped", told.printed, re.MULTILINE), target
    host = re.search(r"its user 0 is user (\d+) of the host", told.printed)
    assert host is not None and int(host[1]) > 0
    assert re.search(r"^ +/etc/fstab +belongs to 0:0 inside", told.printed, re.MULTILINE)
    assert f"/etc/fstab belongs to {host[1]}:{host[1]} on the host" in told.printed
    for path, owner in (("/root/written", "0:0"), ("/home/user/written", "1000:1000"), ("/data/written", "0:0")):
        assert re.search(rf"^ +{path} +{owner} +user {owner.split(':')[0]} wrote", told.printed, re.MULTILINE), path
    assert len(re.findall(r"done in [0-9.]+ s, [0-9.]+ s of that in the daemon", told.printed)) == 2


def test_interrupted(demo: Demo) -> None:
    """^C while the action script is at work, and a second one while it is cleaning up (M-29)."""
    process = demo.start("--verbose")
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "$ " in line and "/vmm/lxd/deploy" in line:
            process.send_signal(signal.SIGINT)
        if "interrupted by SIGINT" in line:
            process.send_signal(signal.SIGINT)
    demo.finish(process)
    printed = "".join(lines)
    assert process.returncode == 128 + signal.SIGINT, printed
    assert "interrupted by SIGINT" in printed and "leaks: 0\n" in printed
    assert demo.left() == []


def test_kept_and_ended_later(demo: Demo) -> None:
    status, printed = demo.run("--keep")
    assert status == 0, printed
    assert demo.watchdogs() == []
    shown = subprocess.run(
        ["sh", "-c", re.search(r"^ +(eval .*)$", printed, re.MULTILINE)[1] + "; lxc list --format json"],  # type: ignore[index]
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert [one["status"] for one in json.loads(shown.stdout)] == ["Running"]
    # the daemon of the demo is none that reconcile would ask, but the container runs
    assert demo.reconcile().stdout == ""
    status, printed = demo.run()
    assert status == 1 and "scripts/demo --down" in printed
    status, printed = demo.run("--down")
    assert status == 0, printed
    assert "user 0 wrote this into /root" in printed and "leaks: 0\n" in printed
    assert demo.left() == []


def test_killed_at_random_moments(demo: Demo, told: Told) -> None:
    """kill -9, then ``mapper-cli reconcile``: nothing is left, wherever it was (M-29, U-11)."""
    seed = int(os.environ.get("MAPPER_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    source = random.Random(seed)
    print(f"MAPPER_TEST_SEED={seed}")
    for number in range(MOMENTS):
        moment = (number + source.random()) / MOMENTS * told.seconds  # one in each tenth of its time
        demo.before = leaks.snapshot((str(demo.runtime),))
        process = demo.start()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment)  # it may be faster this time
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if number % 2 else os.kill)(process.pid, signal.SIGKILL)
        first = demo.reconcile()
        assert process.stdout is not None
        printed = demo.finish(process).splitlines()
        assert process.returncode in (0, -signal.SIGKILL), "\n".join(printed)
        demo.wait_for_watchdog()
        last = demo.reconcile()
        found = demo.left()
        print(f"{moment:.2f} s, after: {printed[-1:]}; reconcile: {first.stdout or first.returncode}; left: {found}")
        assert (last.returncode, last.stdout, last.stderr) == (0, "", "")
        assert found == []
        # while the watchdog is still stopping the container, its disks may be in use
        assert first.returncode == 0 or " is in use" in first.stderr, first.stderr


def test_killed_with_its_watchdog(demo: Demo) -> None:
    """Without a watchdog somebody has to stop the daemon; Mapper's own things need reconcile only."""
    process = demo.start("--verbose")
    assert process.stdout is not None
    for line in process.stdout:
        if "$ " in line and "/vmm/lxd/shutdown" in line:
            break
    for pid in demo.watchdogs():  # itself, too
        os.kill(pid, signal.SIGKILL)
    demo.finish(process)
    demo.wait_for_watchdog()
    subprocess.run([str(ROOT / "labs/lxd"), "down", f"{demo.directory}/lxd"], timeout=90, check=True)
    done = demo.reconcile()
    assert done.returncode == 0, done.stderr
    assert set(demo.left()) == {str(demo.directory / "datastores"), str(demo.directory)}, "the files are there"
    status, printed = demo.run("--down")
    assert status == 0, printed
    assert demo.left() == []
