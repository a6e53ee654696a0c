"""Arguments of the action scripts."""

from __future__ import annotations

import pytest
from mapper_driver.opennebula.argv import (
    ACTIONS,
    AttachNic,
    Deploy,
    Prereconfigure,
    Reconfigure,
    ShutDown,
    Stop,
    arguments_of,
    check_same_machine,
    parse_argv,
)
from mapper_driver.opennebula.vm import VmIdentity

from mapper_core.errors import UsageError

pytestmark = pytest.mark.unit

DEPLOY = ["/var/lib/one//datastores/100/42/deployment.0", "node-a", "42", "node-a"]
STOP = ["one-42", "node-a", "42", "node-a"]


def test_deploy() -> None:
    parsed = parse_argv(Deploy, "deploy", DEPLOY)
    assert parsed == Deploy(
        deployment_file="/var/lib/one/datastores/100/42/deployment.0", host="node-a", vm_id=42, on_host="node-a"
    )


@pytest.mark.parametrize(
    ("action", "argv", "stop"),
    [
        ("shutdown", STOP, Stop.GRACEFUL),
        ("shutdown", [*STOP, "-f"], Stop.HARD),  # how the script cancel calls it
        ("cancel", STOP, Stop.HARD),
        ("cancel", [*STOP, "-f"], Stop.HARD),
        ("reboot", STOP, Stop.GRACEFUL),
        ("reset", STOP, Stop.HARD),
    ],
)
def test_ways_to_stop(action: str, argv: list[str], stop: Stop) -> None:
    parsed = parse_argv(ShutDown, action, argv)
    assert (parsed.stop, parsed.deploy_id, parsed.vm_id) == (stop, "one-42", 42)


@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_wrong_count(count: int) -> None:
    with pytest.raises(UsageError, match=f"deploy got {count} arguments, expected 4") as caught:
        parse_argv(Deploy, "deploy", (DEPLOY * 2)[:count])
    assert caught.value.hint == "usage: deploy DEPLOYMENT_FILE HOST VM_ID ON_HOST"
    assert caught.value.exit_code == 2


def test_force_is_only_for_those_that_stop() -> None:
    with pytest.raises(UsageError, match="got 5 arguments"):
        parse_argv(Deploy, "deploy", [*DEPLOY, "-f"])
    with pytest.raises(UsageError, match="got 3 arguments"):
        parse_argv(ShutDown, "shutdown", [*STOP[:3], "-f"])


@pytest.mark.parametrize(
    ("position", "word", "message"),
    [
        (0, "deployment.0", "DEPLOYMENT_FILE is not an absolute path"),
        (0, "/var/lib/one/../../etc/passwd", "DEPLOYMENT_FILE is not an absolute path"),
        (0, "", "DEPLOYMENT_FILE is not"),
        (1, "-oProxyCommand=id", "HOST is not a name of a node"),
        (2, "4 2", "VM_ID is not a number"),
        (2, "-1", "VM_ID is not a number"),
        (2, "٤٢", "VM_ID is not a number"),
        (2, "", "VM_ID is not a number"),
        (3, "a\nb", "ON_HOST is not a name of a node"),
    ],
)
def test_hostile_arguments(position: int, word: str, message: str) -> None:
    argv = [*DEPLOY[:position], word, *DEPLOY[position + 1 :]]
    with pytest.raises(UsageError, match=message) as caught:
        parse_argv(Deploy, "deploy", argv)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["../one-1", "", "one_1", "-f", "one-1-", "1one", "x" * 64])
def test_hostile_deploy_id(name: str) -> None:
    with pytest.raises(UsageError, match="DEPLOY_ID is not a name of a container"):
        parse_argv(ShutDown, "shutdown", [name, *STOP[1:]])


def test_the_full_name_of_a_node_may_be_long() -> None:
    """OpenNebula takes 128 characters, and calls every script with the name."""
    host = f"node-1.{'rack-17.' * 12}example.company.com"
    assert 64 < len(host) <= 128
    assert parse_argv(ShutDown, "shutdown", ["one-42", host, "42", host]).on_host == host
    with pytest.raises(UsageError, match="HOST is not a name of a node"):
        parse_argv(ShutDown, "shutdown", ["one-42", "x" * 129, "42", host])


def test_a_dash_means_none() -> None:
    argv = ["one-42", "02:AA:00:00:00:01", "br0", "-", "bridge", "one-42-1", "42", "node-a"]
    parsed = parse_argv(AttachNic, "attach_nic", argv)
    assert (parsed.model, parsed.mac) == ("", "02:aa:00:00:00:01")


def test_no_context() -> None:
    parsed = parse_argv(Reconfigure, "reconfigure", ["one-42", "hda", "", "42", "node-a"])
    assert parsed.context_path == ""
    assert parse_argv(Prereconfigure, "prereconfigure", ["one-42", "", "42", "node-a"]).context_target == ""


def test_unknown_action() -> None:
    with pytest.raises(UsageError, match="there is no action 'explode'"):
        arguments_of("explode")
    assert arguments_of("cancel") is ShutDown


def test_names_of_actions_are_names_of_scripts() -> None:
    assert all(name == name.lower() and name.isidentifier() for name in ACTIONS)


@pytest.mark.parametrize(
    ("vm_id", "deploy_id", "message"),
    [(43, "one-42", "about machine 42, the XML about 43"), (42, "one-43", "container one-42, the XML about one-43")],
)
def test_arguments_and_xml_must_agree(vm_id: int, deploy_id: str, message: str) -> None:
    vm = VmIdentity(id=vm_id, name="x", deploy_id=deploy_id, datastore_id=1, datastore_dir="/d/1")
    with pytest.raises(UsageError, match=message):
        check_same_machine(parse_argv(ShutDown, "shutdown", STOP), vm)


def test_before_the_first_deployment_there_is_no_deploy_id() -> None:
    vm = VmIdentity(id=42, name="x", deploy_id="", datastore_id=1, datastore_dir="/d/1")
    check_same_machine(parse_argv(Deploy, "deploy", DEPLOY), vm)
    check_same_machine(parse_argv(ShutDown, "cancel", STOP), vm)
