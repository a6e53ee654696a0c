"""map, unmap, ls, partitions, inspect on real images."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from mapper_core.identity import identify
from mapper_core.linux import locks, loop
from mapper_core.model import Disk
from mapper_core.testing import disks
from mapper_core.testing.disks import Part

from .conftest import PROGRAM, Cli

pytestmark = pytest.mark.root

NOBODY = 65534


def bound_to(path: Path) -> list[str]:
    """Loop devices on a file."""
    found = path.stat()
    return [
        status.device.path
        for status in loop.list_devices()
        if (status.backing_device, status.backing_inode) == (found.st_dev, found.st_ino)
    ]


# --- map and unmap ------------------------------------------------------------------------------------------


def test_map_prints_the_device_and_nothing_else(cli: Cli, raw: Path) -> None:
    done = cli("map", raw, "-f", "raw")
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("/dev/loop") and done.out.count("\n") == 1
    assert bound_to(raw) == [done.out.strip()]
    assert cli.ok("unmap", raw) == ""
    assert bound_to(raw) == []


def test_a_file_that_ends_within_a_sector(cli: Cli, tmp_path: Path) -> None:
    """As losetup says: the end is ignored. Most often the file was cut off."""
    image = tmp_path / "cut.raw"
    image.write_bytes(bytes(4096 + 100))
    done = cli("map", image, "-f", "raw")
    assert done.status == 0 and "its last 100 bytes are no full sector" in done.err
    cli.ok("unmap", image)


def test_mapping_twice_is_the_same_device_also_by_another_name(
    cli: Cli, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = cli.ok("map", raw, "--format", "raw")
    (raw.parent / "link").symlink_to(raw)
    os.link(raw, raw.parent / "hard")
    monkeypatch.chdir(raw.parent)
    assert {cli.ok("map", name, "-f", "raw") for name in (raw.name, "link", "./hard", raw)} == {device}
    assert cli.ok("ls").count("/dev/loop") == 1
    cli.ok("unmap", "link")
    assert bound_to(raw) == []


def test_unmapping_twice_is_a_success(cli: Cli, raw: Path) -> None:
    """U-09"""
    cli.ok("map", raw, "-f", "raw")
    for _ in range(3):
        assert cli.ok("unmap", raw) == ""
    assert cli.ok("unmap", raw.parent / "never-there") == ""
    assert "is not mapped" in cli("-v", "unmap", raw).err


def test_without_a_format_the_guess_is_said(cli: Cli, raw: Path, qcow2: Path) -> None:
    for path, found in ((raw, "raw"), (qcow2, "qcow2")):
        done = cli("map", path)
        assert done.status == 0 and done.out.startswith("/dev/")
        assert f"looks like {found}; --format {found} is safer" in done.err
    cli.ok("unmap", raw, qcow2)


def test_a_qcow2_has_partitions_and_goes_by_any_of_its_names(cli: Cli, qcow2: Path) -> None:
    device = cli.ok("map", qcow2, "-f", "qcow2")
    assert all(Path(f"{device}p{number}").is_block_device() for number in (1, 2, 3))
    cli.ok("unmap", f"{device}p2")
    assert cli.ok("ls") == ""
    cli.ok("unmap", cli.ok("map", qcow2, "-f", "qcow2"))
    assert cli.ok("ls") == ""


def test_several_targets_at_once_and_a_wrong_one_stops_no_other(
    cli: Cli, raw: Path, parted: Path, tmp_path: Path
) -> None:
    cli.ok("map", raw, "-f", "raw")
    cli.ok("map", parted, "-f", "raw")
    done = cli("unmap", raw, "/dev/null", parted)
    assert done.status != 0 or done.err == ""
    assert cli.ok("ls") == ""


def test_read_only_is_read_only(cli: Cli, raw: Path) -> None:
    device = cli.ok("map", raw, "-f", "raw", "-r")
    assert Path(f"/sys/block/{Path(device).name}/ro").read_text() == "1\n"
    cli.fails(5, "MappedDifferently", "map", raw, "-f", "raw")
    cli.ok("unmap", raw)


def test_while_another_process_works_on_the_disk(cli: Cli, raw: Path, runtime_dir: Path) -> None:
    cli.ok("ls")  # makes the directories
    key = identify(Disk(str(raw), "raw")).id
    with locks.try_lock(f"{runtime_dir}/locks/{key}"):
        error = cli.fails(5, "Busy", "map", raw, "-f", "raw")
    assert f"process {os.getpid()}" in error["message"]
    assert bound_to(raw) == []


def test_many_processes_at_once_one_works(cli: Cli, qcow2: Path) -> None:
    """Each of them gets the device or is told that the disk is busy; there is one device in the end."""
    argv = [PROGRAM, "map", str(qcow2), "-f", "qcow2"]
    running = [subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(6)]
    results = [(process.communicate(timeout=60)[0].strip(), process.returncode) for process in running]
    assert {status for _, status in results} <= {0, 5}
    assert len({device for device, status in results if status == 0}) == 1
    assert len(cli("ls", "--json").json["disks"]) == 1
    cli.ok("unmap", qcow2)


def test_a_mounted_device_is_not_taken_away(cli: Cli, raw: Path, tmp_path: Path) -> None:
    device = cli.ok("map", raw, "-f", "raw")
    target = tmp_path / "mnt"
    target.mkdir()
    subprocess.run(["mount", device, target], check=True)
    try:
        error = cli.fails(5, "DeviceBusy", "unmap", raw)
        assert str(target) in error["message"]
        assert (target / "hello").read_text() == "world\n"
        assert bound_to(raw) == [device]
    finally:
        subprocess.run(["umount", target], check=True)
    cli.ok("unmap", raw)


def test_a_device_of_somebody_else_is_not_touched(cli: Cli, raw: Path) -> None:
    device = subprocess.run(
        ["losetup", "--find", "--show", raw], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        cli.fails(3, "NotMapped", "unmap", device)
        cli.fails(5, "ImageInUse", "map", raw, "-f", "raw")
        assert bound_to(raw) == [device]
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def test_m20_the_image_is_gone_and_can_be_unmapped(cli: Cli, raw: Path, qcow2: Path) -> None:
    for path, kind in ((raw, "raw"), (qcow2, "qcow2")):
        cli.ok("map", path, "-f", kind)
        path.unlink()
        cli.ok("unmap", path)
    assert cli.ok("ls") == ""


@pytest.mark.parametrize("milliseconds", [20, 60, 90, 120, 160, 240])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_at_any_moment_leaves_nothing_half_done(
    cli: Cli, qcow2: Path, milliseconds: int, number: signal.Signals
) -> None:
    """Done or undone; the leak oracle counts what is left."""
    process = subprocess.Popen([PROGRAM, "map", str(qcow2), "-f", "qcow2"], stdout=subprocess.DEVNULL, stderr=-1)
    time.sleep(milliseconds / 1000)  # not to wait for something, but to hit different moments
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    listed = cli("ls", "--json")
    assert (listed.status, listed.err) == (0, ""), "nothing is half done"
    assert len(listed.json["disks"]) == 1 or process.returncode != 0
    assert b"ended by" in err or process.returncode != 128 + number
    found = cli("doctor", "--json").json["checks"]
    assert [check for check in found if str(qcow2) in check["name"] or "of which there is no" in check["detail"]] == []
    cli.ok("unmap", qcow2)


# --- what is printed ----------------------------------------------------------------------------------------


def test_ls_is_a_table(cli: Cli, raw: Path) -> None:
    assert cli.ok("ls") == ""
    device = cli.ok("map", raw, "-f", "raw", "-r")
    header, row = cli.ok("ls").splitlines()
    assert header.split() == ["DEVICE", "FORMAT", "ACCESS", "TRANSPORT", "SIZE", "USERS", "SOURCE"]
    assert row.split() == [device, "raw", "ro", "loop", "16M", "cli", str(raw)]
    cli.ok("unmap", raw)


def test_map_in_json_has_the_whole_disk(cli: Cli, parted: Path) -> None:
    done = cli("map", parted, "-f", "raw", "--json")
    disk = done.json
    assert set(disk) == {"id", "disk", "device", "transport", "access", "size", "table", "users"}
    assert disk["disk"] == {"source": str(parted), "format": "raw", "allowed_dirs": [], "settings": []}
    assert (disk["access"], disk["size"], disk["users"]) == ("rw", parted.stat().st_size, ["cli"])
    assert [item["device"] for item in disk["table"]["partitions"]] == [f"{disk['device']}p{n}" for n in (1, 2, 3)]
    assert cli("ls", "--json").json == {"disks": [disk], "trees": []}
    cli.ok("unmap", disk["id"])
    assert cli("ls", "--json").json == {"disks": [], "trees": []}


def test_one_damaged_record_hides_no_other(cli: Cli, raw: Path, runtime_dir: Path) -> None:
    device = cli.ok("map", raw, "-f", "raw")
    broken = runtime_dir / "disks" / "f-1-1.json"
    broken.write_text("{")
    done = cli("ls")
    assert done.status == 10
    assert device in done.out and str(broken) in done.err
    broken.unlink()
    broken = runtime_dir / "trees" / "x.json"
    broken.write_text("{")
    done = cli("ls")
    assert (done.status, device in done.out, str(broken) in done.err) == (10, True, True)
    broken.unlink()
    cli.ok("unmap", raw)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_partitions_of_an_image(cli: Cli, parted: Path, qcow2: Path, kind: str, mapped: bool) -> None:
    image = parted if kind == "raw" else qcow2
    device = cli.ok("map", image, "-f", kind) if mapped else ""
    header, *rows = cli.ok("partitions", image, "-f", kind).splitlines()
    assert header.split() == [
        "NUMBER", "START", "SIZE", "FSTYPE", "LABEL", "UUID", "PARTLABEL", "PARTTYPE", "DEVICE",
    ]  # fmt: skip
    assert [row.split()[:5] for row in rows] == [
        ["1", "1M", "8M", "vfat", "-"],
        ["2", "9M", "8M", "ext4", "one"],
        ["3", "17M", "4M", "-", "-"],
    ]
    table = cli("partitions", image, "-f", kind, "--json").json
    assert set(table) == {"scheme", "sector_size", "uuid", "warnings", "partitions"}
    assert table["scheme"] == "gpt"
    assert table["partitions"][1]["filesystem"]["label"] == "one"
    if mapped:
        assert [item["device"] for item in table["partitions"]] == [f"{device}p{n}" for n in (1, 2, 3)]
        assert cli.ok("partitions", device).splitlines()[1:] == rows
        cli.fails(5, "MappedDifferently", "partitions", image, "-f", "vmdk")
        assert "one" in cli.ok("partitions", f"{device}p2")
    assert len(cli("ls", "--json").json["disks"]) == mapped
    cli.ok("unmap", image)


def test_a_label_cannot_steer_the_terminal(cli: Cli, tmp_path: Path) -> None:
    image = disks.make_filesystem(tmp_path / "a.raw", Part("ext4", 8, ("-L", "x\x1b[31my")))
    assert "x\\x1b[31my" in cli.ok("partitions", image, "-f", "raw")
    assert cli("partitions", image, "-f", "raw", "--json").json["partitions"][0]["filesystem"]["label"].startswith("x")


def test_inspect_shows_the_chain(cli: Cli, qcow2: Path, tmp_path: Path) -> None:
    top = tmp_path / "top.qcow2"
    disks.run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", qcow2.name, str(top))
    text = cli.ok("inspect", top, "-f", "qcow2")
    assert f"image:         {top}" in text and f"backing:       {qcow2.name} -> {qcow2}" in text
    assert f"image:         {qcow2}" in text
    image = cli("inspect", top, "-f", "qcow2", "--json").json
    assert (image["path"], image["backing"]["path"], image["backing"]["backing"]) == (str(top), str(qcow2), None)


def test_what_needs_no_root(cli: Cli) -> None:
    with tempfile.TemporaryDirectory(prefix="cli-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        parted = disks.make_disk(directory / "a.raw", (Part("ext4", 8, ("-L", "one")),))
        disks.convert(parted, "qcow2", directory / "a.qcow2")
        plain = {"user": NOBODY, "group": NOBODY, "extra_groups": [], "cwd": "/"}
        works = (f"inspect {directory}/a.qcow2 -f qcow2", f"partitions {parted} -f raw", "plugins", "completion bash")
        for line in works:
            done = cli(*line.split(), **plain)
            assert (done.status, done.err) == (0, ""), line
            assert done.out
        for line in (f"map {parted} -f raw", "ls", f"mount {parted} {directory} -f raw", "reconcile"):
            done = cli(*line.split(), "--json", **plain)
            assert (done.status, done.error["type"]) == (77, "NeedsRoot"), line
        for image, kind in ((parted, "raw"), (directory / "a.qcow2", "qcow2")):
            image.chmod(0o600)
            done = cli("inspect", image, "-f", kind, "--json", **plain)
            assert (done.status, done.error["type"], done.error["subject"]) == (77, "NeedsRoot", str(image))
        (directory / "run").mkdir(0o700)  # where root has mapped something before
        done = cli("ls", "--json", **plain, env={**os.environ, "MAPPER_RUNTIME_DIR": f"{directory}/run"})
        assert (done.status, done.error["type"]) == (77, "NeedsRoot")
        done = cli("doctor", **plain)
        assert "not root" in done.out


def test_root_is_not_needed_for_the_journal_but_for_devices(cli: Cli) -> None:
    """With a journal of one's own: refused before anything is written down, unless capabilities do what root can."""
    with tempfile.TemporaryDirectory(prefix="cli-") as name:
        image, tree, run = f"{name}/a.raw", f"{name}/tree", f"{name}/run"
        disks.make_filesystem(Path(image), Part("ext4", 8))
        os.mkdir(tree)
        for path in (name, image, tree):
            os.chown(path, NOBODY, NOBODY)
        environment = {**os.environ, "MAPPER_RUNTIME_DIR": run}
        plain = {"user": NOBODY, "group": NOBODY, "extra_groups": [], "cwd": "/", "env": environment}
        for line in (f"map {image} -f raw", f"mount {image} {tree} -f raw"):
            done = cli(*line.split(), "--json", **plain)
            assert (done.status, done.error["type"], done.error["subject"]) == (77, "NeedsRoot", image), line
            left = [path for path in Path(run).rglob("*") if not path.is_dir()]
            assert left == [], line
        able = ("--inh-caps=+sys_admin,+dac_override", "--ambient-caps=+sys_admin,+dac_override")
        as_nobody = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *able, PROGRAM)
        for words in (("map", image, "-f", "raw"), ("unmap", image)):
            subprocess.run((*as_nobody, *words), env=environment, check=True, capture_output=True, timeout=60)


# --- the streams --------------------------------------------------------------------------------------------


def test_a_full_disk_below_stdout(cli: Cli, raw: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([PROGRAM, "map", raw, "-f", "raw"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 74
    assert "the output cannot be written: No space left on device" in done.stderr
    assert len(bound_to(raw)) == 1, "the work is done, and ls tells the device"
    cli.ok("unmap", raw)


@pytest.mark.parametrize("words", [("plugins",), ("--help",)])
def test_nobody_reads(words: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run([PROGRAM, *words], stdout=writer, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_the_short_way_loads_nothing_heavy(cli: Cli, raw: Path) -> None:
    """Mapping a raw image is mostly the start of Python, so what is imported is counted."""
    python = Path(PROGRAM).with_name("python")
    done = subprocess.run(
        [python, "-X", "importtime", PROGRAM, "map", raw, "-f", "raw"], capture_output=True, text=True, check=True
    )
    cli.ok("unmap", raw)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "mapper_core.mapping" in loaded
    heavy = {
        "asyncio", "ctypes", "email", "importlib.metadata", "logging", "pylxd", "sh", "shtab", "shutil", "socket",
        "ssl", "subprocess", "tempfile", "threading", "urllib",
    }  # fmt: skip
    assert loaded & heavy == set()
    others = {name for name in loaded if name.startswith("mapper_core.") and ("tree." in name or "doctor" in name)}
    assert others <= {"mapper_core.tree.superblock"} | {name for name in others if ".superblock" in name}
