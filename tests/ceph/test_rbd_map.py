"""RBD images on a real cluster: mapped, mounted, released, and nothing left in the cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mapper_rbd import krbd, rbd_nbd

from mapper_core import capabilities
from mapper_core.errors import (
    DeviceBusy,
    ImageNotFound,
    NotSupported,
    PluginMissing,
    ReadOnlyImage,
    Refused,
    TransportUnavailable,
    UsageError,
)
from mapper_core.mapping import Mapper
from mapper_core.model import MapOptions
from mapper_core.registry import Registry, installed
from mapper_core.testing.disks import run
from mapper_core.tree.mounted import TreeRequest, mount_tree, unmount_tree

from .cluster import MIB, Cluster, Images
from .rbddisk import RO, RW, USER, disk, forget_after, holders, mapped, options, read, server_of, system_disk, write

pytestmark = pytest.mark.ceph

CLI = str(Path(sys.executable).parent / "mapper-cli")
ROUNDS = 200


def cli(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([CLI, *words], capture_output=True, text=True, timeout=100, check=False)


@pytest.fixture
def mapper() -> Mapper:
    return Mapper.open()


# --- images and trees ---------------------------------------------------------------------------------------


def test_c01_an_image_with_default_features_and_a_gpt(
    mapper: Mapper, cluster: Cluster, images: Images, tmp_path: Path
) -> None:
    """C-01: no ``rbd default features = 3`` anywhere."""
    source = images.upload("one/one-7", system_disk(tmp_path))
    image = mapper.inspect(disk(cluster, source))
    assert image is not None
    assert dict(image.detail)["features"] == "layering, exclusive-lock, object-map, fast-diff, deep-flatten"
    target = tmp_path / "tree"
    target.mkdir()
    mount_tree(mapper, TreeRequest(disk(cluster, source), RW, str(target)))
    try:
        [found] = mapper.mapped()
        assert [(part.number, part.size) for part in found.table.partitions] == [(1, 24 * MIB), (2, 16 * MIB)]
        assert (target / "home/user/hello").read_text() == "from rbd\n"
        (target / "etc/written").write_text("by us")
    finally:
        unmount_tree(mapper, str(target))
    with mapped(mapper, disk(cluster, source), RO):
        mount_tree(mapper, TreeRequest(disk(cluster, source), RO, str(target)))
        assert (target / "etc/written").read_text() == "by us"
        unmount_tree(mapper, str(target))
    assert mapper.mapped() == ()
    assert holders(cluster, source) == ()


def test_a_clone_is_written_and_its_parent_is_not(
    mapper: Mapper, cluster: Cluster, images: Images, tmp_path: Path
) -> None:
    """OpenNebula's one-7-54-0: the clone for disk 0 of machine 54."""
    images.upload("one/one-7", system_disk(tmp_path))
    clone = images.clone("one/one-7@snap", "one/one-7-54-0")
    image = mapper.inspect(disk(cluster, clone))
    assert image is not None and dict(image.detail)["parent"] == "one/one-7@snap"
    with mapped(mapper, disk(cluster, clone)) as found, mapped(mapper, disk(cluster, "one/one-7@snap"), RO) as parent:
        assert [part.size for part in found.table.partitions] == [24 * MIB, 16 * MIB]
        before = read(parent.device, MIB)
        assert read(found.device, MIB) == before
        write(found.device, b"x" * 512, 512 * 1024)
        assert read(found.device, 512, 512 * 1024) == b"x" * 512
        assert read(parent.device, MIB) == before


def test_a_snapshot_is_read_only(mapper: Mapper, cluster: Cluster, images: Images) -> None:
    source = images.create("one/s")
    with images.open(source) as image:
        image.write(b"old", 0)
        image.create_snap("first")
        image.write(b"new", 0)
    with pytest.raises(ReadOnlyImage, match="snapshot"):
        mapper.map(disk(cluster, f"{source}@first"), RW, user=USER)
    with mapped(mapper, disk(cluster, f"{source}@first"), RO) as old, mapped(mapper, disk(cluster, source)) as new:
        assert (read(old.device, 3), read(new.device, 3)) == (b"old", b"new")
        with pytest.raises(OSError):
            write(old.device, b"x" * 512)


def test_c11_images_of_one_name(mapper: Mapper, cluster: Cluster, images: Images) -> None:
    """C-11: pool and namespace are part of the name, and of what is unmapped."""
    both = cluster.as_user("libvirt")
    sources = [images.create(source) for source in ("one/img", "two/img", "one/ns/img", "two/ns/img")]
    for source in sources:
        with images.open(source) as image:
            image.write(source.encode(), 0)
    found = [mapper.map(disk(both, source), RW, user=USER) for source in sources]
    assert len({item.id for item in found}) == len({item.device for item in found}) == 4
    mapper.unmap("two/img", user=USER)
    assert {item.disk.source for item in mapper.mapped()} == {"one/img", "one/ns/img", "two/ns/img"}
    for source, item in zip(sources, found, strict=True):
        if source != "two/img":
            assert read(item.device, len(source)) == source.encode()
            mapper.unmap(item.device, user=USER)
    assert mapper.mapped() == ()


def test_c13_a_name_that_is_given_to_another_image(mapper: Mapper, cluster: Cluster, images: Images) -> None:
    """C-13: the journal goes by the number of the image, which is never given out again."""
    source = images.create("one/reborn")
    first = mapper.identify(disk(cluster, source)).id
    assert mapper.identify(disk(cluster, source, timeout="7")).id == first, "how it is reached is not what it is"
    images.remove(source)
    images.create(source)
    assert mapper.identify(disk(cluster, source)).id != first


def test_no_key_is_in_journal_or_command_line(mapper: Mapper, cluster: Cluster, images: Images, tmp_path: Path) -> None:
    key = run("ceph-authtool", "--print-key", cluster.keyring, "--name", f"client.{cluster.user}").strip()
    keyfile = tmp_path / "key"
    keyfile.write_text(key)
    wanted = disk(cluster, images.create("one/secret"), keyring="/nonexistent", keyfile=str(keyfile))
    with mapped(mapper, wanted) as found:
        record = Path(f"{mapper.runtime.disks}/{found.id}.json").read_text()
        argv = Path(f"/proc/{server_of(mapper, found)}/cmdline").read_text()
        files = [path for path in Path(mapper.runtime.root).rglob("*") if path.is_file() and path.name != "disk"]
        assert any(path.suffix == ".conf" for path in files)
        assert [text for text in (record, argv, *(path.read_text() for path in files)) if key in text] == []
        assert "one/secret" in record and "secret" in argv


# --- transports ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [krbd.NAME, rbd_nbd.NAME])
def test_a_transport_that_this_kernel_lacks_is_refused_by_name(
    mapper: Mapper, cluster: Cluster, images: Images, name: str
) -> None:
    module = {krbd.NAME: ("rbd", krbd.BUS), rbd_nbd.NAME: ("nbd", "/sys/block/nbd0")}[name]
    if os.path.exists(module[1]):
        pytest.skip(f"this kernel has the module {module[0]}")
    wanted = disk(cluster, images.create("one/forced"))
    with pytest.raises(TransportUnavailable, match=f"the kernel module {module[0]} is not loaded"):
        mapper.map(wanted, MapOptions(transport=name), user=USER)
    assert holders(cluster, "one/forced") == (), "the claim is given back"


def test_an_unknown_transport(mapper: Mapper, cluster: Cluster, images: Images) -> None:
    with pytest.raises(UsageError) as found:
        mapper.map(disk(cluster, images.create("one/t")), MapOptions(transport="iscsi"), user=USER)
    assert "krbd, rbd-nbd" in found.value.hint


def test_nothing_that_is_written_is_lost_or_changed(mapper: Mapper, cluster: Cluster, images: Images) -> None:
    """fio: random writes of 4 to 64 KiB, 16 in flight, read back and compared by checksum."""
    with mapped(
        mapper, disk(cluster, images.create("one/fio", 128 * MIB)), MapOptions(transport="storage_daemon")
    ) as f:
        run(
            "fio", "--name=verify", f"--filename={f.device}", "--rw=randwrite", "--bsrange=4k-64k", "--size=64M",
            "--ioengine=libaio", "--iodepth=16", "--direct=1", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1",
            "--verify_state_save=0", "--loops=2", "--randseed=7", "--output-format=terse",
        )  # fmt: skip


@pytest.mark.timeout(600)  # 0.2 s each on an idle machine
def test_c03_c04_c10_map_and_unmap_without_a_pause(mapper: Mapper, cluster: Cluster, images: Images) -> None:
    """C-03, C-04: the next map does not meet the last unmap. C-10: the device is usable, and right, when map returns."""
    source = images.create("one/again")
    with images.open(source) as image:
        image.write(b"signature", 4096)
    wanted = disk(cluster, source)
    began = time.monotonic()
    for number in range(ROUNDS):
        found = mapper.map(wanted, RW, user=USER)
        assert read(found.device, 9, 4096) == b"signature", f"round {number}"
        mapper.unmap(found.id, user=USER)
    print(f"{ROUNDS} rounds, {(time.monotonic() - began) / ROUNDS * 1000:.0f} ms each")
    assert images.watchers(source) == []
    assert holders(cluster, source) == ()


def test_c06_each_image_has_a_server_of_its_own(mapper: Mapper, own_cluster: Cluster) -> None:
    """C-06: the end of the program that mapped, or of one server, takes no other disk with it."""
    forget_after(own_cluster, 2)
    images = Images(own_cluster)
    source, other = images.create("one/a"), images.create("one/b")
    done = cli("map", source, "-f", "rbd", *options(own_cluster))  # that program has ended now
    assert done.returncode == 0, done.stderr
    with mapped(mapper, disk(own_cluster, other)) as found:
        device = done.stdout.strip()
        os.kill(server_of(mapper, found), signal.SIGKILL)
        write(device, b"alive")
        assert read(device, 5) == b"alive"
    assert images.watchers(other) == [], "unmap has waited until the cluster has forgotten the dead client"
    assert cli("unmap", device).returncode == 0


def test_c07_mounted_elsewhere_is_refused_with_the_holder(
    mapper: Mapper, cluster: Cluster, images: Images, tmp_path: Path
) -> None:
    """C-07: "rbd: unmap failed: (16) Device or resource busy" for ever, and nobody knew why."""
    source = images.upload("one/m", system_disk(tmp_path))
    with mapped(mapper, disk(cluster, source)) as found:
        mount = "mount -o ro $0 /mnt && echo mounted && read wait"
        argv = ("unshare", "--mount", "--propagation=private", "sh", "-c", mount, found.table.partitions[0].device)
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None and holder.stdout.readline() == "mounted\n"
            with pytest.raises(DeviceBusy, match=r"/mnt|sh"):
                mapper.unmap(source, user=USER)
            assert [item.device for item in mapper.mapped()] == [found.device], "nothing was changed"
            holder.communicate("\n", timeout=20)


# --- names that are not there -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none/x", "the cluster has no pool none"),
        ("one/none/x", "the pool one has no namespace none"),
        ("one/none", "the image does not exist"),
        ("one/ns/none", "the image does not exist"),
        ("one/there@none", "the image has no snapshot none"),
    ],
)
def test_what_is_missing_is_said_exactly(
    mapper: Mapper, cluster: Cluster, images: Images, source: str, message: str
) -> None:
    images.create("one/there")
    with pytest.raises(ImageNotFound, match=message):
        mapper.map(disk(cluster, source), RO, user=USER)
    assert mapper.journal.ids() == ()


# --- size and snapshots -------------------------------------------------------------------------------------


def test_an_image_is_made_and_grows(mapper: Mapper, cluster: Cluster, images: Images) -> None:
    source = "one/made"
    images._made.append(source)
    wanted = disk(cluster, source)
    capabilities.create(mapper, wanted, 8 * MIB)
    with pytest.raises(Refused, match="exists already"):
        capabilities.create(mapper, wanted, 8 * MIB)
    capabilities.resize(mapper, wanted, 12 * MIB)
    with mapped(mapper, wanted) as found:
        assert found.size == 12 * MIB
        capabilities.resize(mapper, wanted, 16 * MIB)  # while it is in use
        write(found.device, b"end", 16 * MIB - 512)
        with pytest.raises(Refused):
            capabilities.resize(mapper, wanted, 8 * MIB)
    with images.open(source) as image:
        assert image.size() == 16 * MIB
        assert image.read(16 * MIB - 512, 3) == b"end"


def test_c05_a_change_from_outside_while_it_is_mapped(mapper: Mapper, cluster: Cluster, images: Images) -> None:
    """C-05: what the client hears of a resize or a changed feature must not keep it from ending."""
    source = images.create("one/changed", 8 * MIB)
    with mapped(mapper, disk(cluster, source)) as found:
        write(found.device, b"x")
        assert cluster.rbd("resize", "--no-progress", "--size", "16M", source).returncode == 0
        assert cluster.rbd("feature", "disable", source, "object-map", "fast-diff").returncode == 0
        before = time.monotonic()
    assert time.monotonic() - before < 10
    assert images.watchers(source) == []


def test_snapshots_of_an_image_that_is_in_use(mapper: Mapper, cluster: Cluster, images: Images) -> None:
    wanted = disk(cluster, images.create("one/snaps"))
    with mapped(mapper, wanted) as found:
        write(found.device, b"one")
        capabilities.snapshot_create(mapper, wanted, "first")
        write(found.device, b"two")
        capabilities.snapshot_create(mapper, wanted, "second")
        with pytest.raises(Refused, match="already"):
            capabilities.snapshot_create(mapper, wanted, "second")
        write(found.device, b"now")
        listed = capabilities.snapshots(mapper, wanted)
        assert [(item.name, item.size, item.protected) for item in listed] == [
            ("first", MIB, False),
            ("second", MIB, False),
        ]
        assert all(abs(item.created - time.time()) < 60 for item in listed)
    capabilities.snapshot_revert(mapper, wanted, "first")
    with mapped(mapper, wanted) as found:
        assert read(found.device, 3) == b"one"
        capabilities.snapshot_delete(mapper, wanted, "first")
    capabilities.snapshot_delete(mapper, wanted, "second")
    assert capabilities.snapshots(mapper, wanted) == ()
    assert holders(cluster, wanted.source) == ()


def test_a_snapshot_with_clones_stays(mapper: Mapper, cluster: Cluster, images: Images) -> None:
    wanted = disk(cluster, images.create("one/parent"))
    images.clone("one/parent@snap", "one/child")
    assert [item.protected for item in capabilities.snapshots(mapper, wanted)] == [True]
    with pytest.raises(Refused):
        capabilities.snapshot_delete(mapper, wanted, "snap")
    with pytest.raises(NotSupported, match="one/child"):
        mapper.registry.snapshot_delete(wanted, "snap", None, None)  # type: ignore[arg-type]
    images.remove("one/child")
    capabilities.snapshot_delete(mapper, wanted, "snap")  # its protection goes with it
    assert capabilities.snapshots(mapper, wanted) == ()


# --- command line -------------------------------------------------------------------------------------------


def test_the_command_line(cluster: Cluster, images: Images, tmp_path: Path) -> None:
    source = images.upload("one/cli", system_disk(tmp_path))
    words = (source, "-f", "rbd", *options(cluster))
    assert "virtual size: 44M" in cli("inspect", *words).stdout
    assert [row["size"] for row in json.loads(cli("partitions", *words, "--json").stdout)["partitions"]] == [
        24 * MIB,
        16 * MIB,
    ]
    assert "/home" in cli("plan", *words).stdout
    tree = tmp_path / "tree"
    tree.mkdir()
    done = cli("mount", source, str(tree), *words[1:])
    assert done.returncode == 0, done.stderr
    assert (tree / "home/user/hello").read_text() == "from rbd\n"
    assert source in cli("ls").stdout
    assert cli("umount", str(tree)).returncode == 0
    assert "disks" not in cli("ls").stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("one", "-f", "rbd"), "is not the name of an RBD image"),
        (("one/x", "-f", "rbd", "-o", "key=AQ=="), "there is no setting 'key'"),
        (("one/x", "-f", "rbd", "-o", "conf=/nonexistent"), "the configuration file does not exist"),
    ],
)
def test_wrong_usage(words: tuple[str, ...], message: str) -> None:
    done = cli("map", *words)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr


def test_without_the_plugin_what_it_made_stays_in_the_journal(mapper: Mapper, cluster: Cluster, images: Images) -> None:
    """The plugin was uninstalled while its disk is mapped: other commands work, and this one says what is missing."""
    wanted = disk(cluster, images.create("one/orphan"))
    with mapped(mapper, wanted) as found:
        without = Mapper(mapper.runtime, Registry.load(entry for entry in installed() if entry.name != "rbd"))
        assert [item.device for item in without.mapped()] == [found.device]
        with pytest.raises(PluginMissing, match="rbd"):
            without.unmap(wanted.source, user=USER)
        assert mapper.journal.ids() == (found.id,)
        assert holders(cluster, wanted.source) != ()
