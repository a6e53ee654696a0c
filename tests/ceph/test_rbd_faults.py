"""What goes wrong with a cluster: each failure has its type and its time, nothing is forced, and nothing is forgotten."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mapper_core.errors import AccessDenied, DeadlineExceeded, ImageNotFound, MapperError, UsageError
from mapper_core.mapping import Mapper
from mapper_core.model import Disk
from mapper_core.reconcile import reconcile

from .cluster import MIB, Cluster, Images
from .rbddisk import RW, USER, disk, holders, mapped, server_of, write

pytestmark = pytest.mark.ceph

#: The setting ``timeout`` of these tests, and what a command may take that meets it twice, on a busy machine.
TIMEOUT, BOUND = 2, 20


@pytest.fixture
def mapper() -> Mapper:
    return Mapper.open()


@contextmanager
def bounded(seconds: float = BOUND) -> Iterator[None]:
    before = time.monotonic()
    yield
    assert time.monotonic() - before < seconds


def impatient(cluster: Cluster, source: str, **settings: str) -> Disk:
    return disk(cluster, source, **{"timeout": str(TIMEOUT), **settings})


# --- reaching the cluster -----------------------------------------------------------------------------------


def refused(mapper: Mapper, wanted: Disk, error: type[MapperError], match: str) -> MapperError:
    with bounded(), pytest.raises(error, match=match) as found:
        mapper.map(wanted, RW, user=USER)
    assert mapper.journal.ids() == ()
    assert found.value.hint
    return found.value


def test_monitors_that_do_not_answer(mapper: Mapper, cluster: Cluster, images: Images) -> None:
    wanted = impatient(cluster, images.create("one/x"), mon_host="127.0.0.1:9")
    refused(mapper, wanted, DeadlineExceeded, f"did not answer within {TIMEOUT} s")


def test_monitors_with_a_name_that_does_not_exist(
    mapper: Mapper, cluster: Cluster, images: Images, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted = impatient(cluster, images.create("one/x"), mon_host="127.0.0.1, no.invalid:6789")
    refused(mapper, wanted, UsageError, "the address of the monitor no.invalid is not known")
    assert capfd.readouterr() == ("", ""), "librados would have written to standard output"


def test_another_user_s_key(mapper: Mapper, cluster: Cluster, images: Images, tmp_path: Path) -> None:
    keyring = tmp_path / "keyring"
    keyring.write_text("[client.oneadmin]\n\tkey = AQAukAFrflggHhAASh1PLOGNH3IuGcXbcuGI2Q==\n")
    wanted = impatient(cluster, images.create("one/x"), keyring=str(keyring))
    error = refused(mapper, wanted, AccessDenied, "does not accept client.oneadmin")
    assert "AQA" not in str(error) + error.hint


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keyring": "/nonexistent"}, "there is no key of client"),
        ({"user": "unknown"}, "does not accept client.unknown"),
    ],
    ids=["no file", "no user"],
)
def test_no_key(mapper: Mapper, cluster: Cluster, images: Images, settings: dict[str, str], message: str) -> None:
    refused(mapper, impatient(cluster, images.create("one/x"), **settings), AccessDenied, message)


def test_a_user_who_may_do_nothing(mapper: Mapper, cluster: Cluster, images: Images) -> None:
    refused(mapper, impatient(cluster.as_user("nobody"), images.create("one/x")), AccessDenied, "client.nobody may not")


def test_a_pool_of_others(mapper: Mapper, cluster: Cluster, images: Images) -> None:
    refused(mapper, impatient(cluster, images.create("two/x")), AccessDenied, "client.oneadmin may not")


def test_a_configuration_that_is_none(mapper: Mapper, cluster: Cluster, tmp_path: Path) -> None:
    conf = tmp_path / "ceph.conf"
    conf.write_bytes(b"[[[\0 no")
    refused(mapper, impatient(cluster, "one/x", conf=str(conf)), UsageError, "with this configuration")


# --- while it is mapped -------------------------------------------------------------------------------------


def test_c08_an_image_that_was_deleted_while_it_was_mapped(mapper: Mapper, own_cluster: Cluster) -> None:
    """C-08: its server was shut out, so that nothing watched it, and it was removed; unmap succeeds."""
    images = Images(own_cluster)
    wanted = impatient(own_cluster, images.create("one/gone"))
    found = mapper.map(wanted, RW, user=USER)
    with images.open(wanted.source) as image:
        addresses = [
            one["addr"] for one in image.watchers_list() if one["addr"] in _published(own_cluster, wanted.source)
        ]
    with own_cluster.as_user("admin").connection() as connection:
        for address in addresses:
            connection.blocklist_add(address, 0)
    images.remove(wanted.source)
    with bounded():
        mapper.unmap(found.device, user=USER)
    assert mapper.journal.ids() == ()
    with pytest.raises(ImageNotFound):
        mapper.identify(wanted)


def _published(cluster: Cluster, source: str) -> set[str]:
    from mapper_rbd import claims, names, session
    from mapper_rbd import cluster as settings_of

    wanted = disk(cluster, source)
    with session.open_volume(names.parse(source), settings_of.from_settings(wanted.settings)) as volume:
        return {locker.description for locker in claims.info(volume, claims.CLIENT_LOCK).lockers}


def test_an_osd_that_stops_under_load(mapper: Mapper, own_cluster: Cluster) -> None:
    """Writes wait and are not lost; asking and unmapping end in time, and change nothing; then all goes on."""
    wanted = impatient(own_cluster, Images(own_cluster).create("one/load", 16 * MIB))
    found = mapper.map(wanted, RW, user=USER)
    write(found.device, b"before")
    own_cluster.lab("pause", "osd")
    try:
        argv = (
            "dd",
            "if=/dev/zero",
            f"of={found.device}",
            "bs=64k",
            "count=16",
            "seek=1",
            "conv=fsync",  # librbd takes what fits into its cache
            "status=none",
        )
        writer = subprocess.Popen(argv)
        with bounded(), pytest.raises(DeadlineExceeded):
            mapper.inspect(wanted)
        with bounded(), pytest.raises(DeadlineExceeded):
            mapper.unmap(found.device, user=USER)
        assert writer.poll() is None, "it waits"
        assert mapper.journal.ids() == (found.id,)
        assert os.path.exists(f"/sys/block/{os.path.basename(found.device)}/loop"), "the device was left as it was"
    finally:
        own_cluster.lab("resume", "osd")
    assert writer.wait(60) == 0
    assert reconcile(mapper).problems == ()
    assert mapper.journal.ids() == ()
    assert holders(own_cluster, wanted.source) == ()


def test_c08_a_cluster_that_is_gone_at_unmap(mapper: Mapper, own_cluster: Cluster) -> None:
    """C-08: bounded, said, in the journal; reconcile fails in time too, and finishes it when the cluster is back."""
    images = Images(own_cluster)
    wanted = impatient(own_cluster, images.create("one/away"))
    found = mapper.map(wanted, RW, user=USER)
    write(found.device, b"kept")
    own_cluster.lab("stop", "osd")
    own_cluster.lab("stop", "mon")
    try:
        with bounded(), pytest.raises(DeadlineExceeded, match="monitors of the cluster did not answer") as error:
            mapper.unmap(wanted.source, user=USER)
        assert "reconcile" in error.value.hint
        with bounded():
            problems = reconcile(mapper, settle_seconds=0).problems
        assert [problem.subject for problem in problems] == [wanted.source]
        assert mapper.journal.ids() == (found.id,)
        os.kill(server_of(mapper, found), 0)  # nobody has killed it
    finally:
        own_cluster.lab("start", "mon")
        own_cluster.lab("start", "osd")
    report = reconcile(mapper)
    assert report.problems == ()
    assert mapper.journal.ids() == ()
    assert holders(own_cluster, wanted.source) == ()
    assert images.watchers(wanted.source) == []
    with images.open(wanted.source) as image:
        assert image.read(0, 4) == b"kept"


def test_a_cluster_that_is_away_for_a_moment(mapper: Mapper, own_cluster: Cluster) -> None:
    """The monitor is restarted under a mapped image; nobody notices."""
    wanted = disk(own_cluster, Images(own_cluster).create("one/moment"))
    with mapped(mapper, wanted) as found:
        own_cluster.lab("stop", "mon")
        write(found.device, b"meanwhile")
        own_cluster.lab("start", "mon")


def test_a_map_that_fails_half_way_leaves_nothing(
    mapper: Mapper, cluster: Cluster, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server cannot be started: the claim and the configuration file are given back."""
    from mapper_core.errors import CommandFailed
    from mapper_core.transports import daemon

    wanted = disk(cluster, images.create("one/half"))

    def fail(argv: tuple[str, ...], *_: object, **__: object) -> None:
        raise CommandFailed(argv, 1, "no")

    monkeypatch.setattr(daemon, "start", fail)
    with pytest.raises(CommandFailed):
        mapper.map(wanted, RW, user=USER)
    assert mapper.journal.ids() == ()
    assert holders(cluster, wanted.source) == ()
