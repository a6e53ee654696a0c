"""The pytest plugin of mapper-core: what the conformance tests need, and their report.

It is an entry point of the group ``pytest11``, so it is there wherever mapper-core and pytest are; until a test asks for
something it does nothing, and it changes no other test. Its fixtures:

``runtime_dir``
    an empty runtime directory of the test's own, also in ``MAPPER_RUNTIME_DIR``: the host's is never used.
``leak_oracle``
    fails the test that leaves something of its own in use: devices, mounts, servers, descriptors, files.
``privilege``
    why this process cannot map disks; empty when it can.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mapper_core.testing.guard import Guard
from mapper_core.testing.summary import Summary

pytest.register_assert_rewrite("mapper_core.testing.conformance")

MARKER = "mapper_kit"
_NUMBERS = itertools.count(1)
_SUMMARY = pytest.StashKey[Summary]()


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker of the conformance tests known."""
    config.addinivalue_line("markers", f"{MARKER}(topic, hooks): what a conformance test of a Mapper plugin proves")


@pytest.fixture(scope="session")
def privilege() -> str:
    """Why this process cannot attach a loop device and mount it; empty when it can, which has been tried."""
    from mapper_core.testing.oracle import missing_privilege

    return missing_privilege()


@pytest.fixture(scope="session")
def program_guard() -> Guard:
    """Stops, within ``watch()``, whoever starts a program, opens a device or talks to the network."""
    guard = Guard()
    guard.install()
    return guard


@pytest.fixture
def runtime_dir(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty runtime directory of this test's own, also in ``MAPPER_RUNTIME_DIR``.

    Its path is short, for the unix sockets in it (107 bytes, unix(7)).
    """
    from mapper_core.runtime import ENVIRONMENT, MAX_LENGTH

    path = tmp_path_factory.getbasetemp() / f"r{next(_NUMBERS)}"
    is_long = len(os.fsencode(path)) > MAX_LENGTH
    if is_long:
        path = Path(tempfile.mkdtemp(prefix="mapper-kit-", dir="/tmp"))
    else:
        path.mkdir(0o700)
    monkeypatch.setenv(ENVIRONMENT, str(path))
    yield path
    if is_long:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def leak_oracle(tmp_path: Path, runtime_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail the test that leaves something in use that belongs to this run's directories, and take that away."""
    from mapper_core.testing import leaks, oracle

    own = (str(tmp_path_factory.getbasetemp()), str(runtime_dir))
    before = leaks.snapshot(own[1:])
    yield
    if found := oracle.left(before, own[1:], own, own):
        pytest.fail(f"the test has left something behind\n{found}", pytrace=False)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Note which tests are conformance tests, of which class, and what they prove."""
    for item in items:
        if (mark := item.get_closest_marker(MARKER)) and isinstance(item, pytest.Function) and item.cls:
            if _SUMMARY not in config.stash:
                config.stash[_SUMMARY] = Summary()
            # a property of the reports, so that it is there wherever they are written or sent to
            item.user_properties.append((MARKER, f"{item.cls.format}\t{item.cls.__name__}\t{mark.kwargs['topic']}"))


class _Reports:
    """Hands the reports on; they do not know their session."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if summary := self._config.stash.get(_SUMMARY, None):
            summary.add(report)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Listen to the reports."""
    session.config.pluginmanager.register(_Reports(session.config))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was proved of each plugin."""
    if summary := terminalreporter.config.stash.get(_SUMMARY, None):
        for title, lines in summary.sections():
            terminalreporter.section(title)
            terminalreporter.write("\n".join([*lines, ""]))
