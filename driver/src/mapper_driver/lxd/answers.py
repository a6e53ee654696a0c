"""Answers of the API as types: pure, and tolerant of what newer daemons add or leave out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mapper_driver.lxd.model import Instance, InstanceState, Server, Status, counter

#: What PUT of an instance wants back.
WRITABLE = ("architecture", "config", "devices", "ephemeral", "profiles", "stateful", "description")


def server(answer: Mapping[str, Any]) -> Server:
    """``GET /1.0``."""
    environment = answer.get("environment") or {}
    return Server(
        product=str(environment.get("server") or "lxd"),
        version=str(environment.get("server_version") or ""),
        pid=counter(environment.get("server_pid")) or 0,
    )


def instance(answer: Mapping[str, Any], etag: str) -> Instance:
    """``GET /1.0/instances/NAME``."""
    return Instance(
        name=answer["name"],
        status=Status.parse(answer.get("status")),
        config=answer.get("config") or {},
        devices=answer.get("devices") or {},
        all_config=answer.get("expanded_config") or {},
        all_devices=answer.get("expanded_devices") or {},
        profiles=tuple(answer.get("profiles") or ()),
        description=answer.get("description") or "",
        architecture=answer.get("architecture") or "",
        etag=etag,
        last_used=answer.get("last_used_at") or "",
    )


def state(answer: Mapping[str, Any]) -> InstanceState:
    """``GET /1.0/instances/NAME/state``."""
    interfaces = {name: item for name, item in (answer.get("network") or {}).items() if name != "lo"}
    counters = [item.get("counters") or {} for item in interfaces.values()]
    return InstanceState(
        status=Status.parse(answer.get("status")),
        pid=counter(answer.get("pid")) or 0,
        processes=counter(answer.get("processes")),
        cpu_ns=counter((answer.get("cpu") or {}).get("usage")),
        memory=counter((answer.get("memory") or {}).get("usage")),
        received=_total(counters, "bytes_received"),
        sent=_total(counters, "bytes_sent"),
        interfaces={name: str(item.get("hwaddr") or "") for name, item in interfaces.items()},
        host_ends={
            str(item.get("hwaddr") or ""): str(item["host_name"])
            for item in interfaces.values()
            if item.get("host_name")
        },
    )


def _total(counters: list[Mapping[str, Any]], key: str) -> int | None:
    found = [value for item in counters if (value := counter(item.get(key))) is not None]
    return sum(found) if found else None
