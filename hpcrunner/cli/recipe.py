"""`hpcrunner recipe import` and `hpcrunner recipe labels`, both with spython."""

from __future__ import annotations

import argparse
import sys

from hpcrunner.errors import HpcrunnerError, NotFoundError


def run(arguments: argparse.Namespace) -> int:
    return _labels(arguments) if arguments.part == "labels" else _import(arguments)


def _import(arguments: argparse.Namespace) -> int:
    if not arguments.dockerfile.is_file():
        raise NotFoundError(f"{arguments.dockerfile}: no such Dockerfile")
    from spython.main.parse.parsers import get_parser
    from spython.main.parse.writers import get_writer

    parsed = get_parser("docker")(str(arguments.dockerfile)).parse()
    text = get_writer("singularity")(parsed).convert()
    # Jinja2 must not take the Dockerfile's own braces for its.
    recipe = ("{# Made from a Dockerfile; review it: several stages, COPY --chown, exec forms, SHELL and heredocs are\n"
              "   not converted faithfully. #}\n{% raw %}\n" + text.strip() + "\n{% endraw %}\n")
    if arguments.out is None:
        print(recipe, end="")
        return 0
    try:
        with arguments.out.open("x") as file:
            file.write(recipe)
    except OSError as error:
        raise HpcrunnerError(f"{arguments.out}: can't be written: {error.strerror}") from error
    print(f"{arguments.out}: written; review it before you use it", file=sys.stderr)
    return 0


def _labels(arguments: argparse.Namespace) -> int:
    if not arguments.image.exists():
        raise NotFoundError(f"{arguments.image}: no such image")
    from spython.main import Client

    found = Client.inspect(str(arguments.image), quiet=True)
    labels = found.get("attributes", {}).get("labels", {}) if isinstance(found, dict) else {}
    for name, value in sorted(labels.items()):
        print(f"{name}: {value}")
    return 0
