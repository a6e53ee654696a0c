"""The result of one check."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Status(enum.Enum):
    """How it is."""

    OK = "ok"
    WARNING = "warning"  # works, but less or less safely than it could
    FAILED = "failed"  # something that people ask for does not work


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    :param name: what was looked at; the same on every host, but for the name of a plugin, device or image.
    :param detail: what was found.
    :param hint: what to do; empty when there is nothing to do.
    """

    name: str
    status: Status
    detail: str
    hint: str = ""
