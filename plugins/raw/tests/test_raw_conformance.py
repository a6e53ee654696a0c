"""The raw plugin passes the conformance tests of all plugins.

With them: U-09 (what is not mapped), M-20 (the image is gone), S-23 (the mode of the image), S-13 (nonsense), Y-05 (two processes),
U-01 and U-08 (killed at every step), S-01 (another format's header).
"""

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
