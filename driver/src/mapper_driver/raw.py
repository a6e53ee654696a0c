"""``RAW`` of type lxd: keys of LXD that a template sets itself, and which of them it may.

Two spellings are read: the body of a JSON object (the braces may be left out), as OpenNebula's own LXD driver wanted
it, and lines ``key=value``. Lines with a key of LXC (``lxc.*``) are collected in ``raw.lxc``.

A key is set when it is on the list below or allowed by the node's administrator (``security: raw_allow:`` in lxdrc).
Everything else is refused, never left out in silence: most keys of LXD, and nearly all of LXC, give the container a way
to the host, and some would undo what this driver sets.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from mapper_core.errors import Refused, UsageError

RAW_LXC = "raw.lxc"
HARMLESS = (
    "boot.autostart",
    "boot.autostart.delay",
    "boot.autostart.priority",
    "boot.host_shutdown_timeout",
    "boot.stop.priority",
    "cloud-init.*",
    "environment.*",
    "limits.cpu.priority",
    "limits.disk.priority",
    "limits.hugepages.*",
    "limits.kernel.as",
    "limits.kernel.core",
    "limits.kernel.cpu",
    "limits.kernel.data",
    "limits.kernel.fsize",
    "limits.kernel.locks",
    "limits.kernel.memlock",
    "limits.kernel.msgqueue",
    "limits.kernel.nofile",
    "limits.kernel.nproc",
    "limits.kernel.sigpending",
    "limits.kernel.stack",
    "limits.memory.enforce",
    "limits.memory.swap",
    "limits.memory.swap.priority",
    "limits.network.priority",
    "limits.processes",
    "lxc.cap.drop",
    "lxc.environment",
    "lxc.pty.max",
    "lxc.signal.*",
    "lxc.tty.max",
    "security.devlxd",
    "security.guestapi",
    "security.idmap.isolated",
    "security.syscalls.deny",
    "user.*",
)
"""What any template may set. A ``*`` stands for any end. LXD 5.0 accepts them all but
``security.guestapi``, which Incus has instead of ``security.devlxd``; it refuses ``lxc.prlimit.*``."""
NEVER = (
    "lxc.idmap",
    "lxc.include",
    "lxc.rootfs.*",
    "raw.lxc",
    "user.mapper_*",
    "user.one_status",
    "volatile.*",
)
"""What cannot be allowed either: the driver and the daemon would no longer agree about the container.

``raw.lxc`` itself is judged line by line. LXD 5.0 accepts all of these in it.
"""

_KEY = re.compile(r"[a-z][A-Za-z0-9_.-]{0,199}")
_MAX_VALUE = 65536


@dataclass(frozen=True, slots=True)
class RawConfig:
    """What a template sets itself.

    :param config: keys of LXD and their values, without ``raw.lxc``.
    :param lxc: lines for ``raw.lxc``, ``key = value``.
    """

    config: tuple[tuple[str, str], ...] = ()
    lxc: tuple[str, ...] = ()


def parse_raw(data: str, allowed: tuple[str, ...] = ()) -> RawConfig:
    """Read ``RAW/DATA``.

    :param allowed: patterns of the administrator.
    :raises UsageError: when it is neither JSON nor lines, sets a key twice, or a value is no text.
    :raises Refused: for a key that the template may not set.
    """
    text = data.strip()
    pairs = _from_json(text) if text.startswith(("{", '"')) else _from_lines(text)
    config: dict[str, str] = {}
    lxc: list[str] = []
    for key, value in pairs:
        if key == RAW_LXC:
            lxc.extend(_lxc_line(*pair, allowed) for pair in _from_lines(value))
        elif key.startswith("lxc."):
            lxc.append(_lxc_line(key, value, allowed))
        else:
            _check(key, value, allowed)
            if key in config:
                raise UsageError(f"RAW sets {key} twice", subject=key)
            config[key] = value
    return RawConfig(tuple(sorted(config.items())), tuple(lxc))


def matches(key: str, patterns: tuple[str, ...]) -> bool:
    """Whether the key is one of the patterns, or begins like one that ends with ``*``."""
    return any(key == item or (item.endswith("*") and key.startswith(item[:-1])) for item in patterns)


def _from_json(text: str) -> list[tuple[str, str]]:
    body = text if text.startswith("{") else f"{{{text}}}"
    try:
        pairs = json.loads(body, object_pairs_hook=_Pairs, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"RAW is not the body of a JSON object: {_reason(error)}",
            subject="VM/TEMPLATE/RAW/DATA",
            hint='write "limits.processes": "100", or a line limits.processes=100 for each key',
        ) from error
    return [(key, _text(key, value)) for key, value in pairs.items]


class _Pairs:
    """A JSON object that keeps keys that are given twice."""

    def __init__(self, items: list[tuple[str, object]]) -> None:
        self.items = items


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos}"
    return str(error)[:80]


def _text(key: str, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int)):
        return str(value)
    raise UsageError(f"RAW sets {key[:60]!r} to something that is neither text nor a whole number", subject=key[:60])


def _from_lines(text: str) -> list[tuple[str, str]]:
    pairs = []
    for line in text.splitlines():
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        key, equals, value = stripped.partition("=")
        if not equals:
            raise UsageError(f"RAW has a line that is not key=value: {stripped[:60]!r}", subject="VM/TEMPLATE/RAW/DATA")
        pairs.append((key.strip(), value.strip()))
    return pairs


def _lxc_line(key: str, value: str, allowed: tuple[str, ...]) -> str:
    # An empty value clears what was set before: the hooks that LXD itself needs, for one.
    if not key.startswith("lxc.") or not value:
        raise UsageError(f"RAW has a line for LXC that is not lxc.KEY = VALUE: {key[:60]!r}", subject=RAW_LXC)
    _check(key, value, allowed)
    return f"{key} = {value}"


def _check(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if not _KEY.fullmatch(key):
        raise UsageError(f"RAW sets {key[:60]!r}, which is not a name of a key", subject=key[:60])
    if matches(key, NEVER):
        raise Refused(f"RAW sets {key}, which the driver needs for itself", subject=key, hint="remove it from RAW")
    if not matches(key, (*HARMLESS, *allowed)):
        raise Refused(
            f"RAW sets {key}, which a template may not set",
            subject=key,
            hint="the administrator can allow it with raw_allow in the lxdrc of the node",
        )
    # Line ends only where they are usual (cloud-init): elsewhere they would start a new line of LXC's configuration.
    multiline = matches(key, ("cloud-init.*", "user.*"))
    clean = value.replace("\n", "").replace("\t", "") if multiline else value
    if len(value) > _MAX_VALUE or not clean.isprintable():
        raise UsageError(f"RAW sets {key} to a value with control characters, or too long", subject=key)
