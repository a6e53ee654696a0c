"""What no action begins with: input that is cut off or hostile, or about another machine. Nothing is asked of anybody, nothing is
written, and the answer is one line.
"""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest
from mapper_driver import callog, inventory, main
from mapper_driver.lxd.reader import socket_candidates
from mapper_driver.opennebula import config, framing
from mapper_driver.opennebula.argv import ACTIONS, Exec

from mapper_core import runtime

pytestmark = pytest.mark.unit

FIXTURES = Path(__file__).parent / "fixtures"
#: Fixtures of actions that have the arguments of another.
SAME = {"cancel": "shutdown", "reset": "reboot", "migrate_local": "migrate", "exec_cancel": "exec"}


def _fixture(action: str) -> tuple[list[str], bytes]:
    """Arguments and XML of a good call."""
    for path in sorted(FIXTURES.iterdir()):
        call = json.loads((path / "call.json").read_text(encoding="utf-8"))
        if call["action"] == SAME.get(action, action):
            return ["copy" if word == "@stdin" else word for word in call["argv"]], (path / "stdin.xml").read_bytes()
    raise AssertionError(f"no fixture of {action}")


def _broken(good: bytes) -> dict[str, bytes]:
    text = good.decode().replace("<VM>", "<VM><!-- here -->", 1)
    entity = '<!DOCTYPE x [<!ENTITY a "b">]>'
    return {
        "empty": b"",
        "cut off": good[: len(good) // 2],
        "cut off in the last element": good.rstrip()[:-1],
        "cut off base64": b"PFZNPjxURU1QTEFURT48Vk1JRD4",
        "an entity": (entity + text).encode(),
        "NUL": good.replace(b"</VM>", b"\0</VM>"),
        "no UTF-8": good.replace(b"</VM>", b"\xff</VM>"),
        "too deep": text.replace("<!-- here -->", "<x>" * 40 + "</x>" * 40).encode(),
        "two machines": good.replace(b"</TEMPLATE>", b"<VMID>7</VMID></TEMPLATE>", 1),
        "no machine": b"<VMM_DRIVER_ACTION_DATA/>",
    }


@pytest.mark.parametrize(
    ("line", "mistake"),
    [
        ("", "a command is missing"),
        ("deploy", "'deploy' is no command"),
        ("\x1b[2J", r"'\x1b[2J' is no command"),
        ("--frob", "'--frob' is no command"),
        ("run /x", "run takes SCRIPT_DIR ACTION ARGUMENT..."),
        ("probe", "probe takes PROBE_DIR ARGUMENT..."),
        ("boot now", "boot takes no arguments"),
        ("check --frob", "unrecognized arguments: --frob"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(line: str, mistake: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(line.split()) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"mapper-driver: error: {mistake}\nhint: mapper-driver --help\n")


def test_the_help_names_every_option_and_variable(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in ("install-remotes", "check"):
        with pytest.raises(SystemExit):
            main.main([command, "--help"])
        [line] = [line for line in text.splitlines() if f"mapper-driver {command} " in line]
        options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"}
        assert options and options == set(re.findall(r"--[a-z-]+", line))
    for module in (callog, config, framing, inventory, runtime):
        assert module.ENVIRONMENT in text
    for variable in ("LXD_SOCKET", "INCUS_SOCKET", "LXD_DIR", "INCUS_DIR"):
        assert variable in text
        assert socket_candidates({variable: "/x"})[0].startswith("/x"), "and each of them counts"


@pytest.mark.parametrize("action", sorted(ACTIONS))
def test_bad_input_is_refused_before_anything_is_asked(
    action: str, tmp_path: Path, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of every action, in the form of every version; the guard of the unit tests sees that no daemon is asked."""
    argv, good = _fixture(action)

    def call(words: list[str], data: bytes, version: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        monkeypatch.setenv("MAPPER_ONE_VERSION", version)
        status = main.run(str(tmp_path / "vmm" / "lxd"), action, words)
        said = capsys.readouterr()
        return status, said.out, said.err

    number = 0 if ACTIONS[action] is Exec else len(argv) - 2  # the name of the node follows
    other = [*argv[:number], "987654", *argv[number + 1 :]]
    nowhere = [*argv[: number + 1], "no de", *argv[number + 2 :]]
    calls = [(argv, data, case) for case, data in _broken(good).items()]
    calls += [(other, good, "another machine"), (argv[:1], good, "too few arguments")]
    calls += [(nowhere, good, "a node that is none")]
    for words, data, case in calls:
        for version in ("5.12.13", "6.10.5", "7.0.0"):
            status, out, err = call(words, data, version)
            assert (status, out) == (2, ""), (case, version, err)
            lines = err.strip().splitlines()
            if version == "5.12.13":
                assert (lines[0], lines[-1]) == ("ERROR MESSAGE --8<------", "ERROR MESSAGE ------>8--"), case
                lines = lines[1:-1]
            assert len(lines) == 1 and "Traceback" not in err, (case, version, err)
    assert list(runtime_dir.iterdir()) == [] and list(tmp_path.iterdir()) == []
