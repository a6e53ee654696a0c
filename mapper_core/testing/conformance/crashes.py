"""``kill -9`` at every step: whatever state a dead process leaves, the same command or ``reconcile`` puts it in order.

A step is a change of the journal, since each thing that is made stands between two of them, or the release of one thing. The
process is killed before and after each, and both ways to go on are taken in turn.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

from mapper_core import journal
from mapper_core.model import Access, Disk
from mapper_core.reconcile import Mode, reconcile
from mapper_core.registry import Registry
from mapper_core.testing.conformance.bench import MIB, Bench, OnBench, difference, pattern, proves
from mapper_core.testing.conformance.workers import kill_self, workers
from mapper_core.transports import NAMES, transport_named

#: More steps no mapping has.
MOST_STEPS = 50
KILLED = -9


class Moment(enum.Enum):
    """When the process dies, seen from a change of the journal."""

    BEFORE = "before"
    AFTER = "after"


class Remedy(enum.Enum):
    """What is done afterwards."""

    REPEAT = "the same again"
    RECONCILE = "reconcile"


class OnCrashes(OnBench):
    """As root: see the module."""

    @proves("kill -9", "map", "unmap", "release")
    def test_killed_while_it_maps(self, bench: Bench) -> None:
        """Then the disk can be mapped, at once or after ``reconcile``, which leaves nothing of it."""
        content = pattern(MIB)
        disk = bench.disk(content)

        def finish(remedy: Remedy, is_mapped: bool) -> None:
            if remedy is Remedy.RECONCILE and not is_mapped:
                assert reconcile(bench.mapper, Mode.REPAIR).problems == ()
                bench.check_nothing_left()
            assert not difference(bench.content(disk), content)
            bench.check_nothing_left()

        self._kill_at_every_step(bench, disk, lambda: bench.map(disk, Access.READ_ONLY), finish, lambda: None)

    @proves("kill -9", "unmap", "release")
    def test_killed_while_it_unmaps(self, bench: Bench) -> None:
        """Then nothing is left after another unmap, or after ``reconcile``; what was written is there."""
        content = pattern(MIB)
        disk = bench.disk(content)

        def begin() -> None:
            bench.map(disk, self.access)

        def finish(remedy: Remedy, is_mapped: bool) -> None:
            if remedy is Remedy.REPEAT or is_mapped:
                bench.unmap(disk.source)
            else:
                assert reconcile(bench.mapper, Mode.REPAIR).problems == ()
            bench.check_nothing_left()

        self._kill_at_every_step(bench, disk, lambda: bench.unmap(disk.source), finish, begin)
        assert not difference(bench.content(disk), content)

    def _kill_at_every_step(
        self,
        bench: Bench,
        disk: Disk,
        work: Callable[[], object],
        finish: Callable[[Remedy, bool], None],
        begin: Callable[[], None],
    ) -> None:
        """Let processes do the work and die, each one step later than the one before, until one survives.

        :param finish: puts things in order after each; gets how, and whether the disk is mapped.
        :param begin: prepares each.
        """
        moments = itertools.product(range(MOST_STEPS), Moment)
        for kills, (step, moment) in enumerate(itertools.islice(moments, 0, None, self.every)):
            remedy = Remedy.REPEAT if (step % 2 == 0) is (moment is Moment.BEFORE) else Remedy.RECONCILE
            with bench.case(f"killed {moment.value} step {step}, then {remedy.value}"):
                begin()
                with workers(partial(_die_at, step, moment, work)) as (worker,):
                    worker.go()
                    status, text = worker.wait()
                assert status in (0, KILLED), text
                finish(remedy, _is_mapped(bench, disk))
            if status == 0:
                assert kills > 0
                bench.note("kills", kills)
                return
        raise AssertionError(f"more than {MOST_STEPS} steps")


def _is_mapped(bench: Bench, disk: Disk) -> bool:
    return bench.mapper.find(bench.mapper.identify(disk).id) is not None


def _die_at(step: int, moment: Moment, work: Callable[[], object]) -> str:
    """Do the work in this process, which ends at that step."""
    numbers = itertools.count()

    def deadly(real: Callable[..., None]) -> Callable[..., None]:
        def take(*arguments: Any) -> None:
            number = next(numbers)
            if (number, moment) == (step, Moment.BEFORE):
                kill_self()
            real(*arguments)
            if (number, moment) == (step, Moment.AFTER):
                kill_self()

        return take

    kinds = [type(transport_named(name)) for name in NAMES]
    places = [
        (journal, "write_json"),
        (journal, "remove_json"),
        (Registry, "release"),
        *((kind, "release") for kind in kinds),
    ]
    for owner, name in places:
        setattr(owner, name, deadly(getattr(owner, name)))
    work()
    return ""
