"""The file that tells OpenNebula's network drivers the names of interfaces, run by Ruby as they load it."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from .conftest import ROOT

pytestmark = pytest.mark.packaging

HOOK = ROOT / "driver/remotes/vnm/vnmmad-load.d/mapper_lxd.rb"
#: What ``vnmmad.rb`` has defined when it loads the files of ``vnmmad-load.d`` (5.12 to 7.x), and what the drivers do with a NIC.
DRIVER = """
module VNMMAD
    module VNMNetwork
        HYPERVISORS = {}
        class NicKVM < Hash; end
        %s
        class Nics
            def initialize(hypervisor); @class = HYPERVISORS[hypervisor] || NicKVM; end
            def new_nic; @class.new; end
        end
    end
end
require ARGV[0]
nic = VNMMAD::VNMNetwork::Nics.new('lxd').new_nic
nic[:target] = 'one-7-0'
nic.get_info(nil)
puts nic.get_tap(nil)[:tap], nic[:tap], nic.class, nic.set_qos('one-7').inspect, VNMMAD::VNMNetwork::Nics.new('kvm').new_nic.class
"""
#: OpenNebula to 6.8 has a class of that name, which asks lxc for what it does not have.
OWN = """
class NicLXD < Hash
    VNMNetwork::HYPERVISORS['lxd'] = self
    def initialize; super(nil); @lxc_cmd = 'lxc'; end
    def get_info(vm); raise 'lxc: not found'; end
    def get_tap(vm); raise 'lxc: not found'; end
end
"""


#: From 6.10 on all interfaces have something in common, and its drivers call it for each of them.
COMMON = """
class Nic < Hash
    def vlan_trunk?; false; end
end
"""
_SAID = """
puts nic.vlan_trunk? ? 'trunk' : 'none' if VNMMAD::VNMNetwork.const_defined?(:Nic)
"""


@pytest.mark.parametrize("existing", ["", OWN, COMMON], ids=["6.9", "to 6.8", "from 6.10"])
def test_a_name_of_an_interface(existing: str) -> None:
    ruby = shutil.which("ruby")
    if ruby is None:
        pytest.skip("Ruby is missing: run scripts/setup")
    done = subprocess.run(
        [ruby, "-e", DRIVER % existing + _SAID, HOOK], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    tap, kept, name, limits, other, *common = done.stdout.split()
    assert (tap, kept, name) == ("one-7-0", "one-7-0", "VNMMAD::VNMNetwork::NicLXD")
    assert (limits, other) == ("nil", "VNMMAD::VNMNetwork::NicKVM")
    assert common == (["none"] if existing == COMMON else [])
