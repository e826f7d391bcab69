"""Which images are needed, by whatever install: a folder of images may have several.

Each install leaves `<image_dir>/users/<its id>` there, which says where its journal is; what its runs need is read in
the journal itself, so that nothing has to be kept up to date, or is left by a crash.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hpcrunner import proc
from hpcrunner.config.site import Site
from hpcrunner.engine.install import Install
from hpcrunner.errors import HpcrunnerError, NotFoundError
from hpcrunner.files import write_whole
from hpcrunner.journal.store import Journal
from hpcrunner.layout import StateDir


@dataclass(frozen=True)
class Use:
    by: Mapping[str, str]
    """Digest of an image: who needs it, in words."""
    unknown: str
    """Why any image may be needed; empty if that is known of each."""

    def of(self, digest: str) -> str:
        return self.by.get(digest) or self.unknown


def register(install: Install) -> None:
    """To be called before an image is relied on."""
    mark = install.site.image_dir / "users" / install.journal.install_id
    text = json.dumps({"state_dir": str(install.site.state_dir), "host": proc.host_name()})
    try:
        if mark.read_text() == text:
            return
    except OSError:
        mark.parent.mkdir(parents=True, exist_ok=True)
    write_whole(mark, text, 0o644)


def images_in_use(site: Site) -> Use:
    """Those that some run needs which isn't over."""
    by: dict[str, str] = {}
    unknown = ""
    folders = {site.state_dir: ""}
    marks = site.image_dir / "users"
    for mark in sorted(marks.iterdir()) if marks.is_dir() else ():
        try:
            said = json.loads(mark.read_text())
            state_dir, host = Path(said["state_dir"]), str(said["host"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # Just being written.
        if state_dir != site.state_dir and not state_dir.exists() and host == proc.host_name():
            mark.unlink(missing_ok=True)  # That install is gone.
        else:
            folders.setdefault(state_dir, f"if the install in {state_dir} (on {host}) is gone, remove {mark}")
    for folder, remedy in folders.items():
        try:
            with Journal(StateDir(folder).journal, read_only=True) as journal:
                by.update((run.image, f"{run.key}, which is {run.state.value}") for run in journal.runs() if run.image)
        except (HpcrunnerError, sqlite3.Error, OSError) as error:
            if remedy or not isinstance(error, NotFoundError):
                unknown = f"another install may need it: {error}; {remedy}" if remedy else str(error)
    return Use(by, unknown)
