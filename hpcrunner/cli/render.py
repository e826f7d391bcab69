"""`hpcrunner render`."""

from __future__ import annotations

import argparse
import os

from hpcrunner.cli.common import configuration
from hpcrunner.engine.preview import preview
from hpcrunner.errors import HpcrunnerError, NotFoundError


def run(arguments: argparse.Namespace) -> int:
    site = configuration(arguments).site
    try:
        payload = arguments.message.read_bytes()
    except OSError as error:
        raise NotFoundError(f"{arguments.message}: {error.strerror}") from error
    rendered = preview(site, payload)
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        for name, text in rendered.files.items():
            # The environment's file may hold secrets.
            mode = 0o600 if name == "env.sh" else 0o755 if name.endswith(".sh") else 0o644
            target = arguments.out / name
            target.unlink(missing_ok=True)
            with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8",  # noqa: PTH123
                      errors="surrogateescape") as file:
                file.write(text)
            print(target)
    except OSError as error:
        raise HpcrunnerError(f"{error.filename}: can't be written: {error.strerror}") from error
    for warning in rendered.experiment.warnings:
        print(f"warning: {warning}")
    return 0
