"""The unit tests need no root: here they run as nobody, whoever runs this."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mapper_core.testing.report import ENVIRONMENT as REPORT

pytestmark = pytest.mark.packaging

ROOT = Path(__file__).parents[2]
NOBODY = 65534

#: All rights gone but one: to read the tree, which may lie in somebody's home directory.
AS_NOBODY = (
    "setpriv",
    f"--reuid={NOBODY}",
    f"--regid={NOBODY}",
    "--clear-groups",
    "--no-new-privs",
    "--inh-caps=-all,+dac_read_search",
    "--ambient-caps=-all,+dac_read_search",
    "--bounding-set=-all,+dac_read_search",
)


def test_the_unit_tier_as_nobody() -> None:
    base = Path("/tmp") / f"mapper-nobody-{os.getpid()}"
    base.mkdir(0o700)
    os.chown(base, NOBODY, NOBODY)
    environment = {name: value for name, value in os.environ.items() if name != REPORT}  # a file of root's
    try:
        result = subprocess.run(
            (
                *AS_NOBODY,
                *(sys.executable, "-m", "pytest", "--tier", "unit", "--nothing-skipped", "-q"),
                *("-p", "no:cacheprovider", "--basetemp", base / "t"),
            ),
            cwd=ROOT,
            env={
                **environment,
                "TMPDIR": str(base),
                "HOME": str(base),
                "HYPOTHESIS_STORAGE_DIRECTORY": str(base / "h"),
            },
            capture_output=True,
            text=True,
            timeout=110,
        )
    finally:
        shutil.rmtree(base)
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"^unit +[1-9]\d* +0 +0 ", result.stdout, re.MULTILINE), result.stdout
