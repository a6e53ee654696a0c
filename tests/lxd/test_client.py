"""The client against a real daemon."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mapper_driver.errors import (
    InstanceExists,
    InstanceNotFound,
    InstanceNotRunning,
    InstanceRunning,
    InstanceStartFailed,
    LxdFailed,
    LxdUnavailable,
)
from mapper_driver.lxd.client import PROTECTION, LxdClient
from mapper_driver.lxd.connection import Connection
from mapper_driver.lxd.model import InstanceSpec, Status
from mapper_driver.lxd.reader import socket_candidates

from mapper_core.errors import DeadlineExceeded, UsageError

from .conftest import Lab, MakeContainer, Staged, lxd_is_enough

pytestmark = pytest.mark.lxd


@pytest.fixture
def empty(client: LxdClient) -> Iterator[str]:
    """A container without files, stopped."""
    client.create(InstanceSpec("empty", config={"user.color": "red"}, description="nothing in it"))
    yield "empty"
    client.delete("empty")


def test_who_answers(client: LxdClient, lab: Lab) -> None:
    assert client.socket == lab.socket
    version, process = {"lxd": ("5.0", "lxd"), "incus": ("6.0", "incusd")}[lab.product]
    assert client.server.product == lab.product and client.server.version.startswith(version)
    assert Path(f"/proc/{client.daemon_pid()}/comm").read_text(encoding="ascii") == f"{process}\n"
    assert client.api_seconds > 0


def test_no_daemon_is_said_with_every_socket_that_was_tried(tmp_path: Path) -> None:
    nothing, file = tmp_path / "nothing", tmp_path / "file"
    file.touch()
    with pytest.raises(LxdUnavailable, match=r"nothing: No such file.*file: Connection refused"):
        LxdClient.connect([str(nothing), str(file)])


def test_a_socket_that_is_named_is_the_only_one() -> None:
    """Never talk to another daemon than was meant."""
    assert socket_candidates({"LXD_SOCKET": "/a/s", "LXD_DIR": "/b"}) == ("/a/s",)
    assert socket_candidates({"LXD_DIR": "/b"}) == ("/b/unix.socket",)


def test_create_describe_delete(client: LxdClient, empty: str) -> None:
    found = client.instance(empty)
    assert found.status is Status.STOPPED
    assert found.config["user.color"] == "red" and found.config[PROTECTION] == "true"
    assert found.description == "nothing in it"
    assert found.root_pool == client.default_pool("default") == "default"
    assert empty in [item.name for item in client.instances()]
    with pytest.raises(InstanceExists):
        client.create(InstanceSpec(empty))
    client.delete(empty)
    client.delete(empty)
    assert not client.exists(empty)
    with pytest.raises(InstanceNotFound):
        client.state(empty)


def test_refusals_have_the_daemons_reason(client: LxdClient) -> None:
    with pytest.raises(LxdFailed, match="nope"):
        client.create(InstanceSpec("refused", config={"nope.key": "1"}))
    with pytest.raises(LxdFailed):
        client.create(InstanceSpec("refused", profiles=("missing",)))
    with pytest.raises(LxdFailed):
        client.default_pool("missing")
    assert not client.exists("refused")


@lxd_is_enough
@pytest.mark.parametrize("name", ["", "../default", "a/b", "a b", "-a", "a-", "a?x=1", "a" * 64, "ä"])
def test_names_that_would_lead_elsewhere(client: LxdClient, name: str) -> None:
    with pytest.raises(UsageError):
        client.instance(name)


def test_configuration(client: LxdClient, empty: str) -> None:
    client.set_config(empty, {"user.color": None, "user.size": "7"})
    config = client.instance(empty).config
    assert "user.color" not in config and config["user.size"] == "7"
    with pytest.raises(LxdFailed):
        client.set_config(empty, {"nope.key": "1"})


def test_a_change_that_was_overtaken(client: LxdClient, lab: Lab, empty: str) -> None:
    """L-12: somebody changes the container between our read and our write. Neither change is lost."""
    connection = Connection(lab.socket)
    overtaken: list[int] = []

    def edit(body: dict[str, Any]) -> None:
        if not overtaken:
            overtaken.append(lab.lxc("config", "set", empty, "user.theirs", "1").returncode)
        body["config"]["user.ours"] = "2"

    connection.change(connection.api.instances[empty], "change it", empty, edit)
    assert overtaken == [0]
    config = client.instance(empty).config
    assert (config["user.theirs"], config["user.ours"]) == ("1", "2")


def test_devices(client: LxdClient, empty: str) -> None:
    def device(number: int) -> dict[str, str]:
        return {"type": "disk", "source": "/tmp", "path": f"/mnt/{number}"}

    client.set_devices(empty, {"d1": device(1), "d2": device(2)})
    client.set_devices(empty, {"d1": None, "d2": device(3)})
    assert client.instance(empty).devices == {"d2": device(3)}


def test_a_container_without_files_does_not_start(client: LxdClient, empty: str) -> None:
    """L-16."""
    with pytest.raises(InstanceStartFailed) as caught:
        client.start(empty)
    assert caught.value.message
    assert client.state(empty).status is Status.STOPPED


def test_states_and_commands(client: LxdClient, staged: Staged, make_container: MakeContainer) -> None:
    make_container(client, "busy", staged.directory)
    with pytest.raises(InstanceNotRunning):
        client.execute("busy", ["true"])
    with pytest.raises(InstanceNotRunning):
        client.restart("busy")
    state = client.start("busy")
    assert state.status is Status.RUNNING
    assert state.pid and state.processes and state.cpu_ns and state.memory
    with pytest.raises(InstanceRunning):
        client.start("busy")
    with pytest.raises(InstanceRunning):
        client.delete("busy")
    done = client.execute("busy", ["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (done.status, done.stdout, done.stderr) == (3, b"out\n", b"err\n")
    with pytest.raises(DeadlineExceeded):
        client.execute("busy", ["sleep", "60"], deadline_seconds=1)
    client.stop("busy")
    client.stop("busy")
    client.shutdown("busy", grace_seconds=1)
    assert client.state("busy").pid == 0


def test_a_guest_that_does_not_shut_down(client: LxdClient, staged: Staged, make_container: MakeContainer) -> None:
    make_container(client, "deaf", staged.directory)
    Path(staged.directory, "etc/init.d/rcK").write_text("#!/bin/sh\nexec sleep 600\n", encoding="ascii")
    client.start("deaf")
    with pytest.raises(DeadlineExceeded, match="did not shut down within 2 s"):
        client.shutdown("deaf", grace_seconds=2)
    assert client.state("deaf").status is Status.RUNNING
    client.stop("deaf")
