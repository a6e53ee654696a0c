"""The conformance tests find what is wrong with a plugin: each of these has one fault, and the test for it fails."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# wheels are built and a whole suite is run in one test: longer than others, on a busy host
pytestmark = [pytest.mark.packaging, pytest.mark.timeout(600)]

#: A plugin without fault, for disks that begin with 512 bytes of header and are otherwise raw. Nothing maps the header away, so
#: the disk has it too.
GOOD = r"""
import os
from mapper_core import Attachment, BlockNode, ImageInfo, MapOptions, hookimpl
from mapper_core.errors import CorruptImage

MAPPER_API = (1, 1)


@hookimpl
def inspect(disk):
    with open(disk.source, "rb") as file:
        header = file.read(512)
        size = file.seek(0, 2)
    if size < 512 or size % 512 or header[:8] != b"a block:" and header[510:] != b"\x55\xaa":
        raise CorruptImage("no such image", subject=disk.source)
    return ImageInfo(disk.source, "NAME", size, size, writable=True)


@hookimpl
def recognize(header):
    return header.startswith(b"a block:")


@hookimpl
def map(disk, options, transports):
    return transports.attach(BlockNode("raw", disk.source), options)


@hookimpl
def unmap(attachment, transports):
    transports.release()
"""

TESTS = """
import shutil
import pytest
from mapper_core import Access, Disk
from mapper_core.testing.conformance import ImageConformance


class Base(ImageConformance):
    __test__ = False

    @pytest.fixture
    def make_disk(self):
        def make(content, image):
            shutil.copy(content, image)
            return Disk(str(image), self.format)
        return make

"""

HEADER, CUT, KILLED = "test_the_header_says_the_size", "test_a_file_that_ends_too_early", "test_killed_while_it_maps"
ATTACH = '    return transports.attach(BlockNode("raw", disk.source), options)'
LOSETUP = """    import subprocess
    argv = ("losetup", "--find", "--show", "--read-only", disk.source)
    return Attachment(subprocess.check_output(argv, text=True).strip(), "own")


@hookimpl
def release():
    pass
"""
RELEASE = "    transports.release()\n"
DETACH = """    import subprocess
    if attachment:
        subprocess.run(("losetup", "-d", attachment.device), check=True)
"""

#: Name -> what is changed, and the test that must fail.
FAULTS: dict[str, tuple[dict[str, str], str]] = {
    "writes": ({"disk.source), options": "disk.source), MapOptions()"}, "test_read_only_is_read_only"),
    "short": ({'"NAME", size, size': '"NAME", size - 512, size'}, HEADER),
    "runs": ({"    with open": "    os.system('true')\n    with open"}, HEADER),
    "keeps": ({"file.seek(0, 2)": "file.seek(0, 2 + 0 * os.dup(file.fileno()))"}, HEADER),
    "trusts": ({"    if size < 512 or": "    header[511]\n    if"}, CUT),
    "takes": ({'header[:8] != b"a block:"': "False"}, "test_files_of_other_formats"),
    "greedy": ({'return header.startswith(b"a block:")': "return True"}, "test_it_recognizes_its_own_images_only"),
    "heavy": ({"import os\n": "import os, asyncio\n"}, "test_importing_it_is_cheap"),
    "unrecorded": ({ATTACH: LOSETUP, RELEASE: DETACH}, KILLED),
    "unmarked": (
        {RELEASE: f"{RELEASE}\n\ndef resize():\n    pass\n"},
        "test_no_name_of_the_package_is_taken_for_a_hook",
    ),
}


def test_each_fault_is_found_and_nothing_else(tmp_path: Path) -> None:
    """Beside them is a plugin without fault, whose disks can only be read; no other test of ours has such disks."""
    tests = TESTS
    for name, (changes, _) in FAULTS.items():
        source = GOOD
        for old, new in changes.items():
            assert old in source, name
            source = source.replace(old, new)
        tests += _plugin(tmp_path, name, source)
    tests += _plugin(tmp_path, "good", GOOD.replace("writable=True", "writable=False"))
    tests += "    access = Access.READ_ONLY\n"
    chosen = {f"Test_{name}::{test}" for name, (_, test) in FAULTS.items()}
    found = _run(tmp_path, tests, [*chosen, "Test_good"])
    assert found.returncode == 1, found.stdout
    failed = set(re.findall(r"^(?:FAILED|ERROR) \S+?::(\w+::\w+)", found.stdout, re.MULTILINE))
    assert failed == chosen, found.stdout
    assert len(re.findall(r"^PASSED \S+::Test_good::", found.stdout, re.MULTILINE)) > 30, found.stdout
    assert "mapper plugin good (Test_good)" in found.stdout


def _plugin(directory: Path, name: str, source: str) -> str:
    """Install a plugin as pip would; return the class that tests it."""
    (directory / f"mapper_{name}.py").write_text(source.replace("NAME", name))
    info = directory / f"mapper_{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: mapper-{name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[mapper]\n{name} = mapper_{name}\n")
    return f'\n\nclass Test_{name}(Base):\n    __test__ = True\n    format = "{name}"\n'


def _run(directory: Path, tests: str, chosen: list[str]) -> subprocess.CompletedProcess[str]:
    (directory / "test_faults.py").write_text(tests)
    (directory / "pytest.ini").write_text("[pytest]\n")
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", f"--basetemp={directory}/t"]
    return subprocess.run(
        [*argv, *(f"test_faults.py::{name}" for name in chosen)],
        cwd=directory, env={**os.environ, "PYTHONPATH": str(directory)}, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
