"""Landlock: a program may change certain files, and nothing else of any filesystem.

Source: landlock(7), Documentation/userspace-api/landlock.rst. It needs no privilege, only ``no_new_privs``.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable

from mapper_core.linux.syscalls import kernel_error, syscall

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1

_WRITE_FILE = 1 << 1
_CHANGE_NAMES = sum(1 << bit for bit in range(4, 13))  # remove and make whatever there is
_REFER = 1 << 13  # version 2 of the interface: Linux 5.19
_TRUNCATE = 1 << 14  # 3: 6.2
_TCP = 1 << 0 | 1 << 1  # 4: 6.7


def only_these(files: Iterable[str]) -> int | None:
    """Make a set of rules: these files may be written and cut off, and there is no TCP; reading stays free.

    :param files: existing files or devices.
    :returns: a descriptor for :func:`restrict`; ``None`` when this kernel has no Landlock.
    :raises KernelError: a file cannot be opened.
    """
    try:
        version = syscall(_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP):
            return None
        raise kernel_error(error, "Landlock does not answer") from error
    on_files = _WRITE_FILE | (_TRUNCATE if version >= 3 else 0)
    handled = on_files | _CHANGE_NAMES | (_REFER if version >= 2 else 0)
    attributes = struct.pack("=QQ", handled, _TCP)[: 16 if version >= 4 else 8]
    rules = syscall(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for path in files:
            _add(rules, path, on_files)
    except BaseException:
        os.close(rules)
        raise
    return rules


def _add(rules: int, path: str, access: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise kernel_error(error, "cannot be opened", subject=path) from error
    try:
        syscall(_ADD_RULE, rules, _RULE_PATH_BENEATH, struct.pack("=Qi", access, fd), 0)
    finally:
        os.close(fd)


def restrict(rules: int) -> None:
    """Restrict this process and what it starts, for ever. With ``no_new_privs`` set, between fork and exec.

    :param rules: from :func:`only_these`.
    """
    syscall(_RESTRICT_SELF, rules, 0)
