"""Packages that may be absent or have several names: optional extras, Lightning Fabric, and flatbayes itself."""

import importlib
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

FABRIC_PACKAGES = ("lightning_fabric", "lightning.fabric")
"""Names of Lightning Fabric: in the wheels of lightning-fabric and pytorch-lightning, and in that of lightning."""
UNKNOWN_VERSION = "unknown"


@contextmanager
def require_package(extra: str) -> Iterator[None]:
    """Context in which the packages of an optional extra, `pip install 'flatbayes[extra]'`, are imported.

    Raises:
        ImportError: A package is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"This needs a package that is not installed ({error}). Install it: pip install 'flatbayes[{extra}]'"
        ) from error


def import_fabric(module: str = "") -> ModuleType:
    """Import Lightning Fabric, or a module of it such as `strategies.ddp`, from whichever wheel is installed.

    Raises:
        ImportError: It is not installed.
    """
    for package in FABRIC_PACKAGES:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{package}.".startswith(f"{error.name}."):
                raise  # Fabric is there, and a package that it needs is not
            continue
        return importlib.import_module(f"{package}.{module}".removesuffix("."))
    raise ImportError("flatbayes needs Lightning Fabric, which is not installed: pip install lightning-fabric")


@cache
def get_version() -> str:
    """Version of flatbayes: of the installed package, else of the source tree that is on the import path."""
    try:
        return version("flatbayes")
    except PackageNotFoundError:
        pyproject = Path(__file__).parents[3] / "pyproject.toml"
        if not pyproject.is_file():
            return UNKNOWN_VERSION
        project = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("project", {})
        return str(project.get("version", UNKNOWN_VERSION)) if project.get("name") == "flatbayes" else UNKNOWN_VERSION
