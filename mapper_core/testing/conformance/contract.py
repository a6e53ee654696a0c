"""The plugin as a package: it is found, fits this mapper-core, and costs nothing while it is not asked."""

from __future__ import annotations

import subprocess
import sys

from mapper_core import hookspecs
from mapper_core.registry import Registry, installed
from mapper_core.testing.conformance.bench import OnBench, proves

#: What no plugin may load before it is asked: each start of ``mapper-cli`` would pay for it.
HEAVY = ("sh", "subprocess", "asyncio", "argparse", "logging", "ctypes", "dataclasses", "inspect", "json")

_LOADED = """
import sys
import mapper_core, mapper_core.registry
before = set(sys.modules)
import {module}
print(*sorted(set(sys.modules) - before))
"""


class OnContract(OnBench):
    """Root-free: see the module."""

    @proves("contract", "map", "unmap")
    def test_the_plugin_is_installed_and_usable(self, registry: Registry) -> None:
        """One distribution has it; it declares its API window, has the hooks it must have and no unknown arguments."""
        [plugin] = [plugin for plugin in registry.plugins if plugin.entry.name == self.format]
        assert plugin.problem == ""
        assert registry.can(self.format, "map") and registry.can(self.format, "unmap")

    @proves("contract")
    def test_its_distribution_is_named_after_the_format(self) -> None:
        """So that whoever sees ``mapper-FORMAT`` among what is installed knows what it is."""
        [entry] = [entry for entry in installed() if entry.name == self.format]
        assert entry.distribution == f"mapper-{self.format.replace('_', '-')}"

    @proves("contract")
    def test_hooks_that_need_each_other_are_there_together(self, registry: Registry) -> None:
        """Snapshots that cannot be listed cannot be checked, and what is recorded must be released."""
        changing = [
            name for name in ("snapshot_create", "snapshot_revert", "snapshot_delete") if self._has(registry, name)
        ]
        assert not changing or self._has(registry, "snapshots")
        assert not self._has(registry, "owns") or self._has(registry, "release")

    @proves("contract")
    def test_no_name_of_the_package_is_taken_for_a_hook(self, registry: Registry) -> None:
        """A module of the package that is named like a hook would take its place when it is first imported."""
        [entry] = [entry for entry in installed() if entry.name == self.format]
        package = sys.modules[entry.module]
        hooks = {name for name, value in vars(hookspecs).items() if hasattr(value, f"{hookspecs.PROJECT}_spec")}
        modules = {name for name in hooks if f"{entry.module}.{name}" in sys.modules}
        unmarked = {name for name in hooks & set(vars(package)) if not self._has(registry, name)}
        assert (modules, unmarked) == (set(), set()), "name the module differently, or mark the function with @hookimpl"

    @proves("contract")
    def test_importing_it_is_cheap(self) -> None:
        """Every start of ``mapper-cli`` imports all plugins: what is heavy is imported where it is used."""
        [entry] = [entry for entry in installed() if entry.name == self.format]
        argv = (sys.executable, "-c", _LOADED.format(module=entry.module))
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert [name for name in done.stdout.split() if name.partition(".")[0] in HEAVY] == []

    def _has(self, registry: Registry, hook: str) -> bool:
        return registry.can(self.format, hook)
