"""`hpcrunner cancel`, `return-results` and `resolve`: requests to whoever works on the install, which is this process
if nobody does."""

from __future__ import annotations

import argparse
import re
from typing import Any

from hpcrunner.cli.common import configuration, set_up_logging
from hpcrunner.config.site import Site
from hpcrunner.engine.cancel import request
from hpcrunner.engine.finish import has_kept
from hpcrunner.errors import BusyError, NotFoundError, UsageError
from hpcrunner.journal.store import Journal
from hpcrunner.layout import StateDir
from hpcrunner.model import ACTIVE, Run, State


def cancel(arguments: argparse.Namespace) -> int:
    site = configuration(arguments).site
    set_up_logging(site.log_level)
    wanted = []
    for key, runs in _find(site, arguments.key).items():
        if any(run.state in ACTIVE and run.state is not State.ENDING for run in runs):
            wanted.append(key)
        else:
            print(f"{key}: is over already")
    folder = StateDir(site.state_dir).requests
    for key in wanted:
        request(folder, {"cancel": key, "reason": arguments.reason or "by hpcrunner cancel"})
    if wanted:
        several = "s" * (len(wanted) > 1)
        _carry_out(site, f"{len(wanted)} experiment{several} being cancelled; results so far are returned")
    return 0


def return_results(arguments: argparse.Namespace) -> int:
    site = configuration(arguments).site
    set_up_logging(site.log_level)
    found = _find(site, arguments.key)
    if nothing := [key for key, runs in found.items() if not any(has_kept(run) for run in runs)]:
        raise UsageError("\n".join(f"{key}: it has no results that could not be returned" for key in nothing))
    for key in found:
        request(StateDir(site.state_dir).requests, {"return": key})
    _carry_out(site, f"the results of {len(found)} experiment{'s' * (len(found) > 1)} are returned; `hpcrunner status` "
                     "shows what becomes of them")
    return 0


def resolve(arguments: argparse.Namespace) -> int:
    site = configuration(arguments).site
    set_up_logging(site.log_level)
    runs = _find(site, [arguments.key])[arguments.key]
    if not any(run.state is State.SUBMITTING for run in runs):
        raise UsageError(f"{arguments.key}: nothing to resolve: it is not being submitted, but {runs[-1].state.value}")
    if arguments.job is not None and not re.fullmatch(r"\d+(_\d+)?", arguments.job):
        raise UsageError(f"--job {arguments.job}: no job's id; one is a number such as 45, or 45_3 for an element of "
                         "an array")
    content: dict[str, Any] = {"resolve": arguments.key, "job": arguments.job}
    request(StateDir(site.state_dir).requests, content)
    _carry_out(site, f"{arguments.key}: " + (f"is job {arguments.job}" if arguments.job else "will be submitted again"))
    return 0


def _find(site: Site, keys: list[str]) -> dict[str, list[Run]]:
    """Raises NotFoundError if one of them is unknown; then nothing is done to any."""
    with Journal(StateDir(site.state_dir).journal, read_only=True) as journal:
        missing, found = [], {}
        for key in dict.fromkeys(keys):
            try:
                found[key] = journal.find(key)
            except NotFoundError as error:
                missing.append(str(error))
    if missing:
        raise NotFoundError("\n".join(missing))
    return found


def _carry_out(site: Site, text: str) -> None:
    from hpcrunner.engine.act import move_all
    from hpcrunner.engine.cancel import take_requests
    from hpcrunner.engine.install import Install
    from hpcrunner.engine.tick import settle

    try:
        with Journal(StateDir(site.state_dir).journal) as journal:
            install = Install(site, journal)
            with install.transfers:
                take_requests(install)
                move_all(install)
                settle(install)
    except BusyError:
        print(f"{text}, by the hpcrunner that works on this install, at its next look")
    else:
        print(text)
