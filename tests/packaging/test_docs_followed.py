"""The pages of the documentation are followed word by word, by somebody who has nothing but them, a clone and an index."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from .conftest import ROOT, Wheelhouse, shell
from .docpage import Reader, blocks

# wheels are built and a whole suite is run in one test: longer than others, on a busy host
pytestmark = [pytest.mark.packaging, pytest.mark.timeout(600)]

DOCS = ROOT / "docs"


def test_a_plugin_in_15_minutes(author_house: Wheelhouse, tmp_path: Path, runtime_dir: Path) -> None:
    """The tutorial ends with a plugin that passes everything, maps an image, and is a wheel."""
    environment = {**shell(author_house, tmp_path), "MAPPER": str(ROOT), "MAPPER_RUNTIME_DIR": str(runtime_dir)}
    with Reader(DOCS / "write-a-plugin.md", tmp_path, environment) as reader:
        assert reader.follow() > 15
        for block in reader.unseen:
            assert reader.shown(block), f"line {block.line}: not in the project"
    assert (tmp_path / "mapper-qed" / "dist").is_dir()


@pytest.mark.parametrize("name", ["plugin-api.md", "how-a-disk-travels.md"])
def test_a_page_is_true(tmp_path: Path, runtime_dir: Path, name: str) -> None:
    """With all that this tree has installed."""
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "LC_ALL": "C.UTF-8",
        "MAPPER_RUNTIME_DIR": str(runtime_dir),
    }
    with Reader(DOCS / name, tmp_path, environment) as reader:
        assert reader.follow() > 2
        assert reader.unseen == []


def test_every_page_with_commands_is_followed() -> None:
    """A new page with ``console`` blocks has to be added above."""
    followed = {"write-a-plugin.md", "plugin-api.md", "how-a-disk-travels.md"}
    found = {page.name for page in DOCS.glob("*.md") if any(block.language == "console" for block in blocks(page))}
    assert found == followed
