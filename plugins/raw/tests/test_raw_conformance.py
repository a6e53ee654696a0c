"""The raw plugin passes the conformance tests of all plugins."""

import shutil
from pathlib import Path

import pytest

from mapper_core import Disk
from mapper_core.testing.conformance import ImageConformance, MakeDisk

pytestmark = pytest.mark.root


class TestRaw(ImageConformance):
    format = "raw"

    @pytest.fixture
    def make_disk(self) -> MakeDisk:
        def make(content: Path, image: Path) -> Disk:
            shutil.copy(content, image)
            return Disk(str(image), "raw")

        return make
