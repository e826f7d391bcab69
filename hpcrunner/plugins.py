"""Backends by name: the queues, stores, schedulers and containers that this hpcrunner has.

A name stands for the module of that name in the group's package (`schedulers`, `slurm`:
`hpcrunner.schedulers.slurm`), or else for an entry point of another distribution in the group
`hpcrunner.schedulers`. Reading entry points is slow, and nobody pays for it who doesn't use one.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from hpcrunner.errors import ConfigError


def load(group: str, name: str) -> Any:
    """The backend's class. Raises ConfigError if there is none of this name, or if it can't be imported."""
    if module := _module(group, name):
        return import_module(module).backend
    if name not in _entry_points(group):
        raise ConfigError(f"there is no {name!r} among hpcrunner's {group}; known: {', '.join(names(group))}")
    try:
        return _entry_points(group)[name].load()
    except Exception as error:  # Whatever somebody else's module does when it is imported.
        raise ConfigError(f"{name!r} of {group} can't be imported: {error}") from error


def options(group: str, name: str) -> Any:
    """The dataclass of options that a backend declares: `site_options` of its module or its class; None if it has
    none. Raises ConfigError as `load`."""
    module = import_module(path) if (path := _module(group, name)) else None
    return getattr(module, "site_options", None) or getattr(load(group, name), "site_options", None)


def is_known(group: str, name: str) -> bool:
    """Like `name in names(group)`, but fast for those that ship with hpcrunner."""
    return _module(group, name) is not None or name in _entry_points(group)


def names(group: str) -> list[str]:
    """All that can be loaded."""
    return sorted({*shipped(group), *_entry_points(group)})


def shipped(group: str) -> list[str]:
    """Those that come with hpcrunner itself."""
    from pkgutil import iter_modules

    package = import_module(f"hpcrunner.{group}")
    return sorted(module.name for module in iter_modules(package.__path__) if _module(group, module.name))


def _module(group: str, name: str) -> str | None:
    """Modules of the package that are no backends: the protocol in `base`, and helpers with a `_` in front."""
    if name == "base" or not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
        return None
    module = f"hpcrunner.{group}.{name.replace('-', '_')}"
    return module if find_spec(module) else None


@cache
def _entry_points(group: str) -> dict[str, Any]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=f"hpcrunner.{group}")}
