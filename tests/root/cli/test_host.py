"""plugins, doctor, reconcile and completion on the real host."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from mapper_core.linux import loop, process_info
from mapper_core.mapping import Mapper
from mapper_core.model import Access, Disk, MapOptions
from mapper_core.testing import disks

from .conftest import PROGRAM, Cli

pytestmark = pytest.mark.root


def checks(cli: Cli) -> dict[str, tuple[str, str, str]]:
    """Name of a check -> status, detail, hint."""
    done = cli("doctor", "--json")
    found = {item["name"]: (item["status"], item["detail"], item["hint"]) for item in done.json["checks"]}
    failed = any(status == "failed" for status, _, _ in found.values())
    assert (done.status, done.json["ok"]) == (int(failed), not failed)
    return found


def test_plugins(cli: Cli) -> None:
    assert cli.ok("plugins").splitlines()[0].split() == ["NAME", "VERSION", "DISTRIBUTION", "STATUS", "CAPABILITIES"]
    found = {item["name"]: item for item in cli("plugins", "--json").json}
    assert {"raw", "qcow2", "vmdk"} <= set(found)
    assert set(found["raw"]) == {"name", "version", "distribution", "module", "usable", "problem", "capabilities"}
    assert found["raw"]["usable"] and found["raw"]["distribution"] == "mapper-raw"


# --- doctor -------------------------------------------------------------------------------------------------


def test_a_host_on_which_tests_run_is_well(cli: Cli) -> None:
    found = checks(cli)
    needed = (
        "transport loop", "transport storage_daemon", "plugin raw", "plugin qcow2", "plugin vmdk",
        "program qemu-nbd", "program qemu-storage-daemon", "kernel loop", "kernel openat2", "kernel mount API",
        "kernel idmapped mounts", "runtime directory",
    )  # fmt: skip
    for name in needed:
        assert found[name][0] == "ok", (name, found[name])
    assert ("nbd" in os.listdir("/sys/module")) or found["transport nbd"][0] == "warning"
    text = cli("doctor").out.splitlines()
    assert text[0].split() == ["STATUS", "CHECK", "FOUND"]
    for name in needed:  # not all: what others leave on the host comes and goes
        assert sum(line.startswith("ok") and f" {name} " in line for line in text) == 1, (name, text)


def test_it_only_looks(cli: Cli, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAPPER_RUNTIME_DIR", str(runtime_dir / "not-yet"))
    before = {status.device.path for status in loop.list_devices()}
    assert "does not exist yet" in checks(cli)["runtime directory"][1]
    assert not (runtime_dir / "not-yet").exists()
    assert before <= {status.device.path for status in loop.list_devices()} | before


def test_a_mapping_in_use_is_no_problem(cli: Cli, raw: Path, qcow2: Path) -> None:
    cli.ok("map", raw, "-f", "raw")
    cli.ok("map", qcow2, "-f", "qcow2")
    found = checks(cli)
    assert found["journal"][0] == "ok"
    assert not [name for name in found if str(raw) in name or str(qcow2) in name]
    cli.ok("unmap", raw, qcow2)


def test_a_wrong_runtime_directory(cli: Cli, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S-24"""
    runtime_dir.chmod(0o755)
    status, detail, hint = checks(cli)["runtime directory"]
    assert (status, hint) == ("failed", f"chmod 700 {runtime_dir}") and "others" in detail
    runtime_dir.chmod(0o700)
    for path in ("relative", "/" + 60 * "x"):
        monkeypatch.setenv("MAPPER_RUNTIME_DIR", path)
        assert checks(cli)["runtime directory"][0] == "failed"


def test_a_damaged_record(cli: Cli, runtime_dir: Path) -> None:
    cli.ok("ls")
    for folder in ("disks", "trees"):
        (runtime_dir / folder / "f-1-1.json").write_text("garbage")
    found = checks(cli)
    path = f"{runtime_dir}/trees/f-1-1.json"
    assert found["record f-1-1"][0] == found[f"tree record {path}"][0] == "failed"
    for folder in ("disks", "trees"):
        (runtime_dir / folder / "f-1-1.json").unlink()


def test_m15_a_loop_device_without_a_record(cli: Cli, raw: Path) -> None:
    fd = os.open(raw, os.O_RDWR)
    try:
        device = loop.attach(fd, access=Access.READ_WRITE, tag="mapper:f-dead-beef", direct_io=False)
    finally:
        os.close(fd)
    try:
        status, detail, hint = checks(cli)[f"loop device {device.path}"]
        assert (status, "f-dead-beef" in detail, f"losetup --detach {device.path}" in hint) == ("warning", True, True)
    finally:
        loop.detach(device.path, tag="mapper:f-dead-beef")


def test_m15_what_is_left_when_the_journal_is_lost(cli: Cli, qcow2: Path, runtime_dir: Path) -> None:
    """Device, daemon and export are named, each with the command that removes it."""
    device = cli.ok("map", qcow2, "-f", "qcow2", "--transport", "storage_daemon")
    (record,) = (runtime_dir / "disks").glob("*.json")
    text = record.read_text()
    record.unlink()
    try:
        found = checks(cli)
        assert found[f"loop device {device}"][0] == "warning"
        (daemon,) = (name for name, (_, detail, _) in found.items() if detail.startswith("qemu-storage-daemon serves"))
        assert found[daemon][2] == f"kill {daemon.removeprefix('process ')}"
        export = f"{runtime_dir}/exports/{record.stem}/disk"
        assert found[f"mount {export}"][2] == f"umount {export}"
    finally:
        record.write_text(text)
        cli.ok("unmap", qcow2)


def test_a_daemon_that_died(cli: Cli, qcow2: Path, runtime_dir: Path) -> None:
    device = cli.ok("map", qcow2, "-f", "qcow2", "--transport", "storage_daemon")
    (export,) = (runtime_dir / "exports").iterdir()
    (daemon,) = process_info.find_by_argument("qemu-storage-daemon", f"{export}/pid")
    os.kill(daemon.pid, signal.SIGKILL)
    process_info.wait_gone(daemon.pid, daemon.start_time, 10)
    status, detail, hint = checks(cli)[f"disk {qcow2}"]
    assert (status, hint.endswith(f"mapper-cli unmap {device}")) == ("failed", True) and "is gone" in detail
    cli.ok("unmap", device)


def test_a_device_that_somebody_else_has_taken_away(cli: Cli, raw: Path) -> None:
    device = cli.ok("map", raw, "-f", "raw")
    disks.run("losetup", "--detach", device)
    status, detail, hint = checks(cli)[f"disk {raw}"]
    assert (status, hint) == ("warning", "mapper-cli reconcile") and f"its device {device} is gone" in detail
    cli.ok("reconcile")


def test_an_image_that_was_deleted_while_mapped(cli: Cli, raw: Path) -> None:
    device = cli.ok("map", raw, "-f", "raw")
    raw.unlink()
    status, detail, hint = checks(cli)[f"disk {raw}"]
    assert (status, hint) == ("warning", f"mapper-cli unmap {device}") and "deleted" in detail
    cli.ok("unmap", device)


# --- reconcile ----------------------------------------------------------------------------------------------


def test_reconcile_releases_what_belongs_to_nobody(cli: Cli, raw: Path, parted: Path) -> None:
    cli.ok("map", raw, "-f", "raw")
    gone = subprocess.Popen(["true"])
    gone.wait()
    Mapper.open().map(Disk(str(parted), "raw"), MapOptions(), user=f"pid:{gone.pid}")
    assert "would be released" in cli.ok("reconcile", "--dry-run")
    assert len(cli("ls", "--json").json["disks"]) == 2
    done = cli("reconcile", "--json")
    assert done.status == 0
    assert [(item["kind"], item["subject"]) for item in done.json["actions"]] == [("disk", str(parted))]
    assert done.json["problems"] == []
    assert cli.ok("reconcile") == ""
    (left,) = cli("ls", "--json").json["disks"]
    assert left["disk"]["source"] == str(raw), "a person's own mapping stays"
    cli.ok("unmap", raw)


def test_a_crash_in_the_middle_is_seen_and_put_in_order(cli: Cli, qcow2: Path, runtime_dir: Path) -> None:
    cli.ok("map", qcow2, "-f", "qcow2")
    (record,) = (runtime_dir / "disks").glob("*.json")
    record.write_text(record.read_text().replace('"state":"mapped"', '"state":"mapping"'))
    assert checks(cli)[f"disk {qcow2}"][:2] == ("warning", "its record was left half done (mapping)")
    assert "left half done by a crash" in cli("ls").err
    assert str(qcow2) in cli.ok("reconcile")
    assert (cli.ok("ls"), checks(cli)["journal"][0]) == ("", "ok")


def test_reconcile_reports_what_it_cannot_do(cli: Cli, runtime_dir: Path) -> None:
    cli.ok("ls")
    broken = runtime_dir / "disks" / "f-1-1.json"
    broken.write_text("garbage")
    done = cli("reconcile")
    assert done.status == 1 and "f-1-1" in done.err
    broken.unlink()


# --- completion ---------------------------------------------------------------------------------------------


def complete(script: Path, *words: str, cwd: Path) -> set[str]:
    """What bash offers for the last of these words behind ``mapper-cli``."""
    line = " ".join(f"'{word}'" for word in (PROGRAM, *words))
    commands = (
        f"source '{script}'; COMP_WORDS=({line}); COMP_CWORD={len(words)}; COMPREPLY=(); "
        '_shtab_mapper_cli; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", commands], capture_output=True, text=True, check=True, timeout=60, cwd=cwd)
    assert done.stderr == ""
    return set(done.stdout.split())


def test_bash_completes_commands_formats_transports_files_and_devices(cli: Cli, raw: Path, tmp_path: Path) -> None:
    script = tmp_path / "completion.bash"
    script.write_text(cli.ok("completion", "bash") + "\n")
    (tmp_path / "folder").mkdir()
    assert complete(script, "", cwd=tmp_path) >= {"map", "unmap", "ls", "doctor"}
    assert complete(script, "un", cwd=tmp_path) == {"unmap"}
    assert complete(script, "map", "-f", "", cwd=tmp_path) >= {"raw", "qcow2", "vmdk"}
    assert complete(script, "map", "--format", "qc", cwd=tmp_path) == {"qcow2"}
    assert complete(script, "map", "--transport", "", cwd=tmp_path) == {"loop", "nbd", "storage_daemon"}
    (tmp_path / "disk.img").touch()
    assert complete(script, "map", "di", cwd=tmp_path) == {"disk.img"}
    assert complete(script, "map", "--allow-dir", "fo", cwd=tmp_path) == {"folder"}
    assert "--read-only" in complete(script, "map", "--", cwd=tmp_path)
    device = cli.ok("map", raw, "-f", "raw")
    assert complete(script, "unmap", "/dev/loop", cwd=tmp_path) >= {device}
    cli.ok("unmap", raw)


def test_bash_completes_names_and_does_not_run_them(cli: Cli, raw: Path, tmp_path: Path) -> None:
    script, tree = tmp_path / "completion.bash", tmp_path / "$(>canary)"
    script.write_text(cli.ok("completion", "bash") + "\n")
    tree.mkdir()
    cli.ok("mount", raw, tree, "-f", "raw")
    assert str(tree) in complete(script, "umount", f"{tmp_path}/", cwd=tmp_path)
    cli.ok("umount", tree)
    assert not (tmp_path / "canary").exists()


def test_zsh_gets_a_script_for_all_commands(cli: Cli) -> None:
    text = cli.ok("completion", "zsh")
    assert text.startswith("#compdef mapper-cli")
    assert "_mapper_cli_formats" in text and "reconcile" in text
