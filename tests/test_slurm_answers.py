"""What answers of sbatch mean: every recorded one, and those that other versions and sites give."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hpcrunner.errors import HpcrunnerError, UnavailableError
from hpcrunner.proc import Completed
from hpcrunner.schedulers.base import SubmitDeferred, SubmitRefused, SubmitUnclear
from hpcrunner.schedulers.slurm import answers, client
from hpcrunner.schedulers.slurm.client import Client, is_disabled
from hpcrunner.schedulers.slurm.options import SlurmOptions

RECORDED = Path(__file__).parent / "data" / "slurm" / "22.05"


def recorded(name: str) -> list[dict[str, Any]]:
    entries = json.loads((RECORDED / name).read_text())
    assert isinstance(entries, list)
    return entries


FAILURES = recorded("sbatch-failures.json")
ACCEPTED = recorded("sbatch-accepted.json")
QUERIES = recorded("query-failures.json")

REFUSED, LATER, LIMIT, UNCLEAR = "refused", "later", "limit", "unclear"
"""For good; not taken now; not taken now for its number of jobs; maybe taken."""

MEANING = {
    # What the experiment asks for, where no site config said that there is less
    "gres name unknown": REFUSED, "gres type unknown": REFUSED, "gres count too big": REFUSED, "gres in partition without": REFUSED,
    "gpus more than cluster": REFUSED, "gres syntax": REFUSED, "too much memory": REFUSED, "too much memory per cpu": REFUSED, "tmp too big": REFUSED,
    "bad nodes": REFUSED, "deadline in the past": REFUSED, "no shebang": REFUSED, "dos line ends": REFUSED, "empty script": REFUSED,
    "script is a folder": REFUSED, "script with NUL": REFUSED, "script too big": REFUSED, "comment too long": REFUSED, "name too long": REFUSED,
    "QOS MaxWall DenyOnLimit": REFUSED, "QOS MaxTRESPerJob cpu DenyOnLimit": REFUSED, "QOS MaxTRESPerJob gpu DenyOnLimit": REFUSED,
    "QOS MaxTRESPerJob mem DenyOnLimit": REFUSED, "QOS MaxTRESPerJob node DenyOnLimit": REFUSED, "QOS MaxTRESPerUser cpu DenyOnLimit": REFUSED,
    "QOS MaxTRESPerUser mem DenyOnLimit": REFUSED, "QOS MaxTRESPerUser gpu DenyOnLimit": REFUSED, "QOS GrpTRES cpu DenyOnLimit": REFUSED,
    "QOS MinTRESPerJob cpu DenyOnLimit": REFUSED, "QOS GrpWall DenyOnLimit": REFUSED,
    "time over partition EnforcePartLimits=ALL": REFUSED, "time over one of two partitions EnforcePartLimits=ALL": REFUSED,
    "too many cpus EnforcePartLimits=ALL": REFUSED, "too many nodes EnforcePartLimits=ALL": REFUSED, "too much memory EnforcePartLimits=ALL": REFUSED,
    "MaxNodes of partition EnforcePartLimits=ALL": REFUSED, "MaxCPUsPerNode EnforcePartLimits=ALL": REFUSED, "MinNodes EnforcePartLimits=ALL": REFUSED,
    # What only the site config or the site's admin can mend: no experiment is lost by it
    "unknown partition": LATER, "unknown account": LATER, "unknown QOS": LATER, "account without association": LATER, "QOS not allowed for account": LATER,
    "partition does not allow group": LATER, "partition drain": LATER, "partition inactive": LATER, "bad mem": LATER, "bad tmp": LATER, "bad time": LATER,
    "bad time 2": LATER, "bad option": LATER, "bad number": LATER, "zero cpus": LATER, "constraint nobody has": LATER, "bad constraint syntax": LATER,
    "unknown reservation": LATER, "reservation of others": LATER, "bad nodelist": LATER, "bad exclude": LATER, "bad dependency": LATER,
    "bad licenses": LATER, "bad clusters": LATER, "bad mail type": LATER, "begin bad": LATER, "bad qos and partition": LATER,
    "negative nice as user (accepted?)": LATER, "bad signal": LATER, "bad export file": LATER, "missing script": LATER, "unreadable script": LATER,
    "bad #SBATCH line": LATER, "account not allowed in partition EnforcePartLimits=ALL": LATER, "submit host not allowed (AllocNodes)": LATER,
    "root only partition": LATER, "partition needs reservation": LATER,
    # Slurm, or the way to it, does not work
    "no accounting: -M": LATER, "SLURM_CONF missing": LATER, "SLURM_CONF unset, no slurm.conf": LATER, "SLURM_CONF broken": LATER,
    "controller host unknown": LATER, "munged hung": LATER, "munged stopped": LATER, "slurmctld down": LATER, "sbatch -M, slurmdbd down": LATER,
    # The scheduler then tries it in smaller parts.
    "bad array": REFUSED, "bad array 2": REFUSED, "array over MaxArraySize (index)": REFUSED, "array over MaxArraySize (range)": REFUSED,
    # It has too many jobs
    "QOS submit limit": LIMIT, "QOS submit limit by one array": LIMIT, "QOS GrpSubmitJobs": LIMIT, "QOS MaxSubmitJobsPerAccount": LIMIT,
    "association MaxSubmitJobs": LIMIT, "account GrpSubmitJobs": LIMIT, "MaxJobCount reached": LIMIT,
    # It may have been taken
    "munge key wrong": UNCLEAR, "slurmctld hung (SIGSTOP)": UNCLEAR,
}

UNREACHABLE = {"controller host unknown": False, "munged hung": True, "munged stopped": True, "munge key wrong": True, "slurmctld hung (SIGSTOP)": True,
               "slurmctld down": True, "sbatch -M, slurmdbd down": True}
"""Cases in which other jobs would get the same answer, and where it tells so."""


def meaning(error: HpcrunnerError) -> str:
    if isinstance(error, SubmitUnclear):
        assert error.transient
        return UNCLEAR
    if isinstance(error, SubmitDeferred):
        assert error.transient and not error.again_at_once
        return LIMIT if error.is_limit else LATER
    assert isinstance(error, SubmitRefused) and not error.transient
    return REFUSED


def case_of(entry: dict[str, Any]) -> str:
    return str(entry["case"])


def ask(monkeypatch: pytest.MonkeyPatch, code: int = 0, out: str = "", err: str = "", timed_out: bool = False) -> str:
    """What the client makes of an answer."""
    monkeypatch.setattr(client.proc, "run", lambda *_, **__: Completed(code, out, err, timed_out))
    return Client(SlurmOptions()).submit(Path("/x/job.sh"))


def test_the_table_names_every_recorded_failure() -> None:
    assert MEANING.keys() == {case_of(entry) for entry in FAILURES}
    assert len(FAILURES) > 90 and len(ACCEPTED) > 15


@pytest.mark.parametrize("entry", FAILURES, ids=case_of)
def test_recorded_failure(entry: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HpcrunnerError) as caught:
        ask(monkeypatch, entry["code"], entry["out"], entry["err"])
    assert meaning(caught.value) == MEANING[case_of(entry)], str(caught.value)
    if entry.get("submitted"):
        assert meaning(caught.value) == UNCLEAR
    # A person must see why: what Slurm said last, without its prefixes.
    last = entry["err"].strip().splitlines()[-1]
    assert last.removeprefix("sbatch: ").removeprefix("error: ").removeprefix("fatal: ").removeprefix("Batch job submission failed: ") in str(caught.value)
    assert "sbatch: error:" not in str(caught.value)
    assert answers.is_unreachable(str(caught.value)) == UNREACHABLE.get(case_of(entry), False)


@pytest.mark.parametrize("entry", ACCEPTED, ids=case_of)
def test_recorded_acceptance(entry: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(monkeypatch, entry["code"], entry["out"], entry["err"]) == entry["out"].strip().partition(";")[0]


# -- ids --


@pytest.mark.parametrize(("out", "job"), [
    ("45\n", "45"),
    ("230;it\n", "230"),
    ("  45  \r\n", "45"),
    # Sites that wrap sbatch
    ("-----------------\nWelcome to the cluster\n-----------------\nNo reservation for this job\n--> Verifying valid submit host (login1)...OK\n45\n", "45"),
    ("Welcome\n45;cluster\n", "45"),
    ("Submitted batch job 45\n", "45"),
    ("Submitted batch job 45 on cluster west\n", "45"),
    ("Quota: 12 of 100\nSubmitted batch job 4567\n", "4567"),
    ("45\nThank you\n", "45"),
    ("12\n45\n", "45"),
    # None
    ("", None), ("\n\n", None), ("45 46\n", None), ("job 45\n", None), ("0x45\n", None), ("-45\n", None), ("45.batch\n", None), ("45_3\n", None),
    ("٤٥ ok\n", None),
])
def test_the_id_in_what_sbatch_prints(out: str, job: str | None) -> None:
    assert answers.job_id(out) == job


@pytest.mark.parametrize("err", [
    "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying\n",
    "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n",
    "sbatch: warning: can't honor --ntasks-per-node\n",
    "sbatch: lua: Submitted job to the default account\n",
])
@pytest.mark.parametrize(("code", "timed_out"), [(0, False), (1, False), (-15, True)])
def test_an_id_wins_over_all_else(err: str, code: int, timed_out: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(monkeypatch, code, "45\n", err, timed_out) == "45"


# -- answers of other versions (src/common/slurm_errno.c up to 26.05), and of sites --

FAILED = "sbatch: error: Batch job submission failed: "


@pytest.mark.parametrize(("text", "expected"), [
    ("Unable to contact slurm controller (connect failure)", LATER),
    # Sent, and no answer: it may be there.
    ("Unable to contact slurm controller (send failure)", UNCLEAR),
    ("Unable to contact slurm controller (receive failure)", UNCLEAR),
    ("Unable to contact slurm controller (shutdown failure)", UNCLEAR),
    ("Message send failure", UNCLEAR), ("Message receive failure", UNCLEAR), ("Header lengths are longer than data received", UNCLEAR),
    ("Connection timed out reading", UNCLEAR), ("Unexpected message received", UNCLEAR), ("Communication shutdown failure", UNCLEAR),
    ("Unspecified error", UNCLEAR), ("Slurm internal error, contact system administrator", UNCLEAR), ("A text of Slurm 31.02", UNCLEAR),
    ("Slurm backup controller in standby mode", LATER), ("Controller is in standby mode, try a different controller", LATER),
    ("Rate limit exceeded, please retry momentarily", LATER), ("Rate limit exceeded, please retry later", LATER),
    ("Incompatible versions of client and server code", LATER), ("Protocol authentication error", LATER),
    ("Invalid authentication credential", LATER), ("Authentication credential expired", LATER),
    ("System submissions disabled", LATER), ("Requested operation is presently disabled", LATER), ("Partition in DOWN state", LATER),
    ("Required node not available (down, drained or reserved)", LATER), ("I/O error writing script/environment to file", LATER),
    ("No partition specified or system default partition", LATER), ("Invalid or unknown association", LATER),
    ("Requested account has breached requested QOS usage threshold", LATER), ("Invalid wckey specification", LATER),
    ("Invalid QOS specification, relative QOS can only be used in a single partition per cluster.", LATER), ("Invalid user id", LATER),
    ("Invalid group id", LATER), ("Invalid mcs_label specified", LATER), ("Requested reservation not usable now", LATER),
    ("Requested reservation is in use", LATER), ("Job's account not permitted to use this partition (gpu allows a not b)", LATER),
    ("Job's QOS not permitted to use this partition (gpu allows a not b)", LATER), ("Invalid Trackable RESource (TRES) specification", LATER),
    ("Requested GRES option unsupported by configured SelectType plugin", LATER),
    ("Invalid GRES specification (with and without type identification)", LATER),
    ("MaxJobCount limit reached", LIMIT), ("Job limit exceeded", LIMIT), ("Resource temporarily unavailable", LIMIT),
    ("Memory required by task is not available", REFUSED), ("CPU count specification invalid", REFUSED),
    ("Job size specification needs to be provided", REFUSED), ("Requested partition configuration not available now", REFUSED),
    ("Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)", REFUSED),
])
def test_texts_of_slurm(text: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HpcrunnerError) as caught:
        ask(monkeypatch, 1, "", f"{FAILED}{text}\n")
    assert meaning(caught.value) == expected
    assert text in str(caught.value)


@pytest.mark.parametrize("reason", [
    "AssocMaxSubmitJobLimit", "AssocGrpSubmitJobsLimit", "QOSMaxSubmitJobPerUserLimit", "QOSGrpSubmitJobsLimit", "MaxSubmitJobsPerAccount",
    "QOSMaxSubmitJobPerAccountLimit"])
def test_limits_of_submitted_jobs_are_waited_for(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
    with pytest.raises(SubmitDeferred) as caught:
        ask(monkeypatch, 1, "", f"sbatch: error: {reason}\n{FAILED}{policy}\n")
    assert caught.value.is_limit and reason in str(caught.value)


def test_a_try_that_had_no_answer_is_unclear_whatever_was_said_of_tries_before(monkeypatch: pytest.MonkeyPatch) -> None:
    for before in ("Slurm temporarily unable to accept job, sleeping and retrying", "Unable to contact slurm controller (connect failure)",
                   "Munge encode failed: Failed to access", "Invalid partition"):
        with pytest.raises(SubmitUnclear):
            ask(monkeypatch, 1, "", f"sbatch: error: {before}\n{FAILED}Socket timed out on send/recv operation\n")


def test_no_answer_in_time_is_unclear(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SubmitUnclear, match="submit_timeout") as caught:
        ask(monkeypatch, -15, "", "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying\n", timed_out=True)
    assert answers.is_unreachable(str(caught.value))


@pytest.mark.parametrize(("code", "out", "err"), [
    (0, "", ""), (0, "ok\n", ""), (1, "", ""), (-9, "", ""), (127, "", "/usr/bin/sbatch: line 3: no: command not found\n"), (1, "Welcome\n", "Traceback\n")])
def test_an_answer_without_meaning_is_unclear(code: int, out: str, err: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SubmitUnclear, match=f"code {code}"):
        ask(monkeypatch, code, out, err)


def test_what_a_site_says_beside_slurms_own_words_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    lua = "sbatch: error: You must choose an account: see https://example.org/accounts\n"
    with pytest.raises(SubmitDeferred, match=r"You must choose an account.*; Invalid account"):
        ask(monkeypatch, 1, "", f"{lua}{FAILED}Invalid account or account/partition combination specified\n")
    with pytest.raises(SubmitUnclear, match=r"You must choose an account.*; Unspecified error"):
        ask(monkeypatch, 1, "", f"{lua}{FAILED}Unspecified error\n")
    with pytest.raises(SubmitUnclear, match=r"code 1: quota exceeded$"):
        ask(monkeypatch, 1, "quota exceeded\n")
    with pytest.raises(SubmitUnclear, match=r"code 1: no message$"):
        ask(monkeypatch, 1)
    # However much it says.
    with pytest.raises(HpcrunnerError) as caught:
        ask(monkeypatch, 1, "", f"{'x' * 5000}\n{FAILED}Invalid qos specification\n")
    assert len(str(caught.value)) < 400


def test_a_program_that_cannot_be_started_took_nothing(tmp_path: Path) -> None:
    with pytest.raises(SubmitDeferred, match="can't be started: No such file or directory"):
        Client(SlurmOptions(bin_dir=tmp_path)).submit(tmp_path / "job.sh")


# -- queries --


@pytest.mark.parametrize("entry", [entry for entry in QUERIES if entry["argv"][0] in ("squeue", "sacct")], ids=case_of)
def test_recorded_query(entry: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A code other than 0 is no answer, and says nothing of any job; only one of them means that there never will be one."""
    monkeypatch.setattr(client.proc, "run", lambda *_, **__: Completed(entry["code"], entry["out"], entry["err"]))
    slurm = Client(SlurmOptions())

    def query() -> object:
        return slurm.queue() if entry["argv"][0] == "squeue" else slurm.accounting(ids=["6"], since=0)

    if entry["code"] == 0:
        query()
        return
    with pytest.raises(UnavailableError) as caught:
        query()
    assert caught.value.transient
    assert is_disabled(caught.value) == ("accounting disabled" in case_of(entry))
    assert entry["err"].strip().splitlines()[-1] in str(caught.value)


@pytest.mark.parametrize("entry", [entry for entry in QUERIES if entry["argv"][0] == "scancel"], ids=case_of)
def test_recorded_scancel_raises_only_if_it_reached_nobody(entry: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a job was ended is told by what becomes of it."""
    monkeypatch.setattr(client.proc, "run", lambda *_, **__: Completed(entry["code"], entry["out"], entry["err"]))
    slurm = Client(SlurmOptions())
    for call in (lambda: slurm.cancel(["6"]), lambda: slurm.signal(["6", "7_1"])):
        if re.search("hung|down|stopped|munge key|no configuration", case_of(entry)):
            with pytest.raises(UnavailableError, match="scancel reached nobody") as caught:
                call()
            assert caught.value.transient
        else:
            call()
