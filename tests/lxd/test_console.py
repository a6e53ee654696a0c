"""Consoles: a real VNC client logs in, types, and looks at the picture."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
from mapper_driver.lxd.client import LxdClient
from PIL import Image

from tests.ports import free_port

from .conftest import Lab, lxd_is_enough
from .machine import Machine, ok
from .one import One

pytestmark = [pytest.mark.lxd, pytest.mark.timeout(240)]

GREEN, BLUE = (0, 205, 0), (0, 0, 238)  # colours 2 and 4 of xterm
PASSWORD = "secret/7"


def with_console(machine: Machine, port: int, password: str = PASSWORD) -> Machine:
    graphics = (
        f"<GRAPHICS><LISTEN>127.0.0.1</LISTEN><PORT>{port}</PORT><PASSWD><![CDATA[{password}]]></PASSWD>"
        "<TYPE>VNC</TYPE><COMMAND>/bin/sh</COMMAND></GRAPHICS>"
    )
    xml = machine.xml.replace("</TEMPLATE>", f"{graphics}</TEMPLATE>", 1)
    return Machine(machine.one, machine.client, machine.id, xml)


@pytest.fixture
def machines(lab: Lab, client: LxdClient, images: ModuleType, tmp_path: Path) -> Iterator[list[Machine]]:
    """Two that run, each with a console."""
    one = One(tmp_path, lab.socket)
    words = shlex.split(lab.variables["MAPPER_LAB_CLIENT"])
    conf = lab.variables.get("LXD_CONF") or lab.variables.get("INCUS_CONF", "")
    (tmp_path / "lxdrc").write_text(
        f":datastore_location: {tmp_path}/datastores\n:stop_timeout: 20\n:vnc:\n  :width: 640\n  :height: 400\n"
        f"  :client: env LXD_CONF={conf} INCUS_CONF={conf} {' '.join(words)}\n"
    )
    found = [with_console(Machine.build(one, client, images, number), free_port()) for number in (33, 34)]
    for machine in found:
        ok(machine.deploy())
    yield found
    for machine in found:
        ok(machine.power("cancel"))


def port_of(machine: Machine) -> int:
    return int(machine.xml.partition("<PORT>")[2].partition("<")[0])


def vnc(machine: Machine, *commands: str, password: str = PASSWORD) -> subprocess.CompletedProcess[str]:
    """A session of a client that is nobody's invention here."""
    argv = [str(Path(sys.executable).parent / "vncdo"), "--timeout=60", "-s", f"127.0.0.1::{port_of(machine)}"]
    return subprocess.run([*argv, "-p", password, *commands], capture_output=True, text=True, timeout=100, check=False)


def paint(machine: Machine, colour: int, picture: Path) -> Image.Image:
    """Type a command whose answer is a screen of one colour, and take its picture."""
    done = vnc(
        machine, "pause", "1", "type", f"sh /paint {colour}", "key", "enter", "pause", "2", "capture", str(picture)
    )
    assert done.returncode == 0, done.stderr
    return Image.open(picture).convert("RGB")


def share(picture: Image.Image, colour: tuple[int, int, int]) -> float:
    """Part of the picture that has a colour."""
    counts = {value: number for number, value in picture.getcolors(1 << 24) or ()}
    return counts.get(colour, 0) / (picture.width * picture.height)


def consoles_left() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if os.environ["MAPPER_RUNTIME_DIR"] in text and "mapper_driver.console" in text:
            found.append(text)
    return found


def test_consoles_of_two_machines(machines: list[Machine], tmp_path: Path) -> None:
    """Y-07: both at once, with password, each in its own container; one that is over takes nothing of the other with it."""
    for machine in machines:
        machine.inside("sh", "-c", "echo 'printf \"\\033[4$1m\\033[2J\"' > /paint")
    first, second = machines
    with ThreadPoolExecutor(2) as pool:
        green = pool.submit(paint, first, 2, tmp_path / "first.png")
        blue = pool.submit(paint, second, 4, tmp_path / "second.png")
        pictures = [green.result(), blue.result()]
    assert [picture.size for picture in pictures] == [(640, 400), (640, 400)]
    assert share(pictures[0], GREEN) > 0.8
    assert share(pictures[1], BLUE) > 0.8

    refused = vnc(first, "capture", str(tmp_path / "never.png"), password="wrong")
    assert refused.returncode != 0
    assert not (tmp_path / "never.png").exists()

    ok(first.power("reboot"))
    assert share(paint(first, 2, tmp_path / "again.png"), GREEN) > 0.8
    ok(first.power("cancel"))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port_of(first)), 5)
    assert share(paint(second, 4, tmp_path / "other.png"), BLUE) > 0.8
    ok(second.power("cancel"))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port_of(second)), 5)
    assert consoles_left() == []
    second.nothing_left()


@lxd_is_enough
def test_an_address_that_is_none_is_refused_before_anything_starts(
    lab: Lab, client: LxdClient, images: ModuleType, tmp_path: Path
) -> None:
    machine = with_console(Machine.build(One(tmp_path, lab.socket), client, images, 36), 5936)
    spoiled = machine.xml.replace("<LISTEN>127.0.0.1<", "<LISTEN>node.example<", 1)
    refused = Machine(machine.one, client, machine.id, spoiled).deploy()
    assert refused.returncode == 2 and "is no address to listen on" in refused.stderr
    machine.nothing_left()
