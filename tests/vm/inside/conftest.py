"""Within the virtual machine: writes a report of every step of every test to ``$RESULTS``, from where the host takes them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mapper_core.mapping import Mapper
from mapper_core.testing import disks
from mapper_core.testing.disks import Part
from tests.root.core.conftest import make_system

from .kernel import load_nbd, trouble

RESULTS = os.environ.get("RESULTS", "")


class Reporter:
    """Writes reports as lines of JSON, each at once: what was done before a crash of the machine is not lost."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._file = Path(RESULTS, "reports.jsonl").open("a", buffering=1)  # noqa: SIM115 (closed with the process)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._file.write(json.dumps(data) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    if RESULTS:
        config.pluginmanager.register(Reporter(config))


@pytest.fixture(scope="session", autouse=True)
def modules() -> None:
    """The modules that an administrator loads; others the kernel loads by itself."""
    load_nbd()
    disks.run("modprobe", "-a", "loop", "dm_mod", "fuse")
    disks.run("udevadm", "settle", "--timeout=20")


@pytest.fixture(autouse=True)
def no_trouble_in_the_kernel() -> Iterator[None]:
    """M-03, M-07: no test makes the kernel complain."""
    before = trouble()
    yield
    assert trouble()[len(before) :] == []


@pytest.fixture
def mapper(runtime_dir: Path) -> Mapper:
    return Mapper.open()


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A raw image with one ext4."""
    return disks.make_filesystem(tmp_path / "bare.raw", Part("ext4", 16, ("-L", "data"), (("/hello", "world\n"),)))


@pytest.fixture(scope="session")
def system_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_system(tmp_path_factory.mktemp("system") / "system.raw")


@pytest.fixture
def system(system_once: Path, tmp_path: Path) -> Path:
    """A raw disk as installers make it: ESP, /boot, root, /home, swap."""
    disks.run("cp", "--sparse=always", str(system_once), str(tmp_path / "system.raw"))
    return tmp_path / "system.raw"


@pytest.fixture
def qcow2(system: Path) -> Path:
    return disks.convert(system, "qcow2", system.with_suffix(".qcow2"))
