"""Options of the node: the file ``lxdrc``, as OpenNebula's own LXD driver read it, with a few more.

It is YAML. Keys may have the colons of Ruby symbols (``:vnc:``) or not (``vnc:``). It is copied to every node with
the scripts, to ``etc/vmm/lxd/lxdrc`` two directories above them.
"""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import NoReturn

from mapper_core.errors import NotFound, Refused, UsageError

from .fields import FILESYSTEM, FORMAT, POOL, PROFILE, WORD, absolute_path, printable, shown

ENVIRONMENT = "MAPPER_LXDRC"
"""Path of the file, instead of the one beside the scripts."""
NODE_FILE = "/etc/mapper/lxdrc"
"""Of the node's administrator: where it is, what comes from the front-end does not count."""
MAX_BYTES = 1024 * 1024

_PATTERN = re.compile(r"[a-z][a-z0-9_.-]*\*?")  # a key of LXD or LXC, or the beginning of some


@dataclass(frozen=True, slots=True)
class Vnc:
    """The console server.

    :param command: what it runs inside of the container, unless the machine's ``GRAPHICS/COMMAND`` says otherwise.
    :param width: of the screen, pixels.
    :param height: of the screen, pixels.
    :param timeout: seconds without input after which it closes the console; 0: never.
    :param client: the daemon's own client, which runs the command in the container; empty: ``lxc`` or ``incus``.
    """

    command: str = "/bin/login"
    width: int = 800
    height: int = 600
    timeout: int = 300
    client: str = ""


@dataclass(frozen=True, slots=True)
class Security:
    """What owners of machines may ask for.

    :param allow: attributes that are honoured: ``privileged`` and ``nesting``.
    :param raw_allow: keys of LXD and LXC that ``RAW`` may set besides those that are harmless: names, or a beginning
        of names with a ``*``.
    """

    allow: tuple[str, ...] = ("privileged", "nesting")
    raw_allow: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Logging:
    """What is logged besides.

    :param durations: the time of each step, in the log of the machine.
    :param json: one line of JSON for each call, in a file of the node.
    """

    durations: bool = False
    json: bool = False


class SaveAs(enum.Enum):
    """What takes the place of saving the memory of a machine, which is not possible for containers."""

    REFUSE = "refuse"  # say so, and leave the container as it is
    SHUTDOWN = "shutdown"  # let the guest shut down; it starts anew from its disks
    FREEZE = "freeze"  # keep it in memory, stopped, with its disks in use


@dataclass(frozen=True, slots=True)
class Save:
    """What ``save`` does.

    :param suspend: when the machine is to be suspended on this node.
    :param stop: when it is to be stopped or to go on on another node: then its disks are moved, and cannot stay in use.
    """

    suspend: SaveAs = SaveAs.REFUSE
    stop: SaveAs = SaveAs.REFUSE


@dataclass(frozen=True, slots=True)
class Config:
    """All options. Every one has a default that works.

    :param vnc: the console server.
    :param filesystem: made on volatile disks that do not ask for another (``mkfs -t``).
    :param datastore_location: directory of the datastores on this node.
    :param allowed_dirs: more directories in which files that images refer to may lie.
    :param cluster_dirs: directories in which files may lie that say how to reach a storage cluster (``CEPH_CONF``,
        ``CEPH_KEY``).
    :param default_format: format of disks for which OpenNebula names none; empty: an error.
    :param transport: force one way to make a block device of an image; empty: the first that works.
    :param socket: of the daemon; empty: the first that is there.
    :param pool: storage pool; empty: the one of the root disk in the daemon's default profile.
    :param profile: of machines without ``LXD_PROFILE``.
    :param start_timeout: seconds a container may take to start.
    :param stop_timeout: seconds a container may take to shut down before it is stopped hard.
    :param save: what is done instead of saving the memory of a machine.
    :param security: what owners of machines may ask for.
    :param log: what is logged besides.
    :param warnings: what is odd in the file, one sentence each; to be logged.
    """

    vnc: Vnc = Vnc()
    filesystem: str = "ext4"
    datastore_location: str = "/var/lib/one/datastores"
    allowed_dirs: tuple[str, ...] = ()
    cluster_dirs: tuple[str, ...] = ("/etc/ceph",)
    default_format: str = ""
    transport: str = ""
    socket: str = ""
    pool: str = ""
    profile: str = "default"
    start_timeout: float = 60.0
    stop_timeout: float = 120.0
    save: Save = Save()
    security: Security = Security()
    log: Logging = Logging()
    warnings: tuple[str, ...] = ()


def find_config(script_dir: str, environ: Mapping[str, str], node_file: str = NODE_FILE) -> str:
    """Path of the file: from the environment, else that of the node, else the one beside the scripts; empty when there is none.

    :param script_dir: directory of the action scripts, such as ``/var/tmp/one/vmm/lxd``.
    :raises NotFound: when the environment names a file that is not there.
    :raises Refused: when others than its owner may write to the node's.
    :raises UsageError: when that cannot be looked at.
    """
    named = environ.get(ENVIRONMENT, "")
    if named:
        if not os.path.isfile(named):
            raise NotFound(f"the file that {ENVIRONMENT} names does not exist", subject=named)
        return named
    if os.path.lexists(node_file):
        try:
            found = os.stat(node_file)
        except OSError as error:  # a link that leads nowhere
            raise UsageError(f"cannot read it: {error.strerror}", subject=node_file) from error
        if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
            raise Refused(
                "others than root may write to it", subject=node_file, hint=f"chown root and chmod 644 {node_file}"
            )
        return node_file
    beside = os.path.normpath(os.path.join(script_dir, "../../etc/vmm/lxd/lxdrc"))
    return beside if os.path.isfile(beside) else ""


def load_config(path: str) -> Config:
    """Read the file.

    :param path: as :func:`find_config` gives it; empty: all defaults.
    :raises UsageError: when it cannot be read, is not YAML, or an option has the wrong type; names file and option.
    """
    if not path:
        return Config()
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read it: {error.strerror}", subject=path) from error
    if len(data) > MAX_BYTES:
        raise UsageError(f"it is larger than {MAX_BYTES} bytes", subject=path)
    return parse_config(data, path)


def parse_config(data: bytes, path: str) -> Config:
    """Turn the content of the file into options.

    :param path: for error messages.
    :raises UsageError: as :func:`load_config`.
    """
    import yaml  # 35 ms: only where there is a file

    try:
        content = yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # the last two: 2020-13-45, and very deep
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark is not None else ""
        raise UsageError(f"it is not YAML{place}", subject=path) from error
    if content is None:
        return Config()
    options = _Options(path, "", content)
    vnc = options.section("vnc", Vnc)
    security = options.section("security", Security)
    save = options.section("save", Save)
    log = options.section("log", Logging)
    default = Config()
    return Config(
        vnc=Vnc(
            command=vnc.text("command", Vnc().command),
            width=vnc.whole("width", Vnc().width, minimum=1),
            height=vnc.whole("height", Vnc().height, minimum=1),
            timeout=vnc.whole("timeout", Vnc().timeout, minimum=0),
            client=vnc.text("client", Vnc().client),
        ),
        filesystem=options.text("filesystem", default.filesystem, FILESYSTEM),
        datastore_location=options.path_name("datastore_location", default.datastore_location),
        allowed_dirs=options.paths("allowed_dirs", default.allowed_dirs),
        cluster_dirs=options.paths("cluster_dirs", default.cluster_dirs),
        default_format=options.text("default_format", default.default_format, FORMAT),
        transport=options.text("transport", default.transport, WORD),
        socket=options.path_name("socket", default.socket),
        pool=options.text("pool", default.pool, POOL),
        profile=options.text("profile", default.profile, PROFILE),
        start_timeout=options.seconds("start_timeout", default.start_timeout),
        stop_timeout=options.seconds("stop_timeout", default.stop_timeout),
        save=Save(
            suspend=SaveAs(save.choice("suspend", Save().suspend.value, [item.value for item in SaveAs])),
            stop=SaveAs(save.choice("stop", Save().stop.value, [SaveAs.REFUSE.value, SaveAs.SHUTDOWN.value])),
        ),
        security=Security(
            allow=security.words("allow", Security().allow, _is_wish, "privileged or nesting"),
            raw_allow=security.words("raw_allow", (), _is_pattern, "a key such as linux.sysctl.net.*"),
        ),
        log=Logging(durations=log.flag("durations"), json=log.flag("json")),
        warnings=(
            *log.unknown(Logging),
            *options.unknown(Config),
            *vnc.unknown(Vnc),
            *security.unknown(Security),
            *save.unknown(Save),
        ),
    )


def _is_wish(word: str) -> bool:
    return word in Security().allow


def _is_pattern(word: str) -> bool:
    return _PATTERN.fullmatch(word) is not None


def _is_path(word: str) -> bool:
    return absolute_path(word) is not None


class _Options:
    """One level of the file, read with types."""

    def __init__(self, path: str, prefix: str, content: object) -> None:
        self._path = path
        self._prefix = prefix
        self._values: dict[str, object] = {}
        if not isinstance(content, dict):
            raise UsageError(f"{prefix.rstrip('.') or 'the content'} must be a list of options", subject=path)
        for key, value in content.items():
            name = str(key).strip(":")
            if name in self._values:
                raise UsageError(f"the option {prefix}{shown(name)} is given twice", subject=path)
            self._values[name] = value

    def unknown(self, known: type) -> tuple[str, ...]:
        names = {item.name for item in fields(known)} - {"warnings"}
        return tuple(
            f"{self._path}: unknown option {shown(self._prefix + name)} is ignored"
            for name in self._values
            if name not in names
        )

    def section(self, name: str, known: type) -> _Options:
        value = self._values.get(name)
        return _Options(self._path, f"{self._prefix}{name}.", {} if value is None else value)

    def text(self, name: str, default: str, pattern: re.Pattern[str] | None = None) -> str:
        value = self._values.get(name)
        if value is None:
            return default
        if not isinstance(value, str) or not value or not printable(value):
            self._wrong(name, value, "one line of text")
        if pattern is not None and not pattern.fullmatch(value):
            self._wrong(name, value, "a plain name")
        return value

    def flag(self, name: str) -> bool:
        value = self._values.get(name, False)
        if not isinstance(value, bool):
            self._wrong(name, value, "true or false")
        return value

    def choice(self, name: str, default: str, allowed: list[str]) -> str:
        value = self._values.get(name, default)
        if value not in allowed:
            self._wrong(name, value, f"one of: {', '.join(allowed)}")
        return str(value)

    def path_name(self, name: str, default: str) -> str:
        value = self._values.get(name)
        if value is None:
            return default
        path = absolute_path(value) if isinstance(value, str) else None
        if path is None:
            self._wrong(name, value, "an absolute path without '..'")
        return path

    def paths(self, name: str, default: tuple[str, ...]) -> tuple[str, ...]:
        words = self.words(name, default, _is_path, "an absolute path without '..'")
        return tuple(absolute_path(word) or "" for word in words)

    def words(
        self, name: str, default: tuple[str, ...], accept: Callable[[str], bool], expected: str
    ) -> tuple[str, ...]:
        value = self._values.get(name)
        if value is None:
            return default
        if not isinstance(value, list):
            self._wrong(name, value, "a list")
        for word in value:
            if not isinstance(word, str) or not accept(word):
                self._wrong(name, word, expected)
        return tuple(value)

    def whole(self, name: str, default: int, minimum: int) -> int:
        value = self._values.get(name)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            self._wrong(name, value, f"a whole number of at least {minimum}")
        return value

    def seconds(self, name: str, default: float) -> float:
        value = self._values.get(name)
        if value is None:
            return default
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= 86400:
            self._wrong(name, value, "a number of seconds, more than 0 and at most a day")
        return float(value)

    def _wrong(self, name: str, value: object, expected: str) -> NoReturn:
        raise UsageError(f"option {self._prefix}{name} is {shown(str(value))}, expected {expected}", subject=self._path)
