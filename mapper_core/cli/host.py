"""The commands that are about the host: plugins, doctor, reconcile, completion."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mapper_core.cli.output import Style

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mapper_core.cli.output import Output
    from mapper_core.cli.parser import Arguments
    from mapper_core.doctor import Check


def plugins(_arguments: Arguments, output: Output) -> int:
    """List the plugins."""
    from mapper_core.registry import Registry

    registry = Registry.load()
    found = registry.plugins
    if output.style is Style.JSON:
        output.json(
            [
                {
                    "name": plugin.entry.name,
                    "version": plugin.entry.version,
                    "distribution": plugin.entry.distribution,
                    "module": plugin.entry.module,
                    "usable": plugin.usable,
                    "problem": plugin.problem,
                    "capabilities": registry.capabilities(plugin.entry.name) if plugin.usable else (),
                }
                for plugin in found
            ]
        )
        return 0
    output.table(
        ("NAME", "VERSION", "DISTRIBUTION", "STATUS", "CAPABILITIES"),
        (
            (
                item.entry.name,
                item.entry.version,
                item.entry.distribution,
                item.problem or "ok",
                ",".join(registry.capabilities(item.entry.name)) if item.usable else "",
            )
            for item in found
        ),
    )
    if not found:
        output.remark("no plugin is installed; those of Mapper are in the folder plugins of its repository")
    return 0


def doctor(_arguments: Arguments, output: Output) -> int:
    """Examine the host; the exit status is 1 when a check has failed."""
    from mapper_core.doctor import examine
    from mapper_core.mapping import Mapper
    from mapper_core.registry import Registry
    from mapper_core.runtime import Runtime

    # not open(): that makes directories, and the doctor only looks
    return show(examine(Mapper(Runtime.from_environment(), Registry.load())), output)


def show(checks: Sequence[Check], output: Output) -> int:
    """Print what was found; the exit status is 1 when a check has failed."""
    from mapper_core.doctor import Status

    failed = any(check.status is Status.FAILED for check in checks)
    if output.style is Style.JSON:
        output.json({"ok": not failed, "checks": checks})
    else:
        output.table(("STATUS", "CHECK", "FOUND"), ((check.status.value, check.name, check.detail) for check in checks))
        for check in checks:
            if check.hint:
                output.remark(f"{check.name}: {check.hint}")
    return 1 if failed else 0


def reconcile(arguments: Arguments, output: Output) -> int:
    """Put the host in order; the exit status is 1 when something could not be."""
    from mapper_core.mapping import Mapper
    from mapper_core.reconcile import Mode
    from mapper_core.reconcile import reconcile as put_in_order

    report = put_in_order(Mapper.open(), Mode.DRY_RUN if arguments.dry_run else Mode.REPAIR)
    if output.style is Style.JSON:
        output.json(report)
    else:
        output.table(
            ("KIND", "SUBJECT", "OUTCOME"), ((action.kind, action.subject, action.outcome) for action in report.actions)
        )
        for problem in report.problems:
            output.remark(f"error: {problem.kind} {problem.subject}: {problem.outcome}")
    return 1 if report.problems else 0


def completion(arguments: Arguments, output: Output) -> int:
    """Print a completion script."""
    from mapper_core.cli import completion as scripts

    output.block(scripts.script(arguments.shell))
    return 0
