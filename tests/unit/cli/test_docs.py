"""The documentation of the command names everything there is, and nothing that is not."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

from mapper_core import errors
from mapper_core.cli import main, parser
from mapper_core.cli.commands import COMMANDS
from mapper_core.doctor.check import Check
from mapper_core.grow import Grown
from mapper_core.model import (
    Disk,
    Filesystem,
    ImageInfo,
    MappedDisk,
    Mount,
    MountPlan,
    Partition,
    PartitionTable,
    Reference,
    Skipped,
    Snapshot,
    Volume,
)
from mapper_core.reconcile import Action, Report
from mapper_core.registry import BLOCK_ENVIRONMENT, EntryPoint, Registry
from mapper_core.runtime import ENVIRONMENT
from mapper_core.tree.mounted import MountedTree

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
CLI = (DOCS / "cli.md").read_text(encoding="utf-8")
SOURCE = (DOCS / "man" / "mapper-cli.8").read_text(encoding="utf-8").replace("\\-", "-")
MAN = re.sub(r"\\f[BIR]", "", SOURCE)
EXIT_CODES = (DOCS / "exit-codes.md").read_text(encoding="utf-8")


def rows(text: str) -> dict[int, set[str]]:
    """Exit code -> error classes, from a table."""
    found = {}
    for line in text.splitlines():
        if match := re.match(r"\| (\d+) \| (.*?) \|", line):
            found[int(match[1])] = set(re.findall(r"`(\w+)`", match[2]))
    return found


def classes(*modules: ModuleType) -> dict[str, int]:
    """Error class -> exit code, from the code."""
    return {
        name: value.exit_code
        for module in modules or (errors, main)
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, errors.MapperError) and value.__module__ == module.__name__
    }


def options() -> set[str]:
    return {"--version"}.union(*(options_of(parser.build_one(name)) for name in COMMANDS))


def options_of(found: argparse.ArgumentParser) -> set[str]:
    """Those of a command, and of the actions that it has."""
    options = {option for action in found._actions for option in action.option_strings} - {"-h", "--help"}
    for action in found._actions:
        if isinstance(action, argparse._SubParsersAction):
            options |= set().union(*(options_of(inner) for inner in action.choices.values()))
    return options


def test_each_error_has_its_row_and_each_row_its_errors() -> None:
    core, _, driver = EXIT_CODES.partition("## mapper-driver")
    for text, known in ((core, classes()), (driver, classes(importlib.import_module("mapper_driver.errors")))):
        table = rows(text)
        assert len(table) > 5
        assert {name: code for code, names in table.items() for name in names} == known


def test_the_man_page_has_all_exit_codes() -> None:
    codes = {int(code) for code in re.findall(r"^(\d+)\t", MAN, re.MULTILINE)}
    assert codes == {0, *classes().values()}


@pytest.mark.parametrize("text", [CLI, MAN], ids=["cli.md", "man page"])
def test_all_options_and_variables_are_documented(text: str) -> None:
    missing = {option for option in options() if not re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text)}
    assert missing == set()
    assert ENVIRONMENT in text and BLOCK_ENVIRONMENT in text


@pytest.mark.parametrize("text", [CLI, MAN], ids=["cli.md", "man page"])
def test_no_option_is_documented_that_does_not_exist(text: str) -> None:
    others = {"--detach", "--help"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - options() <= others


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_documented(name: str) -> None:
    assert re.search(rf"^\| `{name}[ `]", CLI, re.MULTILINE)
    assert re.search(rf"^\\fBmapper-cli {name}\b", SOURCE, re.MULTILINE)
    assert re.search(rf"^(\.B |\\fB){name}\b", SOURCE[SOURCE.index(".SH COMMANDS") :], re.MULTILINE)


def test_the_driver_errors_do_not_take_our_codes() -> None:
    own = set(classes(importlib.import_module("mapper_driver.errors")).values())
    assert own & {0, *classes().values()} <= {errors.NotFound.exit_code}  # a missing instance is a missing thing


def test_the_plugin_of_the_readme_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "readme_vhdx.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry.load([EntryPoint("vhdx", "readme_vhdx", "mapper-vhdx", "1.0")])
    assert [plugin.problem for plugin in registry.plugins] == [""]
    assert registry.formats() == ("vhdx",)


@pytest.mark.parametrize(
    ("row", "model"),
    [
        ("disk", Disk),
        ("mapped disk", MappedDisk),
        ("table", PartitionTable),
        ("partition", Partition),
        ("filesystem", Filesystem),
        ("plan", MountPlan),
        ("plan", Mount),
        ("plan", Volume),
        ("plan", Skipped),
        ("`inspect`", ImageInfo),
        ("`inspect`", Reference),
        ("`mount`", MountedTree),
        ("`resize`", Grown),
        ("`snapshot list`", Snapshot),
        ("`doctor`", Check),
        ("`reconcile`", Report),
        ("`reconcile`", Action),
    ],
)
def test_the_members_of_json_are_documented(row: str, model: type) -> None:
    """A member that is renamed, or new, has to be on the page: programs read it."""
    section = CLI.partition("\n## JSON\n")[2]
    (members,) = re.findall(rf"^\| {re.escape(row)} \| (.*) \|$", section, re.MULTILINE)
    assert {field.name for field in dataclasses.fields(model)} <= set(re.findall(r"`(\w+)`", members))


def test_the_readme_shows_commands_that_exist() -> None:
    typed = re.findall(r"^# mapper-cli (.*)$", README, re.MULTILINE)
    assert len(typed) > 5
    for line in typed:
        parser.parse(line.split())
