"""The driver's actions on a real daemon, killed with -9 at the points at which they change the world.

A *life* of a machine is the sequence of all actions. In each of them the driver's process is killed at another moment; then the
action is repeated as oned would do it, or ``reconcile`` runs first. At the end of a life nothing may be left. As many lives are
lived as ``--crash-lives`` says, their moments spread evenly over the actions; ``--crash-lives all`` takes every moment.
"""

from __future__ import annotations

import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
from mapper_driver.errors import InstanceNotFound, InstanceNotRunning, LxdFailed
from mapper_driver.lxd.client import LxdClient
from mapper_driver.lxd.model import Status

from mapper_core.errors import Busy
from mapper_core.mapping import Mapper
from mapper_core.reconcile import reconcile
from mapper_core.testing import disks
from mapper_core.testing.disks import MIB, Part
from tests.lxd.conftest import ROOT, Lab, images, run_lab  # noqa: F401  (fixtures)
from tests.lxd.machine import CONTEXT, Machine
from tests.lxd.one import One, disk_xml
from tests.lxd.plug import Done, Plug

from .killing import ENDINGS, Ending, patiently

if TYPE_CHECKING:
    from tests.security.conftest import Report

pytestmark = [pytest.mark.crash, pytest.mark.timeout(7200)]

VM = 960
PLACES = ("/", "/boot", "/home", "/data", "/context")
#: After which a disk has room for a filesystem that can grow, MiB: btrfs refuses less.
SIZE, GROWN = 128, 264


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    yield from run_lab(request.config.getoption("crash_daemon"), "k")


@dataclass(frozen=True)
class Step:
    """One action.

    :param act: what oned does.
    :param is_done: whether that has come about.
    :param is_undone: whether it looks as if it had never begun.
    """

    name: str
    act: Callable[..., Done]
    is_done: Callable[[], bool]
    is_undone: Callable[[], bool]


class Life:
    """A machine with a system and a data disk (both qcow2), the context, and a disk that comes and goes."""

    def __init__(self, one: One, client: LxdClient, systems: ModuleType, vm: int) -> None:
        directory = one.vm_dir(vm)
        systems.build_system(str(directory / "disk.0"), format_="qcow2", seed="crash")
        piece = disks.make_filesystem(directory / "piece", Part("btrfs", SIZE))
        disks.convert(piece, "qcow2", directory / "disk.1")
        piece.unlink()
        systems.build_context(str(directory / "disk.9"))
        self.one, self.client, self.vm = one, client, vm
        self.size = SIZE
        self.plug = Plug(self.machine)
        self.added = self.plug.make(3, text="attached")

    @property
    def machine(self) -> Machine:
        data = disk_xml(1, kind="qcow2", TARGET="/data", SIZE=str(self.size), ORIGINAL_SIZE=str(self.size))
        xml = self.one.vm_xml(self.vm, disk_xml(0, kind="qcow2") + data, deployed=True, template=CONTEXT)
        return Machine(self.one, self.client, self.vm, xml)

    def steps(self) -> tuple[Step, ...]:
        snapshot = f"mapper-{self.vm}-0"
        return (
            Step("deploy", lambda **e: self.machine.deploy(**e), self.runs, self.is_off),
            Step(
                "attach_disk",
                lambda **e: self.plug.attach(3, self.added, **e),
                self.has_disk,
                self.lacks_disk,
            ),
            Step("detach_disk", lambda **e: self.plug.detach(3, self.added, **e), self.lacks_disk, self.keeps_disk),
            Step("resize_disk", self.resize, lambda: self.has_size(GROWN), lambda: self.has_size(SIZE)),
            Step("snapshot_create", self.snapshot, lambda: self.names() == [[snapshot]] * 2, self.has_no_snapshot),
            Step(
                "snapshot_revert",
                self.revert,
                lambda: self.word() == "kept",
                lambda: self.is_waiting() or self.word() == "lost",
            ),
            Step("snapshot_delete", self.forget, self.has_no_snapshot, lambda: self.names() == [[snapshot]] * 2),
            Step(
                "shutdown",
                lambda **e: self.machine.power("shutdown", **e),
                self.is_gone,
                lambda: self.is_waiting() or self.runs(),
            ),
        )

    def prepare(self, step: str) -> None:
        """What the guest does before an action."""
        if step == "snapshot_create":
            self.write("kept")
        if step == "snapshot_revert":
            self.write("lost")

    # --- actions ---

    def resize(self, **environment: str) -> Done:
        data = disk_xml(
            1, kind="qcow2", TARGET="/data", SIZE=str(GROWN), ORIGINAL_SIZE=str(SIZE), SIZE_PREV=str(SIZE), RESIZE="YES"
        )
        xml = self.one.vm_xml(self.vm, disk_xml(0, kind="qcow2") + data, deployed=True, template=CONTEXT)
        machine = Machine(self.one, self.client, self.vm, xml, lcm_state=62)
        self.size = GROWN
        return machine.call("resize_disk", machine.name, "1", str(GROWN), "copy-of-stdin", "node", **environment)

    def _snapshot(self, what: str, argument: str, **environment: str) -> Done:
        return self.machine.about_to(24).call(f"snapshot_{what}", self.machine.name, argument, **environment)

    def snapshot(self, **environment: str) -> Done:
        return self._snapshot("create", "0", **environment)

    def revert(self, **environment: str) -> Done:
        return self._snapshot("revert", f"mapper-{self.vm}-0", **environment)

    def forget(self, **environment: str) -> Done:
        return self._snapshot("delete", f"mapper-{self.vm}-0", **environment)

    # --- what there is ---

    def status(self) -> Status | None:
        try:
            return self.machine.status()
        except InstanceNotFound:
            return None

    def runs(self) -> bool:
        """On all its disks, whose content is there, and which can be written."""
        if self.status() is not Status.RUNNING or not set(PLACES) <= self.machine.seen().keys():
            return False
        write = "for i in / /home /data; do echo x > $i/probe && rm $i/probe || exit 1; done; cat /context/context.sh"
        try:
            done = self.client.execute(self.machine.name, ("sh", "-c", write), deadline_seconds=30)
        except (InstanceNotRunning, LxdFailed):  # it has ended meanwhile
            return False
        return done.status == 0 and done.stdout != b""

    def is_broken(self) -> bool:
        """It runs, and those who serve its disks are dead: an operator has to end it."""
        return self.status() is Status.RUNNING and not self.runs()

    def is_off(self) -> bool:
        """No disk is in use; a container may be left that has nothing."""
        return self.status() in (None, Status.STOPPED) and Mapper.open().mapped() == ()

    def is_waiting(self) -> bool:
        """It was stopped, and stays so until oned repeats what it wanted."""
        return self.status() in (None, Status.STOPPED)

    def is_gone(self) -> bool:
        return self.status() is None and self.is_off()

    def has_disk(self) -> bool:
        return "/media/3" in self.machine.seen() and self.machine.inside("cat", "/media/3/number") == "attached"

    def lacks_disk(self) -> bool:
        return "/media/3" not in self.machine.seen() and Mapper.open().find(str(self.plug.path(3))) is None

    def keeps_disk(self) -> bool:
        """It is attached, or at least still held for the container, which may not see it any more."""
        return Mapper.open().find(str(self.plug.path(3))) is not None

    def has_size(self, size: int) -> bool:
        found = Mapper.open().find(str(self.plug.path(1)))
        assert found is not None
        room = int(self.machine.inside("df", "-P", "-m", "/data").splitlines()[-1].split()[1])
        return (size == SIZE or found.size == size * MIB) and abs(room - size) < 16

    def names(self) -> list[list[str]]:
        found = []
        for number in range(2):
            lines = disks.run("qemu-img", "snapshot", "-U", "-l", str(self.plug.path(number))).splitlines()
            found.append([line.split()[1] for line in lines[2:]])
        return found

    def has_no_snapshot(self) -> bool:
        return self.names() == [[], []]

    def write(self, text: str) -> None:
        self.machine.inside("sh", "-c", f"for i in / /home /data; do echo {text} > $i/word; done; sync")

    def word(self) -> str:
        if self.status() is not Status.RUNNING:
            return ""
        words = {self.machine.inside("cat", f"{place}/word").strip() for place in ("", "/home", "/data")}
        assert len(words) == 1, "the disks are of two moments"
        return words.pop()


@dataclass(frozen=True)
class Deaths:
    """Starts the driver so that it dies.

    :param directory: for what it says.
    """

    directory: Path
    runtime: str

    def environment(self, moment: int, ending: Ending) -> dict[str, str]:
        wrapper = self.directory / "dying-driver"
        if not wrapper.exists():
            wrapper.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m tests.crash.dying "$@"\n')
            wrapper.chmod(0o755)
        self.report.unlink(missing_ok=True)
        return {
            "MAPPER_DRIVER": str(wrapper),
            "CRASH_MOMENT": str(moment),
            "CRASH_HELPERS": "" if ending.alone else self.runtime,
            "CRASH_REPORT": str(self.report),
        }

    @property
    def report(self) -> Path:
        return self.directory / "died"


def _go_through(life: Life, step: Step, moment: int, ending: Ending, deaths: Deaths) -> str:
    """What the process has said: where it died, or all moments."""
    life.prepare(step.name)
    done = step.act(**deaths.environment(moment, ending))
    said = deaths.report.read_text() if deaths.report.exists() else ""
    if moment < 0 or not said:  # it has come to its end
        assert done.returncode == 0, done.stderr
    elif ending.repeat:
        _repeat(step, life)
    else:
        patiently(lambda: _reconcile(step, life))
        if not step.is_done():
            _repeat(step, life)
    assert step.is_done(), done.stderr
    return said


def _repeat(step: Step, life: Life) -> None:
    done = step.act()
    if done.returncode != 0 and step.name == "deploy" and life.is_broken():
        life.machine.power("cancel")
        done = step.act()
    # a machine that runs already is not deployed twice
    assert done.returncode == 0 or (step.name == "deploy" and step.is_done()), done.stderr


def _reconcile(step: Step, life: Life) -> None:
    report = _put_in_order()
    if not step.is_done() and not step.is_undone() and not (step.name == "deploy" and life.is_broken()):
        raise Busy(f"neither done nor undone after reconcile: {report}, {Mapper.open().mapped()}")


def _put_in_order() -> object:
    report = reconcile(Mapper.open())
    assert report.problems == (), report.problems
    return report


def _moments(choice: str, known: dict[str, list[str]]) -> Iterator[dict[str, int]]:
    """One moment for each action; in the end there have been all of them. Or so many lives, with places that are as different as
    can be: of those with the same name the first counts.
    """
    if choice == "all":
        for number in range(max(map(len, known.values()))):
            yield {name: number % len(moments) for name, moments in known.items()}
        return
    lives = int(choice)
    first = {name: [moments.index(moment) for moment in dict.fromkeys(moments)] for name, moments in known.items()}
    for number in range(lives):
        yield {name: numbers[(2 * number + 1) * len(numbers) // (2 * lives)] for name, numbers in first.items()}


def test_lives_with_sudden_ends(
    lab: Lab,
    images: ModuleType,  # noqa: F811
    tmp_path: Path,
    runtime_dir: Path,
    request: pytest.FixtureRequest,
    report: Report,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LXD_SOCKET", lab.socket)  # for reconcile, which asks the daemon about its containers
    one, client = One(tmp_path, lab.socket), LxdClient.connect([lab.socket])
    deaths = Deaths(tmp_path, str(runtime_dir))
    known: dict[str, list[str]] = {}
    life = Life(one, client, images, VM)
    for step in life.steps():
        known[step.name] = _go_through(life, step, -1, ENDINGS[0], deaths).splitlines()
    life.machine.nothing_left()
    for name, moments in known.items():
        print(f"{name}: {len(moments)} moments, {len(set(moments))} of them with different names", flush=True)
    wrong: list[str] = []
    places: set[str] = set()
    for number, chosen in enumerate(_moments(request.config.getoption("crash_lives"), known), start=1):
        life = Life(one, client, images, VM + number)
        for position, step in enumerate(life.steps()):
            ending = ENDINGS[(number + position) % len(ENDINGS)]
            said = ""
            try:
                said = _go_through(life, step, chosen[step.name], ending, deaths)
                places.add(said.partition(" ")[2])
                report.count(step.name, cases=1, runs=1)
            except Exception:
                died = deaths.report.read_text() if deaths.report.exists() else "?"
                wrong.append(f"--- {step.name}, moment {chosen[step.name]} {died}, {ending}\n{traceback.format_exc()}")
                print(wrong[-1], flush=True)
                break
        _end(life, wrong)
        assert len(wrong) < 6, "\n".join(wrong)
        shutil.rmtree(one.vm_dir(life.vm))
    assert not wrong, "\n".join(wrong)
    print(f"{len(places)} places")


def _end(life: Life, wrong: list[str]) -> None:
    try:
        if life.status() is not None:
            life.machine.power("cancel")
        _put_in_order()
        life.machine.nothing_left()
    except Exception:
        wrong.append(f"--- after the life\n{traceback.format_exc()}")


def test_the_hook_dies_that_hands_the_tree_over(
    lab: Lab,
    images: ModuleType,  # noqa: F811
    tmp_path: Path,
    runtime_dir: Path,
    report: Report,
) -> None:
    """LXC starts it, and refuses to start the container; the driver undoes all, and the next call works."""
    life = Life(One(tmp_path, lab.socket), LxdClient.connect([lab.socket]), images, VM - 1)
    dead, driver = tmp_path / "dead", tmp_path / "driver"
    dead.write_text("#!/bin/sh\nkill -9 $$\n")
    code = (
        f"import sys; sys.executable = {str(dead)!r}; from mapper_driver.main import main; sys.exit(main(sys.argv[1:]))"
    )
    driver.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$@"\n')
    for path in (dead, driver):
        path.chmod(0o755)
    done = life.machine.deploy(MAPPER_DRIVER=str(driver))
    assert done.returncode != 0 and "cannot" in done.stderr, done.stderr
    life.machine.nothing_left()
    assert life.machine.deploy().returncode == 0
    assert life.runs()
    assert life.machine.power("cancel").returncode == 0
    life.machine.nothing_left()
    report.count("the hook", cases=1, runs=1, refused=1)
