"""Values of the machine's description: what is understood, what is refused, and how the refusal names it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mapper_driver.opennebula import fields
from mapper_driver.opennebula.parse import parse_identity, parse_vm
from mapper_driver.opennebula.vm import DiskKind, VirtualMachine
from mapper_driver.opennebula.xml import read_document

from mapper_core.errors import MapperError, NotSupported, UsageError

pytestmark = pytest.mark.unit

LOCATION = "/srv/datastores"
MakeVm = Callable[..., VirtualMachine]
MakeXml = Callable[..., bytes]


def disk(inner: str = "", **values: str) -> str:
    parts = {"DISK_ID": "0", "TYPE": "FILE", "DISK_TYPE": "FILE", "FORMAT": "qcow2"} | values
    return (
        "<DISK>" + "".join(f"<{tag}>{text}</{tag}>" for tag, text in parts.items() if text != "-") + inner + "</DISK>"
    )


def nic(**values: str) -> str:
    parts = {"NIC_ID": "0", "MAC": "02:00:00:00:00:01", "BRIDGE": "br0"} | values
    return "<NIC>" + "".join(f"<{tag}>{text}</{tag}>" for tag, text in parts.items() if text != "-") + "</NIC>"


# --- where things lie -----------------------------------------------------------------------------------


def test_directory_from_the_history(make_xml: MakeXml) -> None:
    vm = parse_vm(read_document(make_xml()), LOCATION)
    assert vm.directory == "/srv/datastores/100/42"
    assert vm.disks[0].location == "/srv/datastores/100/42/disk.0"


def test_directory_from_the_datastore(make_xml: MakeXml) -> None:
    """BASE_PATH knows better; it contains a double slash, and the front-end's deployment file lies elsewhere."""
    data = b"<VMM_DRIVER_ACTION_DATA>%s<DATASTORE><BASE_PATH>/mnt//one//100/</BASE_PATH></DATASTORE></VMM_DRIVER_ACTION_DATA>"
    vm = parse_vm(read_document(data % make_xml()), LOCATION)
    assert vm.directory == "/mnt/one/100/42"


@pytest.mark.parametrize("path", ["relative/100", "/var/../etc", "/var/lib/one/datastores/100/..", "/a&#10;b"])
def test_hostile_base_path(make_xml: MakeXml, path: str) -> None:
    datastore = f"<DATASTORE><BASE_PATH>{path}</BASE_PATH></DATASTORE>"
    data = f"<VMM_DRIVER_ACTION_DATA>{make_xml().decode()}{datastore}</VMM_DRIVER_ACTION_DATA>"
    with pytest.raises(UsageError, match="DATASTORE/BASE_PATH is not"):
        parse_identity(read_document(data.encode()), LOCATION)


def test_the_latest_history_counts(make_vm: MakeVm) -> None:
    records = "<HISTORY><SEQ>2</SEQ><DS_ID>7</DS_ID></HISTORY><HISTORY><SEQ>1</SEQ><DS_ID>5</DS_ID></HISTORY>"
    assert make_vm(history=records).datastore_id == 7


def test_identity_needs_little(make_xml: MakeXml) -> None:
    """What was deployed must be stopped even if its description is not understood any more."""
    data = make_xml(disks=disk(DISK_TYPE="TAPE"), size="")
    with pytest.raises(MapperError):
        parse_vm(read_document(data), LOCATION)
    identity = parse_identity(read_document(data), LOCATION)
    assert (identity.id, identity.container) == (42, "one-42")


@pytest.mark.parametrize(
    ("written", "shown"),
    [(" web 1 ", "web 1"), ("web\u00a01\u200b", "web?1?"), ("a\nb", "a?b"), ("\u0444" * 5000, "\u0444" * 4096)],
)
def test_a_machine_of_any_name_is_known(make_xml: MakeXml, written: str, shown: str) -> None:
    """OpenNebula takes blanks of all kinds in a name, also for a machine that runs already, and that has to end."""
    assert parse_identity(read_document(make_xml(vm=f"<NAME>{written}</NAME>")), LOCATION).name == shown


def test_container_of_a_wild_machine(make_vm: MakeVm) -> None:
    assert make_vm(vm="<DEPLOY_ID>old-web</DEPLOY_ID>").container == "old-web"


# --- disks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"FORMAT": "qcow2", "DRIVER": "raw"}, "qcow2"),  # the owner of a machine may type a DRIVER (S-01)
        ({"FORMAT": "-", "DRIVER": "qcow2"}, "qcow2"),
        ({"FORMAT": "", "DRIVER": "VMDK"}, "vmdk"),
        ({"FORMAT": "-"}, "raw"),  # the node's default
        ({"DISK_TYPE": "BLOCK", "TYPE": "BLOCK", "FORMAT": "raw"}, "raw"),
        ({"DISK_TYPE": "-", "TYPE": "FILE"}, "qcow2"),
    ],
)
def test_format(make_vm: MakeVm, values: dict[str, str], expected: str) -> None:
    assert make_vm(disks=disk(**values), default_format="raw").disks[0].format == expected


def test_no_format_is_an_error(make_vm: MakeVm) -> None:
    with pytest.raises(UsageError, match=r"VM/TEMPLATE/DISK\[1\]/FORMAT is missing") as caught:
        make_vm(disks=disk(FORMAT="-"))
    assert "default_format" in caught.value.hint


@pytest.mark.parametrize("written", ["../x", "q cow", "-f", "x" * 33, "raw;id"])
def test_hostile_format(make_vm: MakeVm, written: str) -> None:
    with pytest.raises(UsageError, match="FORMAT is not a name of an image format"):
        make_vm(disks=disk(FORMAT=written))


@pytest.mark.parametrize(
    ("written", "kind", "read_only"),
    [
        ("FILE", DiskKind.IMAGE, False),
        ("BLOCK", DiskKind.IMAGE, False),
        ("CDROM", DiskKind.CDROM, True),
        ("fs", DiskKind.VOLATILE_FS, False),
        ("swap", DiskKind.SWAP, False),
    ],
)
def test_kinds(make_vm: MakeVm, written: str, kind: DiskKind, read_only: bool) -> None:
    parsed = make_vm(disks=disk(TYPE=written)).disks[0]
    assert (parsed.kind, parsed.read_only) == (kind, read_only)


@pytest.mark.parametrize("written", ["ISCSI", "GLUSTER", "SHEEPDOG_CDROM", "FILESYSTEM"])
def test_other_disks_are_never_skipped(make_vm: MakeVm, written: str) -> None:
    """The old driver left such a disk out and called the deployment a success."""
    with pytest.raises(NotSupported, match=written):
        make_vm(disks=disk(DISK_TYPE=written))
    with pytest.raises(NotSupported, match=written.removesuffix("_CDROM")):
        make_vm(disks=disk(TYPE=written, DISK_TYPE=written))


@pytest.mark.parametrize(
    ("values", "location"),
    [
        ({"SOURCE": "one/one-9", "CLONE": "YES"}, "one/one-9-42-5"),
        ({"SOURCE": "one/one-9", "CLONE": "NO"}, "one/one-9"),
        ({"SOURCE": "one/one-9"}, "one/one-9"),
        ({"TYPE": "fs", "POOL_NAME": "sys"}, "sys/one-sys-42-5"),
        ({"TYPE": "swap", "POOL_NAME": "sys"}, "sys/one-sys-42-5"),
    ],
)
def test_volumes_of_a_cluster(make_vm: MakeVm, values: dict[str, str], location: str) -> None:
    values = {"DISK_ID": "5", "TYPE": "RBD", "DISK_TYPE": "RBD", "FORMAT": "raw"} | values
    parsed = make_vm(disks=disk(**values, CEPH_USER="libvirt")).disks[0]
    assert (parsed.location, parsed.format) == (location, "rbd")
    assert parsed.cluster is not None and parsed.cluster.user == "libvirt"


def test_a_cdrom_in_a_cluster(make_vm: MakeVm) -> None:
    parsed = make_vm(disks=disk(TYPE="RBD_CDROM", DISK_TYPE="RBD_CDROM", SOURCE="one/one-4", CLONE="NO")).disks[0]
    assert (parsed.kind, parsed.read_only, parsed.format) == (DiskKind.CDROM, True, "rbd")


@pytest.mark.parametrize("source", ["", "one-9", "one/a/b", "one/-x", "--id/x", "one/a@b", "one/a b", "one/;id"])
def test_hostile_volumes(make_vm: MakeVm, source: str) -> None:
    with pytest.raises(UsageError, match="SOURCE is"):
        make_vm(disks=disk(TYPE="RBD", DISK_TYPE="RBD", SOURCE=source))


def test_volatile_volume_without_pool(make_vm: MakeVm) -> None:
    with pytest.raises(UsageError, match="POOL_NAME is missing"):
        make_vm(disks=disk(TYPE="fs", DISK_TYPE="RBD"))


def test_empty_limits_and_zero_are_no_limits(make_vm: MakeVm) -> None:
    limits = make_vm(disks=disk(TOTAL_BYTES_SEC="0", READ_IOPS_SEC="", WRITE_IOPS_SEC="20")).disks[0].limits
    assert (limits.total_bytes, limits.read_iops, limits.write_iops) == (None, None, 20)


# --- which disk is the root -------------------------------------------------------------------------------


def many(*kinds: str) -> str:
    return "".join(disk(DISK_ID=str(number), TYPE=kind) for number, kind in enumerate(kinds))


@pytest.mark.parametrize(
    ("boot", "root"),
    [("", 0), ("disk12", 12), ("disk2,disk1", 2), ("nic0,disk1", 1), ("nic0", 0), (" disk1 , nic0 ", 1)],
)
def test_root_disk(make_vm: MakeVm, boot: str, root: int) -> None:
    """The old driver took the last character: disk 2 for disk12, and 0 for nic0."""
    vm = make_vm(f"<OS><BOOT>{boot}</BOOT></OS>", disks=many(*["FILE"] * 13))
    assert vm.root_disk().id == root


def test_the_first_image_is_the_root(make_vm: MakeVm) -> None:
    assert make_vm(disks=many("swap", "CDROM", "fs", "FILE")).root_disk().id == 3


@pytest.mark.parametrize(
    ("boot", "message"), [("disk9", "no disk 9"), ("disk0", "OS/BOOT names disk 0"), ("", "no disk made")]
)
def test_no_root(make_vm: MakeVm, boot: str, message: str) -> None:
    vm = make_vm(f"<OS><BOOT>{boot}</BOOT></OS>", disks=many("swap", "fs"))
    with pytest.raises(UsageError, match=message):
        vm.root_disk()


@pytest.mark.parametrize("boot", ["hd", "disk", "disk01", "disk-1", "disk0;disk1", "disk0,", "disk99999", "../disk0"])
def test_hostile_boot(make_vm: MakeVm, boot: str) -> None:
    with pytest.raises(UsageError, match="OS/BOOT is not a list"):
        make_vm(f"<OS><BOOT>{boot}</BOOT></OS>")


# --- wrong values: the element and the value are named ------------------------------------------------------

LONG = "x" * 300
WRONG = {
    "id not a number": ({"vmid": "4x2"}, "VM/TEMPLATE/VMID is not a whole number", "'4x2'"),
    "id a path": ({"vmid": "../../etc"}, "VM/TEMPLATE/VMID is not a whole number", "'../../etc'"),
    "id with other digits": ({"vmid": "٤٢"}, "VM/TEMPLATE/VMID is not a whole number", ""),
    "id with a leading zero": ({"vmid": "042"}, "VM/TEMPLATE/VMID is not a whole number", "'042'"),
    "id too large": ({"vmid": "99999999999"}, "VM/TEMPLATE/VMID is not a whole number", ""),
    "id missing": ({"vmid": ""}, "VM/TEMPLATE/VMID is missing", ""),
    "two ids": ({"vm": "<ID>41</ID>"}, "VM/ID is not the number in TEMPLATE/VMID, 42", "'41'"),
    "id twice": ({"vmid": "42</VMID><VMID>1"}, "there are 2 elements VM/TEMPLATE/VMID", ""),
    "id with elements": ({"vmid": "<b>42</b>"}, "VM/TEMPLATE/VMID has elements inside", ""),
    "deploy id": ({"vm": "<DEPLOY_ID>../one-1</DEPLOY_ID>"}, "VM/DEPLOY_ID is not a name of a container", "'../one-1'"),
    "deploy id an option": ({"vm": "<DEPLOY_ID>-f</DEPLOY_ID>"}, "VM/DEPLOY_ID is not", "'-f'"),
    "name twice": ({"vm": "<NAME>a</NAME><NAME>b</NAME>"}, "there are 2 elements VM/NAME", ""),
    "no memory": ({"size": "<CPU>1</CPU>"}, "VM/TEMPLATE/MEMORY is missing", ""),
    "memory 0": ({"size": "<CPU>1</CPU><MEMORY>0</MEMORY>"}, "MEMORY is not a whole number of at least 1", "'0'"),
    "memory negative": ({"size": "<CPU>1</CPU><MEMORY>-1</MEMORY>"}, "MEMORY is not a whole number", "'-1'"),
    "memory with unit": ({"size": "<CPU>1</CPU><MEMORY>1G</MEMORY>"}, "MEMORY is not a whole number", "'1G'"),
    "cpu nan": ({"size": "<CPU>nan</CPU><MEMORY>1</MEMORY>"}, "CPU is not a decimal", "'nan'"),
    "cpu 0": ({"size": "<CPU>0.0</CPU><MEMORY>1</MEMORY>"}, "CPU is not greater than 0", "'0.0'"),
    "cpu huge": ({"size": "<CPU>1e9</CPU><MEMORY>1</MEMORY>"}, "CPU is not a decimal", "'1e9'"),
    "vcpu": ({"template": "<VCPU>0</VCPU>"}, "VCPU is not a whole number from 1", "'0'"),
    "no history": ({"history": ""}, "VM/HISTORY_RECORDS/HISTORY is missing", ""),
    "datastore id": ({"history": "<HISTORY><DS_ID>/etc</DS_ID></HISTORY>"}, "DS_ID is not a whole number", "'/etc'"),
    "pinning": ({"template": "<NUMA_NODE><CPUS>0-</CPUS></NUMA_NODE>"}, "CPUS is not a list of processors", "'0-'"),
    "pinning backwards": ({"template": "<NUMA_NODE><CPUS>3-1</CPUS></NUMA_NODE>"}, "CPUS is not a list", "'3-1'"),
    "pinning huge": ({"template": "<NUMA_NODE><CPUS>0-99999</CPUS></NUMA_NODE>"}, "CPUS is not a list", "'0-99999'"),
    "two RAW": ({"template": "<RAW><TYPE>lxd</TYPE></RAW>" * 2}, "several RAW sections", ""),
    "two contexts": ({"template": "<CONTEXT><DISK_ID>3</DISK_ID></CONTEXT>" * 2}, "2 elements VM/TEMPLATE/CONTEXT", ""),
    "context without id": ({"template": "<CONTEXT/>"}, "VM/TEMPLATE/CONTEXT/DISK_ID is missing", ""),
    "context id in use": ({"template": "<CONTEXT><DISK_ID>0</DISK_ID></CONTEXT>"}, "DISK_ID 0 is used twice", ""),
    "context target": (
        {"template": "<CONTEXT><DISK_ID>3</DISK_ID><TARGET>$(id)</TARGET></CONTEXT>"},
        "CONTEXT/TARGET is not a device name",
        "'$(id)'",
    ),
    "port": ({"template": "<GRAPHICS><TYPE>VNC</TYPE><PORT>70000</PORT></GRAPHICS>"}, "PORT is not a whole number", "'70000'"),
    "listen": ({"template": "<GRAPHICS><TYPE>VNC</TYPE><LISTEN>a b</LISTEN></GRAPHICS>"}, "LISTEN is not an address", "'a b'"),
    "command": (
        {"template": "<GRAPHICS><TYPE>VNC</TYPE><COMMAND>a&#10;-5900</COMMAND></GRAPHICS>"},
        "COMMAND is not one line",
        r"'a\n-5900'",
    ),
    "password": ({"template": "<GRAPHICS><TYPE>VNC</TYPE><PASSWD>a&#10;b</PASSWD></GRAPHICS>"}, "PASSWD has control", ""),
    "profile": ({"user": "<LXD_PROFILE>a,../b</LXD_PROFILE>"}, "LXD_PROFILE is not a name", "'../b'"),
    "privileged": ({"user": "<LXD_SECURITY_PRIVILEGED>maybe</LXD_SECURITY_PRIVILEGED>"}, "neither YES nor NO", "'maybe'"),
    "long value": ({"vmid": LONG}, "VMID is not a whole number", "'" + "x" * 60 + "'..."),
    "very long value": ({"user": f"<LXD_PROFILE>{'x' * 5000}</LXD_PROFILE>"}, "LXD_PROFILE is longer than 4096", ""),
}  # fmt: skip


@pytest.mark.parametrize(("parts", "message", "value"), WRONG.values(), ids=WRONG.keys())
def test_wrong_values(make_vm: MakeVm, parts: dict[str, str], message: str, value: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_vm(**parts)
    text = str(caught.value)
    assert message in text and value in text
    assert text.isprintable() and len(text) < 250
    assert caught.value.subject.startswith("VM")


WRONG_DISKS = {
    "no id": ({"DISK_ID": ""}, "DISK_ID is missing"),
    "id": ({"DISK_ID": "0/../1"}, "DISK_ID is not a whole number"),
    "id negative": ({"DISK_ID": "-1"}, "DISK_ID is not a whole number"),
    "id huge": ({"DISK_ID": "10000"}, "DISK_ID is not a whole number"),
    "size": ({"SIZE": "1.5"}, "SIZE is not a whole number"),
    "size beyond 64 bits": ({"SIZE": "9" * 19}, "SIZE is not a whole number"),
    "target": ({"TARGET": "sd a"}, "TARGET is not a device name"),
    "target an option": ({"TARGET": "-rf"}, "TARGET is not a device name"),
    "target leaves": ({"TARGET": "/srv/../../etc"}, "TARGET is not an absolute path"),
    "target with a control character": ({"TARGET": "/srv/a&#9;b"}, "TARGET is not one line"),
    "filesystem": ({"FS": "ext4 -F"}, "FS is not a name of a filesystem"),
    "read-only": ({"READONLY": "2"}, "READONLY is neither YES nor NO"),
    "limit": ({"TOTAL_IOPS_SEC": "many"}, "TOTAL_IOPS_SEC is not a whole number"),
    "volatile without type of disk": ({"TYPE": "fs", "DISK_TYPE": ""}, "DISK_TYPE is missing"),
    "neither type": ({"TYPE": "-", "DISK_TYPE": "-"}, "DISK_TYPE is missing"),
    "type of disk": ({"DISK_TYPE": "FI LE"}, "DISK_TYPE is not a type of disk"),
}


@pytest.mark.parametrize(("values", "message"), WRONG_DISKS.values(), ids=WRONG_DISKS.keys())
def test_wrong_disks(make_vm: MakeVm, values: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_vm(disks=disk(DISK_ID="3") + disk(**values))
    assert f"VM/TEMPLATE/DISK[2]/{message}" in str(caught.value)


WRONG_NICS = {
    "bridge with a slash": ({"BRIDGE": "../../dev"}, "BRIDGE is not a name of a network interface"),
    "bridge too long": ({"BRIDGE": "a234567890123456"}, "BRIDGE is not a name"),
    "bridge an option": ({"BRIDGE": "-x"}, "BRIDGE is not a name"),
    "bridge with a blank": ({"BRIDGE": "br 0"}, "BRIDGE is not a name"),
    "bridge ..": ({"BRIDGE": ".."}, "BRIDGE is not a name"),
    "no bridge": ({"BRIDGE": "-"}, "BRIDGE is missing"),
    "target too long": ({"TARGET": "one-1234567890-1"}, "TARGET is not a name"),
    "target": ({"TARGET": "x;reboot"}, "TARGET is not a name"),
    "mac": ({"MAC": "02:00:00:00:00"}, "MAC is not an address"),
    "mac of many": ({"MAC": "01:00:5e:00:00:01"}, "MAC is not an address"),
    "no mac": ({"MAC": ""}, "MAC is missing"),
    "id": ({"NIC_ID": "eth0"}, "NIC_ID is not a whole number"),
    "limit": ({"INBOUND_AVG_BW": "-5"}, "INBOUND_AVG_BW is not a whole number"),
    "driver": ({"VN_MAD": "a/b"}, "VN_MAD is not a name of a network driver"),
}


@pytest.mark.parametrize(("values", "message"), WRONG_NICS.values(), ids=WRONG_NICS.keys())
def test_wrong_nics(make_vm: MakeVm, values: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_vm(nic(**values))
    assert f"VM/TEMPLATE/NIC[1]/{message}" in str(caught.value)


def test_nic_defaults(make_vm: MakeVm) -> None:
    parsed = make_vm(nic(MAC="02:AB:CD:00:00:01", INBOUND_AVG_BW="0")).nics[0]
    assert (parsed.target, parsed.mac, parsed.inbound_avg) == ("one-42-0", "02:ab:cd:00:00:01", None)


def test_default_target_that_is_too_long(make_vm: MakeVm) -> None:
    with pytest.raises(UsageError, match="TARGET is not a name"):
        make_vm(nic(NIC_ID="1234"), vmid="1234567890")


@pytest.mark.parametrize("part", ["disk", "nic"])
def test_ids_are_used_once(make_vm: MakeVm, part: str) -> None:
    with pytest.raises(UsageError, match="0 is used twice"):
        make_vm(nic() + nic()) if part == "nic" else make_vm(disks=disk() + disk())


def test_the_password_is_in_no_message(make_vm: MakeVm) -> None:
    graphics = "<GRAPHICS><TYPE>vnc</TYPE><PORT>5901</PORT><PASSWD>hunter2{}</PASSWD></GRAPHICS>"
    vm = make_vm(graphics.format(""))
    assert vm.graphics is not None and vm.graphics.password == "hunter2"
    assert "hunter2" not in repr(vm)
    with_blanks = make_vm(graphics.format(" x ")).graphics
    assert with_blanks is not None and with_blanks.password == "hunter2 x ", (
        "OpenNebula takes it, and so does a virtual machine"
    )
    with pytest.raises(UsageError) as caught:
        make_vm(graphics.format("&#9;x"))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("address", ["::", "0.0.0.0", "fe80::1%eth0", "node-a.example.org"])
def test_addresses(make_vm: MakeVm, address: str) -> None:
    graphics = make_vm(f"<GRAPHICS><TYPE>VNC</TYPE><LISTEN>{address}</LISTEN></GRAPHICS>").graphics
    assert graphics is not None and (graphics.listen, graphics.type) == (address, "vnc")


def test_attributes_of_other_hypervisors_are_left_out(make_vm: MakeVm) -> None:
    vm = make_vm("<RAW><TYPE>kvm</TYPE><DATA>&lt;x/&gt;</DATA></RAW><GRAPHICS><PORT>1</PORT></GRAPHICS>")
    assert (vm.raw, vm.graphics) == ("", None)


def test_pinning_of_all_nodes(make_vm: MakeVm) -> None:
    """The old driver took the first node only."""
    pinned = "<NUMA_NODE><CPUS>6,7</CPUS></NUMA_NODE><NUMA_NODE><CPUS>0-2</CPUS></NUMA_NODE>"
    assert make_vm(f"{pinned}<NUMA_NODE><MEMORY>1</MEMORY></NUMA_NODE>").pinned_cpus == (0, 1, 2, 6, 7)


TAGS = st.sampled_from(
    ["DISK_ID", "TYPE", "DISK_TYPE", "FORMAT", "TARGET", "SIZE", "FS", "READONLY", "SOURCE", "POOL_NAME"]
)


@given(st.dictionaries(TAGS, st.text(max_size=40), max_size=5))
def test_any_text_in_a_disk(values: dict[str, str]) -> None:
    """Whatever is typed: a disk that is safe to use, or one of our errors."""
    from xml.sax.saxutils import escape

    text = disk(**{tag: escape(value) for tag, value in values.items() if value != "-"})
    data = (
        f"<VM><TEMPLATE><VMID>42</VMID><MEMORY>1</MEMORY><CPU>1</CPU>{text}</TEMPLATE>"
        "<HISTORY_RECORDS><HISTORY><DS_ID>1</DS_ID></HISTORY></HISTORY_RECORDS></VM>"
    )
    try:
        parsed = parse_vm(read_document(data.encode("utf-8", "surrogatepass")), LOCATION).disks[0]
    except MapperError as error:
        assert len(str(error)) < 1000
        return
    assert parsed.location in (f"{LOCATION}/1/42/disk.{parsed.id}", parsed.source) or fields.VOLUME.fullmatch(
        parsed.location
    )
    assert fields.FORMAT.fullmatch(parsed.format)
    assert not parsed.target.startswith("-") and ".." not in parsed.target.split("/")
