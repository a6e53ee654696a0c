"""Containers that were made by hand and imported: the same actions work on them, and leave their storage alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from mapper_driver.lxd.client import LxdClient
from mapper_driver.lxd.model import Status

from .conftest import Lab
from .machine import Machine, ok
from .one import One

pytestmark = [pytest.mark.lxd, pytest.mark.timeout(240)]


class Wild(Machine):
    """Its name is not OpenNebula's."""

    @property
    def name(self) -> str:
        return "by-hand"


@pytest.fixture
def wild(lab: Lab, client: LxdClient, images: ModuleType, tmp_path: Path) -> Iterator[Wild]:
    """A container made with the daemon's own client, with its files in the daemon's storage."""
    made = lab.lxc("init", "--empty", "by-hand")
    assert made.returncode == 0, made.stderr
    images.write_system(f"/proc/{client.daemon_pid()}/root{client.rootfs(client.instance('by-hand'))}")
    client.start("by-hand")
    one = One(tmp_path, lab.socket)
    xml = one.vm_xml(61, "", deployed=True).replace("one-61", "by-hand")
    (one.directory / "lxdrc").write_text(
        "stop_timeout: 20\nsave: {suspend: freeze, stop: shutdown}\n", encoding="ascii"
    )
    one.vm_dir(61)
    yield Wild(one, client, 61, xml)
    client.stop("by-hand")
    assert lab.lxc("delete", "by-hand").returncode == 0


def test_its_whole_life(wild: Wild) -> None:
    """import, poweroff, resume, reboot, reset, suspend, stop, resume, terminate: it stays a container with its files."""
    wild.inside("sh", "-c", "echo kept > /kept")
    assert wild.power("poll").stdout.startswith("STATE=a")
    for action in ("shutdown", "cancel"):
        for _ in range(2):  # the same call twice
            ok(wild.power(action))
            assert wild.status() is Status.STOPPED
        assert wild.power("poll").stdout == "STATE=d\n"
        assert ok(wild.deploy()).stdout == "by-hand\n"
        assert wild.inside("cat", "/kept") == "kept\n"
    for action in ("reboot", "reset"):
        pid = wild.client.state("by-hand").pid
        ok(wild.power(action))
        assert wild.client.state("by-hand").pid != pid
        assert wild.inside("cat", "/kept") == "kept\n"
    ok(wild.about_to(6).save())
    assert wild.status() is Status.FROZEN
    ok(wild.restore())
    ok(wild.about_to(5).save())
    assert wild.status() is Status.STOPPED
    ok(wild.restore())
    assert wild.inside("cat", "/kept") == "kept\n"
    assert wild.boots().endswith("boot shutdown boot")
    ok(wild.power("cancel"))
    assert wild.client.exists("by-hand")


def test_a_name_in_the_arguments_alone_does_not_make_it_ours(wild: Wild) -> None:
    """DEPLOY_ID is missing in the XML: the container with the files in it is still not deleted."""
    xml = wild.xml.replace("<DEPLOY_ID>by-hand</DEPLOY_ID>", "<DEPLOY_ID></DEPLOY_ID>")
    data = f"<VMM_DRIVER_ACTION_DATA><HOST>node</HOST>{xml}</VMM_DRIVER_ACTION_DATA>"
    ok(wild.one.run("cancel", "by-hand", "node", "61", "node", xml=data))
    assert wild.status() is Status.STOPPED
    assert wild.client.exists("by-hand")


def test_a_disk_of_its_own_is_its_own(wild: Wild, lab: Lab, tmp_path: Path) -> None:
    """What an administrator has given it is neither checked nor taken."""
    (tmp_path / "shared").mkdir()
    added = lab.lxc("config", "device", "add", "by-hand", "more", "disk", f"source={tmp_path}/shared", "path=/more")
    if lab.product == "lxd":  # Incus' daemon of the lab sees another /tmp
        assert added.returncode == 0, added.stderr
    ok(wild.power("reset"))
    assert wild.status() is Status.RUNNING
    ok(wild.power("cancel"))


def test_one_that_is_gone(wild: Wild, lab: Lab) -> None:
    wild.client.stop("by-hand")
    gone = wild.xml.replace("by-hand", "gone")
    for action, argv in (("deploy", ("/x/deployment.0", "node")), ("reboot", ("gone", "node"))):
        xml = gone if action == "deploy" else f"<VMM_DRIVER_ACTION_DATA>{gone}</VMM_DRIVER_ACTION_DATA>"
        done = wild.one.run(action, *argv, "61", "node", xml=xml)
        assert done.returncode == 3, done.stderr
        assert "gone" in done.stderr
    assert not wild.client.exists("gone")
