"""The virtual machine of the demo, as OpenNebula's ``oned`` would describe it to this node."""

from __future__ import annotations

import os
import string

from commands import Commands, Done
from place import BIN, ROOT, Place

SCRIPTS = f"{ROOT}/driver/remotes/vmm/lxd"
ONE_VERSION = "6.10.5"
HOST = "localhost"

_NIC = """\
  <NIC>
   <AR_ID><![CDATA[0]]></AR_ID>
   <BRIDGE><![CDATA[$bridge]]></BRIDGE>
   <BRIDGE_TYPE><![CDATA[linux]]></BRIDGE_TYPE>
   <CLUSTER_ID><![CDATA[0]]></CLUSTER_ID>
   <IP><![CDATA[203.0.113.40]]></IP>
   <MAC><![CDATA[02:00:cb:00:71:28]]></MAC>
   <NAME><![CDATA[NIC0]]></NAME>
   <NETWORK><![CDATA[demo]]></NETWORK>
   <NETWORK_ID><![CDATA[0]]></NETWORK_ID>
   <NIC_ID><![CDATA[0]]></NIC_ID>
   <SECURITY_GROUPS><![CDATA[0]]></SECURITY_GROUPS>
   <TARGET><![CDATA[$nic]]></TARGET>
   <VN_MAD><![CDATA[bridge]]></VN_MAD>
  </NIC>
"""

_ACTION = """\
<VMM_DRIVER_ACTION_DATA>
<HOST>$host</HOST>
<MIGR_HOST/>
<DEPLOY_ID>$deploy_id</DEPLOY_ID>
<LOCAL_DEPLOYMENT_FILE/>
<REMOTE_DEPLOYMENT_FILE/>
<CHECKPOINT_FILE/>
<TM_COMMAND/>
<TM_COMMAND_ROLLBACK/>
<DISK_TARGET_PATH/>
$machine</VMM_DRIVER_ACTION_DATA>
"""


def describe(place: Place, bridge: str) -> None:
    """Write the options of the node, and what oned sends on the standard input of ``deploy`` and ``shutdown``.

    :param bridge: for its NIC; empty when this kernel has none.
    """
    with open(f"{os.path.dirname(__file__)}/vm.xml", encoding="utf-8") as file:
        template = string.Template(file.read())
    nic = string.Template(_NIC).substitute(bridge=bridge, nic=place.nic) if bridge else ""
    values = {"vm": place.vm_id, "datastores": place.datastores, "nic": nic}
    action = string.Template(_ACTION).substitute(
        host=HOST, deploy_id=place.container, machine=template.substitute(values, deploy_id=place.container)
    )
    _write(place.vm_xml, template.substitute(values, deploy_id=""))
    _write(place.action_xml, action)
    socket = f"{place.lab}/lxd/unix.socket"
    _write(place.lxdrc, f":datastore_location: {place.datastores}\n:socket: {socket}\n:stop_timeout: 30\n")


def deploy(place: Place, commands: Commands) -> Done:
    """Run OpenNebula's ``deploy``."""
    deployment = f"{place.datastores}//0/{place.vm_id}/deployment.0"
    return _action(place, commands, place.vm_xml, "deploy", deployment, HOST)


def shutdown(place: Place, commands: Commands) -> Done:
    """Run OpenNebula's ``shutdown``."""
    return _action(place, commands, place.action_xml, "shutdown", place.container, HOST)


def _action(place: Place, commands: Commands, xml: str, name: str, *arguments: str) -> Done:
    with open(xml, encoding="utf-8") as file:
        text = file.read()
    return commands.run(
        f"{SCRIPTS}/{name}",
        *arguments,
        str(place.vm_id),
        HOST,
        text=text,
        timeout=180,
        MAPPER_DRIVER=f"{BIN}/mapper-driver",
        MAPPER_LXDRC=place.lxdrc,
        MAPPER_ONE_VERSION=ONE_VERSION,
    )


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
