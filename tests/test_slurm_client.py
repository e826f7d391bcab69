"""How Slurm's commands are called: executables that stand in for them write down what they were given."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from hpcrunner.errors import HpcrunnerError, UnavailableError
from hpcrunner.schedulers.base import SubmitDeferred, SubmitUnclear
from hpcrunner.schedulers.slurm import client
from hpcrunner.schedulers.slurm.client import Client
from hpcrunner.schedulers.slurm.options import SlurmOptions

RECORDED = Path(__file__).parent / "data" / "slurm" / "22.05"
NAMES = ("sbatch", "squeue", "sacct", "scancel")


class Fakes:
    """A folder for `slurm.bin_dir`, with commands that note each call and do what `does` says."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.calls_dir = folder / "bin", folder / "calls"
        self.bin.mkdir()
        self.calls_dir.mkdir()
        for name in NAMES:
            self.does(name, "")

    def does(self, name: str, script: str) -> None:
        """`script` is bash. A call is there as a whole: its file appears under its name when it is written."""
        path = self.bin / name
        path.write_text(f"#!/bin/bash\ncd {self.calls_dir}\nfile=$(mktemp {name}.XXXXXXXX)\n"
                        f'printf "%s\\0" "$@" >"$file"\nenv -0 >"$file.env"\nmv "$file" "done.$file"\n{script}\n')
        path.chmod(0o755)

    def calls(self, name: str) -> list[list[str]]:
        """The arguments of each call; in no order."""
        return [path.read_text().split("\0")[:-1] for path in self.calls_dir.glob(f"done.{name}.*")]

    def environments(self, name: str) -> list[dict[str, str]]:
        return [dict(entry.split("=", 1) for entry in path.read_text().split("\0")[:-1])
                for path in self.calls_dir.glob(f"{name}.*.env")]


@pytest.fixture
def fakes(tmp_path: Path) -> Fakes:
    return Fakes(tmp_path)


def of(fakes: Fakes, **options: object) -> Client:
    return Client(SlurmOptions(bin_dir=fakes.bin, **options))  # type: ignore[arg-type]


def call_all(slurm: Client) -> None:
    for call in (lambda: slurm.submit(Path("/x/job.sh")), lambda: slurm.queue(), lambda: slurm.accounting(ids=["1"], since=0),
                 lambda: slurm.cancel(["1"]), lambda: slurm.signal(["2", "3_1"])):
        with suppress(HpcrunnerError):
            call()


# -- environment --


def test_nothing_of_the_caller_changes_what_the_commands_do(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_TIME_FORMAT", "SLURM_CLUSTERS", "SLURM_CPUS_PER_TASK", "SBATCH_PARTITION", "SBATCH_ACCOUNT", "SBATCH_EXPORT",
                 "SQUEUE_FORMAT", "SQUEUE_STATES", "SQUEUE_ARRAY", "SACCT_FORMAT", "SCANCEL_INTERACTIVE", "SALLOC_X", "AWS_SECRET_ACCESS_KEY", "PYTHONPATH", "LS_COLORS"):
        monkeypatch.setenv(name, "leaked")
    monkeypatch.setenv("SLURM_CONF", "/etc/cluster/slurm.conf")
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SLURM_BITSTR_LEN", "7")
    call_all(of(fakes))
    for name in NAMES:
        found = fakes.environments(name)
        assert found, name
        for env in found:
            slurm = {key for key in env if key.startswith(("SLURM", "SBATCH", "SQUEUE", "SACCT", "SCANCEL", "SALLOC"))}
            assert slurm == {"SLURM_CONF", "SLURM_BITSTR_LEN"}
            assert (env["SLURM_CONF"], env["SLURM_BITSTR_LEN"], env["HOME"]) == ("/etc/cluster/slurm.conf", "0", "/home/me")
            assert "leaked" not in env.values()


def test_the_sites_own_configuration_file_wins(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", "/etc/cluster/slurm.conf")
    call_all(of(fakes, conf=Path("/srv/slurm.conf")))
    assert {env["SLURM_CONF"] for name in NAMES for env in fakes.environments(name)} == {"/srv/slurm.conf"}
    monkeypatch.delenv("SLURM_CONF")
    assert "SLURM_CONF" not in of(fakes).environment()


def test_commands_are_found_on_path(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{fakes.bin}:/usr/bin:/bin")
    fakes.does("sbatch", "echo 45")
    assert Client(SlurmOptions()).submit(Path("/x/job.sh")) == "45"


# -- arguments --


def test_arguments_of_sbatch(fakes: Fakes) -> None:
    fakes.does("sbatch", "echo 'Welcome to the cluster'; echo '45;west'; echo 'sbatch: a warning' >&2")
    assert of(fakes).submit(Path("/a b/$(x)/job.sh")) == "45"
    assert fakes.calls("sbatch") == [["--parsable", "/a b/$(x)/job.sh"]]


def test_arguments_of_squeue(fakes: Fakes) -> None:
    fakes.does("squeue", f"cat {RECORDED}/pending-array-throttled.squeue")
    rows = of(fakes).queue()
    assert {row.job_id for row in rows} == {f"327_{index}" for index in range(6)}
    # With --array it leaves out the last element of `45_[0-20:2]`.
    assert fakes.calls("squeue") == [["--noheader", "--me", "--states=all", "--format=%i\x1f%T\x1f%r\x1f%N\x1f%Z\x1f%j"]]


@pytest.fixture(params=["UTC", "America/Los_Angeles", "Asia/Kolkata"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


def test_arguments_of_sacct(fakes: Fakes, zone: str) -> None:
    fakes.does("sacct", f"cat {RECORDED}/exit-7.sacct")
    [row] = of(fakes).accounting(ids=["277", "280_4"], since=1_800_000_000.9)
    assert (row.job_id, row.code) == ("277", 7)
    assert fakes.calls("sacct") == [[
        "--noheader", "--parsable2", "--delimiter=\x1f", "--duplicates", "--jobs=277,280_4", "--starttime=2027-01-15T08:00:00",
        "--format=JobID,State,ExitCode,NodeList,Submit,Start,End,MaxRSS,ReqMem,JobName"]]
    # Times are those of one zone without summer, whatever the host's is.
    assert [env["TZ"] for env in fakes.environments("sacct")] == ["UTC"]


def test_jobs_of_the_other_commands_keep_the_hosts_time_zone(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    call_all(of(fakes))
    assert {env["TZ"] for name in ("sbatch", "squeue", "scancel") for env in fakes.environments(name)} == {"Europe/Berlin"}


def test_sacct_by_ids_and_by_names(fakes: Fakes) -> None:
    fakes.does("sacct", f'[[ "$*" != *--name=* ]] && cat {RECORDED}/exit-0.sacct || cat {RECORDED}/exit-7.sacct')
    rows = of(fakes).accounting(ids=["276"], names=["hrabcdaaaaaaaag", "hrabcdaaaaaaaah"], since=0)
    assert [row.job_id for row in rows] == ["276", "277"]
    assert {call[4] for call in fakes.calls("sacct")} == {"--jobs=276", "--name=hrabcdaaaaaaaag,hrabcdaaaaaaaah"}
    assert of(fakes).accounting(since=0) == []
    assert len(fakes.calls("sacct")) == 2


def test_sacct_takes_500_ids_at_a_time(fakes: Fakes) -> None:
    of(fakes).accounting(ids=[str(number) for number in range(1201)], names=[f"hr{number}" for number in range(501)], since=0)
    calls = [call[4].partition("=")[::2] for call in fakes.calls("sacct")]
    assert sorted(len(values.split(",")) for option, values in calls if option == "--jobs") == [201, 500, 500]
    assert sorted(len(values.split(",")) for option, values in calls if option == "--name") == [1, 500]
    assert {number for option, values in calls if option == "--jobs" for number in values.split(",")} == {str(number) for number in range(1201)}


def test_one_chunk_without_an_answer_is_no_answer(fakes: Fakes) -> None:
    """Half of the accounting would make jobs of the other half look lost."""
    fakes.does("sacct", '[[ $* != *,600,* ]] || exit 1')
    with pytest.raises(UnavailableError):
        of(fakes).accounting(ids=[str(number) for number in range(1000)], since=0)


def test_scancel_takes_100_ids_at_a_time(fakes: Fakes) -> None:
    ids = [f"45_{index}" for index in range(250)]
    of(fakes).cancel(ids)
    calls = fakes.calls("scancel")
    assert all(call[0] == "--quiet" and not [word for word in call[1:] if word.startswith("-")] for call in calls)
    assert sorted(len(call) - 1 for call in calls) == [50, 100, 100]
    assert {one for call in calls for one in call[1:]} == set(ids)
    of(fakes).cancel([])
    assert len(fakes.calls("scancel")) == 3


SIGNAL = ["--quiet", "--batch", "--signal=TERM", "--state=RUNNING"]


def test_scripts_of_running_jobs_are_signalled_elements_ten_at_a_time(fakes: Fakes) -> None:
    singles, elements = [str(number) for number in range(1, 121)], [f"45_{index}" for index in range(25)]
    of(fakes).signal([*elements[:5], *singles, *elements[5:]])
    calls = fakes.calls("scancel")
    assert all(call[:4] == SIGNAL for call in calls)
    alone = [call[4:] for call in calls if "_" not in call[4]]
    grouped = [call[4:] for call in calls if "_" in call[4]]
    assert sorted(map(len, alone)) == [20, 100] and {one for call in alone for one in call} == set(singles)
    assert sorted(map(len, grouped)) == [5, 10, 10] and {one for call in grouped for one in call} == set(elements)
    of(fakes).signal([])
    assert len(fakes.calls("scancel")) == 5


def test_elements_are_signalled_side_by_side_as_scancel_may_hang_on_each(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_SIGNAL_TIMEOUT", 60.0)
    # Each waits until all three are there.
    fakes.does("scancel", "for ((i = 0; i < 1000; i++)); do set -- done.scancel.*; (($# < 3)) || exit 0; sleep 0.05; done; exit 1")
    begun = time.monotonic()
    of(fakes).signal([f"45_{index}" for index in range(30)])
    assert time.monotonic() - begun < 40
    assert len(fakes.calls("scancel")) == 3


# -- time limits and failures --


def test_a_scancel_that_hangs_is_given_up(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.does("scancel", "exec sleep 300")
    monkeypatch.setattr(client, "_SIGNAL_TIMEOUT", 0.3)
    begun = time.monotonic()
    of(fakes).signal([f"45_{index}" for index in range(20)])
    for call in (of(fakes, query_timeout=0.3).cancel, of(fakes, query_timeout=0.3).signal):
        with pytest.raises(UnavailableError, match="scancel reached nobody: no answer"):
            call(["45"])
    assert time.monotonic() - begun < 60


def test_a_query_that_hangs_says_nothing_of_any_job(fakes: Fakes) -> None:
    for name in ("squeue", "sacct"):
        fakes.does(name, f"cat {RECORDED}/exit-0.squeue; exec sleep 300")
    slurm = of(fakes, query_timeout=1.0, submit_timeout=300.0)
    with pytest.raises(UnavailableError, match="squeue did not answer in 1 s") as caught:
        slurm.queue()
    assert caught.value.transient
    with pytest.raises(UnavailableError, match="sacct did not answer in 1 s"):
        slurm.accounting(ids=["1"], since=0)


def test_an_sbatch_that_hangs_may_have_been_accepted(fakes: Fakes) -> None:
    slurm = of(fakes, query_timeout=300.0, submit_timeout=1.0)
    fakes.does("sbatch", "echo 'sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying' >&2; exec sleep 300")
    with pytest.raises(SubmitUnclear):
        slurm.submit(Path("/x/job.sh"))
    fakes.does("sbatch", "echo 45; exec sleep 300")
    assert slurm.submit(Path("/x/job.sh")) == "45"


@pytest.mark.parametrize(("script", "message"), [
    ("echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1", r"squeue ended with code 1: .*connect failure"),
    ("exit 3", "squeue ended with code 3: no message"),
    ("kill -9 $$", "squeue ended with code -9"),
    # Half an answer
    (f"cat {RECORDED}/exit-0.squeue; exit 1", "squeue ended with code 1"),
])
def test_a_query_that_fails_is_worth_another_try(fakes: Fakes, script: str, message: str) -> None:
    fakes.does("squeue", script)
    with pytest.raises(UnavailableError, match=message) as caught:
        of(fakes).queue()
    assert caught.value.transient


def test_commands_that_are_not_there(tmp_path: Path) -> None:
    slurm = Client(SlurmOptions(bin_dir=tmp_path / "nosuch"))
    for query in (slurm.queue, lambda: slurm.accounting(ids=["1"], since=0), lambda: slurm.cancel(["1"]), lambda: slurm.signal(["1"])):
        with pytest.raises(UnavailableError, match="can't be started"):
            query()
    with pytest.raises(SubmitDeferred):
        slurm.submit(Path("/x/job.sh"))


def test_bytes_that_are_no_text_hurt_nobody(fakes: Fakes) -> None:
    fakes.does("squeue", r"printf '45\x1fRUNNING\x1fNone\x1fn1\x1f/w\x1f\xff\xfe\x00name\n46\x1fPENDING\x1fNone\x1f\x1f/w\x1fhr\n'")
    assert [(row.job_id, row.name) for row in of(fakes).queue()] == [("45", "\ufffd\ufffd\x00name"), ("46", "hr")]
    fakes.does("sbatch", r"printf '\xff\n45\n'; printf '\xff' >&2")
    assert of(fakes).submit(Path("/x/job.sh")) == "45"


def test_commands_get_no_input_to_wait_for(fakes: Fakes) -> None:
    fakes.does("sbatch", "read -r line; echo 45")
    assert of(fakes, submit_timeout=60.0).submit(Path("/x/job.sh")) == "45"
