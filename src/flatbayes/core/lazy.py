"""Packages that import what they export at its first use (PEP 562), so that a program loads only what it uses.

An `__init__.py` imports its names under `if TYPE_CHECKING:`, for type checkers and editors, and assigns the result of
`export_lazily` to `__getattr__, __dir__` under `else:`. `tests/packaging` compares the two lists with `__all__`.
"""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def export_lazily(
    package: str, homes: Mapping[str, str], subpackages: str = ""
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The functions `__getattr__` and `__dir__` of a package.

    A name must not be that of a module in the package: Python makes an imported module an attribute of its package.

    Args:
        package: Name of the package.
        homes: Module -> names that the package exports from it, separated by spaces.
        subpackages: Packages in it that are attributes without being imported, separated by spaces.
    """
    home_by_name = {name: home for home, names in homes.items() for name in names.split()}
    available = {*home_by_name, *subpackages.split()}

    def load(name: str) -> Any:
        if name not in available:
            from flatbayes.core.renames import explain_name  # here, since it reads a file

            reason = explain_name(name)
            if reason is None:
                raise AttributeError(f"module {package!r} has no attribute {name!r}")
            raise ImportError(reason)  # an AttributeError would lose its message in `from flatbayes import ...`
        if name not in home_by_name:
            return import_module(f"{package}.{name}")
        module = sys.modules[package]
        setattr(module, name, getattr(import_module(home_by_name[name]), name))
        from flatbayes.core.renames import explain_old_arguments

        explain_old_arguments(package, [name])
        return vars(module)[name]

    def list_attributes() -> list[str]:
        return sorted({*vars(sys.modules[package]), *available})

    return load, list_attributes
