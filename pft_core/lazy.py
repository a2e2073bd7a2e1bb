"""Lazy packages: a package imports the modules behind its names when the names are first used (PEP 562).

A package offers light names (settings, records) beside heavy ones (models, engines). Importing a light name must not
load torch, so the package's `__init__` loads nothing by itself:

    if TYPE_CHECKING:
        from pft_core.encoding.layer import EncodedLayer
    else:
        __getattr__ = lazy_exports(__name__)

Type checkers and readers see plain imports; at run time the same lines tell which module defines each name.
"""

import ast
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any


def lazy_exports(package: str) -> Callable[[str], Any]:
    """Return the `__getattr__` of a package, which imports a name listed in its `from ... import` lines."""
    module = sys.modules[package]
    homes = exported_names(package, Path(str(module.__file__)))

    def __getattr__(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(homes[name]), name)
        setattr(module, name, value)  # so that this runs once per name
        return value

    return __getattr__


def exported_names(package: str, init: Path) -> dict[str, str]:
    """Return the names that a package's `__init__.py` imports from its own modules, with the module of each."""
    tree = ast.parse(init.read_text(encoding="utf-8"))
    own = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and str(n.module).startswith(f"{package}.")]
    return {alias.name: str(node.module) for node in own for alias in node.names}


@contextmanager
def absent(*packages: str) -> Iterator[None]:
    """Make these packages look uninstalled to imports in the block, unless they are loaded already.

    Libraries import optional packages for features that are not used here, and each of them costs startup time.
    """
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None hides a module, by Python's rule
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
