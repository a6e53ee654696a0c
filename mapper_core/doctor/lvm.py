"""Does LVM of this host keep its hands off our devices?

Without a filter, any LVM command opens every nbd and loop device: it hangs for ever on one whose server is gone (M-17), and
it activates volume groups that belong to a guest, which pins the device (M-16).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mapper_core.doctor.check import Check, Status
from mapper_core.process import find_program

if TYPE_CHECKING:
    from mapper_core.mapping import Mapper

#: The local file is read last and wins (lvmlocal.conf(5)).
_FILES = ("/etc/lvm/lvm.conf", "/etc/lvm/lvmlocal.conf")
_DEVICES = ("/dev/nbd0", "/dev/loop0")
_HINT = 'set in the section devices of /etc/lvm/lvm.conf: global_filter = [ "r|^/dev/(nbd|loop|rbd)|", "a|.*|" ]'


def examine(_mapper: Mapper) -> tuple[Check, ...]:
    """Examine the filter of LVM, if it is installed."""
    if find_program("lvm") is None:
        return ()
    text = ""
    for path in _FILES:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                text += f"{file.read()}\n"
        except OSError:
            continue
    return (judge(text),)


def judge(text: str) -> Check:
    """Say what a configuration means for our devices.

    :param text: of the configuration files, the one that wins last.
    """
    if re.search(r"^\s*use_devicesfile\s*=\s*1", text, re.MULTILINE):
        return Check("lvm filter", Status.OK, "LVM uses only the devices of its devices file")
    patterns = filter_patterns(text)
    open_to = [device for device in _DEVICES if not rejects(patterns, device)]
    if open_to:
        return Check("lvm filter", Status.WARNING, f"LVM opens devices such as {', '.join(open_to)}", _HINT)
    return Check("lvm filter", Status.OK, "LVM leaves nbd and loop devices alone")


def filter_patterns(text: str) -> tuple[str, ...]:
    """Return the patterns of the last ``global_filter`` in a configuration (:manpage:`lvm.conf(5)`)."""
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    found = re.findall(r"\bglobal_filter\s*=\s*(\[[^\]]*\]|\"[^\"]*\")", "\n".join(lines))
    return tuple(re.findall(r'"([^"]*)"', found[-1])) if found else ()


def rejects(patterns: tuple[str, ...], device: str) -> bool:
    """Say whether the first pattern that matches a device rejects it; without any match it is accepted."""
    for pattern in patterns:
        if len(pattern) < 3 or pattern[0] not in "ar":
            continue
        end = pattern.rfind({"(": ")", "[": "]", "{": "}"}.get(pattern[1], pattern[1]))
        try:
            if re.search(pattern[2:end], device):
                return pattern[0] == "r"
        except re.error:
            continue
    return False
