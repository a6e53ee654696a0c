"""Names and settings: what is understood, and that nothing else is."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mapper_rbd import attaching, cluster, conffile, host, names, session, snapshot_list
from mapper_rbd.cluster import Cluster
from mapper_rbd.names import VolumeName

from mapper_core.errors import AccessDenied, UsageError
from mapper_core.model import Access, Disk
from mapper_core.transports.blockgraph import to_json

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("one/one-7", VolumeName("one", "one-7")),
        ("one/one-7-54-0", VolumeName("one", "one-7-54-0")),
        ("one/tenant/disk", VolumeName("one", "disk", "tenant")),
        ("one/one-7@snap", VolumeName("one", "one-7", "", "snap")),
        ("one/tenant/disk@2", VolumeName("one", "disk", "tenant", "2")),
        ("a b/Bild ä", VolumeName("a b", "Bild ä")),
    ],
)
def test_a_name_is_read_and_written(source: str, name: VolumeName) -> None:
    assert names.parse(source) == name
    assert str(name) == source


@pytest.mark.parametrize(
    "source",
    [
        *("", "image", "/one/image", "one/", "one//image", "a/b/c/d", "one/image@", "@snap"),
        *("one/image@a@b", "one/image@a/b", "one/im\nage", "one/im\0age", "\x1b[31m/image", "one/\u202eimage"),
    ],
)
def test_other_names_are_refused(source: str) -> None:
    with pytest.raises(UsageError) as found:
        names.parse(source)
    assert str(found.value).isprintable()


def test_settings_of_opennebula() -> None:
    settings = (
        ("user", "libvirt"),
        ("conf", "/etc/ceph/one.conf"),
        ("mon_host", "mon1 mon2:6789"),
        ("keyfile", ""),
        ("secret", "5c3e0e37-b3a8-4a1c-8b9c-6e2c6e5b5d5d"),
    )
    found = cluster.from_settings(settings)
    assert found.user == "libvirt"
    assert found.conf_file == "/etc/ceph/one.conf"
    assert found.overrides() == (("mon_host", "mon1 mon2:6789"),), "the libvirt secret is not on this host"
    assert found.timeout == 10


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("key", "AQAukAFrflggHhAASh1PLOGNH3IuGcXbcuGI2Q=="),
        ("pool", "one"),
        ("user", "client/x"),
        ("user", "a]\n[global"),
        ("conf", "relative.conf"),
        ("keyring", "/etc/ceph/x\nmon_host = evil"),
        ("mon_host", "a\nkeyring=/etc/shadow"),
        ("mon_host", "$(reboot)"),
        ("secret", "../../../../etc/shadow"),
        ("timeout", "0"),
        ("timeout", "-1"),
        ("timeout", "²"),
        ("timeout", "99999"),
        ("host", "a/b"),
    ],
)
def test_other_settings_are_refused(name: str, value: str) -> None:
    with pytest.raises(UsageError) as found:
        cluster.from_settings(((name, value),))
    assert found.value.subject == name
    assert name != "key" or value not in str(found.value) + found.value.hint, "keys are not repeated"


def test_a_setting_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(UsageError, match="twice"):
        cluster.from_settings((("user", "a"), ("user", "b")))


def test_nothing_says_where_the_cluster_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "DEFAULT_CONF", "/nonexistent")
    with pytest.raises(UsageError, match="where the cluster is"):
        _ = Cluster().conf_file
    assert Cluster(mon_host="mon1").conf_file == ""


@pytest.mark.parametrize(
    ("addresses", "found"),
    [
        ("", ()),
        ("127.0.0.1:6789", ()),
        ("[v2:127.0.0.1:40789,v1:127.0.0.1:40790]", ()),
        ("[v2:127.0.0.1:40789/0,v1:127.0.0.1:40790/0]", ()),
        ("mon1 mon2:6789", ("mon1", "mon2")),
        ("v2:a.example:3300;b", ("a.example", "b")),
        ("[fd00::1]:6789, fd00::2", ()),
    ],
)
def test_the_names_of_monitors(addresses: str, found: tuple[str, ...]) -> None:
    assert session.monitor_names(addresses) == found


def test_a_libvirt_secret_is_a_key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "LIBVIRT_SECRETS", str(tmp_path))
    uuid = "5c3e0e37-b3a8-4a1c-8b9c-6e2c6e5b5d5d"
    (tmp_path / f"{uuid}.base64").write_text("x")
    assert Cluster(secret=uuid).overrides() == (("keyfile", f"{tmp_path}/{uuid}.base64"),)
    assert Cluster(secret=uuid, keyring="/k").overrides() == (("keyring", "/k"),)


# --- the configuration file ---------------------------------------------------------------------------------


def test_settings_come_behind_the_cluster_s_own(tmp_path: Path) -> None:
    conf = tmp_path / "ceph.conf"
    conf.write_text("[global]\nmon_host = old\n[client.one]\nkeyring = /old")
    made = conffile.text(Cluster("one", str(conf), keyring="/k", mon_host="new"))
    assert made == f"{conf.read_text()}\n[client.one]\nmon_host = new\nkeyring = /k\n"
    assert conffile.text(Cluster("one", str(conf))) == conf.read_text()


def test_the_file_is_for_root_only_and_follows_no_link(tmp_path: Path) -> None:
    conf, target = tmp_path / "ceph.conf", tmp_path / "made"
    conf.write_text("[global]\n")
    target.symlink_to(tmp_path / "victim")
    conffile.write(str(target), Cluster(conf=str(conf)))
    assert not target.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "victim").exists()
    conffile.remove(str(target))
    conffile.remove(str(target))


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()], ids=["missing", "a directory"])
def test_a_configuration_that_cannot_be_read(tmp_path: Path, make) -> None:  # type: ignore[no-untyped-def]
    make(tmp_path / "conf")
    with pytest.raises((UsageError, AccessDenied)):
        conffile.text(Cluster(conf=str(tmp_path / "conf")))


# --- what qemu gets -----------------------------------------------------------------------------------------


def test_qemu_gets_each_name_as_an_option_of_its_own() -> None:
    """Nothing is put together that qemu would have to take apart (``rbd:pool/image:key=...``), and no key is in it."""
    name = VolumeName("one", "a:b,c=d", "ns", "snap")
    node = attaching.node_of(name, Cluster("oneadmin", keyring="/k"), "/run/x.conf")
    assert to_json(node, Access.READ_ONLY) == {
        "driver": "raw",
        "node-name": "disk",
        "read-only": True,
        "file": {
            "driver": "rbd",
            "node-name": "disk-file",
            "read-only": True,
            "pool": "one",
            "namespace": "ns",
            "image": "a:b,c=d",
            "snapshot": "snap",
            "conf": "/run/x.conf",
            "user": "oneadmin",
        },
    }
    writable = to_json(attaching.node_of(VolumeName("one", "x"), Cluster(), "/c"), Access.READ_WRITE)
    assert writable["discard"] == "unmap"
    assert writable["file"] == {
        "driver": "rbd",
        "node-name": "disk-file",
        "read-only": False,
        "pool": "one",
        "image": "x",
        "conf": "/c",
        "user": "admin",
    }


# --- hosts --------------------------------------------------------------------------------------------------


def test_a_host_has_one_name_that_fits_into_a_lock() -> None:
    found = host.name_of(Cluster())
    assert found == host.name_of(Cluster())
    assert cluster.from_settings((("host", found),)).host == found
    assert host.name_of(Cluster(host="b")) == "b"


def test_a_disk_is_plain_data() -> None:
    """What the driver needs: no class of this plugin."""
    disk = Disk("one/one-7-54-0", "rbd", settings=(("user", "oneadmin"), ("conf", "/etc/ceph/ceph.conf")))
    assert cluster.from_settings(disk.settings) == Cluster("oneadmin", "/etc/ceph/ceph.conf")


# --- files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["conf", "keyring", "keyfile"])
def test_what_could_keep_a_reader_waiting_is_no_file(tmp_path: Path, setting: str) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path):
        with pytest.raises(UsageError, match=f"{setting} is no regular file") as caught:
            session.check_files(cluster.from_settings(((setting, str(path)),)))
        assert caught.value.subject == str(path)
    (tmp_path / "file").touch()
    for name in (str(tmp_path / "file"), str(tmp_path / "missing"), os.devnull):
        session.check_files(cluster.from_settings(((setting, name),)))


# --- snapshots ----------------------------------------------------------------------------------------------


@pytest.fixture
def _new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as changed:
        changed.setenv("TZ", "America/New_York")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("_new_york")
def test_the_time_of_a_snapshot_is_the_same_everywhere() -> None:
    """As the bindings of Ceph 16 tell it, and as later ones may: UTC, with and without saying so."""
    told = datetime.datetime(2026, 7, 1, 12, 0, 0)
    said = datetime.datetime(2026, 7, 1, 14, 0, 0, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))
    assert snapshot_list.seconds_of(told) == snapshot_list.seconds_of(said) == 1782907200
