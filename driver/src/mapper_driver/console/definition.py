"""What the console of a machine is. One file for each, readable by root alone: the password is in it."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from mapper_core.errors import StateCorrupt, UsageError
from mapper_core.runtime import Runtime
from mapper_core.state_files import read_json, remove_json, write_json
from mapper_driver import inventory
from mapper_driver.lxd.model import check_name
from mapper_driver.opennebula.config import Vnc
from mapper_driver.opennebula.vm import Graphics

VERSION = 1

#: VNC authentication (RFC 6143, section 7.2.2) uses no more of a password.
PASSWORD_BYTES = 8

#: OpenNebula's own default.
ANY = "0.0.0.0"  # noqa: S104


@dataclass(frozen=True, slots=True)
class Console:
    """A console.

    :param address: to listen on.
    :param port: TCP port.
    :param password: empty: none is asked for.
    :param argv: what runs in the terminal.
    :param environment: for it, as (name, value) pairs.
    :param width: of the screen, pixels.
    :param height: of the screen, pixels.
    :param timeout: seconds without input after which a viewer is disconnected; 0: never.
    """

    container: str
    address: str
    port: int
    argv: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    password: str = field(default="", repr=False)
    width: int = 800
    height: int = 600
    timeout: int = 300


def console_of(
    container: str, graphics: Graphics | None, options: Vnc, client: str, environment: Mapping[str, str]
) -> Console | None:
    """What OpenNebula wants; ``None`` when it wants none.

    :param client: of the daemon, when the options name none.
    :param environment: where the client finds the daemon.
    :raises UsageError: the address is none.
    """
    if graphics is None or graphics.type != "vnc" or graphics.port is None:
        return None
    address = graphics.listen or ANY
    try:
        ipaddress.ip_address(address)
    except ValueError:
        raise UsageError("is no address to listen on", subject=f"GRAPHICS/LISTEN {address!r}") from None
    command = tuple((graphics.command or options.command).split())
    return Console(
        container=container,
        address=address,
        port=graphics.port,
        argv=(*(options.client or client).split(), "exec", container, "--", *command),
        environment=tuple(environment.items()),
        password=graphics.password,
        width=options.width,
        height=options.height,
        timeout=options.timeout,
    )


def directory(runtime: Runtime, environment: Mapping[str, str]) -> str:
    """Where the files are: they outlive a boot of the host, as the containers do."""
    return f"{inventory.directory(runtime, environment).rpartition('/')[0]}/consoles"


def path_of(runtime: Runtime, container: str) -> str:
    """The file of a machine."""
    return f"{directory(runtime, os.environ)}/{check_name(container)}.json"


def write(runtime: Runtime, console: Console) -> None:
    """Make it durable."""
    path = path_of(runtime, console.container)
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    write_json(path, {"version": VERSION, **dataclasses.asdict(console)})


def forget(runtime: Runtime, container: str) -> None:
    """Remove it; what is not there is removed already."""
    remove_json(path_of(runtime, container))


def read(path: str) -> Console | None:
    """The console in a file; ``None`` when there is none.

    :raises StateCorrupt: it is damaged.
    """
    data = read_json(path, VERSION)
    if data is None:
        return None
    data.pop("version")
    try:
        data["argv"] = tuple(str(word) for word in data["argv"])
        data["environment"] = tuple((str(name), str(value)) for name, value in data["environment"])
        return Console(**data)
    except (KeyError, TypeError, ValueError) as error:
        hint = "remove it, and let OpenNebula deploy the virtual machine again"
        raise StateCorrupt(f"misses or garbles a field: {error!r}", subject=path, hint=hint) from error
