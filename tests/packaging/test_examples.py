"""The examples, as strangers' plugins: installed from their wheels beside Mapper's, they pass what all plugins must pass."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from .conftest import EXAMPLES, ROOT, Author

# wheels are built and a whole suite is run in one test: longer than others, on a busy host
pytestmark = [pytest.mark.packaging, pytest.mark.timeout(600)]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: str(path.name))
def test_an_example_passes_what_every_plugin_must_pass(author: Author, tmp_path: Path, example: Path) -> None:
    project = tmp_path / example.name
    shutil.copytree(example, project)
    author.check(project)
    shutil.rmtree(project / "src")  # what is tested is the wheel
    result = author.run(project, "pytest", "-p", "no:cacheprovider", f"--basetemp={tmp_path}/t")
    assert result.returncode == 0, result.stdout
    assert re.search(r"^=+ \d\d+ passed in ", result.stdout, re.MULTILINE), result.stdout
    assert re.search(r"^kill -9 +2 +0 +0 .* \d+ kills$", result.stdout, re.MULTILINE), result.stdout


@pytest.mark.parametrize("name", ["vdi", "vhdx"])
def test_a_stranger_s_format_is_one_like_all_others(author: Author, tmp_path: Path, name: str) -> None:
    """Recognized, inspected, and refused with a word on what is wrong when it is a difference to another image."""
    path = f"{tmp_path}/disk"
    subprocess.run(("qemu-img", "create", "-q", "-f", name, path, "3M"), check=True, timeout=60)
    found = author.run(tmp_path, "mapper-cli", "inspect", path, "--json")
    assert (json.loads(found.stdout)["format"], json.loads(found.stdout)["virtual_size"]) == (name, 3 << 20)
    plugins = json.loads(author.run(tmp_path, "mapper-cli", "plugins", "--json").stdout)
    assert {"raw", "vdi", "vhdx"} <= {plugin["name"] for plugin in plugins if plugin["usable"]}


def test_a_difference_to_another_image_is_refused(author: Author, tmp_path: Path) -> None:
    image = tmp_path / "disk.vdi"
    subprocess.run(("qemu-img", "create", "-q", "-f", "vdi", image, "3M"), check=True, timeout=60)
    raw = bytearray(image.read_bytes())
    raw[0x1B8:0x1C8] = b"\1" * 16  # UUID of the parent
    image.write_bytes(raw)
    found = author.run(tmp_path, "mapper-cli", "map", str(image), "-f", "vdi")
    assert found.returncode == 4
    assert "is a difference to another image" in found.stderr and "VBoxManage" in found.stderr


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: str(path.name))
def test_an_example_uses_what_plugins_may_use(example: Path) -> None:
    """The modules of docs/plugin-api.md, and no names with an underscore."""
    table = (ROOT / "docs" / "plugin-api.md").read_text(encoding="utf-8")
    allowed = set(re.findall(r"^\| `(mapper_core[\w.]*)` \|", table, re.MULTILINE))
    assert "mapper_core.imagefile" in allowed
    for path in example.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mapper_core"):
                names = {alias.name for alias in node.names}
                assert node.module in allowed or {f"{node.module}.{name}" for name in names} <= allowed, node.module
                assert not [name for name in names if name.startswith("_")]
