"""How to reach a cluster: the settings of a disk.

Names of files, never keys: settings are kept in the journal.
"""

from __future__ import annotations

import os
import re

from mapper_core.errors import UsageError
from mapper_core.frozen import dataclass

#: What Ceph's programs read without being told otherwise.
DEFAULT_CONF = "/etc/ceph/ceph.conf"

#: Where libvirt keeps the values of its secrets.
LIBVIRT_SECRETS = "/etc/libvirt/secrets"

#: Longest time to wait for an answer, seconds.
MAX_TIMEOUT = 600

_PATHS = ("conf", "keyring", "keyfile")


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster, and who we are to it.

    :param user: without ``client.``.
    :param conf: configuration file; empty: Ceph's default, if it is there.
    :param keyring: file with the user's key; empty: as the configuration says.
    :param keyfile: file that holds nothing but the user's key; empty: none.
    :param mon_host: addresses of monitors, instead of those of the configuration.
    :param secret: UUID of a libvirt secret with the key, for when its value is on this host and no other file is named.
    :param timeout: longest wait for an answer of the cluster to a request of ours, seconds.
    :param host: under which name locks say who has the image; empty: the name of the node and the id of the machine.
    """

    user: str = "admin"
    conf: str = ""
    keyring: str = ""
    keyfile: str = ""
    mon_host: str = ""
    secret: str = ""
    timeout: int = 10
    host: str = ""

    @property
    def patience(self) -> int:
        """Longest wait for a program that asks the cluster a few times, seconds."""
        return 3 * self.timeout

    @property
    def conf_file(self) -> str:
        """The configuration file to read; empty when there is none and none is needed.

        :raises UsageError: nothing says where the cluster is.
        """
        if self.conf:
            return self.conf
        if os.path.exists(DEFAULT_CONF):
            return DEFAULT_CONF
        if self.mon_host:
            return ""
        raise UsageError(
            f"nothing says where the cluster is: {DEFAULT_CONF} does not exist",
            subject="conf",
            hint="name a configuration file (-o conf=FILE) or monitors (-o mon_host=HOST)",
        )

    def overrides(self) -> tuple[tuple[str, str], ...]:
        """What differs from the configuration file: (option, value) pairs of Ceph."""
        keyfile = self.keyfile or ("" if self.keyring else self._secret_file())
        pairs = (("mon_host", self.mon_host), ("keyring", self.keyring), ("keyfile", keyfile))
        return tuple((name, value) for name, value in pairs if value)

    def _secret_file(self) -> str:
        path = f"{LIBVIRT_SECRETS}/{self.secret}.base64"
        return path if self.secret and os.path.exists(path) else ""


def from_settings(settings: tuple[tuple[str, str], ...]) -> Cluster:
    """Understand the settings of a disk; an empty value counts as not given.

    :raises UsageError: a name is unknown or there twice, or a value makes no sense.
    """
    values: dict[str, str] = {}
    for name, value in settings:
        if name not in Cluster.__slots__:
            raise UsageError(
                f"there is no setting {name!r}", subject=name, hint=f"one of: {', '.join(Cluster.__slots__)}"
            )
        if values.setdefault(name, value) != value:
            raise UsageError(f"the setting {name} is there twice", subject=name)
        _check(name, value)
    given = {name: value for name, value in values.items() if value}
    timeout = int(given.pop("timeout", "10"))
    return Cluster(timeout=timeout, **given)


def _check(name: str, value: str) -> None:
    """Values end up in a configuration file, in which a line break would begin a new option."""
    wrong = ""
    if not value.isprintable():
        wrong = "has control characters in it"
    elif name == "user" and value and not re.fullmatch(r"[\w.-]+", value, re.ASCII):
        wrong = "is not the name of a user (without the prefix client.)"
    elif name in _PATHS and value and not value.startswith("/"):
        wrong = "must be an absolute path"
    elif name == "mon_host" and not re.fullmatch(r"[\w.,:;\[\] /-]*", value, re.ASCII):
        wrong = "is not a list of monitors"
    elif name == "secret" and value and not re.fullmatch(r"[0-9a-fA-F-]{36}", value):
        wrong = "is not the UUID of a libvirt secret"
    elif name == "host" and value and not re.fullmatch(r"[\w.-]{1,64}", value, re.ASCII):
        wrong = "is not a name for a host: letters, digits and ._- only"
    elif name == "timeout" and value and not (value.isascii() and value.isdigit() and 0 < int(value) <= MAX_TIMEOUT):
        wrong = f"is not a number of seconds from 1 to {MAX_TIMEOUT}"
    if wrong:
        raise UsageError(f"the value {value!a} of the setting {name} {wrong}", subject=name)
