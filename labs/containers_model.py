"""What a lab with a container daemon is: its record, and in what the daemons differ."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass

from common import LabError

MARKER = "MAPPER_LAB"  # in the environment of the daemon and of all it starts, and of nothing else


@dataclass(frozen=True)
class Product:
    """A daemon that runs containers.

    :param name: name of its directory in a lab; in upper case, the prefix of its variables.
    :param title: how it is written.
    :param daemon: path or name of the daemon. The monitors that LXC starts for it run the same program.
    :param needs: programs of the host that the lab calls, and the package of each.
    """

    name: str
    title: str
    daemon: str
    needs: tuple[tuple[str, str], ...]

    @property
    def prefix(self) -> str:
        """First part of the names of its variables: LXD, INCUS."""
        return self.name.upper()


_COMMON = (("ip", "iproute2"), ("unshare", "util-linux"), ("umount", "mount"))
LXD = Product("lxd", "LXD", "lxd", (("lxd", "lxd"), ("lxc", "lxd-client"), *_COMMON))
INCUS = Product(
    "incus", "Incus", "/usr/libexec/incus/incusd", (("mmdebstrap", "mmdebstrap"), ("nsenter", "util-linux"), *_COMMON)
)
PRODUCTS = {product.name: product for product in (LXD, INCUS)}


@dataclass(frozen=True)
class Lab:
    """What `up` did, and `down` has to undo. It is written before each step, so that `down` works after a kill.

    :param dir: the lab's directory; everything of it is below.
    :param product_name: which daemon it has.
    :param pid: process id of the daemon, 0 before it is started.
    :param starttime: field 22 of /proc/PID/stat: makes the pid unmistakable.
    :param bridge: the network bridge that was created; empty when the kernel has none.
    :param cgroup_mounted: whether `up` mounted cgroup2, because the machine had no cgroups at all.
    :param tree: what the daemon has as root directory; empty: what we have.
    :param keep: paths below /run/lxc and the cgroups that were there before, and stay.
    """

    dir: str
    product_name: str = LXD.name
    pid: int = 0
    starttime: int = 0
    bridge: str = ""
    cgroup_mounted: bool = False
    tree: str = ""
    keep: tuple[str, ...] = ()

    @property
    def product(self) -> Product:
        """Its daemon."""
        return PRODUCTS[self.product_name]

    @property
    def home(self) -> str:
        """The daemon's own directory, for LXD_DIR or INCUS_DIR."""
        return f"{self.dir}/{self.product_name}"

    @property
    def socket(self) -> str:
        """Path of the API socket."""
        return f"{self.home}/unix.socket"

    @property
    def root(self) -> str:
        """Where the daemon's root directory is put together, if it has one of its own; only it sees more than a directory."""
        return f"{self.dir}/root"

    @property
    def state_file(self) -> str:
        """Where this record is kept."""
        return f"{self.dir}/lab.json"

    @property
    def log_file(self) -> str:
        """What the daemon prints."""
        return f"{self.dir}/daemon.log"

    @property
    def inside(self) -> tuple[str, ...]:
        """Start of a command line that runs a program where the daemon's own programs are."""
        return ("nsenter", f"--mount=/proc/{self.pid}/ns/mnt", "--") if self.product is INCUS else ()

    @property
    def client(self) -> tuple[str, ...]:
        """Command of the daemon's own client."""
        return (*self.inside, "incus" if self.product is INCUS else "lxc")

    @property
    def variables(self) -> dict[str, str]:
        """What makes the daemon's programs, its client and the driver use this lab."""
        prefix = self.product.prefix
        return {
            f"{prefix}_DIR": self.home,
            f"{prefix}_SOCKET": self.socket,
            f"{prefix}_CONF": f"{self.dir}/client",  # so that the client writes nothing into the home directory
        }

    @property
    def environment(self) -> dict[str, str]:
        """For the daemon and its commands. Variables of another lab would make them talk to that one."""
        others = tuple(f"{product.prefix}_" for product in PRODUCTS.values())
        kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
        return {**kept, f"{self.product.prefix}_DIR": self.home, MARKER: self.dir}

    def save(self) -> None:
        """Replace the record on disk in one step."""
        temporary = f"{self.state_file}.new"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(asdict(self), file)
        os.replace(temporary, self.state_file)

    @staticmethod
    def load(directory: str, product: Product) -> Lab | None:
        """Read the record; ``None`` when there is none.

        :raises LabError: the lab there has another daemon.
        """
        try:
            with open(f"{directory}/lab.json", encoding="utf-8") as file:
                fields = json.load(file)
        except FileNotFoundError:
            return None
        fields["keep"] = tuple(fields["keep"])
        lab = Lab(**fields)
        if lab.product is not product:
            raise LabError(f"{directory} is a lab of labs/{lab.product_name}")
        return lab
