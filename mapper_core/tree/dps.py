"""Partition type GUIDs that say what a partition is for: UAPI group, Discoverable Partitions Specification."""

from __future__ import annotations

#: Root filesystem, by machine as :manpage:`uname(2)` names it.
ROOT_BY_MACHINE = {
    "aarch64": "b921b045-1df0-41c3-af44-4c6f280d3fae",
    "armv7l": "69dad710-2ce4-4e3c-b16c-21a1d49abed3",
    "i386": "44479540-f297-41b2-9af7-d131d5f0458a",
    "i686": "44479540-f297-41b2-9af7-d131d5f0458a",
    "loongarch64": "77055800-792c-4f94-b39a-98c91b762bb6",
    "ppc64": "912ade1d-a839-4913-8964-a10eee08fbd2",
    "ppc64le": "c31c45e6-3f39-412e-80fb-4809c4980599",
    "riscv64": "72ec70a6-cf74-40e6-bd49-4bda08e8f224",
    "s390x": "5eead9a9-fe09-4a1e-a1d7-520d00531306",
    "x86_64": "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
}

ESP = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
XBOOTLDR = "bc13c2ff-59e6-4262-a352-b275fd6f7172"

#: Type of an EFI system partition in an MBR.
ESP_MBR = "0xef"

#: Never a root and never data: the firmware and the boot loader live there.
BOOT_TYPES = frozenset({ESP, XBOOTLDR, ESP_MBR})
