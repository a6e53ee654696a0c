"""Wheels of all distributions, built once, and the wheels that they depend on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*argv: str | Path, cwd: Path | None = None) -> str:
    result = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, f"{argv}\n{result.stdout}{result.stderr}"
    return result.stdout


def projects() -> dict[str, Path]:
    """Distribution name -> its directory."""
    plugins = {f"mapper-{path.parent.name}": path.parent for path in sorted(ROOT.glob("plugins/*/pyproject.toml"))}
    return {"mapper-core": ROOT, **plugins, "mapper-driver": ROOT / "driver"}


@dataclass(frozen=True)
class Wheelhouse:
    """A directory of wheels; nothing else is installed from.

    :param wheels: distribution name -> wheel, for the distributions of this tree.
    """

    directory: Path
    wheels: dict[str, Path]

    def environment(self, directory: Path, *distributions: str) -> Path:
        """Make a clean virtual environment with some distributions in it, and return its ``bin``."""
        run("/usr/bin/python3", "-m", "venv", "--without-pip", directory)
        python = directory / "bin" / "python"
        if distributions:
            pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-compile")
            run(*pip, "--find-links", self.directory, *distributions)
        return directory / "bin"


@pytest.fixture(scope="session")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Wheelhouse:
    """The wheels, and those that they need to run."""
    return build_wheelhouse(tmp_path_factory.mktemp("wheelhouse"), tmp_path_factory.mktemp("sources") / "tree")


def build_wheelhouse(directory: Path, sources: Path, *others: str) -> Wheelhouse:
    """Build in a copy, as a release would be: no build directory or cache of the working tree gets into it.

    :param directory: for the wheels.
    :param sources: where the copy is for a while.
    :param others: more distributions to have there.
    """
    ignored = shutil.ignore_patterns(".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", ".mapper-lab", "dist")
    shutil.copytree(ROOT, sources, ignore=ignored, symlinks=True)
    wheels = {}
    for name, project in projects().items():
        build = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", directory)
        run(*build, sources / project.relative_to(ROOT))
        [wheels[name]] = directory.glob(f"{name.replace('-', '_')}-*.whl")
    shutil.rmtree(sources)
    download = (sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest", directory)
    run(*download, "--find-links", directory, "--constraint", ROOT / "constraints.txt", *wheels.values(), *others)
    return Wheelhouse(directory, wheels)
