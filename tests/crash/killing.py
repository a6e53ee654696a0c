"""Kills one action at every moment at which it changes the world, and looks what becomes of it.

A scene knows how to get ready for an action, the action, how to describe what there is, and how to take everything back.
At each moment the action is killed in a process of its own. Then

- either it is simply repeated, and must bring about what it would have brought about,
- or ``reconcile`` runs without a complaint, and what there is must be what was there before, or what the action brings about;
  then the action is carried out once more.

At the end everything is taken back, the content of the image is checked, and the leak oracle must count nothing.
"""

from __future__ import annotations

import itertools
import os
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol, TypeVar

from mapper_core.errors import Busy, ImageInUse
from mapper_core.mapping import Mapper
from mapper_core.reconcile import reconcile
from mapper_core.testing import leaks

from .points import Victim

T = TypeVar("T")

#: What is left behind stays, so the leak oracle need not look after each run.
LOOK_EACH = 4

#: How long programs that have lost their parent may go on with an image, seconds.
PATIENCE = 20.0


class Scene(Protocol):
    """One action, and the world around it."""

    mapper: Mapper

    def prepare(self) -> None:
        """Make what the action finds."""

    def act(self) -> None:
        """The action."""

    def state(self) -> object:
        """What there is."""

    def half_done(self, before: object, after: object) -> tuple[object, ...]:
        """States between these two in which ``reconcile`` may leave it: the action consists of several."""

    def mourn(self) -> None:
        """What to do when the programs that serve the disk are dead: they died with the process, though they are older."""

    def take_back(self) -> None:
        """Release everything, and check that the content is intact."""


@dataclass(frozen=True)
class Ending:
    """How the process dies and what comes then.

    :param repeat: the action is repeated, and not reconciled.
    :param alone: the programs that it has started live on.
    """

    repeat: bool
    alone: bool

    def __str__(self) -> str:
        return f"{'alone' if self.alone else 'with its helpers'}, then {'repeat' if self.repeat else 'reconcile'}"


ENDINGS = tuple(itertools.starmap(Ending, itertools.product((True, False), (True, False))))


@dataclass(frozen=True)
class Figures:
    """What was done.

    :param moments: before and after each point.
    :param points: different places in the project from which they come.
    """

    moments: int
    points: int
    runs: int


def die_everywhere(scene: Scene, scope: str, *, stride: int, every_ending: bool, settle: float) -> Figures:
    """Kill the action of a scene at each moment.

    :param scope: directory to which everything belongs that the scene makes.
    :param stride: 1; or only at each second moment, and so on.
    :param every_ending: try all endings at each moment; otherwise one, which changes from moment to moment.
    :param settle: seconds that what was let go may take to be gone.
    :raises AssertionError: naming each moment after which something was wrong.
    """
    roots = (scene.mapper.runtime.root,)
    before = leaks.snapshot(roots)
    scene.prepare()
    start = scene.state()
    scene.act()
    done = scene.state()
    assert done != start, "the action changes nothing that the scene can see"
    scene.take_back()
    allowed = (start, done, *scene.half_done(start, done))
    wrong: list[str] = []
    names: set[str] = set()
    moments = runs = 0
    for position, moment in enumerate(itertools.count(stride // 2, stride)):
        where = ""
        for ending in ENDINGS if every_ending else (ENDINGS[(position + position // len(ENDINGS)) % len(ENDINGS)],):
            try:
                where = _die_once(scene, moment, ending, allowed)
            except Exception:
                wrong.append(f"--- moment {moment}, {ending}\n{traceback.format_exc(limit=-6)}")
                _emergency(scene)
                where = where or "?"
            if not where:
                break
            runs += 1
            if runs % LOOK_EACH == 0 and (left := leaks.wait_for_none(before, settle, roots, (scope,))):
                wrong.append(f"--- {where}, {ending}, or one of the {LOOK_EACH} before\n{left}")
                before = leaks.snapshot(roots)
        if not where:
            break
        names.add(where.partition(" ")[2])
        moments += 1
        assert len(wrong) < 8, "\n".join(wrong)
    left = leaks.wait_for_none(before, settle, roots, (scope,))
    assert not left, left
    assert not wrong, "\n".join(wrong)
    return Figures(moments, len(names), runs)


def _die_once(scene: Scene, moment: int, ending: Ending, allowed: tuple[object, ...]) -> str:
    """Where it died; empty when it has no such moment."""
    done = allowed[1]
    scene.prepare()
    where = killed(scene.act, moment, "" if ending.alone else scene.mapper.runtime.root)
    try:
        if where and not ending.alone:
            patiently(scene.mourn)
        if not where:
            assert scene.state() == done
        elif ending.repeat:
            patiently(lambda: _repeat(scene, done))
        else:
            found = patiently(lambda: _reconcile(scene, allowed))
            if found != done:
                patiently(lambda: _repeat(scene, done))
        assert scene.state() == done, f"{scene.state()} instead of {done}"
    except Exception as error:
        error.add_note(f"killed {where}")
        raise
    scene.take_back()
    return where


class _NotYet(Exception):
    """What a killed process has forked may hold its locks until it has noticed."""


def _repeat(scene: Scene, done: object) -> None:
    scene.act()
    if (found := scene.state()) != done:
        raise _NotYet(f"{found} instead of {done}")


def _reconcile(scene: Scene, allowed: tuple[object, ...]) -> object:
    """Return the state in which it has left everything."""
    if problems := reconcile(scene.mapper).problems:
        raise _NotYet(str(problems))
    found = scene.state()
    if found not in allowed:
        raise _NotYet(f"neither done nor undone: {found}\nbefore: {allowed[0]}\nafter:  {allowed[1]}")
    return found


def patiently(act: Callable[[], T], seconds: float = PATIENCE) -> T:
    """Do something as soon as others let it be done: the programs that a killed process has left, for example."""
    until = time.monotonic() + seconds
    while True:
        try:
            return act()
        except (Busy, ImageInUse, _NotYet):
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def killed(act: Callable[[], object], moment: int, helpers: str) -> str:
    """Carry out an action in a process that is killed at a moment of it; return where, empty when it has no such moment."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with ExitStack() as stack:
        stack.callback(os.close, reader)
        pid = os.fork()
        if pid == 0:
            status = 70
            write = os.write
            try:
                Victim(moment, helpers, lambda where: write(writer, where.encode())).arm()
                act()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(writer)
        where = os.read(reader, 1 << 12).decode()
        _, status = os.waitpid(pid, 0)
        assert status in (0, 9), f"it ended by itself: {status}"
        assert bool(where) == (status == 9)
        return where


def _emergency(scene: Scene) -> None:
    """After something went wrong: give the next moment a fair start."""
    try:
        reconcile(scene.mapper)
        scene.take_back()
    except Exception:
        traceback.print_exc()
        reconcile(scene.mapper)
