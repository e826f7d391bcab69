"""What an answer of sbatch means: accepted, refused, not now, or unclear. Pure.

The texts are those of slurm_strerror (src/common/slurm_errno.c) and of sbatch itself. A text that isn't listed is
unclear: then the job is looked for before anything else is done.
"""

from __future__ import annotations

import re

from hpcrunner.errors import HpcrunnerError
from hpcrunner.schedulers.base import SubmitDeferred, SubmitRefused, SubmitUnclear

_UNCLEAR = re.compile(
    # It was sent, and only the answer is missing, whatever was said of tries before.
    r"timed out|Zero Bytes|\((send|receive|shutdown) failure\)|Message (send|receive) failure"
    r"|longer than data received", re.IGNORECASE)
_NOT_NOW = re.compile(
    # Not there, not found, or it did not know us: nothing was accepted.
    r"Unable to contact slurm controller \(connect failure\)|Connection refused|No route to host|can't be reached now"
    r"|Protocol authentication error|Invalid authentication credential|Munge encode failed|authentication: .*failed"
    r"|Authentication credential expired|Incompatible versions of client and server|Rate limit"
    r"|controller (is )?in standby|Unable to (process configuration file|establish control machine address)"
    r"|(establish|fetch) .*config|Unable to open file|submissions? (is|are)? ?(currently )?disabled"
    r"|presently disabled|in DOWN state|Required node not available|I/O error writing script", re.IGNORECASE)
_TOO_MANY = re.compile(
    # By user, account, QOS or in all. "Job violates accounting/QOS policy" alone is no such thing.
    r"SubmitJob|MaxSubmit|Slurm temporarily unable to accept job|Resource temporarily unavailable"
    r"|MaxJobCount|Job limit exceeded|too many jobs", re.IGNORECASE)
_SITE = re.compile(
    # The site's mistake, not the experiment's.
    r"Invalid (account|qos|partition|wckey|license|dependency|user id|option|node name|feature|numeric value|--)"
    r"|Invalid (group id|mcs_label|GRES|Trackable)|GRES option unsupported|Invalid or unknown association"
    r"|No partition specified|QOS usage threshold|not permitted to use this partition|Required partition not available"
    r"|(unrecognized|unknown|invalid) option|ambiguous|reservation|Access/permission denied|Job dependency problem"
    r"|No cluster|user environment file", re.IGNORECASE)
_NEVER = re.compile(
    r"Requested node configuration is not available|Invalid generic resource"
    r"|Memory (specification|required by task).*(satisfied|available)|Temporary disk specification"
    r"|Node count specification invalid|CPU count (specification invalid|per node can not be satisfied)"
    r"|Requested (time limit is invalid|partition configuration not available)|Invalid (time limit|job array)"
    r"|More processors requested than permitted|Job size specification|Job violates accounting/QOS policy"
    r"|Batch script (is|contains)|does not look like a batch script|does not allow scripts that"
    r"|Pathname of a file, directory or other parameter too long", re.IGNORECASE)
_ID = re.compile(r"(\d+)(?:;\S+)?")


def job_id(out: str) -> str | None:
    """From `sbatch --parsable`: `45`, or `45;cluster`; sites that wrap sbatch may print more lines before it."""
    for line in reversed(out.splitlines()):
        if match := _ID.fullmatch(line.strip()):
            return match[1]
    match = re.search(r"Submitted batch job (\d+)", out)
    return match[1] if match else None


def error(code: int, out: str, err: str, timed_out: bool) -> HpcrunnerError:
    """What a call of sbatch without an id in its answer means."""
    said = _last_words(err or out)
    if timed_out:
        return SubmitUnclear("sbatch did not answer in time (submit_timeout)")
    if _UNCLEAR.search(err):
        return SubmitUnclear(f"sbatch got no answer: {said}")
    if _NOT_NOW.search(err):
        return SubmitDeferred(f"Slurm does not take it now: {said}")
    if _TOO_MANY.search(err):
        full = SubmitDeferred(f"Slurm has too many jobs now: {said}")
        full.is_limit = True
        return full
    if _SITE.search(err):
        # It waits until the admin has mended it.
        return SubmitDeferred(f"Slurm refuses what the site config says: {said}")
    if _NEVER.search(err):
        return SubmitRefused(f"Slurm refuses it: {said}")
    return SubmitUnclear(f"sbatch ended with code {code}: {said}")


def is_about_nodes(text: str) -> bool:
    """Whether the nodes that a job shall avoid (--exclude) may be why it was not taken."""
    return bool(re.search(r"node configuration is not available|Invalid node name|Required node not available", text))


def is_unreachable(text: str) -> bool:
    """Whether the controller itself can't be asked, so that asking for the next job is in vain."""
    return bool(re.search(r"contact slurm controller|timed out|Connection refused|Zero Bytes|did not answer|"
                          r"standby|authentication|Munge|fetch_config", text, re.IGNORECASE))


def _last_words(text: str) -> str:
    lines = [re.sub(r"^(sbatch: )?(error: |fatal: )?(Batch job submission failed: )?", "", line.strip())
             for line in text.splitlines()]
    return "; ".join(list(dict.fromkeys(line for line in lines if line))[-2:])[:300] or "no message"
