"""In what versions of OpenNebula differ, besides the form of the answer (:mod:`mapper_driver.opennebula.framing`)."""

from __future__ import annotations

import enum

from .framing import number_of


class RestartCalls(enum.Enum):
    """How often ``reboot`` and ``reset`` are called for one restart."""

    ONE = "one"  # the script stops the container and starts it
    TWO = "two"  # the first call stops it, then the network is set up again, the second call starts it


def restart_calls(version: str) -> RestartCalls:
    """What a version of OpenNebula does for a driver with the name lxd.

    5.10 to 6.8 call twice (``one_vmm_exec``, ``restart``). The special case has been removed with OpenNebula's own driver for
    LXD before 6.9.80. An unknown version is taken for a newer one: then a container that is restarted twice runs, while the
    opposite would leave one stopped.
    """
    number = number_of(version)
    return RestartCalls.TWO if number is not None and number < (6, 9, 0) else RestartCalls.ONE


def knows_wild(version: str) -> bool:
    """Whether machines without a number, made by hand, can be reported and imported: to 6.10. An unknown version is newer."""
    number = number_of(version)
    return number is not None and number < (6, 99, 0)
