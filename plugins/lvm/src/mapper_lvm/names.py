"""Names of logical volumes of the host: ``VG/LV``, as LVM's own commands take them."""

from __future__ import annotations

import re

from mapper_core.errors import UsageError
from mapper_core.frozen import dataclass

#: What lvm(8) allows; a hyphen at the start would be an option.
NAME = re.compile(r"[A-Za-z0-9_+.][A-Za-z0-9_+.-]{0,126}", re.ASCII)


@dataclass(frozen=True, slots=True)
class VolumeName:
    """A volume of a group."""

    group: str
    volume: str

    def __str__(self) -> str:
        return f"{self.group}/{self.volume}"

    @property
    def device(self) -> str:
        """The link to its device, while it is active."""
        return f"/dev/{self.group}/{self.volume}"


def parse(source: str) -> VolumeName:
    """Understand the name of a disk.

    :raises UsageError: it has another form, or characters that LVM does not allow.
    """
    group, slash, volume = source.partition("/")
    if not slash or not all(is_name(name) for name in (group, volume)):
        raise UsageError(
            "is not the name of a logical volume", subject=ascii(source)[1:-1], hint="write VG/LV, as lvs(8) shows it"
        )
    return VolumeName(group, volume)


def is_name(name: str) -> bool:
    """Say whether LVM would take a name."""
    return bool(NAME.fullmatch(name)) and name not in (".", "..")
