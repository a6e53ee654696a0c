"""A minute of coverage-guided fuzzing for each reader of bytes that strangers wrote (:mod:`tests.security.fuzz`)."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.security.conftest import Report
from tests.security.fuzz.disks import SECTOR, SparseDisk, encode
from tests.security.fuzz.readers import READERS

pytestmark = pytest.mark.security

ROOT = Path(__file__).parents[2]
#: For each reader.
SECONDS = int(os.environ.get("MAPPER_FUZZ_SECONDS", "60"))


@dataclass(frozen=True)
class Fuzzer:
    """A reader that is being fuzzed."""

    process: subprocess.Popen[bytes]
    corpus: Path
    log: Path


@pytest.fixture(scope="module")
def fuzzers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Fuzzer]]:
    """All at once, and patient with others: a minute of the clock, not of a processor."""
    with contextlib.ExitStack() as undo:
        found = {}
        for reader in sorted(READERS):
            directory = tmp_path_factory.mktemp(f"fuzz-{reader}")
            corpus, log = directory / "corpus", directory / "log"
            argv = ["nice", sys.executable, "-m", "tests.security.fuzz", reader, str(corpus), "--seconds", str(SECONDS)]
            with log.open("wb") as file:
                process = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
            undo.callback(process.wait)
            undo.callback(process.kill)
            found[reader] = Fuzzer(process, corpus, log)
        yield found


@pytest.mark.timeout(SECONDS + 240)
@pytest.mark.parametrize("reader", sorted(READERS))
def test_no_input_makes_a_reader_fail(reader: str, fuzzers: dict[str, Fuzzer], report: Report) -> None:
    """Whatever it reads, it returns or raises one of our errors, soon and in little memory."""
    fuzzer = fuzzers[reader]
    status = fuzzer.process.wait(SECONDS + 200)
    corpus, said = fuzzer.corpus, fuzzer.log.read_text(errors="replace")
    findings = [path.name for path in corpus.iterdir() if path.name.startswith(("crash-", "timeout-", "oom-"))]
    assert status == 0 and not findings, f"{findings}\n{said[-4000:]}"
    executions = re.search(r"number_of_executed_units: (\d+)", said)
    assert executions and int(executions[1]) > 10 * SECONDS, said[-1000:]
    # more was kept than it began with: the fuzzer sees the coverage, it is not shooting blindly
    kept = len(list(corpus.iterdir()))
    assert kept > 2 * len(set(READERS[reader].seeds()))
    report.count(f"fuzzing {reader}", cases=kept, runs=int(executions[1]))


def test_the_short_form_of_a_disk_is_the_disk() -> None:
    image = bytes(5 * SECTOR) + b"x" * SECTOR + bytes(3 * SECTOR) + b"end".ljust(SECTOR, b"\0")
    disk = SparseDisk(encode(image))
    assert disk.size == len(image)
    assert disk.read(0, len(image)) == image
    assert disk.read(5 * SECTOR - 1, 3) == image[5 * SECTOR - 1 : 5 * SECTOR + 2]
    assert disk.read(len(image) - 1, 100) == b"\0"
