"""Two hosts and one image: what is refused, what is shared, and how a dead host's image is taken over.

The second host is a second runtime directory with another name in its locks: to the cluster it is another client.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from mapper_rbd import claims, names, session
from mapper_rbd import cluster as settings_of

from mapper_core import capabilities
from mapper_core.errors import ImageInUse, InUseElsewhere
from mapper_core.mapping import Mapper
from mapper_core.model import Access, Disk, MapOptions
from mapper_core.testing.disks import run

from .cluster import Cluster, Images
from .rbddisk import RO, RW, USER, disk, forget_after, holders, host, mapped, options, read, server_of, write

pytestmark = pytest.mark.ceph

CLI = str(Path(sys.executable).parent / "mapper-cli")


@pytest.fixture
def mapper() -> Mapper:
    return Mapper.open()


@pytest.fixture
def other(short_dir: Path) -> Mapper:
    """Another host."""
    return host(short_dir / "b")


def claim_of(cluster: Cluster, wanted: Disk, *, host: str, boot: str) -> claims.Claim:
    """Leave the lock behind of a mapping that nobody has any more."""
    claim = claims.new(Access.READ_WRITE, "", host, boot, "n-0")
    with session.open_volume(names.parse(wanted.source), settings_of.from_settings(wanted.settings)) as volume:
        claims.take(volume, claim)
    return claim


def give_back(wanted: Disk, claim: claims.Claim) -> None:
    with session.open_volume(names.parse(wanted.source), settings_of.from_settings(wanted.settings)) as volume:
        claims.release(volume, claim)


# --- C-09, C-14: who may have it ----------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "second"), [(RW, RW), (RW, RO), (RO, RW)], ids=["rw+rw", "rw+ro", "ro+rw"])
def test_c09_an_image_is_for_one_host(
    mapper: Mapper, other: Mapper, cluster: Cluster, images: Images, first: MapOptions, second: MapOptions
) -> None:
    """C-09: with a name of the holder in the message; and afterwards it is free."""
    source = images.create("one/shared")
    theirs = disk(cluster, source, host="b")
    with mapped(mapper, disk(cluster, source, host="a"), first):
        before = holders(cluster, source)
        with pytest.raises(InUseElsewhere, match=rf"{first.access.value} by a since 20") as found:
            other.map(theirs, second, user=USER)
        assert "break-lock" in found.value.hint
        assert other.journal.ids() == ()
        assert holders(cluster, source) == before
    with mapped(other, theirs, second):
        pass


def test_c14_readers_share(mapper: Mapper, other: Mapper, cluster: Cluster, images: Images) -> None:
    """C-14: the watch of another reader is no reason to refuse; a writer is kept out as long as one of them reads."""
    source = images.create("one/read")
    with images.open(source) as image:
        image.write(b"same", 0)
    ours, theirs = disk(cluster, source, host="a"), disk(cluster, source, host="b")
    with mapped(mapper, ours, RO) as first:
        assert images.watchers(source) != [], "else this test proves nothing"
        with mapped(other, theirs, RO) as second:
            assert read(first.device, 4) == read(second.device, 4) == b"same"
        with pytest.raises(InUseElsewhere):
            other.map(theirs, RW, user=USER)
    with mapped(other, theirs, RW):
        pass


def test_c14_a_snapshot_hinders_nobody(mapper: Mapper, other: Mapper, cluster: Cluster, images: Images) -> None:
    """Its client watches the image too, and is recognised; on this host and on another."""
    source = images.create("one/snapped")
    with images.open(source) as image:
        image.create_snap("s")
    snapshot = f"{source}@s"
    theirs = disk(cluster, snapshot, host="b")
    with mapped(mapper, disk(cluster, snapshot, host="a"), RO), mapped(other, theirs, RO):
        found = mapper.map(disk(cluster, source, host="a"), RW, user=USER)
        write(found.device, b"x")
        mapper.unmap(source, user=USER)
    with mapped(mapper, disk(cluster, source, host="a")), mapped(other, theirs, RO):
        pass


@pytest.mark.parametrize("how", [RW, RO], ids=["rw", "ro"])
def test_c09_a_client_that_knows_nothing_of_us(
    mapper: Mapper, cluster: Cluster, images: Images, how: MapOptions
) -> None:
    """A virtual machine, ``rbd map``: it has no lock of ours, and librbd's own it would hand over when asked."""
    wanted = disk(cluster, images.create("one/vm"))
    with cluster.volume(wanted.source) as image:
        image.write(b"guest", 0)
        before = time.monotonic()
        with pytest.raises(InUseElsewhere, match=r"127\.0\.0\.1"):
            mapper.map(wanted, how, user=USER)
        assert time.monotonic() - before < 10, "one that lives answers, and nobody waits for it to be forgotten"
    with mapped(mapper, wanted, how):
        pass


def test_c09_a_snapshot_is_not_brought_back_under_another_host(
    mapper: Mapper, other: Mapper, cluster: Cluster, images: Images
) -> None:
    source = images.create("one/revert")
    wanted = disk(cluster, source, host="a")
    capabilities.snapshot_create(mapper, wanted, "s")
    with mapped(other, disk(cluster, source, host="b")), pytest.raises(InUseElsewhere):
        capabilities.snapshot_revert(mapper, wanted, "s")
    capabilities.snapshot_revert(mapper, wanted, "s")
    assert holders(cluster, source) == ()


def test_qemu_writes_while_we_hold_the_lock(mapper: Mapper, cluster: Cluster, images: Images) -> None:
    """Our lock is beside the one that librbd takes for the feature exclusive-lock."""
    with mapped(mapper, disk(cluster, images.create("one/both"))) as found:
        write(found.device, b"x" * 4096)
        assert images.lockers("one/both") != []
        names_of = run("rados", "--conf", cluster.conf, "--id", cluster.user, "--keyring", cluster.keyring, "-p", "one",
                       "lock", "list", f"rbd_header.{_id(images)}")  # fmt: skip
        assert {'"rbd_lock"', '"mapper"', '"mapper.client"'} <= set(names_of.replace("}", ":").split(":"))


def _id(images: Images) -> str:
    with images.open("one/both") as image:
        return str(image.id())


# --- crashes ------------------------------------------------------------------------------------------------


def test_a_lock_of_an_earlier_boot_is_our_own(mapper: Mapper, other: Mapper, cluster: Cluster, images: Images) -> None:
    """/run is empty after a reboot, the cluster is not. Another host does not touch the lock."""
    source = images.create("one/reboot")
    ours, theirs = disk(cluster, source, host="a"), disk(cluster, source, host="b")
    claim_of(cluster, ours, host="a", boot="an-earlier-one")
    with pytest.raises(InUseElsewhere, match="by a since"):
        other.map(theirs, RW, user=USER)
    with mapped(mapper, ours):
        assert not any("an-earlier-one" in cookie for cookie in holders(cluster, source))
    assert holders(cluster, source) == ()


def test_a_record_of_an_earlier_boot_gives_its_lock_back(mapper: Mapper, cluster: Cluster, images: Images) -> None:
    """Where the runtime directory outlives a reboot: the device is gone, the lock is not."""
    wanted = disk(cluster, images.create("one/kept"), host="a")
    with mapped(mapper, wanted) as found:
        record = mapper.journal.read(found.id)
        assert record is not None
        claim = claim_in(record.resources)
    # as it was, but written down in another boot
    give_again = replace(record, boot="an-earlier-one")
    with session.open_volume(names.parse(wanted.source), settings_of.from_settings(wanted.settings)) as volume:
        claims.take(volume, claim)
    mapper.journal.write(give_again)
    assert mapper.repair(found.id)
    assert holders(cluster, wanted.source) == ()
    assert mapper.journal.ids() == ()


def claim_in(resources: tuple[object, ...]) -> claims.Claim:
    [cookie] = [dict(item.values)["cookie"] for item in resources if getattr(item, "kind", "") == "rbd-claim"]  # type: ignore[attr-defined]
    claim = claims.parse(cookie)
    assert claim is not None
    return claim


def test_what_this_boot_has_and_the_journal_does_not_is_left_alone(
    mapper: Mapper, cluster: Cluster, images: Images
) -> None:
    """Another runtime directory on this very host may have it mapped."""
    wanted = disk(cluster, images.create("one/unknown"), host="a")
    claim = claim_of(cluster, wanted, host="a", boot=mapper.boot)
    with pytest.raises(InUseElsewhere):
        mapper.map(wanted, RW, user=USER)
    give_back(wanted, claim)


def test_after_the_crash_of_a_server_the_image_can_be_mapped_again(mapper: Mapper, own_cluster: Cluster) -> None:
    forget_after(own_cluster, 2)
    images = Images(own_cluster)
    wanted = disk(own_cluster, images.create("one/crash"))
    found = mapper.map(wanted, RW, user=USER)
    os.kill(server_of(mapper, found), signal.SIGKILL)
    mapper.unmap(wanted.source, user=USER)
    with mapped(mapper, wanted) as again:
        write(again.device, b"x")


# --- break-lock ---------------------------------------------------------------------------------------------


def break_lock(cluster: Cluster, source: str, runtime: str) -> subprocess.CompletedProcess[str]:
    argv = (CLI, "break-lock", source, "-f", "rbd", *options(cluster), "-o", "host=b")
    environment = {**os.environ, "MAPPER_RUNTIME_DIR": runtime}
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_c09_break_lock_shuts_the_other_host_out(mapper: Mapper, other: Mapper, own_cluster: Cluster) -> None:
    """C-09: the lock of a dead host stays until somebody says that it is dead; and if it lives, it can write no more."""
    images = Images(own_cluster)
    source = images.create("one/dead")
    theirs = disk(own_cluster, source, host="b")
    found = mapper.map(disk(own_cluster, source, host="a"), RW, user=USER)
    write(found.device, b"before")
    with pytest.raises(InUseElsewhere):
        other.map(theirs, RW, user=USER)

    done = break_lock(own_cluster, source, other.runtime.root)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with mapped(other, theirs) as taken:
        assert read(taken.device, 6) == b"before"
        write(taken.device, b"taken!")
        with pytest.raises(OSError):
            write(found.device, b"zombie")
        assert read(taken.device, 6) == b"taken!"
        mapper.unmap(source, user=USER)  # the host that was shut out can clean up
        assert mapper.journal.ids() == ()
        write(taken.device, b"still!")
    with images.open(source) as image:
        assert image.read(0, 6) == b"still!"


def test_break_lock_without_a_lock(cluster: Cluster, images: Images, runtime_dir: Path) -> None:
    assert break_lock(cluster, images.create("one/free"), str(runtime_dir)).returncode == 0


def test_break_lock_of_what_is_mapped_here(mapper: Mapper, cluster: Cluster, images: Images) -> None:
    wanted = disk(cluster, images.create("one/mine"))
    with mapped(mapper, wanted), pytest.raises(ImageInUse, match="is mapped to"):
        capabilities.break_lock(mapper, wanted)
