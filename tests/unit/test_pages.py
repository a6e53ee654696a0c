"""What the pages of the documentation point at exists: other pages, headings, tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.unit.test_failures import functions

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "driver/*.md", "plugins/*/*.md", "examples/*/*.md", "labs/*.md")
    for path in ROOT.glob(pattern)
)
FEATURES = ROOT / "docs" / "features.md"


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The headings of a page, as they are written in a link."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        if ":" in path:
            continue  # another host
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)
    assert lost == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_of_the_tests_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    paths = set(re.findall(r"`((?:tests|driver/tests|plugins/\w+/tests)/[\w/]+\.py)`", text))
    if page.is_relative_to(ROOT / "examples") or page.name == "write-a-plugin.md":
        paths.discard("tests/test_conformance.py")  # of the project that the page is about
    assert [path for path in sorted(paths) if not (ROOT / path).is_file()] == []


def test_each_feature_has_its_tests() -> None:
    """Files by their whole path; a test belongs to the file, or one of the files, before it."""
    rows = [line for line in FEATURES.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
    missing, without = [], []
    for row in rows:
        feature, answer, proof = (cell.strip() for cell in row.strip("|").split(" | "))
        if not proof:
            without += [] if answer.startswith("no") else [feature]
        for piece in proof.split("; "):
            files = re.findall(r"`([\w/]+\.py)`", piece)
            tests = re.findall(r"`(test_\w+)`", piece)
            missing += [path for path in files if not (ROOT / path).is_file()]
            missing += [test for test in tests if not any(test in functions(path) for path in files)]
    assert len(rows) > 40
    assert (missing, without) == ([], [])
