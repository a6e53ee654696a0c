"""What SECURITY.md says about programs that are started as root is what the sources do."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path
    for directory in (
        "mapper_core",
        "driver/src",
        *(f"plugins/{item.name}/src" for item in (ROOT / "plugins").iterdir()),
    )
    for path in (ROOT / directory).rglob("*.py")
    if "testing" not in path.parts and "scaffold" not in path.parts
)
#: Their output is no interface, or they trust what is on the disk; we ask the kernel, and parse what is hostile ourselves.
NEVER = frozenset(
    {
        *(
            "sh",
            "bash",
            "env",
            "mount",
            "umount",
            "losetup",
            "kpartx",
            "partx",
            "sfdisk",
            "lsblk",
            "blkid",
            "file",
            "chown",
        ),
        *("fsck", "e2fsck", "fsck.ext4", "xfs_repair", "xfs_admin", "tune2fs", "btrfstune", "udisksctl", "bindfs"),
    }
)


@functools.cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def test_every_module_that_starts_programs_is_listed() -> None:
    starting = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        for node in nodes(path)
        if isinstance(node, ast.ImportFrom)
        and (node.module, *(name.name for name in node.names if name.name in ("run", "process")))
        in (("mapper_core.process", "run"), ("mapper_core", "process"))
    }
    section = (ROOT / "SECURITY.md").read_text(encoding="utf-8").partition("## What runs as root")[2]
    listed = set(re.findall(r"`([\w/]+\.py)`", section)) - {"tests/security/test_privileges.py"}
    assert listed == starting


def test_programs_that_are_never_started() -> None:
    """M-18: no output of lsblk or blkid is parsed. M-09, M-12: no losetup. P-10, P-11, S-18: no fsck, and nothing that gives an
    image new identifiers. S-12: no shell. S-25: no recursive chown."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {first.value}"
        for path in SOURCES
        if not path.match("cli/arguments.py")  # whose choices of shells are for completion
        for node in nodes(path)
        if isinstance(node, (ast.Tuple, ast.List)) and node.elts
        and isinstance(first := node.elts[0], ast.Constant) and first.value in NEVER
    ]  # fmt: skip
    assert found == []


def test_nothing_walks_a_tree_to_change_owners() -> None:
    """S-25 (CVE-2015-1340): idmapped mounts show other owners; the one chown is that of files that we have made ourselves."""
    found = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        for node in nodes(path)
        if isinstance(node, ast.Attribute) and node.attr in ("chown", "lchown", "fchown")
    }
    walking = {str(path.relative_to(ROOT)) for path in SOURCES if "os.walk(" in path.read_text(encoding="utf-8")}
    assert found & walking == set()
