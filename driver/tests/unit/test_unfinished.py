"""What is written down while disks are handed over."""

from __future__ import annotations

from pathlib import Path

import pytest
from mapper_driver import unfinished

from mapper_core.errors import StateCorrupt
from mapper_core.runtime import Runtime

pytestmark = pytest.mark.unit


def test_disks_come_and_go(tmp_path: Path) -> None:
    runtime = Runtime(str(tmp_path))
    assert unfinished.written_down(runtime, "one-1") == ()
    unfinished.strike_out(runtime, "one-1", 2)
    for number in (10, 2, 2):
        unfinished.write_down(runtime, "one-1", number)
    assert unfinished.written_down(runtime, "one-1") == (2, 10)
    assert unfinished.written_down(runtime, "one-10") == ()
    unfinished.strike_out(runtime, "one-1", 10)
    unfinished.strike_out(runtime, "one-1", 2)
    assert list((tmp_path / "driver").iterdir()) == []
    unfinished.write_down(runtime, "one-1", 3)
    unfinished.forget(runtime, "one-1")
    assert list((tmp_path / "driver").iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", '{"version":1}', '{"version":1,"disks":[null]}', '{"version":2,"disks":[]}'])
def test_a_file_that_makes_no_sense(tmp_path: Path, text: str) -> None:
    (tmp_path / "driver").mkdir()
    (tmp_path / "driver" / "one-1.handover").write_text(text)
    with pytest.raises(StateCorrupt):
        unfinished.written_down(Runtime(str(tmp_path)), "one-1")
