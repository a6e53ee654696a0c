"""Ceph's own Python bindings, loaded when they are first needed.

They are no package of PyPI but of the distribution (``python3-rados``, ``python3-rbd``), built for its interpreter. A virtual
environment does not see them; there exactly these two extension modules are loaded from where the distribution keeps them,
if they were built for the running interpreter, and nothing else of that directory becomes visible.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import sys
from types import ModuleType

from mapper_core.errors import ToolMissing

#: Where distributions keep extension modules: Debian, Ubuntu; Fedora, RHEL; SUSE, Arch.
_DIRECTORIES = (
    "/usr/lib/python3/dist-packages",
    f"/usr/lib64/python3.{sys.version_info.minor}/site-packages",
    f"/usr/lib/python3.{sys.version_info.minor}/site-packages",
)


def rados() -> ModuleType:
    """Return the module ``rados``.

    :raises ToolMissing: it is not installed, or not for this interpreter.
    """
    return load("rados", _DIRECTORIES)


def rbd() -> ModuleType:
    """Return the module ``rbd``; it imports ``rados`` itself, by that name.

    :raises ToolMissing: it is not installed, or not for this interpreter.
    """
    rados()
    return load("rbd", _DIRECTORIES)


def load(name: str, directories: tuple[str, ...]) -> ModuleType:
    """Import an extension module, if need be from one of the distribution's directories.

    :raises ToolMissing: there is none that can be loaded.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        reason = str(error)
    for directory in directories:
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            path = f"{directory}/{name}{suffix}"
            if not os.path.exists(path):
                continue
            try:
                return _load_file(name, path)
            except ImportError as error:
                reason = str(error)
    raise ToolMissing(
        f"Ceph's Python module {name} cannot be loaded: {reason}",
        subject=name,
        hint=f"install the package python3-{name}; it must be built for Python {sys.version_info[0]}.{sys.version_info[1]}",
    )


def _load_file(name: str, path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
