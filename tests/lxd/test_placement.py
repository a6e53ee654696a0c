"""Trees of disk images as root directories of real containers."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import time
from pathlib import Path
from types import ModuleType

import pytest
from mapper_driver.errors import InstanceStartFailed, TreeNotPlaced, TreeStillPlaced
from mapper_driver.lxd import hook, placement
from mapper_driver.lxd.client import LxdClient

from mapper_core.errors import DeviceBusy
from mapper_core.linux import mountinfo, namespaces
from mapper_core.runtime import Runtime

from .conftest import Lab, MakeContainer, Staged, run

pytestmark = pytest.mark.lxd


def test_container_runs_on_an_unmodified_image(
    client: LxdClient, staged: Staged, make_container: MakeContainer
) -> None:
    """L-06: owners are right inside and unchanged on the disk, with LXD's own remapping not taking place."""
    container = make_container(client, "plain", staged.directory)
    client.start("plain")
    assert container.run("stat", "-c", "%u:%g", "/etc/passwd", "/home/greeting").split() == ["0:0", "0:0"]
    container.run("touch", "/root/new", "/home/new")
    assert {os.stat(f"{staged.directory}/{name}").st_uid for name in ("etc/passwd", "root/new", "home/new")} == {0}
    assert container.run("cat", "/proc/self/uid_map").split()[1] != "0"
    root, home = (next(entry for entry in container.mounts() if entry.target == target) for target in ("/", "/home"))
    assert {"idmapped", "nodev"} <= set(root.options) & set(home.options)
    assert "nosuid" not in (*root.options, *home.options)


def test_sudo_works_inside_and_not_on_the_host(
    client: LxdClient, staged: Staged, make_container: MakeContainer
) -> None:
    """L-09 and S-17."""
    container = make_container(client, "suid", staged.directory)
    client.start("suid")
    assert container.run("su", "user", "-c", "/usr/bin/su root -c 'id -u'").strip() == "0"
    assert "nosuid" in mountinfo.at(staged.directory)[-1].options


def test_ten_starts_and_every_kind_of_restart(
    client: LxdClient, lab: Lab, staged: Staged, make_container: MakeContainer
) -> None:
    """L-01: LXD 5.0 unmounts the root directory at every start; the tree is back each time, with the mounts below it."""
    container = make_container(client, "again", staged.directory)
    for _ in range(10):
        client.start("again")
        assert container.run("cat", "/home/greeting") == "hello\n"
        client.stop("again")
    assert placement.is_placed(container.placement, client.daemon_pid())
    first = client.start("again").pid
    assert lab.lxc("exec", "again", "--", "reboot", "-f").returncode in (0, 129, 137)
    _wait_for_other_init(client, "again", first)
    assert container.run("cat", "/home/greeting") == "hello\n"
    assert lab.lxc("restart", "-f", "again").returncode == 0
    assert container.run("cat", "/home/greeting") == "hello\n"
    client.restart("again")
    assert container.run("grep", "-c", "^boot", "/var/log/boots").strip() == "14"
    assert len(mountinfo.at(container.placement.rootfs, pid=client.daemon_pid())) == 1


def _wait_for_other_init(client: LxdClient, name: str, old: int) -> None:
    """The guest reboots by itself: LXD offers no operation to wait for, so its event stream would be the only event."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        state = client.state(name)
        if state.pid not in (0, old) and client.execute(name, ["true"]).status == 0:
            return
        time.sleep(0.1)
    raise AssertionError("the guest did not come back")


def test_shutdown_by_the_guest_ends_in_time(client: LxdClient, staged: Staged, make_container: MakeContainer) -> None:
    make_container(client, "polite", staged.directory)
    client.start("polite")
    client.shutdown("polite", grace_seconds=15)
    with open(f"{staged.directory}/var/log/boots", encoding="ascii") as file:
        assert file.read().endswith("shutdown\n")


def test_nothing_holds_the_disk_after_unplace(client: LxdClient, staged: Staged, make_container: MakeContainer) -> None:
    """U-11: as soon as stop() returns the filesystem can be released; the fixture's umount and the leak oracle check it too."""
    container = make_container(client, "gone", staged.directory)
    client.start("gone")
    client.stop("gone")
    placement.unplace(container.placement, client.daemon_pid())
    placement.unplace(container.placement, client.daemon_pid())
    device = mountinfo.at(staged.directory)[-1].device
    known = (staged.directory, container.placement.staging)
    holding = [
        pid
        for pid in filter(str.isdigit, os.listdir("/proc"))
        if any(entry.device == device and entry.target not in known for entry in _mounts(pid))
    ]
    assert holding == []


def _mounts(pid: str) -> tuple[mountinfo.MountEntry, ...]:
    try:
        return mountinfo.entries(pid)
    except Exception:  # it has ended, or is the machine's own first process
        return ()


def test_a_mounted_tree_is_never_deleted(
    client: LxdClient, lab: Lab, staged: Staged, make_container: MakeContainer
) -> None:
    """U-12: neither by us nor by a person with lxc(1)."""
    container = make_container(client, "keep", staged.directory)
    client.start("keep")
    client.stop("keep")
    with pytest.raises(TreeStillPlaced, match="rootfs"):
        client.delete("keep")
    refused = lab.lxc("delete", "--force", "keep")
    assert refused.returncode != 0 and "protected" in refused.stderr
    assert Path(staged.directory, "home/greeting").exists()
    placement.unplace(container.placement, client.daemon_pid())
    client.delete("keep")
    client.delete("keep")
    assert not client.exists("keep")
    assert Path(staged.directory, "home/greeting").exists()


def test_unplace_names_who_is_in_the_way(client: LxdClient, staged: Staged, make_container: MakeContainer) -> None:
    container = make_container(client, "held", staged.directory)
    daemon = client.daemon_pid()
    assert placement.place(container.placement, daemon)
    with (
        open(f"/proc/{daemon}/root{container.placement.rootfs}/home/greeting", encoding="ascii"),
        pytest.raises(DeviceBusy, match=str(os.getpid())),
    ):
        placement.unplace(container.placement, daemon)
    assert placement.is_placed(container.placement, daemon)


def test_place_twice_is_one_mount(client: LxdClient, staged: Staged, make_container: MakeContainer) -> None:
    """U-10."""
    container = make_container(client, "once", staged.directory)
    daemon = client.daemon_pid()
    assert placement.place(container.placement, daemon)
    assert not placement.place(container.placement, daemon)
    assert len(mountinfo.at(container.placement.rootfs, pid=daemon)) == 1


def test_a_foreign_mount_is_not_covered(client: LxdClient, staged: Staged, make_container: MakeContainer) -> None:
    container = make_container(client, "foreign", staged.directory)
    rootfs, daemon = container.placement.rootfs, client.daemon_pid()
    there = ("nsenter", f"--mount=/proc/{daemon}/ns/mnt", "--")
    run(*there, "mount", "-t", "tmpfs", "none", rootfs)
    try:
        with pytest.raises(TreeNotPlaced, match="tmpfs"):
            placement.place(container.placement, daemon)
    finally:
        run(*there, "umount", rootfs)


def test_a_start_without_the_tree_fails_with_the_reason(
    client: LxdClient, staged: Staged, make_container: MakeContainer
) -> None:
    """As after a boot of the host, or when the disk was unmounted behind our back."""
    container = make_container(client, "lost", staged.directory)
    placement.forget(container.runtime, "lost")
    with pytest.raises(InstanceStartFailed):
        client.start("lost")
    assert "deploy the virtual machine again" in hook.last_failure(container.runtime, "lost")
    placement.write(container.runtime, container.placement)
    client.start("lost")
    assert hook.last_failure(container.runtime, "lost") == ""


def test_privileged_container(client: LxdClient, staged: Staged, make_container: MakeContainer) -> None:
    container = make_container(client, "mighty", staged.directory, **{"security.privileged": "true"})
    assert not container.placement.idmapped
    client.start("mighty")
    client.restart("mighty")
    assert container.run("stat", "-c", "%u", "/etc/passwd", "/home/greeting").split() == ["0", "0"]
    assert container.run("cat", "/proc/self/uid_map").split()[:2] == ["0", "0"]


def test_isolated_map(client: LxdClient, staged: Staged, make_container: MakeContainer) -> None:
    """The map is the one LXD chose for this container, whatever it is."""
    config = {"security.idmap.isolated": "true", "security.idmap.size": "70000"}
    container = make_container(client, "alone", staged.directory, **config)
    idmap = client.idmap("alone")
    assert idmap is not None
    assert idmap.uid[0].count == 70000
    client.start("alone")
    assert container.run("stat", "-c", "%u", "/etc/passwd").strip() == "0"
    assert container.run("cat", "/proc/self/uid_map").split() == ["0", str(idmap.uid[0].host), "70000"]


def test_files_shifted_by_lxd(
    client: LxdClient, make_container: MakeContainer, images: ModuleType, staging: Path, staged: Staged
) -> None:
    """Where a filesystem cannot be idmapped (ramfs stands for it) LXD shifts the owners, children included (L-08)."""
    tree = staging / "ramfs"
    tree.mkdir()
    run("mount", "-t", "ramfs", "none", str(tree))
    make_container.undo.callback(run, "umount", str(tree))
    images.write_system(str(tree))
    container = make_container(client, "shift", staged.directory)
    client.set_config("shift", {"volatile.last_state.idmap": "[]"})
    container = make_container.place(client, "shift", container.placement.rootfs, str(tree))
    placement.place_twice(container.placement, client.daemon_pid())
    client.start("shift")
    assert container.run("stat", "-c", "%u", "/etc/passwd").strip() == "0"
    ids = client.idmap("shift")
    assert ids is not None
    assert os.stat(tree / "etc" / "passwd").st_uid == ids.uid[0].host
    client.restart("shift")
    assert container.run("stat", "-c", "%u", "/etc/passwd").strip() == "0"
    client.stop("shift")


def test_daemon_in_a_mount_namespace_of_its_own(
    private_lab: Lab, staged: Staged, make_container: MakeContainer
) -> None:
    """L-02, L-18: it does not see what is mounted after its start, and gets the tree all the same."""
    client = LxdClient.connect([private_lab.socket])
    daemon = client.daemon_pid()
    assert namespaces.mount_namespace_id(daemon) != namespaces.mount_namespace_id()
    assert mountinfo.at(staged.directory, pid=daemon) == ()
    container = make_container(client, "apart", staged.directory)
    first = client.start("apart").pid
    assert container.run("stat", "-c", "%u", "/etc/passwd", "/home/greeting").split() == ["0", "0"]
    private_lab.lxc("exec", "apart", "--", "reboot", "-f")
    _wait_for_other_init(client, "apart", first)
    assert container.run("cat", "/home/greeting") == "hello\n"
    client.stop("apart")
    assert placement.is_placed(container.placement, daemon)
    assert mountinfo.at(container.placement.rootfs) == ()
    with pytest.raises(TreeStillPlaced):
        client.delete("apart")
    placement.unplace(container.placement, daemon)
    assert not placement.is_placed(container.placement, daemon)


def test_a_namespace_that_copied_the_staged_tree_lets_it_go(staged: Staged, tmp_path: Path) -> None:
    """L-18: it was made while the tree was staged; the snap's daemon is refreshed like that."""
    rootfs = tmp_path / "c1" / "rootfs"
    rootfs.parent.mkdir()
    argv = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", "echo ready; read line"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None and daemon.stdout.readline() == b"ready\n"
        placement.prepare_rootfs(str(rootfs), daemon.pid)
        wanted = placement.describe("c1", str(rootfs), staged.directory)
        assert mountinfo.at(staged.directory, pid=daemon.pid)
        assert placement.place(wanted, daemon.pid)
        assert placement.is_placed(wanted, daemon.pid) and not placement.is_placed(wanted, os.getpid())
        assert len(mountinfo.below(str(rootfs), pid=daemon.pid)) == 1
        placement.unplace(wanted, daemon.pid)
        devices = {entry.device for entry in (*mountinfo.at(staged.directory), *mountinfo.below(staged.directory))}
        assert len(devices) == 2
        assert not devices & {entry.device for entry in mountinfo.entries(daemon.pid)}
        daemon.communicate(b"\n")


def test_another_tree_at_the_same_place_is_not_taken_for_it(staged: Staged, staging: Path, tmp_path: Path) -> None:
    """After an unmount and a mount of another disk the record is about something that is gone."""
    rootfs = tmp_path / "c1" / "rootfs"
    rootfs.mkdir(parents=True)
    wanted = placement.describe("c1", str(rootfs), staged.directory)
    run("mount", "-t", "tmpfs", "none", staged.directory)
    try:
        with pytest.raises(TreeNotPlaced, match="not mounted any more"):
            placement.place(wanted, os.getpid())
        with pytest.raises(TreeNotPlaced, match="booted"):
            placement.place(dataclasses.replace(wanted, boot="another"), os.getpid())
    finally:
        run("umount", staged.directory)
    assert mountinfo.at(str(rootfs)) == ()


def test_record_survives_a_round_trip(runtime_dir: Path) -> None:
    wanted = placement.Placement("c1", "/r/rootfs", "/s/ä b", (7, 3), "/@", 4026531840, "boot", True)
    runtime = Runtime(str(runtime_dir))
    placement.write(runtime, wanted)
    path = placement.record_path(runtime, "c1")
    assert placement.read(path) == wanted
    assert os.stat(path).st_mode & 0o777 == 0o600
    for name in (".c1.json.4000", ".c12.json.4000"):  # writers that were killed; the second is of another container
        Path(path).with_name(name).touch()
    placement.forget(runtime, "c1")
    placement.forget(runtime, "c1")
    assert os.listdir(os.path.dirname(path)) == [".c12.json.4000"]
    placement.forget(runtime, "c12")
    assert placement.read(path) is None
