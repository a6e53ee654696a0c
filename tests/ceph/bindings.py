"""Ceph's own Python bindings, which a virtual environment does not see: two extension modules of the distribution."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from types import ModuleType

DIRECTORY = "/usr/lib/python3/dist-packages"


def load(name: str) -> ModuleType:
    """Load ``rados`` or ``rbd`` as built for this interpreter."""
    if name in sys.modules:
        return sys.modules[name]
    if name == "rbd":
        load("rados")  # imported by the other
    paths = (f"{DIRECTORY}/{name}{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES)
    spec = importlib.util.spec_from_file_location(name, next(filter(os.path.exists, paths)))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
