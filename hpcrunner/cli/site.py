"""`hpcrunner site check`, `hpcrunner site show` and `hpcrunner site options`."""

from __future__ import annotations

import argparse

from hpcrunner.config.load import load, show


def run(arguments: argparse.Namespace) -> int:
    if arguments.part == "options":
        from hpcrunner.config.reference import markdown

        print(markdown(), end="")
        return 0
    loaded = load(arguments.site, here=arguments.part == "check")
    if arguments.part == "show":
        print(show(loaded), end="")
        return 0
    for warning in loaded.warnings:
        print(f"warning: {warning}")
    print(f"{arguments.site}: good")
    return 0
