"""Every hostile image of the corpus, the whole way: it is refused, or it does no harm.

The cases of a family share a test, since the look at the whole host around a test costs more than a case.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mapper_core.linux import mountinfo
from mapper_core.mapping import Mapper
from mapper_core.testing import disks
from mapper_core.tree import mounted

from .conftest import Attacker, Canary, Outcome, Report
from .corpus import FAMILIES
from .corpus.case import Case
from .corpus.guests import guest

pytestmark = [pytest.mark.security, pytest.mark.timeout(400)]

#: Every action takes less, seconds on a machine that does nothing else, and KiB.
SECONDS = 2
KIB = 128 << 10
#: Bytes of a device that are searched for the secret.
SEARCHED = 16 << 20


def crowd() -> float:
    """How many want each processor."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


@dataclass
class Trial:
    """One case, and all that was wrong with how it was treated."""

    case: Case
    attacker: Attacker
    canary: Canary
    mapper: Mapper
    directory: Path
    runs: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def disk(self) -> str:
        return str(self.directory / "disk")

    def run(self) -> None:
        """Try every action."""
        declared = ("-f", self.case.format)
        self.judge("inspect", self.attacker.cli("inspect", self.disk, *declared))
        if self.judge("map", self.attacker.cli("map", self.disk, *declared)):
            self.search_device()
            self.must("unmap", self.disk)
        tree = self.directory / "mounted"
        tree.mkdir()
        if self.judge("mount", self.attacker.cli("mount", self.disk, str(tree), *declared)):
            self.check_tree(str(tree))
            self.must("umount", str(tree))
        self.judge("stage", self.attacker.stage(self.machine(), self.directory / "datastores"))
        # a disk that is written: last, since what is harmless may change it
        if self.case.format != "raw":
            self.judge("snapshot", self.attacker.cli("snapshot", "create", self.disk, "now", *declared), "NotSupported")
        self.judge("resize", self.attacker.cli("resize", self.disk, "+1M", *declared), "NotSupported", "ReadOnlyImage")

    def machine(self) -> Path:
        """The disk as that of a machine of OpenNebula, whose directory is a link through one that is closed for others (U-05)."""
        place = self.directory / "datastores" / "0" / "7"
        place.parent.mkdir(parents=True)
        place.symlink_to(self.directory)
        disk = self.directory / "disk.0"
        disk.symlink_to("disk")
        path = self.directory / "vm.xml"
        path.write_text(
            "<VM><ID>7</ID><TEMPLATE><VMID>7</VMID><MEMORY>64</MEMORY><CPU>1</CPU><DISK><DISK_ID>0</DISK_ID><TYPE>FILE</TYPE>"
            f"<DISK_TYPE>FILE</DISK_TYPE><FORMAT>{self.case.format}</FORMAT><DATASTORE_ID>1</DATASTORE_ID></DISK></TEMPLATE>"
            "<USER_TEMPLATE/><HISTORY_RECORDS><HISTORY><SEQ>0</SEQ><DS_ID>0</DS_ID></HISTORY></HISTORY_RECORDS></VM>"
        )
        return path

    def judge(self, action: str, outcome: Outcome, *also: str) -> bool:
        """Check what became of an action; true when it succeeded."""
        self.runs += 1
        says = f"{action}: {outcome.error or outcome.status}: {outcome.stderr.strip()[-400:]}"
        if outcome.status == 0:
            if action not in self.case.harmless:
                self.wrong.append(f"{action} succeeded")
        else:
            self.refused += 1
            if outcome.error in ("", "InternalError"):
                self.wrong.append(f"no typed refusal: {says}")
            elif outcome.error not in (*self.case.errors, *also):
                self.wrong.append(f"unexpected: {says}")
        if outcome.seconds >= SECONDS * crowd():
            self.wrong.append(f"{action} took {outcome.seconds:.1f} s")
        if outcome.kib >= KIB:
            self.wrong.append(f"{action} took {outcome.kib} KiB")
        if self.canary.secret in outcome.stdout + outcome.stderr:
            self.wrong.append(f"{action} told the secret")
        if "\x1b" in outcome.stdout + outcome.stderr:
            self.wrong.append(f"{action} sends control characters to the terminal")
        return outcome.status == 0

    def must(self, *argv: str) -> None:
        """Take back what an action has made."""
        outcome = self.attacker.cli(*argv)
        if outcome.status != 0:
            self.wrong.append(f"{argv[0]}: {outcome.stderr.strip()}")

    def search_device(self) -> None:
        """What the guest would read of the device is no file of the host; and what serves it needs little."""
        [record] = self.mapper.journal.records()
        assert record.attachment is not None
        with open(record.attachment.device, "rb") as device:
            try:
                if self.canary.secret.encode() in device.read(SEARCHED):
                    self.wrong.append("the secret is on the device")
            except OSError:
                pass  # tables that lead nowhere: an I/O error
        pid = Path(self.mapper.runtime.exports, record.id, "pid")
        if pid.exists():
            status = Path(f"/proc/{int(pid.read_text())}/status").read_text()
            peak = int(status.partition("VmHWM:")[2].split()[0])
            if peak >= KIB:
                self.wrong.append(f"the daemon took {peak} KiB")

    def check_tree(self, directory: str) -> None:
        """Something is mounted (M-26), all of it in the tree, and without privileges for the host (S-17)."""
        if not mountinfo.at(directory):
            self.wrong.append("success, and nothing is mounted")
        [tree] = mounted.records(self.mapper)
        devices = mounted.devices_of(self.mapper, tree)
        for entry in mountinfo.entries():
            if entry.source in devices:
                if not mountinfo.is_below(entry.target, directory) and entry.target != directory:
                    self.wrong.append(f"mounted on {entry.target}")
                if not {"nosuid", "nodev"} <= set(entry.options):
                    self.wrong.append(f"mounted with {entry.options}")

    def nothing_left(self, directory: str) -> None:
        """No record of the product, and no mount below a directory. The rest is counted after the test."""
        if self.mapper.journal.ids() or mounted.records(self.mapper):
            self.wrong.append("records are left")
        self.wrong += [f"left mounted: {entry.target}" for entry in mountinfo.under(directory)]


def trials(family: str, attacker: Attacker, canary: Canary, tmp_path: Path) -> Iterator[Trial]:
    mapper = Mapper.open()
    for case in FAMILIES[family]():
        directory = tmp_path / "case"
        directory.mkdir()
        case.build(directory, canary.directory)
        yield Trial(case, attacker, canary, mapper, directory)
        shutil.rmtree(directory)


@pytest.mark.parametrize("family", FAMILIES)
def test_hostile_images(
    family: str, attacker: Attacker, canary: Canary, tmp_path: Path, runtime_dir: Path, report: Report
) -> None:
    """Refused with a typed error or harmless, in less than 2 s and 128 MiB; the host is as it was, nothing is left.

    S-01 to S-10, S-12, S-14 to S-17, S-19, S-20, S-26, P-15, P-16, P-17, M-22, M-26, U-05.
    """
    found = []
    for trial in trials(family, attacker, canary, tmp_path):
        trial.run()
        trial.nothing_left(str(tmp_path))
        harm = canary.harm()
        report.count(f"hostile {family}", cases=1, runs=trial.runs, refused=trial.refused, canary=len(harm))
        found += [f"{trial.case.name}: {what}" for what in (*trial.wrong, *harm)]
    changed = canary.harm_to_host()
    report.count(f"hostile {family}", canary=len(changed))
    assert not found + changed, "\n".join(found + changed)


# --- what would be noticed --------------------------------------------------------------------------------------


def test_the_canary_notices(canary: Canary) -> None:
    assert canary.harm() + canary.harm_to_host() == []
    (canary.directory / "x").touch()
    assert canary.harm() == canary.harm_to_host() == [f"changed: {canary.directory}/x"]
    (canary.directory / "x").unlink()
    place = canary.directory / "etc"
    disks.run("mount", "-t", "tmpfs", "none", str(place))
    try:
        assert f"mounted over: {place}" in canary.harm()
    finally:
        disks.run("umount", str(place))
    with (canary.directory / "secret").open("r+b") as file:
        file.write(b"X")
    assert canary.harm() == [f"changed: {canary.directory}/secret"]


def test_bad_treatment_is_noticed(attacker: Attacker, canary: Canary, tmp_path: Path) -> None:
    """A harmless disk that is called hostile fails the test, and so does whatever tells the secret or takes too much."""
    case = Case("a good disk", "raw", guest(), ("NoRootFound",))
    case.build(tmp_path, canary.directory)
    trial = Trial(case, attacker, canary, Mapper.open(), tmp_path)
    trial.run()
    trial.nothing_left(str(tmp_path))
    assert trial.wrong == [f"{action} succeeded" for action in ("inspect", "map", "mount", "stage", "resize")]
    for outcome, says in (
        (Outcome(1, "", "", "Traceback", 0, 0), "no typed refusal"),
        (Outcome(70, "InternalError", "", "", 0, 0), "no typed refusal"),
        (Outcome(5, "Busy", "", "", 0, 0), "unexpected"),
        (Outcome(3, "NoRootFound", "", canary.secret, 0, 0), "told the secret"),
        (Outcome(3, "NoRootFound", "", "", 1e6, 0), "took 1000000.0 s"),
        (Outcome(3, "NoRootFound", "", "", 0, 1 << 20), "took 1048576 KiB"),
        (Outcome(3, "NoRootFound", "\x1b[2J", "", 0, 0), "control characters"),
    ):
        trial.wrong.clear()
        trial.judge("map", outcome)
        assert len(trial.wrong) == 1 and says in trial.wrong[0]
