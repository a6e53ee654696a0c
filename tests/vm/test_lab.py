"""The lab itself: what a job gets and gives, and that a machine never outlives the command that runs it."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.packaging.conftest import ROOT

from .conftest import LAB, why_not

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1500)]


@pytest.fixture(autouse=True)
def built() -> None:
    if reason := why_not():
        pytest.skip(reason)
    assert subprocess.run([LAB, "build"], check=False, timeout=1400).returncode == 0


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def machines(directory: str) -> list[int]:
    """Emulators that run for a work directory."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    words = file.read()
            except OSError:
                continue
            if words.startswith(b"qemu-system") and directory.encode() in words:
                found.append(int(name))
    return found


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache of the test's own with the image that is built, so that its machines can be told from others."""
    status = subprocess.run([LAB, "status"], capture_output=True, text=True, check=True).stdout
    image = Path(status.split()[1].rstrip(","))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / image.name).symlink_to(image)
    return tmp_path / "cache"


def test_a_job_gets_its_files_and_gives_its_results(tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "given/file").write_text("from the host\n")
    job = script(
        tmp_path / "job",
        f'cat {tmp_path}/given/file; uname -r; echo "$2" >&2; mkdir "$RESULTS/d"; echo x >"$RESULTS/d/it\'s"; exit 7',
    )
    argv = [
        str(LAB),
        "run",
        f"--put={tmp_path}/given",
        f"--results={tmp_path}/back",
        "--timeout=240",
        str(job),
        "a",
        "b c'd",
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 7, done.stderr
    first, kernel, error = done.stdout.splitlines()
    assert (first, error) == ("from the host", "b c'd")
    assert kernel.startswith("6.1.")
    assert (tmp_path / "back/d/it's").read_text() == "x\n"


def test_a_job_that_takes_too_long(tmp_path: Path, cache: Path) -> None:
    job = script(tmp_path / "job", "sleep 1000")
    argv = [str(LAB), "--cache", str(cache), "run", "--timeout=3", str(job)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 125
    assert "the job was not done after 3 s" in done.stderr
    assert machines(str(cache)) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_machine_ends_with_the_command(tmp_path: Path, cache: Path, number: signal.Signals) -> None:
    """Also when that is killed; what it leaves then, the next one removes."""
    job = script(tmp_path / "job", "sleep 1000")
    lab = subprocess.Popen([LAB, "--cache", cache, "run", job], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 30
    while not (found := machines(str(cache))):
        assert time.monotonic() < until
        time.sleep(0.05)
    machine = os.pidfd_open(found[0])
    try:
        lab.send_signal(number)
        assert lab.wait(30) == (-number if number == signal.SIGKILL else 130)
        assert select.select([machine], [], [], 30)[0]
    finally:
        os.close(machine)
    subprocess.run([LAB, "--cache", cache, "run", "--timeout=0.1", job], capture_output=True, check=False, timeout=60)
    assert [name for name in os.listdir(cache) if name.startswith("run-")] == []


def test_a_change_of_what_it_is_made_from_makes_it_new(tmp_path: Path) -> None:
    """Nothing is built here: the question is whether the old one would be taken."""
    shutil.copytree(ROOT / "labs", tmp_path / "labs")
    cache = os.environ.get("MAPPER_LAB_CACHE") or str(ROOT / ".mapper-lab/vm")
    argv = [str(tmp_path / "labs/vm"), "--cache", cache, "status"]
    assert subprocess.run(argv, capture_output=True, check=False).returncode == 0
    with (tmp_path / "labs/vm.d/packages.txt").open("a") as file:
        file.write("hello\n")
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stdout.startswith("not built")


def test_a_host_without_the_programs_is_told_which(tmp_path: Path) -> None:
    environment = {"PATH": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"}
    argv = ["/usr/bin/python3", str(ROOT / "labs/vm.d"), "--cache", str(tmp_path / "c"), "build"]
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert "apt-get install --no-install-recommends" in done.stderr
    assert "qemu-system-x86" in done.stderr
    assert "Traceback" not in done.stderr
