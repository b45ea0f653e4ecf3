"""What the package shows: sorted names, nothing beside them, and none that hides another."""

from __future__ import annotations

import importlib
import pkgutil
from types import FunctionType, ModuleType

import pytest

import hf_gmar


def _packages() -> list[str]:
    """The root and all packages in it whose path has no underscore."""
    found = [
        module.name
        for module in pkgutil.walk_packages(hf_gmar.__path__, "hf_gmar.")
        if module.ispkg and "._" not in module.name
    ]
    return ["hf_gmar", *sorted(found)]


# Parts of a public package: their names are for the package itself.
INNER = {"hf_gmar.evaluation.report", "hf_gmar.evaluation.run"}
PUBLIC = [name for name in _packages() if name not in INNER]


@pytest.mark.parametrize("name", PUBLIC)
def test_all_is_sorted_and_all_that_dir_shows(name: str) -> None:
    package = importlib.import_module(name)
    assert package.__all__ == sorted(package.__all__)
    assert dir(package) == package.__all__
    assert package.__all__


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there_and_says_what_it_is(name: str) -> None:
    package = importlib.import_module(name)
    for public in package.__all__:
        value = getattr(package, public)
        if isinstance(value, type | FunctionType | ModuleType):
            assert value.__doc__, f"{name}.{public}"


@pytest.mark.parametrize("name", PUBLIC)
def test_no_module_has_the_name_of_something_else(name: str) -> None:
    """Importing a module puts it into its package, where it would hide what has its name."""
    package = importlib.import_module(name)
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    for public in modules & set(package.__all__):
        assert isinstance(getattr(package, public), ModuleType), f"{name}.{public}"


def test_a_public_name_is_found_under_one_package_alone() -> None:
    """The root repeats names of its packages; no two packages have the same one."""
    owners: dict[str, list[str]] = {}
    for name in PUBLIC[1:]:
        for public in importlib.import_module(name).__all__:
            owners.setdefault(public, []).append(name)
    assert {public: names for public, names in owners.items() if len(names) > 1} == {}
