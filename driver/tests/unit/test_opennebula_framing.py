"""What OpenNebula makes of our stderr. The three ways to read it are written here as OpenNebula does it."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mapper_driver import callog
from mapper_driver.opennebula.framing import (
    ENVIRONMENT,
    MAX_MESSAGE,
    Framing,
    Log,
    error_message,
    find_version,
    framing_of,
    one_line,
    print_result,
    report_failure,
)

from mapper_core.errors import BadFstab, Busy, ImageNotFound, MapperError

pytestmark = pytest.mark.unit

ERROR = ImageNotFound("the image does not exist", subject="/var/lib/one/disk.0", hint="is the datastore mounted?")
MESSAGE = "/var/lib/one/disk.0: the image does not exist (is the datastore mounted?)."


def read_by_5(stderr: str) -> str:
    found = re.search(r"^ERROR MESSAGE --8<------\n(.*?)ERROR MESSAGE ------>8--$", stderr, re.DOTALL | re.MULTILINE)
    return found.group(1).strip() if found else "-"


def read_by_6(stderr: str) -> str:
    return stderr.replace("\n", " ").strip() or "-"


def read_by_7(stderr: str) -> str:
    lines = (line.strip() for line in stderr.splitlines())
    return "".join(line for line in lines if not re.match(r"(ERROR|INFO|WARN|DEBUG):\s+", line)).strip() or "-"


READERS = {
    "5.12.13": read_by_5,
    "6.0.2": read_by_5,
    "6.0.3": read_by_6,
    "6.10.5": read_by_6,
    "7.0.0": read_by_7,
    "": read_by_6,
}


@pytest.mark.parametrize(
    ("version", "framing"),
    [
        ("5.12.0", Framing.BLOCK),
        ("5.8", Framing.BLOCK),
        ("6.0.2\n", Framing.BLOCK),
        ("6.0.3", Framing.WHOLE),
        ("6.10.5", Framing.WHOLE),
        ("6.99.85", Framing.LINES),
        ("7.4.0", Framing.LINES),
        ("10.0", Framing.LINES),
        ("", Framing.WHOLE),
        ("master", Framing.WHOLE),
    ],
)
def test_versions(version: str, framing: Framing) -> None:
    assert framing_of(version) is framing


@pytest.mark.parametrize("version", READERS)
@pytest.mark.parametrize("ssh_adds", ["", "ExitCode: 3\n"])
def test_the_message_arrives(version: str, ssh_adds: str) -> None:
    stream = io.StringIO()
    log = Log("deploy", version, stream)
    log.info("3 disks mapped")
    log.warning("an odd thing")
    log.debug("detail")
    assert log.failure(ERROR) == 3
    found = READERS[version](stream.getvalue() + ssh_adds)
    assert found.removesuffix("ExitCode: 3").strip() == MESSAGE


@pytest.mark.parametrize("version", READERS)
def test_log_of_a_success(version: str) -> None:
    stream = io.StringIO()
    log = Log("deploy", version, stream)
    log.info("3 disks mapped")
    log.warning("two\nlines")
    log.success()
    log.success()
    assert stream.getvalue() == "INFO: deploy: 3 disks mapped\nINFO: deploy: warning: two lines\n"


def test_a_log_line_never_begins_with_a_number() -> None:
    """7.x takes it for the number of a machine, in whose log the line then appears."""
    stream = io.StringIO()
    Log("deploy", "7.0.0", stream).info("12 disks")
    assert re.match(r"(ERROR|INFO|WARN|DEBUG):\s+(\d+)", stream.getvalue()) is None


def test_log_lines_that_are_held_back_are_bounded() -> None:
    stream = io.StringIO()
    log = Log("deploy", "6.10.5", stream)
    for number in range(10_000):
        log.info(str(number))
    log.success()
    assert len(stream.getvalue().splitlines()) == 200


@pytest.mark.parametrize(
    "text",
    [
        "-",
        "--help is no disk",
        "",
        "ERROR: odd",
        "INFO: odd",
        "WARN: 12 x",
        "two\nlines\r\nand\x0bmore\x85end\u2028x",
        "\x1b[2J\x07 bell \x00 nul \u202e right to left \udc80 surrogate \u200b nothing",
        "ERROR MESSAGE ------>8--",
        "x\nExitCode: 0 EOF_ERR\n",
        "x\nExitSSHCode: 0\n",
        "x ]]><VM><ID>1</ID> ]]>",
        "x" * 10_000,
        "EOF_EOF_ERRERR EOF_OUT",
    ],
)
@pytest.mark.parametrize("version", READERS)
def test_hostile_messages(version: str, text: str) -> None:
    """Messages quote labels, fstab lines and names from images and templates (S-12)."""
    stream = io.StringIO()
    assert report_failure(BadFstab(text), "deploy", version, stream) == 4
    message = READERS[version](stream.getvalue())
    assert message and not message.startswith("-")
    assert message.isprintable() and len(message) <= MAX_MESSAGE + 20
    for marker in ("EOF_ERR", "EOF_OUT", "ExitCode:", "ExitSSHCode:", "]]>"):
        assert marker not in stream.getvalue()
    assert len(stream.getvalue().splitlines()) == (3 if framing_of(version) is Framing.BLOCK else 1)


@given(st.text(max_size=2000), st.sampled_from(list(READERS)))
def test_any_message(text: str, version: str) -> None:
    stream = io.StringIO()
    report_failure(Busy(text), "shutdown", version, stream)
    message = READERS[version](stream.getvalue())
    assert message.isprintable() and message not in ("", "-") and message[0] != "-"
    stream.getvalue().encode()


def test_every_error_has_an_exit_status() -> None:
    class Silent(MapperError):
        exit_code = 0

    stream = io.StringIO()
    assert report_failure(Silent("x"), "deploy", "7.0.0", stream) == 1
    assert report_failure(ValueError("odd\nthing"), "deploy", "7.0.0", stream) == 1
    assert "internal error: ValueError: odd thing." in stream.getvalue()


def test_hint_and_full_stop() -> None:
    assert error_message(Busy("is in use"), "deploy") == "is in use."
    assert error_message(Busy("is in use", hint="wait"), "deploy") == "is in use (wait)."
    assert error_message(Busy("why?"), "deploy") == "why?"
    assert error_message(Busy("- x"), "deploy") == "deploy: - x."


def test_one_line_keeps_what_people_write() -> None:
    assert one_line("  café\t  «50 %»  ") == "café «50 %»"
    assert one_line("abcdef", 5) == "ab..."


def test_a_closed_stream_changes_nothing() -> None:
    stream = io.StringIO()
    stream.close()
    log = Log("deploy", "7.0.0", stream)
    log.info("nobody listens")
    assert log.failure(ERROR) == 3


def test_ascii_streams() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    assert report_failure(Busy("café"), "deploy", "6.10.5", stream) == 5
    assert raw.getvalue() == b"caf\\xe9.\n"


def test_version_from_the_file(tmp_path: Path) -> None:
    scripts = tmp_path / "vmm" / "lxd"
    scripts.mkdir(parents=True)
    (tmp_path / "VERSION").write_text("5.12.13\n", encoding="ascii")
    assert find_version(str(scripts), {}) == "5.12.13"
    assert find_version(str(scripts), {ENVIRONMENT: "7.0.0"}) == "7.0.0"


def test_version_file_of_nonsense(tmp_path: Path) -> None:
    scripts = tmp_path / "vmm" / "lxd"
    scripts.mkdir(parents=True)
    (tmp_path / "VERSION").write_bytes(b"\xff\xfe" * 100_000)
    assert framing_of(find_version(str(scripts), {})) is Framing.WHOLE


def test_result() -> None:
    stream = io.StringIO()
    print_result("one-42", stream)
    assert stream.getvalue() == "one-42\n"
    for value in ("", "one\n42", "one-42\n", "\x1b", " one-42"):
        with pytest.raises(ValueError):
            print_result(value, stream)
    assert stream.getvalue() == "one-42\n"


def test_steps() -> None:
    """Each has its time, also one that has failed; they are told when the node's options say so."""
    stream = io.StringIO()
    log = Log("deploy", "7.0.0", stream)
    with log.step("create the container"):
        pass
    with pytest.raises(Busy), log.step("start the container"):
        raise Busy("is in use")
    assert [name for name, _ in log.steps] == ["create the container", "start the container"]
    assert stream.getvalue() == ""
    log.tell_steps()
    assert re.fullmatch(r"(INFO: deploy: \d\.\d{3} s: (create|start) the container\n){2}", stream.getvalue())


def test_a_line_of_json_for_each_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(callog.ENVIRONMENT, str(tmp_path / "log"))
    log = Log("deploy", "6.10.5", io.StringIO())
    log.warning("odd\nline")
    with log.step("create the container"):
        pass
    callog.write(log, ("one-7", "x" * 10_000), ERROR, 1.5, 0.25)
    callog.write(log, ("one-7",), None, 1.5, 0.25)
    first, second = (json.loads(line) for line in (tmp_path / "log" / "driver.json").read_text().splitlines())
    assert (first["action"], first["arguments"], first["result"]) == ("deploy", ["one-7"], "ImageNotFound")
    assert first["message"].startswith("/var/lib/one/disk.0: the image")
    assert (second["result"], second["message"], second["steps"][0]["name"]) == ("ok", "", "create the container")
    assert second["log"] == [{"severity": "INFO", "text": "warning: odd\nline"}]
    (tmp_path / "log" / "driver.json").unlink()
    (tmp_path / "log" / "driver.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        callog.write(log, (), None, 0, 0)
    assert not (tmp_path / "elsewhere").exists()


def test_nobody_waits_for_a_version_that_nobody_writes(tmp_path: Path) -> None:
    """Whoever may write where it lies could hold up every call."""
    os.mkfifo(tmp_path / "VERSION")
    assert find_version(str(tmp_path / "vmm" / "lxd"), {}) == ""
