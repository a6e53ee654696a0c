"""What the console of a machine is, and who may connect how often."""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path

import pytest
from mapper_driver.console import control, definition, viewer
from mapper_driver.console.definition import Console, console_of
from mapper_driver.console.server import MAX_CONNECTIONS, MAX_VIEWERS, Listener
from mapper_driver.errors import ConsoleUnavailable
from mapper_driver.opennebula.config import Vnc
from mapper_driver.opennebula.vm import Graphics

from mapper_core.errors import StateCorrupt, UsageError
from mapper_core.state_files import json_files

pytestmark = pytest.mark.unit

ANY = "0.0.0.0"
CONSOLE = Console("one-7", "127.0.0.1", 5907, ("lxc", "exec", "one-7", "--", "/bin/login"), (("A", "b"),), "pw")


@pytest.mark.parametrize(
    "graphics", [None, Graphics("vnc"), Graphics("spice", port=5907)], ids=["none", "no port yet", "another type"]
)
def test_no_console(graphics: Graphics | None) -> None:
    assert console_of("one-7", graphics, Vnc(), "lxc", {}) is None


@pytest.mark.parametrize(
    ("graphics", "options", "address", "argv"),
    [
        (Graphics("vnc", 5907), Vnc(), ANY, "lxc exec one-7 -- /bin/login"),
        (Graphics("vnc", 5907, "127.0.0.1"), Vnc("/bin/bash -l"), "127.0.0.1", "lxc exec one-7 -- /bin/bash -l"),
        (Graphics("vnc", 5907, "::1", command="/bin/sh"), Vnc(client="/snap/lxc"), "::1", "/snap/lxc exec one-7 -- /bin/sh"),
    ],
)  # fmt: skip
def test_a_console(graphics: Graphics, options: Vnc, address: str, argv: str) -> None:
    found = console_of("one-7", graphics, options, "lxc", {"LXD_SOCKET": "/s"})
    assert found is not None
    assert (found.address, found.port, " ".join(found.argv)) == (address, 5907, argv)
    assert found.environment == (("LXD_SOCKET", "/s"),)
    assert (found.width, found.height, found.timeout) == (800, 600, 300)


def test_an_address_that_is_none() -> None:
    with pytest.raises(UsageError, match=r"GRAPHICS/LISTEN 'node.example'"):
        console_of("one-7", Graphics("vnc", 5907, "node.example"), Vnc(), "lxc", {})


def test_the_password_is_not_shown() -> None:
    assert "pw" not in repr(CONSOLE)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "one-7.json"
    path.write_text(json.dumps({"version": 1, **{name: getattr(CONSOLE, name) for name in CONSOLE.__slots__}}))
    assert definition.read(str(path)) == CONSOLE
    assert json_files(str(tmp_path)) == (str(path),)
    assert json_files(str(tmp_path / "none")) == ()
    path.write_text('{"version": 1, "container": "one-7"}')
    with pytest.raises(StateCorrupt, match="misses or garbles a field"):
        definition.read(str(path))


@pytest.mark.timeout(60)
def test_a_server_that_hangs_holds_up_no_action(short_dir: Path) -> None:
    """A connection to a queue that is full would wait for ever (unix(7))."""
    path = str(short_dir / "console.sock")
    assert control._connect(path) is None
    with socket.socket(socket.AF_UNIX) as hangs, contextlib.ExitStack() as waiting:
        hangs.bind(path)
        hangs.listen(0)
        with pytest.raises(ConsoleUnavailable, match="answers nobody"):
            for _ in range(5):
                connection = control._connect(path)
                assert connection is not None
                assert waiting.enter_context(connection).gettimeout() == control.SECONDS
    assert control._connect(path) is None


def test_nobody_tries_all_passwords() -> None:
    listener = Listener(CONSOLE, socket.socket.__new__(socket.socket))
    assert [listener.may_connect("10.0.0.1", now) for now in range(MAX_CONNECTIONS)] == [True] * MAX_CONNECTIONS
    assert not listener.may_connect("10.0.0.1", 30.0)
    assert listener.may_connect("10.0.0.2", 30.0)
    assert listener.may_connect("10.0.0.1", 61.0)
    listener.viewers.update(range(MAX_VIEWERS))
    assert not listener.may_connect("10.0.0.3", 61.0)


def test_the_key_of_the_display() -> None:
    """Xauthority(3): family, address, number, name, data; the family 65535 fits all."""
    assert viewer._authority(b"\x01" * 16) == b"\xff\xff\0\0\0\0\0\x12MIT-MAGIC-COOKIE-1\0\x10" + b"\x01" * 16
