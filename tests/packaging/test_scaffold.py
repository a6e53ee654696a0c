"""What ``mapper-cli plugin new`` writes is complete but for one function; as nobody, since that part of the tests needs no root."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Author, run
from .test_unprivileged import AS_NOBODY, NOBODY

# wheels are built and a whole suite is run in one test: longer than others, on a busy host
pytestmark = [pytest.mark.packaging, pytest.mark.timeout(600)]


@pytest.fixture
def workshop() -> Iterator[Path]:
    """A directory of nobody's."""
    path = Path("/tmp") / f"mapper-scaffold-{os.getpid()}"
    path.mkdir(0o700)
    os.chown(path, NOBODY, NOBODY)
    yield path
    shutil.rmtree(path)


def test_as_it_is_written(author: Author, workshop: Path) -> None:
    """Style and types are right; the tests that fail are those of the function that is left, and they name it."""
    made = subprocess.run(
        (*AS_NOBODY, author.path / "mapper-cli", "plugin", "new", "cow_2"),
        cwd=workshop, env=author.environment, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    project = Path(made.stdout.strip())
    assert project == workshop / "mapper-cow-2"
    author.check(project)
    install = (
        "-m",
        "pip",
        "--python",
        author.path / "python",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
    )
    run(sys.executable, *install, project)
    tests = subprocess.run(
        (*AS_NOBODY, author.path / "pytest", "-p", "no:cacheprovider", "-rA", f"--basetemp={workshop}/t"),
        cwd=project, env={**author.environment, "TMPDIR": str(workshop)}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    outcomes = {
        name: outcome for outcome, name in re.findall(r"^(PASSED|FAILED) \S+::(\w+)", tests.stdout, re.MULTILINE)
    }
    passed = {name for name, outcome in outcomes.items() if outcome == "PASSED"}
    assert {"test_the_plugin_is_installed_and_usable", "test_importing_it_is_cheap"} <= passed, tests.stdout
    failed = set(outcomes) - passed
    assert failed and "test_the_header_says_the_size" in failed, tests.stdout
    assert re.search(r"^not run: \d+, because this process cannot loop and mount", tests.stdout, re.MULTILINE)


def test_its_ci_runs_what_its_readme_says(author: Author, tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    made = author.run(tmp_path, "mapper-cli", "plugin", "new", "vpc")
    project = Path(made.stdout.strip())
    workflow = yaml.safe_load((project / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    steps = [step["run"] for step in workflow["jobs"]["test"]["steps"] if "run" in step]
    readme = (project / "README.md").read_text(encoding="utf-8")
    for command in ("pip install ../mapper -e '.[dev]'", "ruff check .", "ruff format --check .", "mypy", "pytest"):
        assert command in steps
        assert command in readme
