"""What all tests of this tree share, those of the plugins and of the driver included.

- Each test belongs to one tier, by a marker; in ``tests/TIER/`` it must be that of the folder.
- Unit tests are guarded: no process, no device, no network (:mod:`mapper_core.testing.guard`).
- After each other test the leak oracle (:mod:`mapper_core.testing.leaks`) counts what it has left behind.
- ``--tier`` chooses, ``--nothing-skipped`` makes a skip a failure, and a table of the tiers ends the run.
- Tests count what they have tried with the fixture ``report`` (:mod:`mapper_core.testing.report`).

With ``MAPPER_TEST_SHARED_HOST=1`` only leaks that belong to this run's own directories count: for a machine on which
others map and mount at the same time. It is not for CI.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

import pytest

from mapper_core.runtime import ENVIRONMENT
from mapper_core.testing import leaks, oracle
from mapper_core.testing.guard import Guard
from mapper_core.testing.report import ENVIRONMENT as REPORT_FILE
from mapper_core.testing.report import Counts, Report

#: In the order in which they run.
TIERS = ("unit", "root", "security", "lxd", "ceph", "vm", "crash", "packaging")
#: Tiers whose tests need a kernel that lets them loop and mount.
PRIVILEGED = ("root", "security", "lxd", "ceph", "crash")
ROOT = Path(__file__).parent
EXPECTED_SKIPS = ROOT / "tests" / "expected-skips.txt"
SHARED_HOST = os.environ.get("MAPPER_TEST_SHARED_HOST") == "1"
NUMBERS = itertools.count(1)
#: Where this run keeps its temporary files.
BASE = pytest.StashKey[str]()
REPORT = pytest.StashKey[Report]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mapper")
    group.addoption("--tier", action="append", choices=TIERS, help="run only this tier (repeatable)")
    group.addoption("--nothing-skipped", action="store_true", help="a skip that is not expected is a failure")
    group.addoption(
        "--settle",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="how long a resource may take to go away (default 5)",
    )
    group.addoption(
        "--crash-lives",
        default="1",
        metavar="N",
        help="lives of a machine in which the driver is killed (default 1); all",
    )
    group.addoption("--crash-daemon", default="lxd", choices=("lxd", "incus"), help="on which they live (default lxd)")
    group.addoption("--crash-all", action="store_true", help="at each point try every way to die and to recover")


def pytest_configure(config: pytest.Config) -> None:
    # What a script starts in the background ignores ^C, and so would all that the tests start and interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _give_hypothesis_time()
    config.pluginmanager.register(Tiers(tuple(config.getoption("tier") or ())))
    config.pluginmanager.register(Guarded())
    config.pluginmanager.register(WholeRun())
    config.stash[REPORT] = Report()
    config.pluginmanager.register(Reporting(config.stash[REPORT]))
    if config.getoption("nothing_skipped"):
        config.pluginmanager.register(NothingSkipped(_expected_skips()))


# --- tiers --------------------------------------------------------------------------------------------------


def _tier(item: pytest.Item) -> str:
    return next((mark.name for mark in item.iter_markers() if mark.name in TIERS), "")


def _tier_problem(item: pytest.Item) -> str:
    found = {mark.name for mark in item.iter_markers() if mark.name in TIERS}
    if len(found) != 1:
        return f"{item.nodeid}: needs the marker of one tier, has {sorted(found) or 'none'}"
    with suppress(ValueError):
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        if folder in TIERS and folder not in found:
            return f"{item.nodeid}: is marked {found.pop()} but lies in tests/{folder}"
    return ""


class Tiers:
    """Checks, chooses, orders and counts the tests by tier.

    :param chosen: the tiers to run; empty for all that were collected.
    """

    def __init__(self, chosen: tuple[str, ...]) -> None:
        self.chosen = chosen
        self.tier_of: dict[str, str] = {}
        self.outcome: dict[str, str] = {}
        self.seconds: Counter[str] = Counter()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        problems = [problem for item in items if (problem := _tier_problem(item))]
        if problems:
            raise pytest.UsageError("\n".join(problems))
        if self.chosen:
            config.hook.pytest_deselected(items=[item for item in items if _tier(item) not in self.chosen])
            items[:] = [item for item in items if _tier(item) in self.chosen]
        items.sort(key=lambda item: TIERS.index(_tier(item)))
        self.tier_of = {item.nodeid: _tier(item) for item in items}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # a test has three reports (setup, call, teardown); the worst of them is its outcome
        worse = ("failed", "skipped", "passed")
        known = self.outcome.get(report.nodeid, "passed")
        self.outcome[report.nodeid] = min(known, report.outcome, key=worse.index)
        self.seconds[self.tier_of[report.nodeid]] += report.duration  # type: ignore[assignment]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        missing = set(self.chosen) - set(self.tier_of.values())
        if missing and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("tiers")
        row = "{:10} {:>7} {:>7} {:>7} {:>8}"
        terminalreporter.line(row.format("tier", "passed", "failed", "skipped", "seconds"))
        for tier in TIERS:
            counts = Counter(outcome for test, outcome in self.outcome.items() if self.tier_of[test] == tier)
            if counts or tier in self.chosen:
                numbers = (counts["passed"], counts["failed"], counts["skipped"])
                note = "" if tier in self.tier_of.values() else "  no tests"
                terminalreporter.line(row.format(tier, *numbers, f"{self.seconds[tier]:.1f}") + note)


# --- skips --------------------------------------------------------------------------------------------------


def _give_hypothesis_time() -> None:
    """On a busy machine an example takes longer than its 0.2 s now and then. In the virtual machine there is no Hypothesis."""
    with suppress(ImportError):
        from hypothesis import settings

        settings.register_profile("busy", settings(), deadline=None)
        settings.load_profile("busy")


def _expected_skips() -> frozenset[str]:
    lines = (line.strip() for line in EXPECTED_SKIPS.read_text(encoding="utf-8").splitlines())
    return frozenset(line for line in lines if line and not line.startswith("#"))


class NothingSkipped:
    """Turns a skip, or an expected failure, into a failure.

    :param expected: reasons that are allowed.
    """

    def __init__(self, expected: frozenset[str]) -> None:
        self.expected = expected

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        self._judge(report)
        return report

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_make_collect_report(self) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        report = yield
        self._judge(report)
        return report

    def _judge(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped:
            return
        reason = str(getattr(report, "wasxfail", ""))
        if not reason and isinstance(report.longrepr, tuple):
            reason = report.longrepr[2].removeprefix("Skipped: ")
        if reason not in self.expected:
            report.outcome = "failed"
            report.longrepr = f"skipped, which is not allowed here: {reason}"


# --- report -------------------------------------------------------------------------------------------------


class Tally:
    """The report as one test sees it.

    :param tier: of the test.
    """

    def __init__(self, report: Report, tier: str) -> None:
        self._report = report
        self._tier = tier

    def count(
        self, subject: str, *, cases: int = 0, runs: int = 0, refused: int = 0, leaks: int = 0, canary: int = 0
    ) -> None:
        """Add to the numbers of a subject, see :class:`mapper_core.testing.report.Counts`."""
        self._report.count(self._tier, subject, Counts(cases, runs, refused, leaks, canary))


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Tally:
    """Where a test counts what it has tried: ``report.count("map qcow2", cases=1, runs=2, refused=1)``."""
    return Tally(request.config.stash[REPORT], _tier(request.node))


class Reporting:
    """Prints and writes the report at the end of the run.

    :param report: of the run.
    """

    def __init__(self, report: Report) -> None:
        self.report = report

    def pytest_unconfigure(self) -> None:
        if path := os.environ.get(REPORT_FILE):
            self.report.write(path)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if lines := self.report.lines():
            terminalreporter.section("report")
            terminalreporter.write("\n".join([*lines, ""]))


# --- guards -------------------------------------------------------------------------------------------------


class Guarded:
    """Runs unit tests under the guard, from set-up to teardown."""

    def __init__(self) -> None:
        self.guard = Guard()
        self.guard.install()

    def _watch(self, item: pytest.Item) -> AbstractContextManager[None]:
        return self.guard.watch() if _tier(item) == "unit" else nullcontext()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, None, None]:
        with self._watch(item):
            yield

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, None, None]:
        with self._watch(item):
            yield

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, None, None]:
        with self._watch(item):
            yield


# --- leaks --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def _runtime_of_the_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For fixtures of modules and sessions: the host's own runtime directory is never used."""
    request.config.stash[BASE] = str(tmp_path_factory.getbasetemp())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENVIRONMENT, str(tmp_path_factory.getbasetemp() / "r0"))
        yield


@pytest.fixture(autouse=True)
def _runtime_of_the_test(runtime_dir: Path) -> None:
    """The host's own runtime directory is never used."""


@pytest.fixture
def short_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a short path for what a test itself makes, such as unix sockets. What stays in it is no leak."""
    path = tmp_path_factory.getbasetemp() / f"s{next(NUMBERS)}"
    path.mkdir(0o700)
    return path


@pytest.fixture(autouse=True)
def leak_oracle(
    request: pytest.FixtureRequest, runtime_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Fail the test that leaves something in use, and take that away so that the next one starts clean.

    Everything new is counted, unlike in the fixture of this name that the tests of plugins elsewhere have.
    """
    tier = _tier(request.node)
    if tier == "unit":
        yield
        return
    if tier in PRIVILEGED and (problem := request.getfixturevalue("privilege")):
        pytest.skip(problem)
    request.getfixturevalue("tmp_path")  # set up first, so that it is removed after the mounts in it
    runtime_dirs, own = (str(runtime_dir),), (str(tmp_path_factory.getbasetemp()),)
    scope = own if SHARED_HOST else None
    before = leaks.snapshot(runtime_dirs)
    yield
    found = oracle.left(before, runtime_dirs, own, scope, request.config.getoption("settle"))
    if found:
        request.config.stash[REPORT].count(tier, "left behind by tests", Counts(leaks=len(found)))
        pytest.fail(f"the test has left something behind\n{found}", pytrace=False)


class WholeRun:
    """Compares the host after the run with the host before: what fixtures of sessions and modules have left."""

    def __init__(self) -> None:
        self.before = leaks.Snapshot(())
        self.found = leaks.Leaks(())

    def pytest_sessionstart(self) -> None:
        self.before = leaks.snapshot(())

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        base = session.config.stash.get(BASE, None)
        seconds = session.config.getoption("settle")
        if base:  # otherwise no test ran
            self.found = leaks.wait_for_none(self.before, seconds, (f"{base}/r0",), (base,) if SHARED_HOST else None)
        if self.found:
            session.config.stash[REPORT].count("all", "left behind by the whole run", Counts(leaks=len(self.found)))
        if self.found and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.found:
            terminalreporter.section("left behind by the whole run", red=True)
            terminalreporter.line(str(self.found))
