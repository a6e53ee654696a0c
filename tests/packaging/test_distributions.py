"""Each distribution as its users get it: the content of the wheel, and the wheel alone in a clean environment."""

from __future__ import annotations

import email
import email.message
import json
import re
import sys
import zipfile
from pathlib import Path

import pytest

from .conftest import ROOT, Wheelhouse, projects, run

pytestmark = pytest.mark.packaging

PLUGINS = [name for name in projects() if name not in ("mapper-core", "mapper-driver")]


def content(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


@pytest.mark.parametrize("name", projects())
def test_a_wheel_holds_its_package_and_nothing_else(wheelhouse: Wheelhouse, name: str) -> None:
    package = name.replace("-", "_")
    files = content(wheelhouse.wheels[name])
    stem = f"{package}-{wheelhouse.wheels[name].name.split('-')[1]}"
    others = {file for file in files if not file.startswith((f"{package}/", f"{stem}.dist-info/"))}
    assert others == ({f"{stem}.data/data/share/man/man8/mapper-cli.8"} if name == "mapper-core" else set())
    assert f"{package}/__init__.py" in files
    assert f"{package}/py.typed" in files
    assert not [file for file in files if "tests/" in file or "test_" in file or file.endswith((".pyc", ".keep"))]


@pytest.mark.parametrize("name", projects())
def test_a_wheel_holds_every_module_of_its_package(wheelhouse: Wheelhouse, name: str) -> None:
    package = name.replace("-", "_")
    source = projects()[name] / ("" if name == "mapper-core" else "src")
    modules = {str(path.relative_to(source)) for path in (source / package).rglob("*.py")}
    assert modules - content(wheelhouse.wheels[name]) == set()


@pytest.mark.parametrize("name", projects())
def test_metadata(wheelhouse: Wheelhouse, name: str) -> None:
    data = metadata(wheelhouse.wheels[name])
    assert data["Name"] == name
    assert data["License-Expression"] == "Apache-2.0"
    assert data["Requires-Python"] == ">=3.11"
    assert data["Summary"]
    assert str(data.get_payload()).strip(), "the README is the description"
    needed = {
        re.split(r"[ <>=~;\[]", entry)[0] for entry in data.get_all("Requires-Dist", []) if "extra ==" not in entry
    }
    if name == "mapper-core":
        assert needed == {"pluggy", "sh"}
    elif name in PLUGINS:
        assert needed == {"mapper-core"}
    else:
        assert "mapper-core" in needed
        assert not needed & set(PLUGINS), "the driver knows no plugin"


def test_the_license_text_is_in_the_core(wheelhouse: Wheelhouse) -> None:
    with zipfile.ZipFile(wheelhouse.wheels["mapper-core"]) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("/LICENSE")]
        assert archive.read(name) == (ROOT / "LICENSE").read_bytes()


def test_the_core_alone_has_no_plugins(wheelhouse: Wheelhouse, tmp_path: Path) -> None:
    path = wheelhouse.environment(tmp_path / "v", "mapper-core")
    assert json.loads(run(path / "mapper-cli", "plugins", "--json")) == []
    assert "map" in run(path / "mapper-cli", "--help")


@pytest.mark.parametrize("name", PLUGINS)
def test_a_plugin_alone_beside_the_core(wheelhouse: Wheelhouse, tmp_path: Path, name: str) -> None:
    path = wheelhouse.environment(tmp_path / "v", name)
    [plugin] = json.loads(run(path / "mapper-cli", "plugins", "--json"))
    version = wheelhouse.wheels[name].name.split("-")[1]
    assert (plugin["name"], plugin["distribution"], plugin["version"]) == (name.removeprefix("mapper-"), name, version)
    assert (plugin["usable"], plugin["problem"]) == (True, "")


def test_a_plugin_that_is_removed_is_gone(wheelhouse: Wheelhouse, tmp_path: Path) -> None:
    path = wheelhouse.environment(tmp_path / "v", "mapper-raw", "mapper-qcow2")
    names = [plugin["name"] for plugin in json.loads(run(path / "mapper-cli", "plugins", "--json"))]
    assert sorted(names) == ["qcow2", "raw"]
    run(sys.executable, "-m", "pip", "--python", path / "python", "uninstall", "--quiet", "--yes", "mapper-qcow2")
    names = [plugin["name"] for plugin in json.loads(run(path / "mapper-cli", "plugins", "--json"))]
    assert names == ["raw"]


def test_the_driver_alone_beside_the_core(wheelhouse: Wheelhouse, tmp_path: Path) -> None:
    path = wheelhouse.environment(tmp_path / "v", "mapper-driver")
    run(path / "python", "-W", "error", "-c", "import mapper_driver.main")
    assert "run SCRIPT_DIR ACTION" in run(path / "mapper-driver", "--help")
    assert json.loads(run(path / "mapper-cli", "plugins", "--json")) == []


def test_every_module_can_be_imported_from_the_wheels(wheelhouse: Wheelhouse, tmp_path: Path) -> None:
    """A module that needs something only the tree has, or a tool only the developers have, fails here."""
    path = wheelhouse.environment(tmp_path / "v", *wheelhouse.wheels)
    modules = [
        file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for wheel in wheelhouse.wheels.values()
        for file in content(wheel)
        if file.endswith(".py")
        and not file.endswith("__main__.py")
        and "/remotes/" not in file
        and not file.startswith("mapper_core/testing/")  # the conformance kit needs pytest, which its users have
    ]
    script = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    run(path / "python", "-W", "error", "-c", script, *sorted(modules))
