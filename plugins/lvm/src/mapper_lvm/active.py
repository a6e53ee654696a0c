"""Volumes of the host that are active, as device-mapper has them (Documentation/ABI/testing/sysfs-block-dm).

Asked without a command of LVM: one takes longer than all the rest of a map.
"""

from __future__ import annotations

import os
import re

from mapper_lvm.names import VolumeName

_BLOCK = "/sys/block"
#: In names of device-mapper one hyphen stands between those of group and volume; each of their own is written twice.
_DIVIDED = re.compile(r"(?P<group>(?:[^-]|--)+)-(?P<volume>(?:[^-]|--)+)")


def find(identity: str, directory: str = _BLOCK) -> VolumeName | None:
    """Return the present name of a volume that is active; ``None`` when it is not.

    :param identity: uuids of group and volume, as ``lvs`` prints them, with a slash in between.
    :param directory: with the block devices of this host.
    """
    uuid = "LVM-" + re.sub("[-/]", "", identity)
    for device in os.listdir(directory):
        if device.startswith("dm-") and _read(f"{directory}/{device}/dm/uuid") == uuid:
            return divide(_read(f"{directory}/{device}/dm/name"))
    return None


def divide(name: str) -> VolumeName | None:
    """Return group and volume of a name of device-mapper; ``None`` when it is not one of LVM."""
    found = _DIVIDED.fullmatch(name)
    if found is None:
        return None
    return VolumeName(*(part.replace("--", "-") for part in found.groups()))


def _read(path: str) -> str:
    """The text of an attribute; empty when the device has just gone."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
