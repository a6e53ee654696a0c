"""Every outcome of a command becomes an exit status and, if it is a failure, one error."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mapper_core.cli import main as program
from mapper_core.cli import parser
from mapper_core.cli.output import Output, Style, Talk
from mapper_core.errors import BadPartitionTable, Busy, MapperError, NoFreeDevice, UsageError
from mapper_core.model import Disk
from mapper_core.testing.tables import Gpt, gpt_image

pytestmark = pytest.mark.unit


def fails_with(error: BaseException) -> Callable[[object, Output], int]:
    def handler(_arguments: object, output: Output) -> int:
        output.line("half of the data")
        raise error

    return handler


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[object, Output], int]], None]:
    """Replace what ``mapper-cli ls`` does."""

    def replace(handler: Callable[[object, Output], int]) -> None:
        monkeypatch.setattr(program, "_handler", lambda _arguments: handler)

    return replace


Command = Callable[[Callable[[object, Output], int]], None]


def test_success(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    def handler(_arguments: object, output: Output) -> int:
        output.line("data")
        return 0

    command(handler)
    assert program.call(["ls"]) == 0
    assert capsys.readouterr() == ("data\n", "")


@pytest.mark.parametrize("error", [Busy("works on it", subject="/a", hint="wait"), NoFreeDevice("none")])
def test_an_expected_failure(error: MapperError, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    command(fails_with(error))
    assert program.call(["ls"]) == error.exit_code
    out, err = capsys.readouterr()
    assert f"mapper-cli: error: {error}\n" in err
    assert out == "", "half of the data is worse than none"


def test_an_unexpected_exception_is_one_line(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    command(fails_with(ZeroDivisionError("by zero")))
    assert program.call(["ls"]) == 70
    _, err = capsys.readouterr()
    assert err.startswith("mapper-cli: error: internal error: ZeroDivisionError: by zero\nhint: please report")
    assert "Traceback" not in err


def test_an_unexpected_exception_has_a_traceback_when_asked(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    command(fails_with(ZeroDivisionError("by zero")))
    assert program.call(["-v", "ls"]) == 70
    assert "Traceback" in capsys.readouterr().err


def test_json_covers_internal_errors_and_mistakes(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    command(fails_with(ZeroDivisionError("by zero")))
    assert program.call(["ls", "--json"]) == 70
    assert json.loads(capsys.readouterr().err)["error"]["type"] == "InternalError"
    assert program.call(["ls", "--jso", "--json"]) == 2
    assert json.loads(capsys.readouterr().err)["error"]["type"] == "UsageError"


def test_missing_privilege_is_said_clearly(
    command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    command(fails_with(PermissionError(errno.EACCES, "Permission denied", "/run/mapper")))
    assert program.call(["ls"]) == 77
    assert capsys.readouterr().err == (
        "mapper-cli: error: /run/mapper: this needs root: Permission denied (EACCES)\nhint: run it with sudo\n"
    )


def test_root_is_not_told_to_become_root(
    command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    command(fails_with(PermissionError(errno.EPERM, "Operation not permitted", b"/a\xff")))
    assert program.call(["ls"]) == 1
    assert capsys.readouterr().err == "mapper-cli: error: /a\\xff: Operation not permitted (EPERM)\n"


def test_a_full_disk_below_the_journal_is_no_internal_error(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    command(fails_with(OSError(errno.ENOSPC, "No space left on device", "/run/mapper/disks/x")))
    assert program.call(["ls"]) == 1
    assert "No space left on device (ENOSPC)" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_and_what_was_begun_is_undone(
    number: signal.Signals, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    undone: list[str] = []

    def handler(_arguments: object, output: Output) -> int:
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(number)  # an impatient second ^C must not stop the undoing
            undone.append("yes")
        return 0

    command(handler)
    before = signal.signal(number, signal.SIG_DFL)  # whoever started the tests may ignore it, as nohup(1) does
    try:
        assert program.call(["ls"]) == 128 + number
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert undone == ["yes"]
    assert f"ended by {number.name}" in capsys.readouterr().err


def test_a_signal_counts_also_when_its_exception_was_wrapped(command: Command) -> None:
    def handler(_arguments: object, output: Output) -> int:
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException as error:
            raise RuntimeError("Error calling __set_name__") from error
        return 0

    command(handler)
    assert program.call(["ls"]) == 143


def test_a_signal_that_was_ignored_stays_ignored(command: Command) -> None:
    def handler(_arguments: object, output: Output) -> int:
        signal.raise_signal(signal.SIGHUP)
        return 0

    command(handler)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert program.call(["ls"]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


class Unwritable(io.StringIO):
    """A stdout that cannot be written."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize(("number", "status"), [(errno.EPIPE, 141), (errno.ENOSPC, 74)])
def test_output_that_cannot_be_written_is_a_failure_of_its_own(
    number: int, status: int, command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def handler(_arguments: object, output: Output) -> int:
        output.line("data")
        return 0

    command(handler)
    monkeypatch.setattr(sys, "stdout", Unwritable(number))
    assert program.call(["ls"]) == status
    err = capsys.readouterr().err
    assert ("cannot be written: No space left" in err) is (number == errno.ENOSPC)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.call(["--version"]) == 0
    assert capsys.readouterr().out.startswith("mapper-cli ")


def test_help_is_a_success(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.call(["map", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: mapper-cli map")


def test_several_targets_are_all_tried_and_the_first_failure_counts() -> None:
    from mapper_core.cli.disks import for_each

    tried: list[str] = []

    def work(name: str) -> None:
        tried.append(name)
        if name == "b":
            raise Busy("later")
        if name == "c":
            raise NoFreeDevice("none")
        if name == "d":
            raise OSError(errno.ENOTEMPTY, "Directory not empty", "/run/x")  # what a plugin lets through

    err = io.StringIO()
    output = Output(Style.TEXT, Talk.NORMAL, stdout=io.StringIO(), stderr=err)
    assert for_each(["a", "b", "c", "d", "e"], work, output) == Busy.exit_code
    assert tried == ["a", "b", "c", "d", "e"]
    lines = ("later", "none", "/run/x: Directory not empty (ENOTEMPTY)")
    assert err.getvalue() == "".join(f"mapper-cli: error: {line}\n" for line in lines)


@pytest.mark.parametrize("words", [["map", "a", "-rv"], ["map", "a", "-vr"], ["-v", "map", "a"]])
def test_verbose_may_be_one_of_several_letters(
    words: list[str], command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    def handler(_arguments: object, output: Output) -> int:
        output.debug("is said")
        return 0

    command(handler)
    assert program.call(words) == 0
    assert "is said" in capsys.readouterr().err


def test_a_table_that_makes_no_sense_is_said_with_the_name_of_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAPPER_RUNTIME_DIR", str(tmp_path))
    image = gpt_image(4 << 20, (Gpt(1, 2048, 4095),))
    image[512 + 20] ^= 1
    image[-512 + 20] ^= 1
    (tmp_path / "disk.raw").write_bytes(image)
    assert program.call(["partitions", str(tmp_path / "disk.raw"), "-f", "raw"]) == BadPartitionTable.exit_code
    assert f"error: {tmp_path}/disk.raw: the disk has a protective MBR" in capsys.readouterr().err


def test_options_of_packages_are_not_passed_over_in_silence() -> None:
    from mapper_core.cli.image import _build

    words = ["image", "build", "a", "-O", "raw", "--size", "1G", "--from-tar", "b", "--package", "sudo"]
    with pytest.raises(UsageError, match="are for --suite"):
        _build(parser.parse(words), None, Disk("/a", "raw"), Output())  # type: ignore[arg-type]


def test_the_table_of_commands_is_what_is_run() -> None:
    handler = program._handler(parser.parse(["ls"]))
    assert handler.__module__ == "mapper_core.cli.disks" and handler.__name__ == "ls"
