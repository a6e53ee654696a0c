"""The harness itself (the conftest.py of the tree): each of its promises is broken once, in a run of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mapper_core.testing import report

pytestmark = pytest.mark.packaging

ROOT = Path(__file__).parents[2]

HEAD = """
import ctypes, fcntl, os, socket, subprocess, tempfile
import pytest
pytestmark = pytest.mark.{tier}
"""


class Inner:
    """A small tree with the conftest.py of this one.

    :param root: where it is.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "tests").mkdir(parents=True)
        for file in ("conftest.py", "pyproject.toml", "tests/expected-skips.txt"):
            shutil.copy(ROOT / file, root / file)

    def write(self, tier: str, body: str, folder: str | None = None) -> None:
        file = self.root / "tests" / (folder or tier) / "test_inner.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text((HEAD.format(tier=tier) if tier else "") + body, encoding="utf-8")

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            (sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "--settle", "0.3", *arguments, "tests"),
            cwd=self.root,
            env={**os.environ, "MAPPER_TEST_SHARED_HOST": "1", "MAPPER_TEST_REPORT": "", **environment},
            capture_output=True,
            text=True,
            timeout=100,
        )


@pytest.fixture
def inner(tmp_path: Path) -> Inner:
    return Inner(tmp_path / "tree")


def outcomes(result: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """Test name -> PASSED, FAILED or ERROR, from the short summary."""
    found = re.findall(r"^(PASSED|FAILED|ERROR) \S+::(\w+)", result.stdout, re.MULTILINE)
    return {name: outcome for outcome, name in found}


def test_the_guard_stops_a_unit_test_that_does_more(inner: Inner) -> None:
    inner.write(
        "unit",
        """
def test_subprocess(): subprocess.run(["true"])
def test_fork():
    if os.fork() == 0: os._exit(0)
def test_system(): os.system("true")
def test_spawn(): os.posix_spawn("/bin/true", ["true"], {})
def test_device(): os.open("/dev/loop-control", os.O_RDWR)
def test_ioctl(): fcntl.ioctl(0, 0x4C05)
def test_network(): socket.create_connection(("127.0.0.1", 9))
def test_mount(): ctypes.CDLL(None).mount
def test_swallowed():
    try: subprocess.run(["true"])
    except BaseException: pass
@pytest.fixture
def fixture(): subprocess.run(["true"])
def test_in_a_fixture(fixture): pass
def test_quiet(): pass
""",
    )
    result = inner.run("--tier", "unit")
    assert result.returncode == 1, result.stdout
    expected = dict.fromkeys(
        re.findall(r"^def (test_\w+)", (inner.root / "tests/unit/test_inner.py").read_text(), re.M)
    )
    assert len(expected) == 11
    assert outcomes(result) == {
        **dict.fromkeys(expected, "FAILED"),
        "test_in_a_fixture": "ERROR",
        "test_quiet": "PASSED",
    }


def test_other_tiers_are_not_guarded(inner: Inner) -> None:
    inner.write("packaging", "def test_subprocess(): subprocess.run(['true'], check=True)\n")
    assert inner.run().returncode == 0


@pytest.mark.parametrize(
    ("tier", "folder", "complaint"),
    [("", "unit", "needs the marker of one tier"), ("root", "unit", "is marked root but lies in tests/unit")],
)
def test_a_test_without_its_tier_is_refused(inner: Inner, tier: str, folder: str, complaint: str) -> None:
    inner.write(tier, "def test_it(): pass\n", folder)
    result = inner.run()
    assert result.returncode == 4
    assert complaint in result.stdout + result.stderr


def test_tiers_are_chosen_and_counted(inner: Inner) -> None:
    inner.write("unit", "def test_a(): pass\ndef test_b(): pass\n")
    inner.write("packaging", "def test_c(): pass\ndef test_d(): assert False\n")
    result = inner.run()
    assert result.returncode == 1
    assert re.search(r"^unit +2 +0 +0 ", result.stdout, re.M)
    assert re.search(r"^packaging +1 +1 +0 ", result.stdout, re.M)
    result = inner.run("--tier", "unit")
    assert result.returncode == 0
    assert outcomes(result) == {"test_a": "PASSED", "test_b": "PASSED"}


def test_a_chosen_tier_without_tests_is_a_failure(inner: Inner) -> None:
    inner.write("unit", "def test_a(): pass\n")
    result = inner.run("--tier", "unit", "--tier", "packaging")
    assert result.returncode == 5
    assert re.search(r"^packaging +0 +0 +0 .*no tests", result.stdout, re.M)


SKIPS = """
def test_skips(): pytest.skip("the moon is full")
@pytest.mark.xfail(reason="known to fail", strict=True)
def test_expected_failure(): assert False
"""


def test_a_skip_is_a_failure_where_nothing_may_be_skipped(inner: Inner) -> None:
    inner.write("unit", SKIPS)
    assert inner.run().returncode == 0
    result = inner.run("--nothing-skipped")
    assert result.returncode == 1
    assert outcomes(result) == {"test_skips": "FAILED", "test_expected_failure": "FAILED"}
    (inner.root / "tests/expected-skips.txt").write_text("# why\nthe moon is full\nknown to fail\n")
    assert inner.run("--nothing-skipped").returncode == 0


def test_a_file_that_skips_itself_is_a_failure_where_nothing_may_be_skipped(inner: Inner) -> None:
    inner.write("unit", "pytest.importorskip('a_module_that_is_not_there')\ndef test_a(): pass\n")
    assert inner.run("--nothing-skipped").returncode not in (0, 5)


def test_what_a_test_leaves_behind_fails_it_and_is_taken_away(inner: Inner) -> None:
    inner.write(
        "root",
        """
def test_loop(tmp_path):
    (tmp_path / "a").write_bytes(bytes(1 << 20))
    subprocess.run(["losetup", "--find", tmp_path / "a"], check=True)
def test_mount(tmp_path): subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path], check=True)
def test_descriptor(): os.open("/etc/passwd", os.O_RDONLY)
def test_file(runtime_dir):
    (runtime_dir / "disks").mkdir()
    (runtime_dir / "disks" / "x").touch()
CHILD = []
def test_child(): CHILD.append(subprocess.Popen(["sleep", "60"]))
def test_the_child_was_ended(): assert CHILD.pop().wait(timeout=10) == -15
def test_clean(runtime_dir):
    assert os.environ["MAPPER_RUNTIME_DIR"] == str(runtime_dir)
    assert runtime_dir.stat().st_mode & 0o777 == 0o700 and len(str(runtime_dir)) <= 45
""",
    )
    base = Path("/tmp") / f"mapper-inner-{os.getpid()}"
    try:
        result = inner.run("--basetemp", str(base))
        assert result.returncode == 1, result.stdout
        assert outcomes(result) == {
            **dict.fromkeys(("test_loop", "test_mount", "test_descriptor", "test_file", "test_child"), "ERROR"),
            **dict.fromkeys(("test_the_child_was_ended", "test_clean"), "PASSED"),
        }
        assert str(base) not in Path("/proc/self/mountinfo").read_text()
        assert str(base) not in subprocess.run(("losetup", "--all"), capture_output=True, text=True).stdout
    finally:
        shutil.rmtree(base, ignore_errors=True)


@contextmanager
def other_user(directory: Path) -> Iterator[tuple[str, Path, subprocess.Popen[bytes]]]:
    """A mount, a loop device and a storage daemon of somebody else, which appear while an inner test runs."""
    image, target, go = directory / "image", directory / "target", directory / "go"
    image.write_bytes(bytes(1 << 20))
    target.mkdir()
    os.mkfifo(go)
    script = """
        set -e
        read -r _ <"$1/go"
        mount -t tmpfs none "$1/target"
        losetup --find --show "$1/image" >"$1/device"
        echo >"$1/done"
        exec qemu-nbd --persistent -f raw -k "$1/s" "$1/image"
    """
    os.mkfifo(directory / "done")
    process = subprocess.Popen(["sh", "-c", script, "sh", str(directory)], stdin=subprocess.DEVNULL)
    try:
        yield str(directory), target, process
    finally:
        process.kill()
        process.wait()
        subprocess.run(("umount", str(target)), capture_output=True)
        if (directory / "device").exists():
            subprocess.run(("losetup", "--detach", (directory / "device").read_text().strip()), capture_output=True)


def test_cleaning_up_never_touches_what_belongs_to_others(inner: Inner, tmp_path: Path) -> None:
    """Where everything counts, foreign things do fail a test; they must not be unmounted, detached or ended."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    inner.write(
        "root",
        f"""
def test_while_somebody_else_works():
    with open("{theirs}/go", "w") as file: file.write("go\\n")
    with open("{theirs}/done") as file: file.read()
""",
    )
    base = Path("/tmp") / f"mapper-inner-{os.getpid()}"
    try:
        with other_user(theirs) as (_, target, process):
            result = inner.run("--basetemp", str(base), MAPPER_TEST_SHARED_HOST="0")
            assert f"leak: mount: none on {target}" in result.stdout
            assert outcomes(result) == {"test_while_somebody_else_works": "ERROR"}
            assert os.path.ismount(target)
            assert Path((theirs / "device").read_text().strip()).name in os.listdir("/sys/block")
            device = Path((theirs / "device").read_text().strip()).name
            assert Path(f"/sys/block/{device}/loop/backing_file").read_text().strip() == str(theirs / "image")
            assert process.poll() is None
    finally:
        shutil.rmtree(base, ignore_errors=True)


def test_what_tests_count_is_printed_and_written(inner: Inner, tmp_path: Path) -> None:
    inner.write(
        "security",
        """
def test_one(report): report.count("images", cases=1, runs=2, refused=2)
def test_two(report): report.count("images", cases=1, runs=3)
""",
    )
    inner.write("packaging", "def test_three(): open('/dev/null').close()\n")
    file = tmp_path / "report.json"
    result = inner.run(MAPPER_TEST_REPORT=str(file))
    assert result.returncode == 0, result.stdout
    assert re.search(r"^security: images +2 +5 +2 +0 +0$", result.stdout, re.M), result.stdout
    assert report.main([str(file), str(file), "--write", str(tmp_path / "sum.json")]) == 0
    (entry,) = json.loads((tmp_path / "sum.json").read_text())["report"]
    assert entry == {
        "tier": "security",
        "subject": "images",
        "cases": 4,
        "runs": 10,
        "refused": 4,
        "leaks": 0,
        "canary": 0,
    }


def test_leaks_are_in_the_report_and_make_it_fail(inner: Inner, tmp_path: Path) -> None:
    inner.write("packaging", "def test_leak(): os.open('/dev/null', os.O_RDONLY)\n")
    file = tmp_path / "report.json"
    result = inner.run(MAPPER_TEST_REPORT=str(file))
    assert result.returncode == 1
    assert re.search(r"^packaging: left behind by tests +0 +0 +0 +1 +0$", result.stdout, re.M), result.stdout
    assert report.main([str(file)]) == 1
    assert report.main([str(tmp_path / "missing.json")]) == 1
