"""What a probe remembers until it is run again; gone when the host is booted."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any

from mapper_core.errors import StateCorrupt
from mapper_core.mapping import Mapper
from mapper_core.state_files import read_json, write_json

VERSION = 1


def path_of(mapper: Mapper, name: str) -> str:
    """The file for one kind of probe."""
    return f"{mapper.runtime.root}/monitor/{name}.json"


def kept(path: str) -> dict[str, Any]:
    """What was kept; nothing when it is damaged: everything is told anew then."""
    with contextlib.suppress(StateCorrupt):
        return read_json(path, VERSION) or {}
    return {}


def keep(path: str, data: Mapping[str, Any]) -> None:
    """Keep it for the next look."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    write_json(path, {"version": VERSION, **data})
