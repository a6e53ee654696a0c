"""The static checks: style, types, the import rules of the house, and the shell scripts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.packaging

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def check(*argv: str | Path, **environment: str) -> None:
    result = subprocess.run(
        argv, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=110
    )
    assert result.returncode == 0, f"{result.stdout}{result.stderr}"


def test_ruff_check() -> None:
    check(BIN / "ruff", "check", ".")


def test_ruff_format() -> None:
    check(BIN / "ruff", "format", "--check", ".")


def test_mypy_product() -> None:
    check(BIN / "mypy")


def test_mypy_tests() -> None:
    """The tests have no packages, so that each file is a module by its path."""
    directories = ("tests", "plugins", "driver/tests", "benchmarks")
    files = [path for name in directories for path in (ROOT / name).rglob("*.py") if "src" not in path.parts]
    check(
        BIN / "mypy", "--namespace-packages", "--explicit-package-bases", "conftest.py", *files, MYPYPATH="benchmarks"
    )


def test_import_rules() -> None:
    check(BIN / "lint-imports")


def shell_scripts() -> list[str]:
    directories = (".ci", "scripts", "labs", "driver/remotes", "driver/src")
    files = [path for name in directories for path in (ROOT / name).rglob("*") if path.is_file()]
    return [str(path.relative_to(ROOT)) for path in files if _is_shell(path)]


def _is_shell(path: Path) -> bool:
    with path.open("rb") as file:
        return file.readline().strip() in (b"#!/usr/bin/env bash", b"#!/bin/bash", b"#!/bin/sh")


def test_shell_scripts_parse() -> None:
    scripts = shell_scripts()
    assert {"scripts/setup", "scripts/test", ".ci/run"} <= set(scripts)
    for script in scripts:
        check("bash", "-n", script)
