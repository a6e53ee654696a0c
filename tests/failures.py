"""``python -m tests.failures``: writes into docs/failures.md which tests prove that a known failure does not happen here.

The titles in the table are written by hand; the last column is made from what the tests say of themselves: a test that proves
something cites its number, such as ``U-01``, in its docstring or beside the line. ``S-01 to S-05`` is five numbers.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "failures.md"
#: How many there are of each kind.
NUMBERS = {"M": 27, "P": 18, "U": 14, "L": 19, "C": 15, "S": 27, "N": 6, "Y": 9}
IDS = tuple(f"{kind}-{number:02}" for kind, count in NUMBERS.items() for number in range(1, count + 1))
PLACES = (
    "tests/**/test_*.py",
    "driver/tests/**/test_*.py",
    "plugins/*/tests/**/test_*.py",
    "mapper_core/testing/**/*.py",
)
#: Numbers are its examples; it proves nothing about them.
TESTS_OF_THIS = ROOT / "tests" / "unit" / "test_failures.py"
NOTHING = "**no test**"

_ID = re.compile(r"\b([MPULCSNY])-(\d\d)\b")
_RANGE = re.compile(r"\b([MPULCSNY])-(\d\d) to \1-(\d\d)\b")
_ROW = re.compile(r"^\| ([MPULCSNY]-\d\d) \| (.*?) \| ?(.*?) ?\|$")


@dataclass(frozen=True, slots=True, order=True)
class Proof:
    """A test that cites a number; without a name it is the whole file."""

    path: str
    name: str = ""


def ids_in(text: str) -> set[str]:
    """The numbers that a text cites."""
    found = {f"{kind}-{number}" for kind, number in _ID.findall(text)}
    for kind, first, last in _RANGE.findall(text):
        found |= {f"{kind}-{number:02}" for number in range(int(first), int(last) + 1)}
    return found & set(IDS)


def proofs() -> dict[str, set[Proof]]:
    """Find the tests of each number."""
    found: dict[str, set[Proof]] = {identifier: set() for identifier in IDS}
    for pattern in PLACES:
        for path in sorted(set(ROOT.glob(pattern)) - {TESTS_OF_THIS}):
            for identifier, proof in _in_file(path):
                found[identifier].add(proof)
    return found


def _in_file(path: Path) -> Iterator[tuple[str, Proof]]:
    source = path.read_text(encoding="utf-8")
    if not _ID.search(source):
        return
    name, lines = str(path.relative_to(ROOT)), source.splitlines()
    covered: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            first = min([node.lineno, *(item.lineno for item in node.decorator_list)])
            while first > 1 and lines[first - 2].startswith("#"):
                first -= 1
            span = range(first - 1, node.end_lineno or node.lineno)
            covered |= set(span)
            for identifier in ids_in("\n".join(lines[number] for number in span)):
                yield identifier, Proof(name, node.name)
    if path.name.startswith("test_"):
        rest = "\n".join(line for number, line in enumerate(lines) if number not in covered)
        for identifier in ids_in(rest):
            yield identifier, Proof(name)


def cell(found: set[Proof]) -> str:
    """The last column: each file once, with its tests."""
    files: dict[str, list[str]] = {}
    for proof in sorted(found):
        files.setdefault(proof.path, []).extend([proof.name] if proof.name else [])
    pieces = []
    for path, names in files.items():
        pieces.append(f"`{path}`" + (": " + ", ".join(f"`{name}`" for name in names) if names else ""))
    return "; ".join(pieces)


def rows(page: str) -> dict[str, tuple[str, str]]:
    """Title and last column of each number in the page."""
    return {match[1]: (match[2], match[3]) for line in page.splitlines() if (match := _ROW.match(line))}


def refreshed(page: str) -> str:
    """The page with the last column as it should be. What is said of a failure without a test stays."""
    found = proofs()

    def row(line: str) -> str:
        match = _ROW.match(line)
        if not match:
            return line
        without = match[3] if match[3].startswith(NOTHING) else NOTHING
        return f"| {match[1]} | {match[2]} | {cell(found[match[1]]) or without} |"

    return "\n".join(map(row, page.splitlines())) + "\n"


def main() -> None:
    """Refresh the page and say what has no test."""
    page = refreshed(PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(page, encoding="utf-8")
    without = [identifier for identifier, (_, tests) in rows(page).items() if tests.startswith(NOTHING)]
    print(f"{len(rows(page))} failures, without a test: {', '.join(without) or 'none'}")


if __name__ == "__main__":
    main()
