"""Several processes at once: one disk is mapped once, two disks get two devices, and nobody waits without end."""

from __future__ import annotations

import os
import signal

import pytest

from mapper_core.errors import Busy
from mapper_core.mapping import Mapper
from mapper_core.model import Access, Disk
from mapper_core.testing.conformance.bench import MIB, Bench, OnBench, difference, pattern, proves, read
from mapper_core.testing.conformance.workers import workers


class OnProcesses(OnBench):
    """As root: see the module."""

    @proves("concurrency", "map", "unmap")
    def test_two_processes_map_one_disk(self, bench: Bench) -> None:
        """At the same time: whoever is not told ``Busy`` has the same device."""
        disk = bench.disk(pattern(MIB))
        with workers(*(lambda: _map(bench, disk) for _ in range(2))) as both:
            for worker in both:
                worker.go()
            answers = [worker.wait() for worker in both]
        devices = {text for status, text in answers if status == 0 and text != "busy"}
        assert len(devices) == 1 and all(status == 0 for status, _ in answers), answers
        [found] = bench.mapper.mapped()
        assert {found.device} == devices
        assert not difference(read(found.device), pattern(MIB))
        bench.unmap(found.id)
        bench.check_nothing_left()

    @proves("concurrency", "map", "unmap")
    def test_two_processes_map_two_disks(self, bench: Bench) -> None:
        """At the same time: two devices, each with its own content. Then they unmap them at the same time."""
        contents = [pattern(MIB, seed) for seed in (1, 2)]
        one, two = (bench.disk(content) for content in contents)
        with workers(lambda: _map(bench, one), lambda: _map(bench, two)) as both:
            for worker in both:
                worker.go()
            answers = [worker.wait() for worker in both]
        assert all(status == 0 for status, _ in answers), answers
        devices = [device for _, device in answers]
        assert len(set(devices)) == 2
        for device, content in zip(devices, contents, strict=True):
            assert not difference(read(device), content)
        with workers(*(lambda device=device: _unmap(bench, device) for device in devices)) as both:
            for worker in both:
                worker.go()
            assert [worker.wait()[0] for worker in both] == [0, 0]
        bench.check_nothing_left()

    @proves("concurrency", "map", "unmap")
    def test_who_comes_second_is_told_so(self, bench: Bench) -> None:
        """While another process works on the disk, or has been killed while it did."""
        disk = bench.disk(pattern(MIB))
        identity = bench.mapper.identify(disk).id
        with bench.mapped(disk, Access.READ_ONLY):
            said, say = os.pipe()
            try:
                with workers(lambda: _hold(bench.mapper, identity, say)) as (holder,):
                    holder.go()
                    assert os.read(said, 1) == b"x"
                    for call in (lambda: bench.map(disk, Access.READ_ONLY), lambda: bench.unmap(disk.source)):
                        with pytest.raises(Busy):
                            call()
            finally:
                os.close(said)
                os.close(say)


def _map(bench: Bench, disk: Disk) -> str:
    try:
        return bench.map(disk, Access.READ_ONLY).device
    except Busy:
        return "busy"


def _unmap(bench: Bench, device: str) -> str:
    bench.unmap(device)
    return ""


def _hold(mapper: Mapper, identity: str, say: int) -> str:
    """Keep the lock of a disk until this process is killed."""
    with mapper.lock(identity):
        os.write(say, b"x")
        signal.pause()
    return ""
