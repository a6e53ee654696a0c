"""The command line: what is understood, and what is said about mistakes."""

from __future__ import annotations

import argparse
import importlib

import pytest

from mapper_core.cli import parser
from mapper_core.cli.commands import COMMANDS
from mapper_core.errors import UsageError
from mapper_core.linux.idmap import format_map
from mapper_core.model import IdRange

pytestmark = pytest.mark.unit


def test_map_takes_everything_a_caller_can_declare() -> None:
    line = "map a.img -f qcow2 -r --transport nbd --allow-dir /a --allow-dir /b --max-size 1.5G --json -v"
    found = parser.parse(line.split())
    assert (found.handler, found.image, found.format, found.read_only) == ("disks:map_image", "a.img", "qcow2", True)
    assert (found.transport, found.allow_dir, found.max_size) == ("nbd", ["/a", "/b"], 1610612736)
    assert found.json and found.verbose


def test_what_is_not_typed_has_a_default() -> None:
    found = parser.parse(["map", "a.img"])
    assert (found.format, found.read_only, found.transport, found.allow_dir, found.max_size) == (
        None,
        False,
        None,
        [],
        None,
    )
    assert not found.json and not found.verbose and not found.version


def test_an_image_may_begin_with_a_dash() -> None:
    assert parser.parse(["map", "--", "-odd.img"]).image == "-odd.img"


@pytest.mark.parametrize("words", [["-v", "ls"], ["ls", "-v"], ["--verbose", "ls"]])
def test_verbose_stands_before_or_behind_the_command(words: list[str]) -> None:
    found = parser.parse(words)
    assert found.verbose and found.handler == "disks:ls"


@pytest.mark.parametrize(
    "line", ["image convert a b -O raw -v", "image -v convert a b -O raw", "-v image convert a b -O raw"]
)
def test_verbose_stands_behind_an_action_too(line: str) -> None:
    found = parser.parse(line.split())
    assert found.verbose and found.action == "convert"


@pytest.mark.parametrize("action", ["convert", "build"])
def test_the_help_of_an_action_says_what_it_does(action: str) -> None:
    with pytest.raises(parser.HelpWanted) as found:
        parser.parse(["image", action, "--help"])
    assert (
        f"usage: mapper-cli image {action} " in found.value.text
        and "nothing is ever overwritten" in found.value.text.lower()
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [("100000:65536", (100000, 65536)), ("0:1", (0, 1)), ("4294901760:65535", (4294901760, 65535))],
)
def test_idmap(text: str, expected: tuple[int, int]) -> None:
    assert parser.parse(["mount", "a", "/mnt", "--idmap", text]).idmap == expected
    assert format_map((IdRange(0, *expected),))  # it is not refused later, when the image is mapped already


@pytest.mark.parametrize(
    "text",
    ["", "1", "1:", ":1", "1:0", "-1:5", "1:2:3", "a:b", "4294967295:2", "4294901760:65536", "²:1", "1 :2"],
)
def test_an_idmap_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="HOST:COUNT"):
        parser.parse(["mount", "a", "/mnt", f"--idmap={text}"])


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ([], "a command is missing", "see: mapper-cli --help"),
        (["umap", "a"], "there is no command 'umap'", "did you mean: mapper-cli unmap"),
        (["attach"], "there is no command 'attach'", "did you mean: mapper-cli map"),
        (["detach"], "there is no command 'detach'", "did you mean: mapper-cli unmap"),
        (["partition"], "there is no command 'partition'", "did you mean: mapper-cli partitions"),
        (["convert", "a", "b"], "there is no command 'convert'", "did you mean: mapper-cli image convert"),
        (["kpartx", "-av", "a"], "there is no command 'kpartx'", "did you mean: mapper-cli map"),
        (["lsblk"], "there is no command 'lsblk'", "did you mean: mapper-cli partitions"),
        (["help"], "there is no command 'help'", "did you mean: mapper-cli --help"),
        (["-d", "/dev/loop0"], "a command is missing before -d", "did you mean: mapper-cli unmap"),
        (["-c", "/dev/nbd0", "a.qcow2"], "a command is missing before -c", "did you mean: mapper-cli map"),
        (["-f", "disk.img"], "a command is missing before -f", "did you mean: mapper-cli map"),
        (["-l"], "a command is missing before -l", "did you mean: mapper-cli ls"),
        (["map", "-P", "a"], "unrecognized arguments: -P", "partitions have their devices without being asked for"),
        (["map", "--show", "-f", "a"], "required: IMAGE", "the device is printed without being asked"),
        (["xyzzy"], "there is no command 'xyzzy'", "see: mapper-cli --help"),
        (["map"], "required: IMAGE", "see: mapper-cli map --help"),
        # what hands that know `losetup -f FILE` type
        (["map", "-f", "disk.img"], "required: IMAGE", "-f takes the format of the image (as in qemu-nbd)"),
        (["unmap"], "required: IMAGE|DEVICE", "see: mapper-cli unmap --help"),
        (["map", "a", "-o", "user"], "'user' is not NAME=VALUE", "see: mapper-cli map --help"),
        (["map", "a", "--max-size", "much"], "'much' is not a size", "see: mapper-cli map --help"),
        (["map", "a", "--forma", "raw"], "unrecognized arguments: --forma", "see: mapper-cli map --help"),
        (["ls", "extra"], "unrecognized arguments: extra", "see: mapper-cli ls --help"),
        (["completion", "fish"], "invalid choice: 'fish'", "see: mapper-cli completion --help"),
    ],
)
def test_mistakes_name_the_remedy(words: list[str], message: str, hint: str) -> None:
    with pytest.raises(UsageError) as found:
        parser.parse(words)
    assert message in str(found.value)
    assert found.value.hint.startswith(hint)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_with_examples_that_can_be_typed(name: str) -> None:
    with pytest.raises(parser.HelpWanted) as found:
        parser.parse([name, "--help"])
    text = found.value.text
    assert f"usage: mapper-cli {name} " in text and "Examples:" in text
    for line, _ in COMMANDS[name].examples:
        words = line.partition(" | ")[0].partition(" >")[0].split()
        assert f"mapper-cli {line}" in text
        parser.parse(words)


@pytest.mark.parametrize("name", COMMANDS)
def test_one_command_is_understood_as_all_are(name: str) -> None:
    """The short way (one parser) and the long way (all) accept the same options."""
    long_way = parser.build()._subparsers
    assert long_way is not None
    choices = long_way._group_actions[0].choices
    assert isinstance(choices, dict)
    assert _options(parser.build_one(name)) == _options(choices[name])


def _options(found: argparse.ArgumentParser) -> list[tuple[tuple[str, ...], str]]:
    return [(tuple(action.option_strings), action.dest) for action in found._actions]


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_its_function(name: str) -> None:
    module, _, function = COMMANDS[name].handler.partition(":")
    assert callable(getattr(importlib.import_module(f"mapper_core.cli.{module}"), function))


def test_help_lists_all_commands() -> None:
    with pytest.raises(parser.HelpWanted) as found:
        parser.parse(["--help"])
    text = found.value.text
    assert all(f"    {name} " in text and command.summary in text for name, command in COMMANDS.items())
