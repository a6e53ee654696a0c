"""docs/failures.md names a test for each known failure, or says that there is none."""

from __future__ import annotations

import ast
import functools
import re

import pytest

from tests import failures
from tests.failures import IDS, NOTHING, PAGE, ROOT, ids_in

pytestmark = pytest.mark.unit

ROWS = failures.rows(PAGE.read_text(encoding="utf-8"))


def test_every_number_is_there_once_and_in_order() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    found = [line.split()[1] for line in lines if re.match(r"\| [A-Z]-\d", line)]
    assert found == list(ROWS)
    assert set(found) == set(IDS) and len(found) == len(IDS) == 135


def test_every_failure_has_a_test_or_a_reason_why_not() -> None:
    for identifier, (title, tests) in ROWS.items():
        assert len(title) > 10, identifier
        assert tests.startswith("`") or len(tests) > len(NOTHING) + 15, f"{identifier}: say why there is no test"


@functools.cache
def functions(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def test_every_test_exists() -> None:
    """Those that are named; a citation that came later is not on the page before it is made anew."""
    missing = []
    for identifier, (_, tests) in ROWS.items():
        if tests.startswith(NOTHING):
            continue
        for piece in tests.split("; "):
            path, *names = re.findall(r"`([^`]+)`", piece)
            if not (ROOT / path).is_file():
                missing.append(f"{identifier}: {path}")
                continue
            missing += [f"{identifier}: {path}: {name}" for name in names if name not in functions(path)]
    assert not missing, "run: python -m tests.failures"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("proves S-01 and U-14.", {"S-01", "U-14"}),
        ("P-02 to P-04", {"P-02", "P-03", "P-04"}),
        ("X-01, S-28, LS-01, S-1", set()),
        ("M-01 to P-03", {"M-01", "P-03"}),
    ],
)
def test_citations(text: str, found: set[str]) -> None:
    assert ids_in(text) == found


def test_refreshing_keeps_titles_and_reasons() -> None:
    page = "| M-01 | a title | `tests/gone.py`: `test_gone` |\n| Y-07 | another | **no test**: there is none |\nwords\n"
    made = failures.refreshed(page).splitlines()
    assert made[0].startswith("| M-01 | a title | `") and "gone" not in made[0]
    assert made[2] == "words"
    assert failures.rows("\n".join(made)).keys() == {"M-01", "Y-07"}
