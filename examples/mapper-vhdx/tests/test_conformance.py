"""The plugin passes the tests that every plugin of Mapper must pass."""

import subprocess
from pathlib import Path

import pytest
from mapper_core import Disk
from mapper_core.testing.conformance import ImageConformance, MakeDisk


class TestVhdx(ImageConformance):
    format = "vhdx"

    @pytest.fixture
    def make_disk(self) -> MakeDisk:
        def make(content: Path, image: Path) -> Disk:
            argv = ["qemu-img", "convert", "-f", "raw", "-O", "vhdx", str(content), str(image)]
            subprocess.run(argv, check=True, capture_output=True, timeout=60)
            return Disk(str(image), "vhdx")

        return make
