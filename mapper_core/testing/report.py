"""The report of a run of tests: what was tried, refused, left behind, and touched although it never must be.

A test takes the fixture ``report`` and counts, under the name of what it tries; numbers of one name are added up::

    report.count("map qcow2", cases=1, runs=2)

A run writes its numbers as JSON to the file that ``MAPPER_TEST_REPORT`` names, and prints them at its end. Those of several
runs are put together by::

    python -m mapper_core.testing.report one.json two.json --write all.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

#: Names the file.
ENVIRONMENT = "MAPPER_TEST_REPORT"


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of one subject.

    :param cases: different situations: hostile images, points at which a process was killed.
    :param runs: how often something was run in them: attempts, operations, executions of a fuzzer.
    :param refused: attempts that ended with an error of ours, and changed nothing.
    :param leaks: resources that were left behind; 0, or the tests have failed.
    :param canary: things of the host that were read or changed although they never must be; 0, or the tests have failed.
    """

    cases: int = 0
    runs: int = 0
    refused: int = 0
    leaks: int = 0
    canary: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


class Report:
    """Counts by tier and subject."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], Counts] = {}

    def count(self, tier: str, subject: str, counts: Counts) -> None:
        """Add to the numbers of a subject."""
        self._counts[tier, subject] = self._counts.get((tier, subject), Counts()) + counts

    def lines(self) -> list[str]:
        """The report as a table, its sum last; empty when nothing was counted."""
        if not self._counts:
            return []
        rows = [(f"{tier}: {subject}", counts) for (tier, subject), counts in sorted(self._counts.items())]
        rows.append(("all", sum(self._counts.values(), start=Counts())))
        width = max(len(name) for name, _ in rows)
        head = "".join(f" {field.name:>11}" for field in fields(Counts))
        return [f"{'':{width}}{head}", *(f"{name:{width}}{_row(counts)}" for name, counts in rows)]

    def write(self, path: str) -> None:
        """Write all numbers as JSON."""
        entries = [
            {"tier": tier, "subject": subject, **asdict(counts)}
            for (tier, subject), counts in sorted(self._counts.items())
        ]
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"report": entries}, file, indent=1)
            file.write("\n")

    def read(self, path: str) -> None:
        """Add the numbers of a file that :meth:`write` has written."""
        with open(path, encoding="utf-8") as file:
            for entry in json.load(file)["report"]:
                self.count(entry.pop("tier"), entry.pop("subject"), Counts(**entry))


def _row(counts: Counts) -> str:
    return "".join(f" {number:>11}" for number in asdict(counts).values())


def main(argv: Sequence[str] | None = None) -> int:
    """Put reports together and print them.

    :return: exit status: 0; 1 when there are leaks or a canary was touched, or a file is missing.
    """
    parser = argparse.ArgumentParser(prog="python -m mapper_core.testing.report", description="add up reports of tests")
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--write", metavar="FILE", help="write the sum")
    options = parser.parse_args(argv)
    report, missing = Report(), [path for path in options.files if not os.path.exists(path)]
    for path in options.files:
        if path not in missing:
            report.read(path)
    for path in missing:
        print(f"no report: {path}")
    print("\n".join(report.lines()))
    if options.write:
        report.write(options.write)
    total = sum(report._counts.values(), start=Counts())
    return 1 if missing or total.leaks or total.canary else 0


if __name__ == "__main__":
    sys.exit(main())
