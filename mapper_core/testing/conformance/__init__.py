"""The conformance tests that every format plugin must pass.

They come with the pytest plugin of mapper-core (its extra ``testing``); there is nothing to switch on. A plugin's tests are a class
with one fixture::

    # tests/test_conformance.py
    from mapper_core.testing.conformance import ImageConformance, MakeDisk

    class TestVhdx(ImageConformance):
        format = "vhdx"

        @pytest.fixture
        def make_disk(self) -> MakeDisk:
            def make(content: Path, image: Path) -> Disk:
                subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "vhdx", content, image], check=True)
                return Disk(str(image), "vhdx")
            return make

:class:`ImageConformance` is for disks that are files, :class:`PluginConformance` for all others. What needs no root runs
without it; the rest maps real disks, as root, and is skipped elsewhere with the reason. A table at the end of the run says what
was proved (:mod:`mapper_core.testing.plugin`).
"""

from __future__ import annotations

from mapper_core.model import Access
from mapper_core.testing.conformance.bench import MakeDisk
from mapper_core.testing.conformance.capabilities import OnCapabilities, OnImageCapabilities
from mapper_core.testing.conformance.contract import OnContract
from mapper_core.testing.conformance.crashes import OnCrashes
from mapper_core.testing.conformance.devices import OnDevices
from mapper_core.testing.conformance.images import OnHeaders, OnImages
from mapper_core.testing.conformance.lies import OnLies
from mapper_core.testing.conformance.processes import OnProcesses

__all__ = ["ImageConformance", "MakeDisk", "PluginConformance"]


class PluginConformance(OnContract, OnDevices, OnProcesses, OnCapabilities, OnCrashes, OnLies):
    """What holds for the plugin of any format.

    :cvar format: name of the format, as in the plugin's entry point.
    :cvar access: the widest access that the disks of ``make_disk`` allow.
    :cvar transport: how all disks are mapped; ``None``: by the first transport that works.
    :cvar every: where there are many cases (steps at which a process dies, hostile values) only every n-th is tried, for disks
        that take seconds to map. It should be odd, or processes would die on one side of each step only.
    """

    access = Access.READ_WRITE


class ImageConformance(OnHeaders, OnImages, OnImageCapabilities, PluginConformance):
    """What holds for the plugin of a format whose disks are files, beyond :class:`PluginConformance`."""
