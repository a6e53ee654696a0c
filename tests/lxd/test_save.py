"""save and restore: suspend, stop, and migration that is not live, by OpenNebula's own scripts."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from mapper_driver.lxd.client import LxdClient
from mapper_driver.lxd.model import Status

from .conftest import Lab, command, lxd_is_enough, run
from .machine import Machine, ok
from .one import One

pytestmark = [pytest.mark.lxd, pytest.mark.timeout(240)]

SAVE_STOP, SAVE_SUSPEND, SAVE_MIGRATE = 5, 6, 7


@pytest.fixture
def machine(lab: Lab, client: LxdClient, images: ModuleType, tmp_path: Path) -> Iterator[Machine]:
    """A machine that runs, on a node that allows what :func:`allow` says."""
    found = Machine.build(One(tmp_path, lab.socket), client, images, 51)
    allow(found.one)
    found.set_up()
    yield found
    found.tear_down()


def allow(one: One, **save: str) -> None:
    """Write the options of a node."""
    options = {"datastore_location": f"{one.directory}/datastores", "stop_timeout": 10, "save": save}
    (one.directory / "lxdrc").write_text(json.dumps(options), encoding="utf-8")


@lxd_is_enough
def test_by_default_saving_is_refused_at_once_and_the_machine_runs_on(machine: Machine) -> None:
    pid = machine.client.state(machine.name).pid
    for state, words in ((SAVE_SUSPEND, "save.suspend"), (SAVE_STOP, "save.stop"), (SAVE_MIGRATE, "save.stop")):
        began = time.monotonic()
        done = machine.about_to(state).save()
        assert done.returncode == 6
        assert (
            "cannot be saved" in done.stderr and words in done.stderr and "power the virtual machine off" in done.stderr
        )
        assert time.monotonic() - began < 5
        assert not machine.checkpoint.exists()
    assert machine.client.state(machine.name).pid == pid
    assert machine.all_disks()


def test_suspend_by_freezing_keeps_memory_and_disks(machine: Machine) -> None:
    allow(machine.one, suspend="freeze")
    machine.inside("sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $! > /home/pid")
    before, pid = machine.all_disks(), machine.client.state(machine.name).pid
    for _ in range(2):  # the same call twice
        ok(machine.about_to(SAVE_SUSPEND).save())
        assert machine.status() is Status.FROZEN
        assert machine.power("poll").stdout.startswith("STATE=p")
    # stop and migration move the disks away, which a frozen container cannot let go
    done = machine.about_to(SAVE_STOP).save()
    assert done.returncode == 6 and machine.status() is Status.FROZEN
    for _ in range(2):
        ok(machine.restore())
        assert machine.status() is Status.RUNNING
    assert machine.client.state(machine.name).pid == pid
    assert machine.all_disks() == before
    machine.inside("sh", "-c", "kill -0 $(cat /home/pid)")
    assert not machine.checkpoint.exists()


def test_a_frozen_container_that_was_lost_starts_anew_and_that_is_said(machine: Machine) -> None:
    """The host was booted, or somebody stopped it: the memory is gone, what was on the disks is not."""
    allow(machine.one, suspend="freeze")
    machine.inside("sh", "-c", "echo kept > /data/kept; sync -f /data/kept")
    ok(machine.about_to(SAVE_SUSPEND).save())
    machine.client.stop(machine.name)
    done = machine.restore(host="other")
    assert done.returncode == 7
    assert "frozen on the node node" in done.stderr
    done = ok(machine.restore())
    assert "its memory is lost" in done.stderr
    assert machine.inside("cat", "/data/kept") == "kept\n"
    assert machine.all_disks()


def test_shutting_down_instead_of_saving_frees_every_disk(machine: Machine) -> None:
    allow(machine.one, suspend="shutdown", stop="shutdown")
    machine.inside("sh", "-c", "echo kept > /data/kept; echo kept > /home/kept")
    for state in (SAVE_SUSPEND, SAVE_STOP, SAVE_MIGRATE):
        for _ in range(2):  # the same call twice
            ok(machine.about_to(state).save())
            machine.nothing_left()
            found = json.loads(machine.checkpoint.read_text(encoding="utf-8"))
            assert (found["vm"], found["kind"]) == (51, "shutdown")
            assert machine.checkpoint.stat().st_uid == machine.one.vm_dir(51).stat().st_uid
        if state == SAVE_STOP:  # the directory moves to the front-end and back
            away = machine.one.directory / "away"
            os.rename(machine.one.vm_dir(51), away)
            os.rename(away, machine.one.directory / "datastores" / "0" / "51")
        for _ in range(2):
            done = ok(machine.restore())
            assert done.stdout == ""
            assert machine.all_disks()
        assert machine.inside("cat", "/data/kept", "/home/kept") == "kept\n" * 2
        assert not machine.checkpoint.exists()
    assert machine.boots() == "boot" + " shutdown boot" * 3, "the guest has shut down by itself"


@lxd_is_enough
def test_a_guest_that_does_not_shut_down_is_not_forced(machine: Machine) -> None:
    """Force would lose what it has not written; it goes on, and nothing says that it was saved."""
    allow(machine.one, stop="shutdown")
    machine.inside("sh", "-c", "printf '#!/bin/sh\nexec sleep 600\n' > /etc/init.d/rcK")
    options = json.loads((machine.one.directory / "lxdrc").read_text(encoding="utf-8"))
    (machine.one.directory / "lxdrc").write_text(json.dumps({**options, "stop_timeout": 2}), encoding="utf-8")
    done = machine.about_to(SAVE_STOP).save()
    assert done.returncode == 9
    assert "did not shut down within 2 s" in done.stderr
    assert machine.status() is Status.RUNNING
    assert machine.all_disks()
    assert not machine.checkpoint.exists()


@lxd_is_enough
def test_a_checkpoint_that_is_none(machine: Machine, tmp_path: Path) -> None:
    """Nothing is started from a file that does not say what became of the machine."""
    allow(machine.one, stop="shutdown")
    ok(machine.about_to(SAVE_STOP).save())
    good = machine.checkpoint.read_bytes()
    secret = tmp_path / "secret"
    secret.write_text("secret", encoding="ascii")
    cases: tuple[tuple[bytes | None, int, str], ...] = (
        (None, 3, "does not exist"),
        (b"", 10, "damaged"),
        (os.urandom(100), 10, "damaged"),
        (good.replace(b"51", b"52"), 10, "machine 52"),
        (b"x" * 100_000, 10, "damaged"),
    )
    for content, status, words in cases:
        machine.checkpoint.unlink(missing_ok=True)
        if content is not None:
            machine.checkpoint.write_bytes(content)
        done = machine.restore()
        assert (done.returncode, words in done.stderr) == (status, True), done.stderr
        machine.nothing_left()
    machine.checkpoint.unlink()
    machine.checkpoint.symlink_to(secret)
    done = machine.restore()
    assert done.returncode == 10 and "secret" not in done.stderr.replace(str(secret), "")
    assert machine.about_to(SAVE_STOP).save().returncode != 0
    assert secret.read_text(encoding="ascii") == "secret"
    machine.checkpoint.unlink()
    machine.checkpoint.write_bytes(good)
    ok(machine.restore())
    assert machine.all_disks()


@lxd_is_enough
def test_unknown_machine_and_a_foreign_path(machine: Machine, tmp_path: Path) -> None:
    allow(machine.one, suspend="freeze", stop="shutdown")
    gone = replace(machine, id=52, xml=machine.xml.replace("51", "52"))
    for state in (SAVE_SUSPEND, SAVE_STOP):
        done = gone.about_to(state).save()
        assert done.returncode == 3, done.stderr
    assert not gone.checkpoint.exists()
    done = machine.about_to(SAVE_SUSPEND).call("save", machine.name, f"{tmp_path}/elsewhere/checkpoint", "node")
    assert done.returncode == 2
    assert machine.status() is Status.RUNNING


def test_migration_that_is_not_live_to_a_node_with_other_ids(
    machine: Machine, images: ModuleType, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """save here, the directory moves, restore there: another daemon, another journal, another map of ids; owners are right.

    L-07, Y-06.
    """
    allow(machine.one, stop="shutdown")
    machine.inside("sh", "-c", "echo kept > /home/kept; chown 1000:1000 /home/kept; echo root > /data/root")
    ids = machine.client.idmap(machine.name)
    ok(machine.about_to(SAVE_MIGRATE).save())
    machine.nothing_left()
    other = Lab("lxd", f"/run/mapper-lab/o{os.getpid()}")
    run(command("lxd"), "up", other.directory)
    runtime = tmp_path_factory.mktemp("n", numbered=True)
    runtime.chmod(0o700)
    try:
        for key, value in (("security.idmap.isolated", "true"), ("security.idmap.size", "70000")):
            assert other.lxc("profile", "set", "default", key, value).returncode == 0
        one = One(tmp_path_factory.mktemp("node2"), other.socket)
        allow(one)
        os.rename(machine.one.vm_dir(51), one.vm_dir(51).parent / "51")
        there = machine.on(one, LxdClient.connect([other.socket]))
        with monkeypatch.context() as second:
            second.setenv("MAPPER_RUNTIME_DIR", str(runtime))
            ok(there.restore(host="other"))
            assert there.client.idmap(there.name) != ids
            assert there.all_disks()
            assert there.inside("cat", "/home/kept", "/data/root") == "kept\nroot\n"
            owners = there.inside("stat", "-c", "%u:%g", "/home/kept", "/data/root", "/etc/fstab").split()
            assert owners == ["1000:1000", "0:0", "0:0"]
            assert there.inside("cat", "/proc/self/uid_map").split()[2] == "70000"
            ok(there.power("shutdown"))
            there.nothing_left()
    finally:
        run(command("lxd"), "down", other.directory)
    os.rename(one.vm_dir(51), machine.one.vm_dir(51).parent / "51")
    ok(machine.deploy())  # and back
    assert machine.inside("stat", "-c", "%u:%g", "/home/kept").strip() == "1000:1000"
