"""Small documents for tests that need only a part of a machine."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from mapper_driver.opennebula.parse import parse_vm
from mapper_driver.opennebula.vm import VirtualMachine
from mapper_driver.opennebula.xml import read_document

LOCATION = "/var/lib/one/datastores"
DISK = (
    "<DISK><DISK_ID>0</DISK_ID><TYPE>FILE</TYPE><DISK_TYPE>FILE</DISK_TYPE><FORMAT>qcow2</FORMAT>"
    "<DATASTORE_ID>111</DATASTORE_ID></DISK>"
)
HISTORY = "<HISTORY><SEQ>0</SEQ><DS_ID>100</DS_ID></HISTORY>"

MakeXml = Callable[..., bytes]
MakeVm = Callable[..., VirtualMachine]


@pytest.fixture
def make_xml() -> MakeXml:
    """A document of machine 42 with one disk; every part can be replaced."""

    def make(
        template: str = "",
        *,
        disks: str = DISK,
        user: str = "",
        vm: str = "",
        vmid: str = "42",
        size: str = "<MEMORY>512</MEMORY><CPU>1</CPU>",
        history: str = HISTORY,
    ) -> bytes:
        return (
            f"<VM>{vm}<TEMPLATE><VMID>{vmid}</VMID>{size}{disks}{template}</TEMPLATE>"
            f"<USER_TEMPLATE>{user}</USER_TEMPLATE><HISTORY_RECORDS>{history}</HISTORY_RECORDS></VM>"
        ).encode()

    return make


@pytest.fixture
def make_vm(make_xml: MakeXml) -> MakeVm:
    """The machine that such a document describes."""

    def make(template: str = "", default_format: str = "", **parts: str) -> VirtualMachine:
        return parse_vm(read_document(make_xml(template, **parts)), LOCATION, default_format)

    return make
