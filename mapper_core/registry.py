"""The plugins that are installed, and the one that is asked.

A plugin that is broken, too new, too old, blocked or named twice is kept in the list with the reason; it never stops
the others, and is an error only when its own format is asked for.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

import pluggy

from mapper_core import answers, hookspecs
from mapper_core.errors import MapperError, NotSupported, PluginFault, PluginMissing, UnsupportedFormat
from mapper_core.frozen import dataclass

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mapper_core.model import Attachment, Disk, ImageInfo, MapOptions, PartitionTable, Snapshot
    from mapper_core.partitions import ReadAt
    from mapper_core.resources import PluginResource
    from mapper_core.transports import Transports

#: Comma-separated names of plugins that are not to be loaded.
BLOCK_ENVIRONMENT = "MAPPER_BLOCK_PLUGINS"

#: How a plugin is installed. No name that pip would look up in an index: those there are other people's projects.
INSTALL = "Mapper's own plugins are in its repository: in a clone of it, pip install ./plugins/FORMAT"

#: The optional hooks that a caller can ask for.
CAPABILITIES = (
    "inspect",
    "create",
    "resize",
    "snapshots",
    "snapshot_create",
    "snapshot_revert",
    "snapshot_delete",
    "break_lock",
)


@dataclass(frozen=True, slots=True)
class EntryPoint:
    """One line of an ``entry_points.txt``.

    :param name: the format.
    :param module: module to import.
    :param distribution: name of the distribution that has it.
    :param version: its version.
    """

    name: str
    module: str
    distribution: str
    version: str


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plugin and whether it can be used.

    :param problem: why it cannot be used; empty when it can.
    """

    entry: EntryPoint
    problem: str = ""

    @property
    def usable(self) -> bool:
        """True when nothing is wrong with it."""
        return not self.problem


class Registry:
    """Typed front of pluggy; nobody else calls hooks.

    :param plugins: in the order of their names.
    :param manager: has the usable ones registered by their names.
    """

    def __init__(self, plugins: tuple[Plugin, ...], manager: pluggy.PluginManager) -> None:
        self.plugins = plugins
        self._manager = manager
        self._implementations: dict[tuple[str, str], pluggy.HookImpl] = {}
        self._hooks: dict[str, frozenset[str]] = {}

    @classmethod
    def load(cls, entries: Iterable[EntryPoint] | None = None) -> Registry:
        """Load all plugins that are installed.

        :param entries: instead of those of the running interpreter, for tests.
        """
        manager = pluggy.PluginManager(hookspecs.PROJECT)
        manager.add_hookspecs(hookspecs)
        from mapper_core.partitions import default

        manager.register(default, name="partitions")
        found = tuple(installed() if entries is None else entries)
        blocked = {name.strip() for name in os.environ.get(BLOCK_ENVIRONMENT, "").split(",")}
        plugins = tuple(
            Plugin(entry, _problem_of_name(entry, found, blocked) or _load(entry, manager))
            for entry in sorted(found, key=lambda entry: (entry.name, entry.distribution))
        )
        return cls(plugins, manager)

    def formats(self) -> tuple[str, ...]:
        """Names of the formats that can be mapped."""
        return tuple(plugin.entry.name for plugin in self.plugins if plugin.usable)

    def require(self, name: str) -> None:
        """Make sure that a format has a usable plugin.

        :raises PluginMissing: with the reason and what is installed.
        """
        problems = [plugin for plugin in self.plugins if plugin.entry.name == name]
        if any(plugin.usable for plugin in problems):
            return
        if problems:
            raise PluginMissing(
                f"the plugin for {name} cannot be used: {problems[0].problem}",
                subject=name,
                hint="`mapper-cli plugins` lists them all",
            )
        raise PluginMissing(
            f"no plugin for the format {name!r} is installed",
            subject=name,
            hint=f"installed: {', '.join(self.formats()) or 'none'}; {INSTALL}",
        )

    def can(self, name: str, hook: str) -> bool:
        """Whether the plugin of a format has a hook."""
        if name not in self._hooks:
            callers = self._manager.get_hookcallers(self._manager.get_plugin(name)) or ()
            self._hooks[name] = frozenset(caller.name for caller in callers)
        return hook in self._hooks[name]

    def capabilities(self, name: str) -> tuple[str, ...]:
        """Names of the optional hooks about whole disks that a format's plugin has, in a fixed order."""
        return tuple(hook for hook in CAPABILITIES if self.can(name, hook))

    # --- the hooks, typed ---

    def map(self, disk: Disk, image: ImageInfo | None, options: MapOptions, transports: Transports) -> Attachment:
        """Ask the disk's plugin to map it."""
        return answers.attachment(
            disk, self._ask(disk.format, "map", disk=disk, image=image, options=options, transports=transports)
        )

    def unmap(self, disk: Disk, attachment: Attachment | None, transports: Transports) -> None:
        """Ask the disk's plugin to revert its map."""
        self._ask(disk.format, "unmap", disk=disk, attachment=attachment, transports=transports)

    def check_answers(self, disk: Disk, attachment: Attachment) -> None:
        """Ask the disk's plugin whether its storage answers; without such a hook, or the plugin, it is taken for granted."""
        if self.can(disk.format, "check_answers"):
            self._ask(disk.format, "check_answers", disk=disk, attachment=attachment)

    def inspect(self, disk: Disk) -> ImageInfo | None:
        """Ask the disk's plugin for the image's header; ``None`` when it has no such hook."""
        self.require(disk.format)
        if not self.can(disk.format, "inspect"):
            return None
        return answers.image(disk, self._ask(disk.format, "inspect", disk=disk))

    def identify(self, disk: Disk) -> str:
        """Ask the disk's plugin for a name that no other disk has; without such a hook it is made of what names it."""
        if not self.can(disk.format, "identify"):
            return "\0".join((disk.source, *(f"{name}={value}" for name, value in sorted(disk.settings))))
        return answers.identity(disk, self._ask(disk.format, "identify", disk=disk))

    def create(self, disk: Disk, size: int) -> None:
        """Ask the plugin to make a new disk."""
        self._ask(disk.format, "create", disk=disk, size=size)

    def resize(
        self, disk: Disk, image: ImageInfo | None, size: int, attachment: Attachment | None, transports: Transports
    ) -> None:
        """Ask the disk's plugin to make it larger."""
        self._ask(
            disk.format, "resize", disk=disk, image=image, size=size, attachment=attachment, transports=transports
        )

    def snapshots(self, disk: Disk) -> tuple[Snapshot, ...]:
        """Ask the disk's plugin for its snapshots."""
        return answers.snapshots(disk, self._ask(disk.format, "snapshots", disk=disk))

    def snapshot_create(self, disk: Disk, name: str, attachment: Attachment | None, transports: Transports) -> None:
        """Ask the disk's plugin to keep its present state."""
        self._ask(disk.format, "snapshot_create", disk=disk, name=name, attachment=attachment, transports=transports)

    def snapshot_revert(self, disk: Disk, name: str) -> None:
        """Ask the disk's plugin to bring a state back."""
        self._ask(disk.format, "snapshot_revert", disk=disk, name=name)

    def snapshot_delete(self, disk: Disk, name: str, attachment: Attachment | None, transports: Transports) -> None:
        """Ask the disk's plugin to forget a state."""
        self._ask(disk.format, "snapshot_delete", disk=disk, name=name, attachment=attachment, transports=transports)

    def break_lock(self, disk: Disk) -> None:
        """Ask the disk's plugin to take it away from a dead host."""
        self._ask(disk.format, "break_lock", disk=disk)

    def release(self, disk: Disk, resource: PluginResource) -> None:
        """Ask the disk's plugin to take away what it has recorded."""
        self._ask(disk.format, "release", disk=disk, resource=resource)

    def owns(self, disk: Disk, device: str, resources: tuple[PluginResource, ...]) -> bool:
        """Ask the disk's plugin whether a device is still the one it made; without such a hook it is."""
        if not self.can(disk.format, "owns"):
            return True
        answer = self._ask(disk.format, "owns", disk=disk, device=device, resources=resources)
        return answers.truth(disk.format, "owns", answer)

    def recognize(self, header: bytes, source: str) -> str:
        """Return the one format whose plugin recognises a file; ``raw`` when none does and that is installed.

        :raises UnsupportedFormat: none, or more than one, does.
        """
        names = [
            name
            for name in self.formats()
            if self.can(name, "recognize")
            and answers.truth(name, "recognize", self._ask(name, "recognize", header=header))
        ]
        if len(names) > 1:
            raise UnsupportedFormat(f"could be any of {', '.join(names)}", subject=source, hint="say which: --format")
        if names:
            return names[0]
        from mapper_core import formats

        if (other := formats.identify(header)) != formats.RAW:
            self.require(other)  # says that no plugin is installed for it, or why it cannot be used
        self.require("raw")
        return "raw"

    def discover_partitions(self, device: str, read: ReadAt, size: int, sector_size: int) -> PartitionTable:
        """Ask all plugins, the core last, for the partitions of a device."""
        hook = self._manager.hook.discover_partitions
        found = self._call("all", hook.name, lambda: hook(device=device, read=read, size=size, sector_size=sector_size))
        return answers.table(device, size, found)

    # --- pluggy ---

    def _ask(self, name: str, hook: str, /, **arguments: Any) -> Any:
        """Call a hook of exactly one plugin."""
        implementation = self._implementations.get((name, hook)) or self._implementation(name, hook)
        call = implementation.function
        return self._call(name, hook, lambda: call(*[arguments[name] for name in implementation.argnames]))

    def _call(self, name: str, hook: str, call: Callable[[], Any]) -> Any:
        """Let our errors through; anything else is a fault of the plugin.

        :param name: of the plugin, for the error.
        """
        try:
            return call()
        except (MapperError, OSError):
            raise
        except (Exception, SystemExit) as error:
            raise PluginFault(
                f"the plugin {name} failed in {hook}: {type(error).__name__}: {error}", subject=name
            ) from error

    def _implementation(self, name: str, hook: str) -> pluggy.HookImpl:
        """Return a hook of one plugin; looked for once, since plugins don't change after they are loaded.

        Its function is called without pluggy: that is for calling several plugins, and for their wrappers.
        """
        self.require(name)
        if not self.can(name, hook):
            raise NotSupported(
                f"disks of the format {name} cannot do that: the plugin has no hook {hook}",
                subject=name,
                hint="`mapper-cli plugins` shows what each format can",
            )
        module = self._manager.get_plugin(name)
        caller: pluggy.HookCaller = getattr(self._manager.hook, hook)
        found = next(implementation for implementation in caller.get_hookimpls() if implementation.plugin is module)
        self._implementations[name, hook] = found
        return found


def _problem_of_name(entry: EntryPoint, all_entries: tuple[EntryPoint, ...], blocked: set[str]) -> str:
    if entry.name in blocked:
        return f"blocked by {BLOCK_ENVIRONMENT}"
    same = sorted(other.distribution for other in all_entries if other.name == entry.name)
    if len(same) > 1:
        return f"more than one distribution has a plugin of this name: {', '.join(same)}; uninstall all but one"
    return ""


def _load(entry: EntryPoint, manager: pluggy.PluginManager) -> str:
    """Import and register a plugin; return what is wrong with it."""
    try:
        module = importlib.import_module(entry.module)
    except (Exception, SystemExit) as error:
        if isinstance(error, ImportError) and (error.name or "").partition(".")[0] == "mapper_core":
            # it asks for what was added or removed: the window, which would say so, has not been reached
            return f"is made for another version of mapper-core, this one has hook API {hookspecs.API_VERSION}: {error}"
        return f"cannot be imported: {type(error).__name__}: {error}"
    window = getattr(module, "MAPPER_API", None)
    if not (isinstance(window, tuple) and len(window) == 2 and all(isinstance(number, int) for number in window)):
        return "does not declare MAPPER_API = (oldest, newest)"
    if window[0] > hookspecs.API_VERSION:
        return f"needs hook API {window[0]}, this mapper-core has {hookspecs.API_VERSION}; upgrade mapper-core"
    if window[1] < hookspecs.API_VERSION:
        return f"works up to hook API {window[1]}, this mapper-core has {hookspecs.API_VERSION}; upgrade the plugin"
    try:
        manager.register(module, name=entry.name)
    except Exception as error:
        return f"cannot be registered: {error}"
    implemented = {caller.name for caller in manager.get_hookcallers(module) or ()}
    if missing := {"map", "unmap"} - implemented:
        manager.unregister(module)
        return f"lacks the hook(s) {', '.join(sorted(missing))}"
    return ""


def installed(group: str = hookspecs.PROJECT) -> tuple[EntryPoint, ...]:
    """Entry points of a group, from the ``*.dist-info`` of ``sys.path``.

    Read directly and not through ``importlib.metadata``: importing that takes as long as all the rest of
    ``mapper-cli map`` (35 ms, Python 3.11). The file formats are those of the PyPA specifications *Entry points* and
    *Recording installed packages*.
    """
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for directory in sys.path:
        try:
            names = os.listdir(directory or ".")
        except OSError:
            continue
        for name in names:
            if not name.endswith(".dist-info"):
                continue
            distribution, _, version = name[: -len(".dist-info")].partition("-")
            distribution = distribution.replace("_", "-").lower()
            if distribution in found:
                continue  # an earlier directory of the path wins, as for modules
            try:
                with open(f"{directory or '.'}/{name}/entry_points.txt", encoding="utf-8") as file:
                    text = file.read()
            except (OSError, UnicodeDecodeError):
                continue
            found[distribution] = _parse(text, group, distribution, version)
    return tuple(entry for entries in found.values() for entry in entries)


def _parse(text: str, group: str, distribution: str, version: str) -> tuple[EntryPoint, ...]:
    """Read one group: lines ``name = module[:attribute] [extras]`` below ``[group]``."""
    found = []
    inside = False
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("["):
            inside = line == f"[{group}]"
        elif inside and "=" in line and not line.startswith(("#", ";")):
            name, _, value = line.partition("=")
            module = value.split(":")[0].split("[")[0].strip()
            found.append(EntryPoint(name.strip(), module, distribution, version))
    return tuple(found)
