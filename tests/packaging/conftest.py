"""Wheels of all distributions, built once, and the wheels that they depend on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.parent for path in ROOT.glob("examples/*/pyproject.toml"))
#: What the author of a plugin has besides Mapper, and what his project is built with.
AUTHOR_TOOLS = ("pytest", "mypy", "ruff", "hatchling", "editables")


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


@pytest.fixture(scope="session")
def author_house(wheelhouse: Wheelhouse, tmp_path_factory: pytest.TempPathFactory) -> Wheelhouse:
    """The same with the wheels of the examples, and of all that the author of a plugin needs."""
    download = (sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check")
    run(*download, "--dest", wheelhouse.directory, "--constraint", ROOT / "constraints.txt", *AUTHOR_TOOLS)
    sources = tmp_path_factory.mktemp("examples")
    for example in EXAMPLES:
        shutil.copytree(example, sources / example.name)
        build = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", wheelhouse.directory)
        run(*build, sources / example.name)
    return wheelhouse


@dataclass(frozen=True)
class Author:
    """Somebody who works on plugins outside of this tree.

    :param path: where his programs are.
    :param environment: of his shell.
    """

    path: Path
    environment: dict[str, str]

    def check(self, project: Path) -> None:
        """Run what the CI of a project runs before the tests."""
        for argv in (("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",)):
            result = self.run(project, *argv)
            assert result.returncode == 0, f"{project.name}: {argv}\n{result.stdout}{result.stderr}"

    def run(self, cwd: Path, program: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run one of his programs."""
        argv = (str(self.path / program), *words)
        return subprocess.run(argv, cwd=cwd, env=self.environment, capture_output=True, text=True, timeout=300)


def shell(author_house: Wheelhouse, home: Path, path: str = "") -> dict[str, str]:
    """The environment of a shell with nothing of this tree in it; pip knows the wheels, and nothing else."""
    return {
        "PATH": f"{path}{':' if path else ''}/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(home),
        "LC_ALL": "C.UTF-8",
        "COLUMNS": "80",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(author_house.directory),
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
    }


@pytest.fixture(scope="session")
def author(author_house: Wheelhouse, tmp_path_factory: pytest.TempPathFactory) -> Author:
    """An author with Mapper, his tools and the examples, all from wheels."""
    directory = tmp_path_factory.mktemp("author")
    names = [example.name for example in EXAMPLES]
    path = author_house.environment(directory / "v", "mapper-core[testing]", "mapper-raw", *names, *AUTHOR_TOOLS)
    environment = shell(author_house, directory, str(path))
    return Author(path, {**environment, "MYPY_CACHE_DIR": str(directory / "mypy")})
