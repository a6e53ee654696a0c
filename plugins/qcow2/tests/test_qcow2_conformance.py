"""The qcow2 plugin passes the conformance tests of all plugins."""

import pytest

from mapper_core import Disk
from mapper_core.testing.conformance import ImageConformance, MakeDisk
from mapper_core.testing.disks import convert

pytestmark = pytest.mark.root


class TestQcow2(ImageConformance):
    format = "qcow2"

    @pytest.fixture
    def make_disk(self) -> MakeDisk:
        return lambda content, image: Disk(str(convert(content, "qcow2", image)), "qcow2")
