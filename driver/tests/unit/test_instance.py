"""From a machine to a container: the decisions that the golden files do not show."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from mapper_driver.disks import mapper_disk
from mapper_driver.instance import BuiltInstance, HostFacts, build_instance, cpu_allowance, size_keys
from mapper_driver.lxd.cgroups import Version
from mapper_driver.opennebula.config import Config, Security
from mapper_driver.opennebula.vm import VirtualMachine

from mapper_core.errors import NotMapped, Refused, UsageError
from mapper_core.model import Disk

pytestmark = pytest.mark.unit

HOOK = "/usr/bin/mapper-driver hook"
SOURCES = {number: f"/run/trees/{number}" for number in range(1, 10)}
MakeVm = Callable[..., VirtualMachine]


def disk(number: int, **values: str) -> str:
    parts = {"DISK_ID": str(number), "TYPE": "FILE", "DISK_TYPE": "FILE", "FORMAT": "qcow2"} | values
    return "<DISK>" + "".join(f"<{tag}>{text}</{tag}>" for tag, text in parts.items()) + "</DISK>"


def built(vm: VirtualMachine, config: Config | None = None, hook: str = HOOK) -> BuiltInstance:
    return build_instance(vm, config or Config(), HostFacts(pool="fast", hook=hook), SOURCES)


def test_unprivileged_by_default(make_vm: MakeVm) -> None:
    """S-27."""
    spec = built(make_vm()).spec
    assert (spec.config["security.privileged"], spec.config["security.nesting"]) == ("false", "false")
    assert spec.profiles == ("default",) and spec.devices["root"]["pool"] == "fast"


@pytest.mark.parametrize("wish", ["privileged", "nesting"])
def test_wishes_that_the_node_does_not_allow(make_vm: MakeVm, wish: str) -> None:
    vm = make_vm(user=f"<LXD_SECURITY_{wish.upper()}>YES</LXD_SECURITY_{wish.upper()}>")
    assert built(vm).spec.config[f"security.{wish}"] == "true"
    with pytest.raises(Refused, match=f"LXD_SECURITY_{wish.upper()}") as caught:
        built(vm, Config(security=Security(allow=())))
    assert "lxdrc" in caught.value.hint


@pytest.mark.parametrize(
    ("cpu", "allowance"), [(1, "100%"), (0.29, "29%"), (1.5, "150%"), (0.001, "1%"), (0.575, "57%"), (64, "6400%")]
)
def test_cpu_allowance(cpu: float, allowance: str) -> None:
    """The old driver cut off: int(0.29 * 100) is 28."""
    assert cpu_allowance(cpu) == allowance


@pytest.mark.parametrize(
    ("nodes", "cpus"),
    [
        ((), "2"),
        (("3",), "3-3"),  # LXD reads 3 as three processors
        (("12",), "12-12"),
        (("0,1", "4"), "0-1,4"),
        (("8", "7", "6-6"), "6-8"),
    ],
)
def test_processors(make_vm: MakeVm, nodes: tuple[str, ...], cpus: str) -> None:
    pinned = "".join(f"<NUMA_NODE><CPUS>{node}</CPUS></NUMA_NODE>" for node in nodes)
    assert built(make_vm(f"<VCPU>2</VCPU>{pinned}")).spec.config["limits.cpu"] == cpus


def test_no_vcpu_no_limit(make_vm: MakeVm) -> None:
    assert "limits.cpu" not in built(make_vm()).spec.config


def test_the_lines_of_the_template_stay_beside_the_hook(make_vm: MakeVm) -> None:
    raw = "<RAW><TYPE>lxd</TYPE><DATA>lxc.signal.halt = SIGRTMIN+3</DATA></RAW>"
    assert built(make_vm(raw)).spec.config["raw.lxc"] == f"lxc.signal.halt = SIGRTMIN+3\nlxc.hook.pre-start = {HOOK}"
    assert built(make_vm(raw), hook="").spec.config["raw.lxc"] == "lxc.signal.halt = SIGRTMIN+3"
    assert "raw.lxc" not in built(make_vm(), hook="").spec.config


def test_a_hook_is_one_line(make_vm: MakeVm) -> None:
    with pytest.raises(UsageError, match="not one line"):
        built(make_vm(), hook="/x\nlxc.include = /y")


def test_raw_cannot_change_what_opennebula_accounts(make_vm: MakeVm) -> None:
    vm = make_vm("<RAW><TYPE>lxd</TYPE><DATA>limits.memory=64GiB</DATA></RAW>")
    with pytest.raises(Refused, match=r"limits\.memory"):
        built(vm)
    allowed = Config(security=Security(raw_allow=("limits.memory",)))
    assert built(vm, allowed).spec.config["limits.memory"] == "64GiB"


def test_profiles(make_vm: MakeVm) -> None:
    assert built(make_vm(), Config(profile="one")).spec.profiles == ("one",)
    vm = make_vm(user="<LXD_PROFILE>b, a,,b</LXD_PROFILE>")
    assert built(vm).spec.profiles == ("b", "a")


def test_a_disk_that_is_not_mounted(make_vm: MakeVm) -> None:
    with pytest.raises(NotMapped, match="disk 11 is not mounted"):
        built(make_vm(disks=disk(0) + disk(11)))
    with pytest.raises(NotMapped, match="disk 10"):
        built(make_vm("<CONTEXT><DISK_ID>10</DISK_ID></CONTEXT>"))


def test_swap_needs_nothing(make_vm: MakeVm) -> None:
    assert list(built(make_vm(disks=disk(0) + disk(11, TYPE="swap"))).spec.devices) == ["root"]


@pytest.mark.parametrize(
    ("target", "path"),
    [("sdb", "/media/1"), ("/srv//data/", "/srv/data"), ("/home", "/home"), ("/devices", "/devices")],
)
def test_paths(make_vm: MakeVm, target: str, path: str) -> None:
    device = built(make_vm(disks=disk(0) + disk(1, TARGET=target))).spec.devices["disk1"]
    assert (device["path"], device["source"]) == (path, "/run/trees/1")


@pytest.mark.parametrize("target", ["/", "//", "/proc", "/sys/fs", "/dev", "/dev/shm", "/context", "/context/x"])
def test_paths_that_belong_to_the_system(make_vm: MakeVm, target: str) -> None:
    with pytest.raises(UsageError, match="disk 1 cannot be mounted on"):
        built(make_vm(disks=disk(0) + disk(1, TARGET=target)))


def test_two_disks_on_one_path(make_vm: MakeVm) -> None:
    with pytest.raises(UsageError, match="disk1 and disk2 have the same path /srv"):
        built(make_vm(disks=disk(0) + disk(1, TARGET="/srv") + disk(2, TARGET="/srv/")))
    with pytest.raises(UsageError, match="same path /media/2"):
        built(make_vm(disks=disk(0) + disk(1, TARGET="/media/2") + disk(2)))


def test_read_only(make_vm: MakeVm) -> None:
    """LXD refuses readonly beside recursive; such a disk is read-only at its source."""
    devices = built(make_vm(disks=disk(0, READONLY="YES") + disk(1, READONLY="YES"))).spec.devices
    assert devices["root"]["readonly"] == "true"
    assert "readonly" not in devices["disk1"] and devices["disk1"]["recursive"] == "true"


def test_limits_of_disks_are_set_by_the_hook_and_not_by_lxd(make_vm: MakeVm) -> None:
    """LXD 5.0 refuses them beside a disk with partitions."""
    vm = make_vm(
        disks=disk(0, TOTAL_IOPS_SEC="50") + disk(1, READ_BYTES_SEC="7") + disk(2, TYPE="swap", READ_IOPS_SEC="1")
    )
    spec = build_instance(vm, Config(), HostFacts("fast", hook=HOOK, limit_hook="/x limits"), SOURCES).spec
    assert not [key for device in spec.devices.values() for key in device if key.startswith("limits.")]
    assert spec.config["raw.lxc"].splitlines() == [
        "lxc.hook.start-host = /x limits 0:riops=50,wiops=50 1:rbps=7",
        f"lxc.hook.pre-start = {HOOK}",
    ]


@pytest.mark.parametrize(("version", "word"), [(Version.V1, "cgroup"), (Version.V2, "cgroup2")])
def test_memory_of_pinned_nodes(make_vm: MakeVm, version: Version, word: str) -> None:
    node = "<NUMA_NODE><CPUS>{}</CPUS><MEMORY_NODE_ID>{}</MEMORY_NODE_ID></NUMA_NODE>"
    vm = make_vm(
        node.format("0", "1") + node.format("4", "0") + "<NUMA_NODE><MEMORY_NODE_ID>3</MEMORY_NODE_ID></NUMA_NODE>"
    )
    spec = build_instance(vm, Config(), HostFacts("fast", cpuset=version), SOURCES).spec
    assert spec.config["raw.lxc"] == f"lxc.{word}.cpuset.mems = 0,1"


def test_size_keys(make_vm: MakeVm) -> None:
    vm = make_vm("<RAW><TYPE>lxd</TYPE><DATA>limits.memory=64GiB</DATA></RAW>")
    allowed = Config(security=Security(raw_allow=("limits.memory",)))
    assert size_keys(make_vm("<VCPU>3</VCPU>"), Config())["limits.cpu"] == "3"
    keys = size_keys(vm, allowed)
    assert (keys["limits.memory"], keys["limits.cpu"]) == ("64GiB", None)


# --- what the mapper is told ---------------------------------------------------------------------------


def test_backing_files_of_this_machine_and_its_images(make_vm: MakeVm) -> None:
    """S-02: neither the disks of other machines nor images of other datastores."""
    vm = make_vm()
    config = Config(datastore_location="/srv/one", allowed_dirs=("/opt/backing",))
    assert mapper_disk(vm.disks[0], vm, config) == Disk(
        source="/var/lib/one/datastores/100/42/disk.0",
        format="qcow2",
        allowed_dirs=(
            "/var/lib/one/datastores/100/42",
            "/var/lib/one/datastores/111",
            "/srv/one/111",
            "/opt/backing",
        ),
    )


def test_backing_files_of_a_volatile_disk(make_vm: MakeVm) -> None:
    vm = make_vm(disks=disk(0, TYPE="fs", DATASTORE_ID="100"))
    assert mapper_disk(vm.disks[0], vm, Config()).allowed_dirs == ("/var/lib/one/datastores/100/42",)


CLUSTER = {
    "DISK_TYPE": "RBD",
    "SOURCE": "one/one-img-3",
    "CLONE": "YES",
    "CEPH_USER": "libvirt",
    "CEPH_CONF": "/etc/ceph/other.conf",
    "CEPH_HOST": "10.0.0.1:6789 10.0.0.2",
    "CEPH_KEY": "/etc/ceph/key",
    "CEPH_SECRET": "b0a1c2d3-0000-1111-2222-333344445555",
}


def test_how_a_cluster_is_reached(make_vm: MakeVm) -> None:
    """Names of files, never a key: they go into the journal."""
    vm = make_vm(disks=disk(0, **CLUSTER))
    found = mapper_disk(vm.disks[0], vm, Config())
    assert (found.source, found.format) == ("one/one-img-3-42-0", "rbd")
    assert dict(found.settings) == {
        "user": "libvirt",
        "conf": "/etc/ceph/other.conf",
        "mon_host": "10.0.0.1:6789 10.0.0.2",
        "keyfile": "/etc/ceph/key",
        "secret": "b0a1c2d3-0000-1111-2222-333344445555",
    }


@pytest.mark.parametrize("name", ["CEPH_CONF", "CEPH_KEY"])
def test_a_machine_cannot_bring_its_own_configuration_of_a_cluster(make_vm: MakeVm, name: str) -> None:
    """S-02: a client's configuration names log files, which root would write."""
    vm = make_vm(disks=disk(0, **CLUSTER | {name: "/var/lib/one/datastores/100/42/disk.1"}))
    with pytest.raises(Refused, match=r"outside of the allowed directories"):
        mapper_disk(vm.disks[0], vm, Config())
    allowed = Config(cluster_dirs=("/etc/ceph", "/var/lib/one/datastores/100"))
    assert mapper_disk(vm.disks[0], vm, allowed).settings
