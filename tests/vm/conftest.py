"""Runs the tests of ``inside/`` in a virtual machine, and reports each of them here as if it had run here.

The host collects them; when the first one's turn comes, one machine is started and runs all that were chosen. Its pytest writes
every report to a file (``inside/conftest.py``), and these reports are handed on here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests.packaging.conftest import ROOT, build_wheelhouse

INSIDE = Path(__file__).parent / "inside"
LAB = ROOT / "labs" / "vm"
PROGRAM = "qemu-system-x86_64"
SECONDS = 2400  # on a busy host; alone it takes a quarter of that
#: Of one test, which takes at most 30 on a machine of its own.
TEST_SECONDS = 400
#: What the machine gets of the tree: the tests and their settings, but no code of the product, which comes from the wheels.
TREE = (
    "pyproject.toml",
    "conftest.py",
    "tests/expected-skips.txt",
    "tests/vm/inside",
    "tests/root/core",
    "tests/ceph",
    "labs",
)
#: The tests are run by these, whose versions are those of the host.
TOOLS = ("pytest", "pytest-timeout")
KEY = pytest.StashKey["Machine"]()


class Machine:
    """The one run in the machine that belongs to this session.

    :param reports: by node id, in the order in which they were made.
    :param problem: why there are none.
    :param figures: how long what took, for people.
    """

    def __init__(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        self.reports: dict[str, list[pytest.TestReport]] = {}
        self.problem = ""
        self.figures = ""
        with tempfile.TemporaryDirectory(prefix="mapper-vm-") as directory:
            try:
                self._run(config, [item.nodeid for item in items], Path(directory))
            except (OSError, subprocess.SubprocessError, AssertionError) as error:
                self.problem = f"the virtual machine could not be used: {error}"

    def _run(self, config: pytest.Config, nodeids: list[str], directory: Path) -> None:
        began = time.monotonic()
        built = subprocess.run([LAB, "build"], capture_output=True, text=True, check=False, timeout=1500)
        assert built.returncode == 0, built.stderr
        disk = time.monotonic()
        (directory / "wheels").mkdir()
        tools = [f"{name}=={_version(name)}" for name in TOOLS]
        wheelhouse = build_wheelhouse(directory / "wheels", directory / "sources", *tools)
        python = wheelhouse.environment(directory / "venv", *wheelhouse.wheels, *tools) / "python"
        shutil.rmtree(directory / "wheels")
        packed = time.monotonic()

        nothing_skipped = ["--nothing-skipped"] if config.getoption("nothing_skipped") else []
        options = ["-p", "no:cacheprovider", f"--timeout={TEST_SECONDS}", *nothing_skipped]
        argv = [str(python), "-m", "pytest", *options, *nodeids]
        script = directory / "job"
        words = " ".join("'" + word.replace("'", "'\\''") + "'" for word in argv)
        limit = f"timeout --signal=INT --kill-after=20 {SECONDS - 60}"  # or there would be no reports
        script.write_text(f"#!/bin/sh\ncd '{ROOT}' || exit\nexec {limit} {words}\n")
        script.chmod(0o755)
        puts = [f"--put={path}" for path in (directory / "venv", *(ROOT / name for name in TREE))]
        results = directory / "results"
        run = [str(LAB), "run", f"--timeout={SECONDS}", f"--results={results}", *puts, str(script)]
        done = subprocess.run(run, capture_output=True, text=True, check=False, timeout=SECONDS + 120, errors="replace")
        ended = time.monotonic()
        lines = results / "reports.jsonl"
        for line in lines.read_text().splitlines() if lines.exists() else ():
            report = config.hook.pytest_report_from_serializable(config=config, data=json.loads(line))
            self.reports.setdefault(report.nodeid, []).append(report)
        if len(self.reports) < len(nodeids):
            tail = "\n".join(done.stdout.splitlines()[-60:])
            self.problem = f"the run in the virtual machine was not complete\n{tail}\n{done.stderr}"
        self.figures = (
            f"disk of the machine: {disk - began:.0f} s, wheels: {packed - disk:.0f} s, "
            f"{len(self.reports)} tests in the machine: {ended - packed:.0f} s"
        )


def _version(name: str) -> str:
    from importlib.metadata import version

    return version(name)


def _is_inside(item: pytest.Item) -> bool:
    return item.path.is_relative_to(INSIDE)


def why_not() -> str:
    """Why there can be no machine on this host; empty when there can."""
    missing = [program for program in (PROGRAM, "mmdebstrap", "cpio", "modprobe") if shutil.which(program) is None]
    if missing:
        return f"no virtual machine: {', '.join(missing)} not found (scripts/setup installs what is needed)"
    if os.geteuid() != 0 and subprocess.run([LAB, "status"], capture_output=True, check=False).returncode != 0:
        return "no virtual machine: its disk is not built yet, which needs root (labs/vm build)"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _is_inside(item):
            item.add_marker(pytest.mark.timeout(0))  # the machine has a time limit of its own


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Hand the reports on; without any, go on as usual, which fails or skips in the set-up."""
    if not _is_inside(item) or why_not():
        return None
    stash = item.config.stash
    if KEY not in stash:
        stash[KEY] = Machine(item.config, [other for other in item.session.items if _is_inside(other)])
    reports = stash[KEY].reports.get(item.nodeid)
    if not reports:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if not _is_inside(item):
        return
    if reason := why_not():
        pytest.skip(reason)
    pytest.fail(item.config.stash[KEY].problem or "the virtual machine reported nothing about this test", pytrace=False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    stash = terminalreporter.config.stash
    if KEY in stash:
        terminalreporter.section("virtual machine")
        terminalreporter.line(stash[KEY].figures or stash[KEY].problem)
