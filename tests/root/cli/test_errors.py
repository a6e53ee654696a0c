"""Bad input: each has its class and exit status, names the object and the remedy, and leaves nothing."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from mapper_core.testing import disks

from .conftest import Cli

pytestmark = pytest.mark.root


def test_a_missing_image(cli: Cli, tmp_path: Path) -> None:
    for command in (("map",), ("inspect",), ("plan",), ("partitions",)):
        for declared in ((), ("-f", "raw"), ("-f", "qcow2")):
            error = cli.fails(3, "ImageNotFound", *command, tmp_path / "nothing.img", *declared)
            assert str(tmp_path / "nothing.img") in error["message"]


def test_a_format_nobody_handles(cli: Cli, raw: Path) -> None:
    error = cli.fails(3, "PluginMissing", "map", raw, "-f", "vhdx")
    assert "pip install ./plugins/" in error["hint"] and "raw" in error["hint"]


def test_a_blocked_plugin(cli: Cli, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAPPER_BLOCK_PLUGINS", "raw")
    assert "blocked by MAPPER_BLOCK_PLUGINS" in cli.fails(3, "PluginMissing", "map", raw, "-f", "raw")["message"]
    assert "blocked by MAPPER_BLOCK_PLUGINS" in cli.ok("plugins")


def test_declared_and_found_differ(cli: Cli, raw: Path, qcow2: Path) -> None:
    """S-01: a qcow2 header in a disk that was declared raw is not believed, and not ignored either."""
    assert "qcow2" in cli.fails(4, "FormatMismatch", "map", qcow2, "-f", "raw")["hint"]
    cli.fails(4, "FormatMismatch", "map", raw, "-f", "qcow2")
    cli.fails(4, "FormatMismatch", "map", qcow2, "-f", "vmdk")


def test_m22_a_packed_image(cli: Cli, raw: Path) -> None:
    packed = raw.with_suffix(".raw.gz")
    packed.write_bytes(gzip.compress(raw.read_bytes(), 1))
    for declared in ((), ("-f", "raw"), ("-f", "qcow2")):
        error = cli.fails(4, "UnsupportedFormat", "map", packed, *declared)
        assert "gzip" in error["message"] and "gunzip" in error["hint"]


def test_a_truncated_image(cli: Cli, qcow2: Path) -> None:
    os.truncate(qcow2, 70_000)
    error = cli.fails(4, "TruncatedImage", "map", qcow2, "-f", "qcow2")
    assert str(qcow2) in error["message"]


def test_an_empty_image(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for declared in ("raw", "qcow2"):
        cli.fails(4, "TruncatedImage", "map", tmp_path / "empty", "-f", declared)


def test_something_that_is_no_image(cli: Cli, tmp_path: Path) -> None:
    """S-26"""
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", "/dev/null"):
        cli.fails(7, "UnsafePath", "map", path, "-f", "raw")
        cli.fails(7, "UnsafePath", "inspect", path)


def test_a_reference_out_of_the_allowed_directories(cli: Cli, qcow2: Path, tmp_path: Path) -> None:
    """S-02"""
    directory = tmp_path / "datastore"
    directory.mkdir()
    top = directory / "top.qcow2"
    disks.run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(qcow2), str(top))
    error = cli.fails(7, "ForbiddenReference", "map", top, "-f", "qcow2")
    assert str(qcow2) in error["message"] and str(tmp_path) in error["hint"]
    cli.ok("map", top, "-f", "qcow2", "--allow-dir", tmp_path)
    cli.ok("unmap", top)
    cli.fails(2, "UsageError", "map", top, "-f", "qcow2", "--allow-dir", tmp_path / "nowhere")
    qcow2.unlink()
    cli.fails(3, "BackingFileMissing", "map", top, "-f", "qcow2", "--allow-dir", tmp_path)


def test_a_disk_that_pretends_to_be_huge(cli: Cli, tmp_path: Path) -> None:
    """S-19"""
    image = tmp_path / "huge.qcow2"
    disks.run("qemu-img", "create", "-q", "-f", "qcow2", str(image), "100T")
    cli.fails(7, "Refused", "map", image, "-f", "qcow2", "--max-size", "10G")


def test_a_transport_that_cannot_carry_it(cli: Cli, qcow2: Path) -> None:
    error = cli.fails(6, "TransportUnavailable", "map", qcow2, "-f", "qcow2", "--transport", "loop")
    assert "loop cannot carry qcow2" in error["message"] and "doctor" in error["hint"]


def test_wrong_usage(cli: Cli, raw: Path) -> None:
    for words in (("map",), ("map", raw, "--transport", "scsi"), ("mount", raw, "/mnt", "--idmap", "x"), ("nothing",)):
        cli.fails(2, "UsageError", *words)
    assert cli().status == 2


def test_an_error_for_people_has_two_lines(cli: Cli, tmp_path: Path) -> None:
    done = cli("map", tmp_path / "nothing", "-f", "raw")
    assert done.err == (
        f"mapper-cli: error: {tmp_path}/nothing: the image does not exist\n"
        "hint: check the path; is the datastore mounted?\n"
    )
    assert (done.status, done.out) == (3, "")
