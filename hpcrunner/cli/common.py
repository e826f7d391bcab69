"""What several commands need: the site's configuration, the journal, the time in words."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from hpcrunner.config.load import Loaded, load, overrides_from
from hpcrunner.errors import UsageError


def site_path(arguments: argparse.Namespace) -> Path:
    """Raises UsageError if no site config is named anywhere."""
    path = arguments.site or os.environ.get("HPCRUNNER_SITE")
    if not path:
        raise UsageError("no site config: give --site FILE or set HPCRUNNER_SITE; `--site laptop` is one that ships, "
                         "to begin with")
    return Path(path)


def configuration(arguments: argparse.Namespace) -> Loaded:
    """The site's configuration with the command line and the environment; warnings go to stderr."""
    loaded = load(site_path(arguments), overrides=overrides_from(arguments))
    for warning in loaded.warnings:
        print(f"hpcrunner: warning: {warning}", file=sys.stderr)
    return loaded


def set_up_logging(level: str) -> None:
    logging.basicConfig(stream=sys.stderr, level=level.upper(), format="%(asctime)s %(levelname)-7s %(message)s",
                        datefmt="%H:%M:%S")
    # Only ours: what libraries say at this level is noise, and may hold what was sent.
    logging.getLogger("hpcrunner").setLevel(level.upper())
    logging.getLogger().setLevel(logging.WARNING)
