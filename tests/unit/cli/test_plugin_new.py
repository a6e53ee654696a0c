"""A project for a new plugin: all of it or nothing, and nothing is overwritten. What is in it: tests/packaging/test_scaffold.py."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path

import pytest

from mapper_core import scaffold
from mapper_core.cli import main
from mapper_core.cli.output import Output, Style
from mapper_core.errors import AlreadyExists, NotFound, UsageError
from mapper_core.registry import installed
from mapper_core.scaffold import Project

pytestmark = pytest.mark.unit

VERSION = "0.1.0"


def new(*words: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of ``plugin new``."""
    out, err = io.StringIO(), io.StringIO()
    output = Output(Style.JSON if "--json" in words else Style.TEXT, stdout=out, stderr=err)
    status = main.run(["plugin", "new", *words], output)
    output.flush()
    return status, out.getvalue(), err.getvalue()


def test_the_command_prints_the_directory_and_what_is_left_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = new("cow_2")
    assert (status, out) == (0, f"{tmp_path}/mapper-cow-2\n")
    assert "virtual_size() in src/mapper_cow_2/__init__.py" in err
    assert os.listdir(tmp_path) == ["mapper-cow-2"]
    module = (tmp_path / "mapper-cow-2/src/mapper_cow_2/__init__.py").read_text()
    assert 'BlockNode("cow_2", disk.source)' in module and "MAPPER_API = (1, 1)" in module
    assert "class TestCow2(ImageConformance)" in (tmp_path / "mapper-cow-2/tests/test_conformance.py").read_text()


def test_as_json(tmp_path: Path) -> None:
    status, out, _ = new("vhdx", str(tmp_path / "here"), "--json")
    found = json.loads(out)
    assert (status, found["directory"], found["distribution"]) == (0, f"{tmp_path}/here", "mapper-vhdx")
    written = {str(path.relative_to(tmp_path / "here")) for path in (tmp_path / "here").rglob("*") if path.is_file()}
    assert written == set(found["files"])
    texts = {path: (tmp_path / "here" / path).read_text() for path in written}
    assert [path for path, text in texts.items() if re.search("@[A-Z]+@", path + text)] == []


@pytest.mark.parametrize(
    "name",
    ["", "VHDX", "2fs", "vh dx", "vhdx-2", "../vhdx", "vhdx\n", "_vhdx", "vhdx_", "a__b", "vhdé", "x" * 33, "core", "driver"],
)  # fmt: skip
def test_names_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        scaffold.check_name(name)
    status, out, err = new("--", name)
    assert (status, out) == (UsageError.exit_code, "")
    assert "hint: " in err
    assert os.listdir(tmp_path) == []


def test_a_format_that_has_a_plugin_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "raw" in {entry.name for entry in installed()}
    status, _, err = new("raw")
    assert status == AlreadyExists.exit_code
    assert "mapper-raw" in err and "is installed" in err


def test_it_does_not_get_the_other_mapper_core_of_the_index() -> None:
    """Mapper comes from its repository, and not later than the plugin that needs it."""
    files = Project("vhdx", "/x", VERSION).files()
    assert [path for path, text in files.items() if "pypi.org" in text] == []
    for path in ("README.md", ".github/workflows/ci.yml"):
        installed = re.findall(r"pip install (?!\.$)(\S+)", files[path], re.MULTILINE)
        assert installed == ["../mapper"], path
    assert re.search(
        r'^ +- run: git clone .*"\$\{MAPPER:\?.*\}" \.\./mapper$', files[".github/workflows/ci.yml"], re.MULTILINE
    )


@pytest.mark.parametrize("kind", ["directory", "full directory", "file", "dangling link"])
def test_nothing_is_overwritten(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "there"
    if kind == "file":
        target.write_text("mine")
    elif kind == "dangling link":
        target.symlink_to("gone")
    else:
        target.mkdir()
        if kind == "full directory":
            (target / "pyproject.toml").write_text("mine")
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    with pytest.raises(AlreadyExists, match="there"):
        scaffold.write(Project("vhdx", str(target), VERSION))
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_a_directory_that_appears_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Project("vhdx", str(tmp_path / "there"), VERSION)
    monkeypatch.setattr(os, "chmod", lambda *_: (tmp_path / "there").mkdir())
    with pytest.raises(AlreadyExists):
        scaffold.write(project)
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_where_there_is_no_directory(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="gone"):
        scaffold.write(Project("vhdx", str(tmp_path / "gone" / "there"), VERSION))


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    (tmp_path / "in").mkdir()
    with pytest.raises(OSError, match="No space"):
        scaffold.write(Project("vhdx", str(tmp_path / "in" / "there"), VERSION))
    assert os.listdir(tmp_path / "in") == []


@pytest.mark.parametrize(
    ("version", "needed"), [("0.1.0", ">=0.1,<0.2"), ("0.12.3.dev1", ">=0.12,<0.13"), ("1.4.2", ">=1.4,<2")]
)
def test_it_needs_the_releases_with_the_same_api(version: str, needed: str) -> None:
    text = Project("vhdx", "/x", version).files()["pyproject.toml"]
    assert f'dependencies = ["mapper-core{needed}"]' in text
