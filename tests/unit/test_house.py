"""The rules of the house that no general tool knows; see CONTRIBUTING.md."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mapper_core import hookspecs

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
PLUGINS = sorted(path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml"))
SOURCES = sorted(
    path
    for directory in ("mapper_core", "driver/src", *(f"plugins/{name}/src" for name in PLUGINS))
    for path in (ROOT / directory).rglob("*.py")
)


def project(directory: str) -> dict[str, Any]:
    with (ROOT / directory / "pyproject.toml").open("rb") as file:
        data: dict[str, Any] = tomllib.load(file)["project"]
    return data


def lines(name: str) -> list[str]:
    return (ROOT / name).read_text(encoding="utf-8").splitlines()


def calls(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of each call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func)


# --- distributions ------------------------------------------------------------------------------------------


def test_there_are_plugins_and_sources() -> None:
    assert {"raw", "qcow2", "vmdk"} <= set(PLUGINS)
    assert len(SOURCES) > 30


@pytest.mark.parametrize("name", PLUGINS)
def test_a_plugin_is_named_after_its_format(name: str) -> None:
    """Distribution mapper-FORMAT, package mapper_FORMAT, entry point FORMAT, and the core as its only dependency."""
    data = project(f"plugins/{name}")
    assert data["name"] == f"mapper-{name}"
    assert list(data["entry-points"]["mapper"]) == [name]
    assert data["entry-points"]["mapper"][name].split(":")[0].split(".")[0] == f"mapper_{name}"
    assert [re.split("[<>=~ ]", entry)[0] for entry in data["dependencies"]] == ["mapper-core"]
    assert (ROOT / "plugins" / name / "README.md").stat().st_size > 0
    assert any((ROOT / "plugins" / name / "tests").rglob("test_*.py"))


@pytest.mark.parametrize("name", PLUGINS)
def test_no_module_of_a_plugin_is_named_like_a_hook(name: str) -> None:
    """Its first import would put the module in the place of the hook, and the next registry would find no hook."""
    hooks = {name for name, value in vars(hookspecs).items() if hasattr(value, f"{hookspecs.PROJECT}_spec")}
    assert {"map", "unmap", "snapshots"} <= hooks
    assert not hooks & {path.stem for path in (ROOT / "plugins" / name / "src" / f"mapper_{name}").iterdir()}


def test_all_distributions_have_one_version_and_one_license() -> None:
    projects = [project(directory) for directory in (".", "driver", *(f"plugins/{name}" for name in PLUGINS))]
    assert len({data["version"] for data in projects}) == 1
    assert {data["license"] for data in projects} == {"Apache-2.0"}
    assert {data["requires-python"] for data in projects} == {">=3.11"}


def test_the_changelog_knows_this_version() -> None:
    headings = [line for line in lines("CHANGELOG.md") if line.startswith("## ")]
    assert headings[0] == "## [Unreleased]" or f"[{project('.')['version']}]" in headings[0]


# --- set-up and tests ---------------------------------------------------------------------------------------


def test_each_os_package_has_a_reason() -> None:
    entries = [line for line in lines("scripts/os-packages.txt") if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9.+-]+ +# \S.*", entry) for entry in entries)
    names = [entry.split()[0] for entry in entries]
    assert len(names) == len(set(names))


def test_constraints_pin_one_version_each() -> None:
    entries = [line for line in lines("constraints.txt") if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", entry) for entry in entries)


def test_the_tiers_are_the_same_everywhere() -> None:
    """Markers of pyproject.toml (one of them divides a tier), and the lists of scripts/test."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        markers = {entry.split(":")[0] for entry in tomllib.load(file)["tool"]["pytest"]["ini_options"]["markers"]}
    (tiers,) = re.findall(r"^tiers=\((.*)\)$", "\n".join(lines("scripts/test")), re.M)
    assert markers == {*tiers.split(), "lxd_only"}
    (lanes,) = re.findall(r"^lanes=\((.*?)^\)$", "\n".join(lines("scripts/test")), re.M | re.S)
    assert set(re.findall(r"--tier (\w+)", lanes)) == set(tiers.split()), "a tier is in no lane"


def test_each_expected_skip_is_explained() -> None:
    before = ""
    for line in lines("tests/expected-skips.txt"):
        assert line.startswith("#") or not line or before.startswith("#"), f"no reason above: {line}"
        before = line


# --- product code -------------------------------------------------------------------------------------------


def test_nothing_waits_by_sleeping() -> None:
    """A wait has an event and a deadline. Three have no event: the leak oracle, since nothing tells of all kinds of
    resources; reconcile, since nothing tells when another mount namespace lets go of a device; and unmounting, since nothing tells
    when a mount is used no more."""
    allowed = {"mapper_core/testing/leaks.py", "mapper_core/reconcile.py", "mapper_core/linux/unmounting.py"}
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in SOURCES
        for number, name in calls(ast.parse(path.read_text(encoding="utf-8")))
        if name in ("time.sleep", "sleep") and str(path.relative_to(ROOT)) not in allowed
    ]
    assert found == []


def test_the_driver_knows_no_format() -> None:
    """Formats are names that OpenNebula sends and a plugin answers to. (``raw`` is also a section of its template.)"""
    formats = set(PLUGINS) - {"raw"}
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in SOURCES
        if path.is_relative_to(ROOT / "driver")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.lower() in formats
        if node.value != "RBD"  # a word of OpenNebula's too: a DISK_TYPE
    ]
    assert found == []


def test_the_core_names_no_plugin_package() -> None:
    packages = {f"mapper_{name}" for name in PLUGINS}
    found = [
        f"{path.relative_to(ROOT)}: {package}"
        for path in SOURCES
        if path.is_relative_to(ROOT / "mapper_core")
        for package in packages
        if package in path.read_text(encoding="utf-8")
    ]
    assert found == []


def test_every_module_says_what_it_is_for() -> None:
    bare = [
        str(path.relative_to(ROOT)) for path in SOURCES if not ast.get_docstring(ast.parse(path.read_text("utf-8")))
    ]
    assert bare == []
