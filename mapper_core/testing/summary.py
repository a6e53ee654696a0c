"""The report of the conformance tests: what was proved of each plugin, and what could not be tried here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

PROPERTY = "mapper_kit"
NOTE = "mapper_kit_note"
_OUTCOMES = ("passed", "failed", "skipped")


@dataclass
class _Topic:
    """The tests of one row."""

    outcomes: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    notes: Counter[str] = field(default_factory=Counter)


class Summary:
    """Counts by class and topic."""

    def __init__(self) -> None:
        self._topics: dict[tuple[str, str], dict[str, _Topic]] = {}
        self._reasons: dict[tuple[str, str], Counter[str]] = {}

    def add(self, report: pytest.TestReport) -> None:
        """Count one of the three reports of a test (set-up, call, teardown); the worst is its outcome."""
        properties = [(name, str(value)) for name, value in report.user_properties]
        found = dict(properties).get(PROPERTY)
        if found is None:
            return
        name, owner, title = found.split("\t")
        topic = self._topics.setdefault((name, owner), {}).setdefault(title, _Topic())
        worse = ("failed", "skipped", "passed")
        known = topic.outcomes.get(report.nodeid, "passed")
        topic.outcomes[report.nodeid] = min(known, report.outcome, key=worse.index)
        topic.seconds += report.duration
        if report.skipped and isinstance(report.longrepr, tuple):
            reasons = self._reasons.setdefault((name, owner), Counter())
            reasons[report.longrepr[2].removeprefix("Skipped: ").splitlines()[0]] += 1
        if report.when == "call":
            for key, value in properties:
                if key == NOTE:
                    number, _, what = value.partition(" ")
                    topic.notes[what] += int(number)

    def sections(self) -> Iterator[tuple[str, list[str]]]:
        """One for each class of tests: its title and its lines."""
        for (name, owner), topics in self._topics.items():
            yield f"mapper plugin {name} ({owner})", [*_table(topics), *self._not_run((name, owner))]

    def _not_run(self, key: tuple[str, str]) -> Iterator[str]:
        for reason, number in self._reasons.get(key, Counter()).most_common():
            yield f"not run: {number}, because {reason}"


def _table(topics: dict[str, _Topic]) -> Iterator[str]:
    row = "{:15} {:>7} {:>7} {:>7} {:>8}  {}"
    yield row.format("", *_OUTCOMES, "seconds", "").rstrip()
    for title, topic in sorted(topics.items()):
        counts = Counter(topic.outcomes.values())
        notes = ", ".join(f"{number} {what}" for what, number in topic.notes.items())
        numbers = (counts[outcome] for outcome in _OUTCOMES)
        yield row.format(title, *numbers, f"{topic.seconds:.1f}", notes).rstrip()
