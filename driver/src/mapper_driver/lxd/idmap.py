"""Id maps as LXD and Incus write them into ``volatile.idmap.*``.

The text is a JSON list of ranges ``{"Isuid": true, "Isgid": false, "Hostid": 100000, "Nsid": 0, "Maprange": 65536}``
(LXD shared/idmap, Incus internal/idmap); a range may be for users and groups at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from mapper_core.model import IdMap, IdRange
from mapper_driver.errors import LxdFailed

NEXT = "volatile.idmap.next"
CURRENT = "volatile.idmap.current"
LAST = "volatile.last_state.idmap"


def parse(text: str, *, subject: str = "") -> IdMap | None:
    """Read a map; ``None`` for a privileged instance, which has an empty one.

    :param subject: name of the instance, for the error.
    :raises LxdFailed: for all that is no map.
    """
    try:
        entries = json.loads(text or "[]") or []
        uid = tuple(_range(entry) for entry in entries if entry["Isuid"])
        gid = tuple(_range(entry) for entry in entries if entry["Isgid"])
    except (ValueError, KeyError, TypeError) as error:
        raise LxdFailed(f"LXD's map of ids cannot be understood: {text!r}", subject=subject) from error
    if not uid and not gid:
        return None
    if not uid or not gid:
        raise LxdFailed(f"LXD's map of ids has no users or no groups: {text!r}", subject=subject)
    return IdMap(uid, gid)


def next_map(config: Mapping[str, str], *, subject: str = "") -> IdMap | None:
    """The map that the next start of an instance will use.

    :raises LxdFailed: when it is missing or no map.
    """
    if NEXT not in config:
        raise LxdFailed(f"LXD has no {NEXT} for this instance", subject=subject)
    return parse(config[NEXT], subject=subject)


def current_map(config: Mapping[str, str], *, subject: str = "") -> IdMap | None:
    """The map of an instance that runs; daemons that do not write it down use that of the next start.

    :raises LxdFailed: when it is missing or no map.
    """
    return parse(config[CURRENT], subject=subject) if CURRENT in config else next_map(config, subject=subject)


def to_host(ranges: tuple[IdRange, ...], inside: int) -> int | None:
    """The id on the host of an id inside; ``None`` when it is not mapped."""
    for item in ranges:
        if item.inside <= inside < item.inside + item.count:
            return item.host + inside - item.inside
    return None


def _range(entry: dict[str, int]) -> IdRange:
    item = IdRange(inside=int(entry["Nsid"]), host=int(entry["Hostid"]), count=int(entry["Maprange"]))
    if item.inside < 0 or item.host < 0 or item.count < 1:
        raise ValueError("impossible range")
    return item
