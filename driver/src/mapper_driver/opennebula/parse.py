"""The XML of OpenNebula, turned into the types of :mod:`mapper_driver.opennebula.vm`.

What concerns a container and is not understood is an error. What only concerns a virtual machine is left out:
firmware, CPU model, input devices, and aliases of network interfaces (they are addresses inside of the guest).
"""

from __future__ import annotations

import re

from mapper_core.errors import UsageError

from . import fields
from .fields import Fields
from .parse_disk import parse_context, parse_disk
from .parse_nic import parse_mac, parse_nic, parse_pci
from .vm import BootDevice, BootEntry, Graphics, VirtualMachine, VmIdentity, Wishes
from .xml import Document

MAX_ID = 2**31 - 1
MAX_CPUS = 65536
MAX_NUMA_NODE = 1023  # CONFIG_NODES_SHIFT is at most 10

_BOOT_ENTRY = re.compile(r"(disk|nic)(0|[1-9][0-9]{0,3})")
_CPU_LIST = re.compile(r"[0-9]{1,5}(-[0-9]{1,5})?(,[0-9]{1,5}(-[0-9]{1,5})?)*")


def parse_identity(document: Document, datastore_location: str) -> VmIdentity:
    """Read what stopping and cleaning need, and nothing else that could be wrong.

    :param datastore_location: directory of the datastores on this node, for documents without ``<DATASTORE>``.
    :raises UsageError: naming the element and its value.
    """
    vm = Fields(document.vm, "VM")
    template = vm.needed("TEMPLATE", vm.child("TEMPLATE"))
    number = template.needed("VMID", template.integer("VMID", maximum=MAX_ID))
    if vm.integer("ID", maximum=MAX_ID) not in (None, number):
        raise vm.bad("ID", vm.text("ID"), f"not the number in TEMPLATE/VMID, {number}")
    datastore_id = _datastore_id(vm)
    return VmIdentity(
        id=number,
        name=_name(vm),
        deploy_id=vm.matching("DEPLOY_ID", fields.INSTANCE, "a name of a container"),
        datastore_id=datastore_id,
        datastore_dir=_base_path(document) or f"{datastore_location}/{datastore_id}",
    )


def _name(vm: Fields) -> str:
    """``NAME``, as it can be shown. A machine that runs may be given any, with characters that are not printable, and must end."""
    name = vm.multiline("NAME").strip()[: fields.MAX_TEXT]
    return "".join(character if fields.printable(character) else "?" for character in name)


def _datastore_id(vm: Fields) -> int:
    records = vm.needed("HISTORY_RECORDS", vm.child("HISTORY_RECORDS"))
    history = records.needed("HISTORY", records.children("HISTORY") or None)
    latest = max(history, key=lambda record: record.integer("SEQ") or 0)
    return latest.needed("DS_ID", latest.integer("DS_ID", maximum=MAX_ID))


def _base_path(document: Document) -> str:
    return "" if document.datastore is None else Fields(document.datastore, "DATASTORE").path_name("BASE_PATH")


def parse_vm(document: Document, datastore_location: str, default_format: str = "") -> VirtualMachine:
    """Read the whole description.

    :param datastore_location: directory of the datastores on this node, for documents without ``<DATASTORE>``.
    :param default_format: format of disks that have neither ``FORMAT`` nor ``DRIVER`` (OpenNebula 5); empty: an error.
    :raises UsageError: naming the element and its value.
    :raises NotSupported: for a kind of disk that cannot be handled.
    """
    identity = parse_identity(document, datastore_location)
    vm = Fields(document.vm, "VM")
    template = vm.needed("TEMPLATE", vm.child("TEMPLATE"))
    context = template.child("CONTEXT")
    parsed = VirtualMachine(
        id=identity.id,
        name=identity.name,
        deploy_id=identity.deploy_id,
        datastore_id=identity.datastore_id,
        datastore_dir=identity.datastore_dir,
        memory_mib=template.needed("MEMORY", template.integer("MEMORY", minimum=1)),
        cpu=_cpu(template),
        vcpu=template.integer("VCPU", minimum=1, maximum=MAX_CPUS),
        pinned_cpus=_pinned(template),
        disks=tuple(parse_disk(disk, identity, default_format) for disk in template.children("DISK")),
        nics=tuple(parse_nic(nic, identity) for nic in template.children("NIC")),
        context=None if context is None else parse_context(context, identity),
        graphics=_graphics(template),
        boot=_boot(template),
        raw=_raw(template),
        wishes=_wishes(vm),
        memory_nodes=_memory_nodes(template),
        pci=tuple(parse_pci(pci, number) for number, pci in enumerate(template.children("PCI"))),
        alias_macs=tuple(parse_mac(alias) for alias in template.children("NIC_ALIAS")),
    )
    _refuse_duplicates(parsed)
    return parsed


def _refuse_duplicates(vm: VirtualMachine) -> None:
    disks = [disk.id for disk in vm.disks]
    if vm.context is not None:
        disks.append(vm.context.disk_id)
    nics = [nic.id for nic in (*vm.nics, *(pci.nic for pci in vm.pci)) if nic is not None]
    for what, ids in (("DISK_ID", disks), ("NIC_ID", nics)):
        twice = sorted({number for number in ids if ids.count(number) > 1})
        if twice:
            raise UsageError(f"{what} {twice[0]} is used twice", subject=f"VM/TEMPLATE/{what}")


def _cpu(template: Fields) -> float:
    cpu = template.needed("CPU", template.decimal("CPU"))
    if not cpu:
        raise template.bad("CPU", template.text("CPU"), "not greater than 0")
    return cpu


def _pinned(template: Fields) -> tuple[int, ...]:
    cpus: set[int] = set()
    for node in template.children("NUMA_NODE"):
        value = node.matching("CPUS", _CPU_LIST, "a list of processors such as 0,2-3")
        for item in filter(None, value.split(",")):
            first, _, last = item.partition("-")
            numbers = range(int(first), int(last or first) + 1)
            if not numbers or numbers.stop > MAX_CPUS:
                raise node.bad("CPUS", value, "not a list of processors such as 0,2-3")
            cpus.update(numbers)
    return tuple(sorted(cpus))


def _memory_nodes(template: Fields) -> tuple[int, ...]:
    """``MEMORY_NODE_ID`` of the nodes that have processors: without them the machine is not pinned."""
    nodes = (node for node in template.children("NUMA_NODE") if node.text("CPUS"))
    found = (node.integer("MEMORY_NODE_ID", maximum=MAX_NUMA_NODE) for node in nodes)
    return tuple(sorted({number for number in found if number is not None}))


def graphics_of(document: Document) -> Graphics | None:
    """The console of a machine, also of one that has nothing else of ours.

    :raises UsageError: naming the element and its value.
    """
    template = Fields(document.vm, "VM").child("TEMPLATE")
    return None if template is None else _graphics(template)


def _graphics(template: Fields) -> Graphics | None:
    graphics = template.child("GRAPHICS")
    kind = "" if graphics is None else graphics.matching("TYPE", fields.WORD, "a type of console").lower()
    if graphics is None or not kind:
        return None
    return Graphics(
        type=kind,
        port=graphics.integer("PORT", minimum=1, maximum=65535),
        listen=graphics.matching("LISTEN", fields.ADDRESS, "an address"),
        password=_password(graphics),
        command=graphics.text("COMMAND"),
        keymap=graphics.matching("KEYMAP", fields.WORD, "a name of a keyboard layout"),
    )


def _password(graphics: Fields) -> str:
    value = graphics.multiline("PASSWD")
    if not fields.printable(value):  # it becomes one line; and it is not to be shown
        raise UsageError(f"{graphics.path}/PASSWD has control characters", subject=f"{graphics.path}/PASSWD")
    return value


def _boot(template: Fields) -> tuple[BootEntry, ...]:
    section = template.child("OS")
    value = "" if section is None else section.text("BOOT")
    if section is None or not value:
        return ()
    entries = []
    for word in value.split(","):
        match = _BOOT_ENTRY.fullmatch(word.strip())
        if match is None:
            raise section.bad("BOOT", value, "not a list such as disk0,nic0")
        entries.append(BootEntry(BootDevice(match.group(1)), int(match.group(2))))
    return tuple(entries)


def _raw(template: Fields) -> str:
    sections = [section for section in template.children("RAW") if section.text("TYPE").lower() == "lxd"]
    if len(sections) > 1:
        raise UsageError("there are several RAW sections of type lxd, expected one", subject="VM/TEMPLATE/RAW")
    return sections[0].multiline("DATA") if sections else ""


def _wishes(vm: Fields) -> Wishes:
    user = vm.child("USER_TEMPLATE")
    if user is None:
        return Wishes()
    profiles: list[str] = []
    for word in filter(None, (part.strip() for part in user.text("LXD_PROFILE").split(","))):
        if not fields.PROFILE.fullmatch(word):
            raise user.bad("LXD_PROFILE", word, "not a name of a profile")
        if word not in profiles:
            profiles.append(word)
    return Wishes(
        privileged=user.flag("LXD_SECURITY_PRIVILEGED"),
        nesting=user.flag("LXD_SECURITY_NESTING"),
        profiles=tuple(profiles),
    )
