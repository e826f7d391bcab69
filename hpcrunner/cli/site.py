"""`hpcrunner site check` and `hpcrunner site show`."""

from __future__ import annotations

import argparse

from hpcrunner.config.load import load, show


def run(arguments: argparse.Namespace) -> int:
    loaded = load(arguments.site)
    if arguments.part == "show":
        print(show(loaded), end="")
        return 0
    for warning in loaded.warnings:
        print(f"warning: {warning}")
    print(f"{arguments.site}: good")
    return 0
