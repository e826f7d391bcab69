"""Where the data folders are that ship with hpcrunner: templates, recipes, site-configs."""

from __future__ import annotations

from pathlib import Path

from hpcrunner.errors import NotFoundError


def folder(kind: str) -> Path:
    """`templates`, `recipes` or `site-configs`: in the package if it was installed from a wheel, beside it in a
    checkout. Raises NotFoundError if the installation lacks it."""
    package = Path(__file__).parent
    for parent in (package, package.parent):
        if (parent / kind).is_dir():
            return parent / kind
    raise NotFoundError(f"{package / kind}: there is no such folder; this installation of hpcrunner is incomplete")
