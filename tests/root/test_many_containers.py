"""The probes on a node with 500 containers: one request each, and a fraction of the time between two looks."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import probes  # noqa: E402

sys.path.pop(0)


def test_500_containers() -> None:
    """Of the processor's time and not of the clock's: on a busy host the clock says nothing."""
    with (
        tempfile.TemporaryDirectory(prefix="mapper-many-", dir="/run") as directory,
        probes.daemon(directory, 500) as server,
    ):
        costs = [probes.measure(server, directory, probe) for probe in ("vm/status", "vm/monitor", "vm/monitor")]
    assert [cost.requests for cost in costs] == [1, 1, 1]
    assert max(cost.cpu_seconds for cost in costs) < 2, costs
    assert [cost.answer.count("VM = ") for cost in costs] == [500, 450, 450]
    assert costs[0].answer.count('STATE="POWEROFF"') == 50
