"""What every plugin must pass, on nbd, with udev beside it and a kernel that knows partitions.

Here is what the transport, udev and the kernel could spoil most. Races have tests of their own.
"""

import pytest

from mapper_core import Disk
from mapper_core.testing import disks
from mapper_core.testing.conformance import MakeDisk
from mapper_core.testing.conformance.crashes import OnCrashes
from mapper_core.testing.conformance.devices import OnDevices

pytestmark = pytest.mark.vm


class TestNbd(OnCrashes):
    format = "qcow2"
    transport = "nbd"

    @pytest.fixture
    def make_disk(self) -> MakeDisk:
        return lambda content, image: Disk(str(disks.convert(content, "qcow2", image)), "qcow2")

    test_partitions_have_nodes_at_once = OnDevices.test_partitions_have_nodes_at_once
