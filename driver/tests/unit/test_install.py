"""What is put in place for OpenNebula and the node, and that exactly that is taken away."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import pytest
from mapper_driver.entry import refuse_links, trusted_directory
from mapper_driver.install import place, plan
from mapper_driver.install.plan import REMOTES, Kind, Part

from mapper_core.errors import NotSupported, StateCorrupt, UsageError

pytestmark = pytest.mark.unit

PROBES = f"{REMOTES}/im/lxd-probes.d"


def _front_end(directory: Path, version: str) -> Path:
    """A front-end as OpenNebula's packages leave it, with its own driver for LXD where it had one."""
    remotes = directory / REMOTES[1:]
    files = {
        "VERSION": version,
        "im/common.d/monitord-client.rb": "",
        "im/common.d/monitord-client_control.sh": "",
        "im/common.d/date.sh": "",
        "im/node-probes.d/pci.rb": "",
        "vmm/kvm/deploy": "of another driver",
    }
    if version.startswith(("5", "6.0", "6.8")):
        files |= {
            "vmm/lxd/deploy": "OpenNebula's",
            "vmm/lxd/client.rb": "a library",
            "etc/vmm/lxd/lxdrc": ":vnc:\n  :width: 801\n",
            "im/lxd-probes.d/vm/status/state.rb": "OpenNebula's",
            "im/lxd-probes.d/host/system/pci.rb": "OpenNebula's",
        }
    for name, content in files.items():
        (remotes / name).parent.mkdir(parents=True, exist_ok=True)
        (remotes / name).write_text(content)
    (remotes / "im/lxd-probes.d/vm/snapshot").mkdir(parents=True)
    return directory


def _state(directory: Path) -> dict[str, str]:
    found = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        else:
            found[name] = "/" if path.is_dir() else path.read_text()
    return found


def _install(directory: Path, part: Part = Part.ALL) -> place.Report:
    version = plan.detect(str(directory), "")
    return place.install(plan.make(part, version, "oneadmin", str(directory), "/usr/lib/mapper/bin"), str(directory))


@pytest.mark.parametrize("version", ["5.12.13", "6.0.3", "6.8.3", "6.10.5", "7.4.0"])
def test_everything_is_put_in_place_and_exactly_that_is_taken_away(tmp_path: Path, version: str) -> None:
    _front_end(tmp_path, version)
    before = _state(tmp_path)
    report = _install(tmp_path)
    found = _state(tmp_path)
    theirs = (f"{REMOTES}/etc/vmm/lxd/lxdrc", f"{PROBES}/host/system/pci.rb")
    assert report.kept == (theirs if f"{REMOTES}/vmm/lxd/client.rb"[1:] in before else ())
    for kind in ("host/system", "host/monitor", "vm/status", "vm/monitor", "vm/execution"):
        assert "probe" in found[f"{PROBES}/{kind}/mapper.sh"[1:]]
        assert os.access(tmp_path / f"{PROBES}/{kind}/mapper.sh"[1:], os.X_OK)
    assert found[f"{PROBES}/vm/snapshot"[1:]] == "/", "the agent ends without it"
    assert f"{PROBES}/vm/status/state.rb"[1:] not in found, "two would report"
    assert found[f"{PROBES}/host/beacon/date.sh"[1:]] == "-> ../../../common.d/date.sh"
    assert found[f"{REMOTES}/im/lxd.d/monitord-client.rb"[1:]] == "-> ../common.d/monitord-client.rb"
    assert "mapper-driver" in found[f"{REMOTES}/vmm/lxd/deploy"[1:]]
    assert found[f"{REMOTES}/vmm/kvm/deploy"[1:]] == "of another driver"
    links = [name for name, content in found.items() if content.startswith("->")]
    assert all(os.path.exists(tmp_path / name) for name in links), "rsync fails at a link that leads nowhere"
    again = _install(tmp_path)
    assert (again.kept, _state(tmp_path)) == (report.kept, found), "the same command twice"
    removed = place.uninstall(str(tmp_path))
    assert (removed.kept, _state(tmp_path)) == ((), before)
    assert place.uninstall(str(tmp_path)).done == ()


def test_what_an_administrator_has_changed_is_kept_and_named(tmp_path: Path) -> None:
    _front_end(tmp_path, "6.8.3")
    first = _install(tmp_path)
    assert f"{REMOTES}/etc/vmm/lxd/lxdrc" in first.kept, "it was there before"
    rule = tmp_path / "etc/udev/rules.d/59-mapper.rules"
    rule.write_text(rule.read_text() + "# mine\n")
    probe = tmp_path / f"{PROBES}/vm/status/own.sh"[1:]
    probe.write_text("#!/bin/sh\n")
    assert "/etc/udev/rules.d/59-mapper.rules" in _install(tmp_path).kept
    removed = place.uninstall(str(tmp_path))
    assert removed.kept == ("/etc/udev/rules.d/59-mapper.rules",)
    assert rule.read_text().endswith("# mine\n") and probe.exists()
    assert (tmp_path / f"{REMOTES}/etc/vmm/lxd/lxdrc"[1:]).read_text() == ":vnc:\n  :width: 801\n"


def test_an_upgrade_of_opennebula_between(tmp_path: Path) -> None:
    """Its package writes its own scripts over ours; the next installation puts ours back and keeps the newer ones."""
    _front_end(tmp_path, "6.8.2")
    _install(tmp_path)
    deploy, state = tmp_path / f"{REMOTES}/vmm/lxd/deploy"[1:], tmp_path / f"{PROBES}/vm/status/state.rb"[1:]
    deploy.write_text("newer")
    state.write_text("newer")
    assert _install(tmp_path).kept == (f"{REMOTES}/etc/vmm/lxd/lxdrc", f"{PROBES}/host/system/pci.rb")
    assert "mapper-driver" in deploy.read_text() and not state.exists()
    place.uninstall(str(tmp_path))
    assert (deploy.read_text(), state.read_text()) == ("newer", "newer")


def test_one_that_was_interrupted_can_be_repeated_or_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _front_end(tmp_path, "6.8.3")
    before, real = _state(tmp_path), os.rename
    for after in range(1, 48, 9):
        left = [after]

        def rename(source: str, target: str, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            real(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", rename)
            with pytest.raises(KeyboardInterrupt):
                _install(tmp_path)
        place.uninstall(str(tmp_path))
        assert _state(tmp_path) == before, after
    _install(tmp_path)


def test_a_node_alone(tmp_path: Path) -> None:
    report = _install(tmp_path)
    assert not [path for path in report.done if path.startswith((REMOTES, "/usr"))], "there is no front-end here"
    sudoers = tmp_path / "etc/sudoers.d/mapper-driver"
    assert sudoers.stat().st_mode & 0o777 == 0o440
    assert "oneadmin ALL=(root:root) NOPASSWD: /usr/lib/mapper/bin/mapper-driver-root\n" in sudoers.read_text()
    assert not [path for path in report.done if path.startswith("/etc") and "@" in (tmp_path / path[1:]).read_text()]
    place.uninstall(str(tmp_path))
    assert not [path for path in tmp_path.rglob("*") if not path.is_dir()] and not (tmp_path / "etc").exists()


def test_the_boot_service_holds_up_no_other_and_ends_nothing(tmp_path: Path) -> None:
    """A service comes after basic.target and this after all sockets (systemd.service(5), bootup(7)): before one of them
    would be a cycle, and systemd leaves out sockets.target to break it. And one failure must not end the storage daemons
    of the others (systemd.kill(5)).
    """
    _install(tmp_path, Part.NODE)
    text = (tmp_path / "etc/systemd/system/mapper-driver-boot.service").read_text()
    options = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    before = options["Before"].split()
    assert {"lxd.service", "snap.lxd.daemon.service", "incus.service"} <= set(before)
    assert "DefaultDependencies" not in options and all(unit.endswith(".service") for unit in before)
    assert options["KillMode"] == "process"


@pytest.mark.parametrize(
    "programs", ["/opt/my mapper/bin", "/opt/a:b/bin", "/opt/a,b/bin", "/opt/a=b/bin", "/opt/%h/bin"]
)
def test_sudo_is_given_nothing_that_it_cannot_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: str
) -> None:
    """A line with one of these is an error in sudoers(5), or something else to systemd.unit(5)."""
    monkeypatch.setattr(sysconfig, "get_path", lambda name: programs)
    with pytest.raises(UsageError, match="cannot be told of programs"):
        plan.make(Part.NODE, "", "oneadmin", str(tmp_path))
    assert plan.make(Part.NODE, "", "oneadmin", str(tmp_path), "/opt/mapper/bin").items
    assert plan.make(Part.FRONTEND, "6.10.5", "oneadmin", str(tmp_path)).items


def test_samples_fit_the_version(tmp_path: Path) -> None:
    def sample(version: str) -> str:
        items = plan.make(Part.FRONTEND, version, "oneadmin", str(tmp_path)).items
        [found] = [item.content.decode() for item in items if item.path.endswith("samples/oned.conf")]
        return found

    assert "LIVE_RESIZE" not in sample("5.12.0") and "IMPORTED_VMS_ACTIONS" in sample("5.12.0")
    assert "LIVE_RESIZE" in sample("6.10.5") and "IMPORTED_VMS_ACTIONS" in sample("6.10.5")
    assert "IMPORTED_VMS_ACTIONS" not in sample("7.0.0")
    for version in ("5.12.0", "6.10.5", "7.0.0"):
        assert (
            "@" not in sample(version) and ",\n]" not in sample(version) and 'NAME           = "lxd"' in sample(version)
        )


def test_versions(tmp_path: Path) -> None:
    assert plan.detect(str(tmp_path), "") == ""
    assert plan.detect(str(tmp_path), "6.10.5") == "6.10.5"
    with pytest.raises(NotSupported, match="too old"):
        plan.detect(str(tmp_path), "5.10.5")
    with pytest.raises(UsageError, match="is not a version"):
        plan.detect(str(tmp_path), "latest")


def test_a_damaged_manifest_removes_nothing(tmp_path: Path) -> None:
    _install(tmp_path)
    (tmp_path / place.MANIFEST[1:]).write_text('{"version": 1, "entries": [["/etc/passwd"]]}')
    with pytest.raises(StateCorrupt):
        place.uninstall(str(tmp_path))
    assert (tmp_path / "etc/sudoers.d/mapper-driver").exists()


def test_without_its_manifest_nothing_of_opennebula_is_lost(tmp_path: Path) -> None:
    """What was moved away is not deleted, and comes back when the manifest was made anew."""
    _front_end(tmp_path, "6.8.3")
    before = _state(tmp_path)
    _install(tmp_path)
    installed = _state(tmp_path)
    (tmp_path / place.MANIFEST[1:]).unlink()
    assert place.uninstall(str(tmp_path)) == place.Report(())
    del installed[place.MANIFEST[1:]]
    assert _state(tmp_path) == installed
    _install(tmp_path)
    place.uninstall(str(tmp_path))
    left = {name: content for name, content in _state(tmp_path).items() if content != "/"}
    assert left == {name: content for name, content in before.items() if content != "/"}


def test_every_file_is_of_a_kind_that_is_known() -> None:
    items = plan.make(Part.ALL, "7.4.0", "oneadmin", "").items
    assert {item.kind for item in items} == {Kind.FILE, Kind.CONFIG, Kind.LINK, Kind.DIRECTORY}
    scripts = {
        item.path.rpartition("/")[2]: item for item in items if "/vmm/lxd/" in item.path and item.kind is Kind.FILE
    }
    assert len(scripts) == 23 and {item.mode for item in scripts.values()} == {0o755}
    assert len({item.content for item in scripts.values()}) == 1


def test_the_place_of_the_scripts_is_not_taken_on_trust(tmp_path: Path) -> None:
    """S: options of the node lie beside the scripts, and root follows them."""
    scripts = tmp_path / "remotes" / "vmm" / "lxd"
    scripts.mkdir(parents=True)
    for directory in (tmp_path, tmp_path / "remotes", tmp_path / "remotes" / "vmm", scripts):
        directory.chmod(0o755)
    me = os.getuid()
    assert trusted_directory(f"{scripts}/", me) == str(scripts)
    with pytest.raises(ValueError, match="belongs to user"):
        trusted_directory(str(scripts), me + 1) if me else trusted_directory_of_another(scripts)
    (tmp_path / "remotes").chmod(0o777)
    with pytest.raises(ValueError, match="others than its owner may write"):
        trusted_directory(str(scripts), me)
    (tmp_path / "link").symlink_to(scripts)
    with pytest.raises(ValueError, match="others than its owner"):
        trusted_directory(str(tmp_path / "link"), me)
    with pytest.raises(ValueError, match="not an absolute path"):
        trusted_directory("remotes", me)
    with pytest.raises(OSError):
        trusted_directory(str(tmp_path / "gone"), me)


def test_what_root_reads_beside_the_scripts_is_no_link(tmp_path: Path) -> None:
    scripts, probe = tmp_path / "vmm" / "lxd", tmp_path / "im" / "lxd-probes.d" / "vm" / "status"
    for directory in (scripts, probe, tmp_path / "etc" / "vmm" / "lxd"):
        directory.mkdir(parents=True)
        refuse_links(str(directory))
    for name in ("VERSION", "etc/vmm/lxd/lxdrc"):
        (tmp_path / name).symlink_to("/etc/shadow")
        for directory in (scripts, probe):
            with pytest.raises(ValueError, match=f"{name} is a symbolic link"):
                refuse_links(str(directory))
        (tmp_path / name).unlink()


def trusted_directory_of_another(scripts: Path) -> str:
    os.chown(scripts, 12345, 12345)
    try:
        return trusted_directory(str(scripts), 0)
    finally:
        os.chown(scripts, 0, 0)
