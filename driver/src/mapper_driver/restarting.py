"""The mark on a container that is between the two calls of a restart (:mod:`mapper_driver.actions.reboot`). Pure."""

from __future__ import annotations

from collections.abc import Mapping

RESTART_KEY = "user.mapper_restart"
"""When the first of two calls stopped the container, seconds since the epoch."""

RESTART_SECONDS = 300.0
"""How long the second call may take to come: the network drivers work in between."""


def is_restarting(config: Mapping[str, str], now: float) -> bool:
    """Whether a container is between the two calls.

    :param config: its configuration keys.
    :param now: seconds since the epoch.
    """
    text = config.get(RESTART_KEY, "")
    return text.isascii() and text.isdigit() and 0 <= now - int(text) < RESTART_SECONDS
