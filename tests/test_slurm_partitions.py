"""Where an experiment goes on a cluster, and what sbatch is asked for: the partition, and the #SBATCH lines."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hpcrunner.errors import ConfigError
from hpcrunner.model import Place, Request
from hpcrunner.render import environment
from hpcrunner.schedulers.base import BuildJob, Submission
from hpcrunner.schedulers.slurm import arrays
from hpcrunner.schedulers.slurm.directives import build_directives, directives, minutes
from hpcrunner.schedulers.slurm.options import Partition, SlurmOptions
from hpcrunner.schedulers.slurm.partitions import place

GIB, MIB = 2**30, 2**20
HOUR, DAY = 3600.0, 86400.0
GRACE = 30.0


def options(partitions: dict[str, Partition] | None = None, **given: Any) -> SlurmOptions:
    return SlurmOptions(partitions=partitions or {}, **given)


def where(slurm: SlurmOptions, walltime: float = HOUR, grace: float = GRACE, **request: Any) -> Place:
    found = place(slurm, Request(**request), walltime, grace)
    assert isinstance(found, Place), found
    return found


def why_not(slurm: SlurmOptions, walltime: float = HOUR, grace: float = GRACE, **request: Any) -> str:
    found = place(slurm, Request(**request), walltime, grace)
    assert isinstance(found, str), found
    return found


# -- the choice --

SITE = options({
    "short": Partition(max_walltime=2 * HOUR, max_cpus=16, max_memory=64 * GIB, max_disk=100 * GIB),
    "gpu": Partition(max_walltime=DAY, max_cpus=32, max_memory=256 * GIB, max_gpus=4, gpu_types=("a40", "a100")),
    "long": Partition(max_walltime=7 * DAY, max_cpus=8, max_memory=32 * GIB, max_disk=100 * GIB),
    "big": Partition(max_cpus=128, max_memory=2048 * GIB),
    "huge-gpu": Partition(max_walltime=2 * DAY, max_gpus=8, min_gpus=8, gpu_types=("h100",)),
}, gpu_types={"a40": 48 * GIB, "a100": 80 * GIB, "h100": 94 * GIB})


@pytest.mark.parametrize(("walltime", "request_", "partition"), [
    # The first in the order of the file in which it fits, and that gives it time
    (HOUR, {}, "short"),
    (2 * HOUR - GRACE - 60, {}, "short"),
    (2 * HOUR - GRACE - 59, {}, "long"),
    (6 * DAY, {}, "long"),
    (8 * DAY, {}, "big"),
    (HOUR, {"cpus": 16}, "short"),
    (HOUR, {"cpus": 17}, "big"),
    (HOUR, {"memory": 64 * GIB}, "short"),
    (HOUR, {"memory": 64 * GIB + 1}, "big"),
    (3 * HOUR, {"memory": 33 * GIB}, "big"),
    (HOUR, {"disk": 100 * GIB}, "short"),
    # No limit is known there
    (HOUR, {"disk": 101 * GIB}, "big"),
    # GPUs, and none of those partitions without need
    (HOUR, {"gpus": 1}, "gpu"),
    (HOUR, {"gpus": 4}, "gpu"),
    (HOUR, {"gpus": 8}, "huge-gpu"),
    (25 * HOUR, {"gpus": 1}, "gpu"),
    (0, {}, "short"),
])
def test_the_partition_of_an_experiment(walltime: float, request_: dict[str, int], partition: str) -> None:
    assert where(SITE, walltime, **request_).partition == partition


def test_one_without_gpus_takes_a_gpu_partition_only_if_no_other_fits_or_gives_time() -> None:
    slurm = options({"gpu": Partition(max_walltime=DAY, max_cpus=64, max_gpus=4), "cpu": Partition(max_walltime=HOUR, max_cpus=8)})
    assert where(slurm, 60).partition == "cpu"
    assert where(slurm, 2 * HOUR).partition == "gpu"
    assert where(slurm, 60, cpus=9).partition == "gpu"
    # If none gives it time, the one that gives the most.
    assert where(slurm, 2 * DAY).partition == "gpu"


def test_the_order_of_the_file_decides_among_equals() -> None:
    first, second = Partition(max_walltime=DAY), Partition(max_walltime=DAY)
    assert where(options({"b": first, "a": second})).partition == "b"
    assert where(options({"b": first, "a": second}), 2 * DAY).partition == "b"


def test_without_partitions_slurms_default_takes_all() -> None:
    assert place(options(), Request(cpus=1000, memory=2**50, gpus=64), 1000 * DAY, GRACE) == Place()


# -- time --


@pytest.mark.parametrize(("limit", "walltime", "longest", "note"), [
    (None, 100 * DAY, None, ""),
    (DAY, HOUR, DAY - 90, ""),
    (DAY, DAY - 90, DAY - 90, ""),
    (DAY, DAY, DAY - 90, "asks to run for 1d; partition only lets it run for 23h58m30s"),
    (HOUR, 2 * HOUR, HOUR - 90, "asks to run for 2h; partition only lets it run for 58m30s"),
    (DAY, 0, DAY - 90, ""),
    # Slurm counts in whole minutes.
    (HOUR + 59, 2 * HOUR, HOUR - 90, "asks to run for 2h; partition only lets it run for 58m30s"),
    (180, HOUR, 90, "asks to run for 1h; partition only lets it run for 1m30s"),
])
def test_time_that_a_partition_gives(limit: float | None, walltime: float, longest: float | None, note: str) -> None:
    slurm = options({"only": Partition(max_walltime=limit)})
    assert place(slurm, Request(), walltime, GRACE) == Place("only", longest, "", note)


@pytest.mark.parametrize("grace", [1.0, 2.5, 29.9, 30.0, 45.3, 599.999, 1200.0])
@pytest.mark.parametrize("limit", [2000.0, 3600.0, 3601.0, 5400.5, 86400.0, 604800.0])
def test_a_job_never_asks_for_more_than_its_partition_gives(limit: float, grace: float) -> None:
    """It would wait for ever, with the reason PartitionTimeLimit."""
    slurm = options({"only": Partition(max_walltime=limit)})
    for walltime in (60.0, limit, 10 * DAY):
        longest = where(slurm, walltime, grace).longest
        assert longest is not None and 60 * minutes(min(walltime, longest), grace) <= limit
    assert longest > limit - grace - 121


def test_a_partition_that_leaves_no_time_takes_nothing() -> None:
    slurm = options({"debug": Partition(max_walltime=1800), "main": Partition(max_walltime=DAY)})
    assert where(slurm, 60, grace=1740.0).partition == "main"
    assert why_not(options({"debug": Partition(max_walltime=1800)}), 60, grace=1740.0) == (
        "partition debug: asks for time beside the kill_grace of 29m, it has 30m (max_walltime)")
    assert where(options({"debug": Partition(max_walltime=1800)}), 60, grace=1700.0).longest == 40


# -- refusals --


@pytest.mark.parametrize(("request_", "reason"), [
    ({"cpus": 129}, "129 cores, it has 128 (max_cpus)"),
    ({"memory": 3 * 2**40}, "3 TiB of memory, it has 2 TiB (max_memory)"),
    ({"disk": 11 * GIB}, "11 GiB of disk, it has 10 GiB (max_disk)"),
    ({"gpus": 9}, "9 GPUs, it has 8 (max_gpus)"),
    ({"gpus": 1}, "1 GPUs, it wants at least 2 (min_gpus)"),
    ({}, "0 GPUs, it wants at least 2 (min_gpus)"),
    ({"gpus": 2, "gpu_memory": 81 * GIB}, "GPUs with 81 GiB, the largest there have 80 GiB (gpu_types)"),
])
def test_a_refusal_names_the_limit_and_its_option(request_: dict[str, int], reason: str) -> None:
    slurm = options({"one": Partition(max_cpus=128, max_memory=2 * 2**40, max_disk=10 * GIB, max_gpus=8, min_gpus=2)}, gpu_types={"a100": 80 * GIB, "a40": 48 * GIB})
    assert why_not(slurm, **request_) == f"partition one: asks for {reason}"


def test_a_refusal_names_every_partition() -> None:
    assert why_not(SITE, cpus=200, gpus=1) == (
        "partition short: asks for 200 cores, it has 16 (max_cpus); partition gpu: asks for 200 cores, it has 32 (max_cpus); "
        "partition long: asks for 200 cores, it has 8 (max_cpus); partition big: asks for 200 cores, it has 128 (max_cpus); "
        "partition huge-gpu: asks for 1 GPUs, it wants at least 8 (min_gpus)")
    assert "partition short: asks for 1 GPUs, it has 0 (max_gpus)" in why_not(SITE, gpus=1, gpu_memory=100 * GIB)


# -- types of GPUs --


@pytest.mark.parametrize(("request_", "partition", "kind"), [
    ({"gpus": 1}, "gpu", ""),
    ({"gpus": 1, "gpu_memory": 1}, "gpu", "a40"),
    ({"gpus": 1, "gpu_memory": 48 * GIB}, "gpu", "a40"),
    ({"gpus": 1, "gpu_memory": 48 * GIB + 1}, "gpu", "a100"),
    ({"gpus": 8, "gpu_memory": 10 * GIB}, "huge-gpu", "h100"),
    # Memory of GPUs alone asks for none.
    ({"gpu_memory": 500 * GIB}, "short", ""),
])
def test_the_smallest_type_that_has_the_memory(request_: dict[str, int], partition: str, kind: str) -> None:
    found = where(SITE, **request_)
    assert (found.partition, found.gpu_type, found.note) == (partition, kind, "")


def test_types_decide_between_partitions_too() -> None:
    slurm = options({"small": Partition(max_gpus=4, gpu_types=("t4",)), "large": Partition(max_gpus=4, gpu_types=("a100",))},
                    gpu_types={"a100": 80 * GIB, "t4": 16 * GIB})
    assert where(slurm, gpus=1, gpu_memory=16 * GIB).partition == "small"
    assert where(slurm, gpus=1, gpu_memory=17 * GIB) == Place("large", None, "a100")
    assert why_not(slurm, gpus=1, gpu_memory=81 * GIB) == (
        "partition small: asks for GPUs with 81 GiB, the largest there have 16 GiB (gpu_types); "
        "partition large: asks for GPUs with 81 GiB, the largest there have 80 GiB (gpu_types)")


def test_a_type_can_be_named_always() -> None:
    slurm = options({"gpu": Partition(max_gpus=4)}, gpu_types={"a100": 80 * GIB, "t4": 16 * GIB}, gpu_type_always=True)
    assert where(slurm, gpus=1).gpu_type == "t4"
    assert where(slurm).gpu_type == ""


def test_a_site_that_does_not_say_what_its_gpus_have_notes_it() -> None:
    for slurm in (options({"gpu": Partition(max_gpus=4)}), options({"gpu": Partition(max_gpus=4, gpu_types=("v100",))}, gpu_types={"a100": 80 * GIB}), options()):
        found = where(slurm, gpus=1, gpu_memory=10 * GIB)
        assert found.note == "asks for GPUs with 10 GiB; the site does not say what its GPUs have (gpu_types)"
        assert found.gpu_type == "" and where(slurm, gpus=1).note == ""


def test_without_partitions_types_are_chosen_all_the_same() -> None:
    slurm = options(gpu_types={"a100": 80 * GIB})
    assert where(slurm, gpus=1, gpu_memory=10 * GIB) == Place(gpu_type="a100")
    assert why_not(slurm, gpus=1, gpu_memory=81 * GIB) == "asks for GPUs with 81 GiB, the largest there have 80 GiB (gpu_types)"


# -- what sbatch is asked for --


def asked(slurm: SlurmOptions, partition: str = "", *, limit: float = HOUR, grace: float = GRACE, kind: str = "", avoid: tuple[str, ...] = (), array: int = 0,
          folder: str = "/srv/run", log: str = "/srv/run/job.log", **request: Any) -> dict[str, str]:
    """Options by name; an option that takes nothing has an empty text."""
    job = Submission("hrabcdaaaaaaaaa", Path("/srv/run/job.sh"), Path("/srv/run"), Request(**request), limit, Place(partition, gpu_type=kind), avoid=avoid)
    lines = directives(slurm, job, grace, name="hrabcdaaaaaaaaa", folder=Path(folder), log=Path(log), array=array)
    found = dict(line.removeprefix("--").partition("=")[::2] for line in lines)
    assert len(found) == len(lines), lines
    return found


PLAIN = {"job-name": "hrabcdaaaaaaaaa", "nodes": "1", "ntasks": "1", "cpus-per-task": "1", "time": "0-01:02:00", "signal": "B:USR2@60", "no-requeue": "",
         "export": "ALL", "chdir": "/srv/run", "output": "/srv/run/job.log", "open-mode": "append"}


def test_a_plain_job_asks_for_no_more_than_it_must() -> None:
    assert asked(options()) == PLAIN
    assert asked(options({"cpu": Partition()}), "cpu") == {**PLAIN, "partition": "cpu"}


@pytest.mark.parametrize(("flag", "request_", "expected"), [
    ("mem", {"memory": 4 * GIB}, {"mem": "4096M"}),
    ("mem", {"memory": 4 * GIB, "cpus": 4, "gpus": 2}, {"mem": "4096M"}),
    ("mem", {}, {}),
    ("mem", {"memory": 1}, {"mem": "1M"}),
    ("mem", {"memory": MIB + 1}, {"mem": "2M"}),
    ("mem-per-cpu", {"memory": 4 * GIB, "cpus": 4}, {"mem-per-cpu": "1024M"}),
    ("mem-per-cpu", {"memory": GIB, "cpus": 3}, {"mem-per-cpu": "342M"}),
    ("mem-per-cpu", {"memory": 10, "cpus": 64}, {"mem-per-cpu": "1M"}),
    ("mem-per-gpu", {"memory": 4 * GIB, "gpus": 2}, {"mem-per-gpu": "2048M"}),
    ("mem-per-gpu", {"memory": 4 * GIB}, {"mem": "4096M"}),
    ("none", {"memory": 4 * GIB, "cpus": 4, "gpus": 1}, {}),
])
def test_how_memory_is_asked_for(flag: str, request_: dict[str, int], expected: dict[str, str]) -> None:
    found = asked(options(memory_flag=flag), **request_)
    assert {name: value for name, value in found.items() if name.startswith("mem")} == expected


def test_memory_of_experiments_that_do_not_say() -> None:
    assert asked(options(default_memory=2 * GIB))["mem"] == "2048M"
    assert asked(options(default_memory=2 * GIB), memory=GIB)["mem"] == "1024M"
    assert asked(options(default_memory=2 * GIB, memory_flag="mem-per-cpu"), cpus=4)["mem-per-cpu"] == "512M"
    assert not [name for name in asked(options(default_memory=2 * GIB, memory_flag="none")) if name.startswith("mem")]


@pytest.mark.parametrize(("flag", "type_flag", "kind", "gpus", "expected"), [
    ("gres", "gres", "", 2, {"gres": "gpu:2"}),
    ("gres", "gres", "a100", 2, {"gres": "gpu:a100:2"}),
    ("gpus", "gres", "", 2, {"gpus": "2"}),
    ("gpus", "gres", "a100", 2, {"gpus": "a100:2"}),
    ("gpus-per-node", "gres", "a100", 1, {"gpus-per-node": "a100:1"}),
    ("none", "gres", "a100", 1, {}),
    ("gres", "constraint", "a100", 2, {"gres": "gpu:2", "constraint": "a100"}),
    ("gpus-per-node", "constraint", "a100", 2, {"gpus-per-node": "2", "constraint": "a100"}),
    ("none", "constraint", "a100", 2, {"constraint": "a100"}),
    ("gres", "constraint", "", 2, {"gres": "gpu:2"}),
    ("gres", "gres", "", 0, {}),
    ("gres", "constraint", "a100", 0, {}),
])
def test_how_gpus_are_asked_for(flag: str, type_flag: str, kind: str, gpus: int, expected: dict[str, str]) -> None:
    found = asked(options(gpu_flag=flag, gpu_type_flag=type_flag), kind=kind, gpus=gpus)
    assert {name: value for name, value in found.items() if name not in PLAIN} == expected


@pytest.mark.parametrize(("site", "partition", "kind", "expected"), [
    (None, None, "", None),
    ("ib", None, "", "ib"),
    ("ib", "fast", "", "fast"),
    (None, "fast", "a100", "fast&a100"),
    ("ib", None, "a100", "ib&a100"),
    ("a|b", None, "", "a|b"),
    ("a|b", None, "a100", "(a|b)&a100"),
    ("projects&scratch", None, "a100", "projects&scratch&a100"),
    (None, None, "a100", "a100"),
])
def test_features_of_nodes(site: str | None, partition: str | None, kind: str, expected: str | None) -> None:
    slurm = options({"p": Partition(constraint=partition, max_gpus=1)}, constraint=site, gpu_type_flag="constraint")
    assert asked(slurm, "p", kind=kind, gpus=1).get("constraint") == expected


def test_disk_is_asked_for_only_where_the_site_wants_it() -> None:
    assert "tmp" not in asked(options(), disk=10 * GIB)
    assert asked(options(disk_flag="tmp"), disk=10 * GIB)["tmp"] == "10240M"
    assert asked(options(disk_flag="tmp"), disk=1)["tmp"] == "1M"
    assert "tmp" not in asked(options(disk_flag="tmp"))


@pytest.mark.parametrize(("entry", "expected"), [(Partition(), "day"), (Partition(partition="batch"), "batch"), (Partition(partition="-"), None)])
def test_an_entry_may_be_called_otherwise_in_slurm(entry: Partition, expected: str | None) -> None:
    assert asked(options({"day": entry}), "day").get("partition") == expected


def test_account_qos_and_further_options_of_a_partition_come_before_the_sites() -> None:
    slurm = options({"a": Partition(), "b": Partition(account="other", qos="high", directives=("--licenses=matlab:1",))}, account="main", qos="normal",
                    directives=("--mail-type=FAIL", "--reservation x"))
    plain, special = asked(slurm, "a"), asked(slurm, "b")
    assert (plain["account"], plain["qos"]) == ("main", "normal")
    assert (special["account"], special["qos"]) == ("other", "high")
    assert list(special)[-3:] == ["mail-type", "reservation x", "licenses"]
    assert list(plain)[-2:] == ["mail-type", "reservation x"]
    assert not {"account", "qos"} & asked(options()).keys()


@pytest.mark.parametrize(("policy", "preemptible", "expected"), [
    ("preemptible", True, "requeue"), ("preemptible", False, "no-requeue"), ("always", False, "requeue"), ("always", True, "requeue"),
    ("never", True, "no-requeue"), ("never", False, "no-requeue")])
def test_what_slurm_may_start_again(policy: str, preemptible: bool, expected: str) -> None:
    found = asked(options({"p": Partition(preemptible=preemptible)}, requeue=policy), "p")
    assert found.keys() & {"requeue", "no-requeue"} == {expected}


def test_in_no_partition_slurm_starts_nothing_again_unless_told_to() -> None:
    assert "no-requeue" in asked(options())
    assert "requeue" in asked(options(requeue="always"))


@pytest.mark.parametrize("export", ["ALL", "NONE", "NIL", "PATH,LANG"])
def test_what_of_the_environment_is_handed_on(export: str) -> None:
    assert asked(options(export=export))["export"] == export


@pytest.mark.parametrize(("warn", "expected"), [(60.0, "B:USR2@60"), (0.0, None), (0.5, "B:USR2@1"), (90.2, "B:USR2@91")])
def test_the_warning_before_a_preemption(warn: float, expected: str | None) -> None:
    assert asked(options(warn=warn)).get("signal") == expected


def test_nodes_that_failed_are_left_out() -> None:
    assert asked(options(), avoid=("gpu1", "gpu[3-4]"))["exclude"] == "gpu1,gpu[3-4]"
    assert "exclude" not in asked(options())


@pytest.mark.parametrize(("limit", "grace", "expected"), [
    (60, 30, "0-00:03:00"), (30, 30, "0-00:02:00"), (3600, 60, "0-01:02:00"), (3599.5, 0.5, "0-01:01:00"), (3600.1, 0, "0-01:02:00"),
    (86400 - 120, 60, "1-00:00:00"), (86400, 0, "1-00:01:00"), (10 * 86400 + 7200, 600, "10-02:11:00"), (0, 0, "0-00:01:00"), (1e7, 30, "115-17:49:00"),
    (20 * 3600 - 90, 30, "0-20:00:00")])
def test_slurms_time_limit_is_rounded_up_to_minutes(limit: float, grace: float, expected: str) -> None:
    assert asked(options(), limit=limit, grace=grace)["time"] == expected


@pytest.mark.parametrize(("jobs", "throttle", "expected"), [(0, None, None), (2, None, "0-1"), (1000, None, "0-999"), (10, 3, "0-9%3"), (0, 3, None)])
def test_arrays(jobs: int, throttle: int | None, expected: str | None) -> None:
    assert asked(options(array_throttle=throttle), array=jobs).get("array") == expected


# -- paths and texts: every directive is one harmless line --


@pytest.mark.parametrize(("path", "as_folder", "as_pattern"), [
    ("/srv/run", "/srv/run", "/srv/run"),
    ("/a b/c", '"/a b/c"', '"/a b/c"'),
    ('/say "x"', '"/say \\"x\\""', '"/say \\"x\\""'),
    ("/it's", '"/it\'s"', '"/it\'s"'),
    ("/100%j", "/100%j", "/100%%j"),
    ("/a%%b %c", '"/a%%b %c"', '"/a%%%%b %%c"'),
    ("/#x", '"/#x"', '"/#x"'),
    ("/x # y", '"/x # y"', '"/x # y"'),
    ("/$HOME/`id`;&|<>", '"/$HOME/`id`;&|<>"', '"/$HOME/`id`;&|<>"'),
    ("/ünïcode", '"/ünïcode"', '"/ünïcode"'),
    ("/--partition=x", "/--partition=x", "/--partition=x"),
    ("/end ", '"/end "', '"/end "'),
])
def test_paths(path: str, as_folder: str, as_pattern: str) -> None:
    """Each was tried with a real sbatch (22.05)."""
    found = asked(options(), folder=path, log=path)
    assert (found["chdir"], found["output"]) == (as_folder, as_pattern)


@pytest.mark.parametrize("text", ["/a\nb", "/a\rb", "/a\x00b", "/a\tb", "/a\u2028b", "/a\x85b", "/a\x1bb", "/a\udc80b"])
def test_what_would_be_more_than_one_line_is_refused(text: str) -> None:
    for paths in ({"folder": text}, {"log": text}):
        with pytest.raises(ConfigError, match="can't be one #SBATCH line"):
            asked(options(), **paths)
    with pytest.raises(ConfigError, match="can't be one #SBATCH line"):
        asked(options(directives=(f"--comment={text}",)))


def test_slurm_writes_to_no_path_with_a_backslash() -> None:
    assert asked(options(), folder="/a\\b")["chdir"] == '"/a\\\\b"'
    with pytest.raises(ConfigError, match="backslash"):
        asked(options(), log="/a\\b/job.log")


# -- jobs that build images --


def built(slurm: SlurmOptions, timeout: float = HOUR, folder: str = "/srv/images/x") -> dict[str, str]:
    lines = build_directives(slurm, BuildJob("hbabcd123456789", Path(folder), ("true",), {}, timeout))
    found = dict(line.removeprefix("--").partition("=")[::2] for line in lines)
    assert len(found) == len(lines), lines
    return found


def test_what_a_build_asks_for() -> None:
    assert built(options(build_partition="cpu")) == {
        "job-name": "hbabcd123456789", "partition": "cpu", "nodes": "1", "ntasks": "1", "cpus-per-task": "4", "mem": "8192M", "time": "0-01:01:00",
        "no-requeue": "", "export": "ALL", "chdir": "/srv/images/x", "output": "/srv/images/x/builder.log", "open-mode": "append"}


def test_a_build_in_a_partition_of_the_site() -> None:
    entry = Partition(partition="batch", account="other", qos="high", directives=("--licenses=x",), preemptible=True, max_gpus=4)
    slurm = options({"builds": entry}, build_partition="builds", account="main", constraint="projects", build_cpus=8, build_memory=4 * GIB,
                    memory_flag="mem-per-cpu", export="NONE", directives=("--mail-type=NONE",), requeue="always")
    found = built(slurm, 90, "/a b/100%")
    wanted = {"partition": "batch", "account": "other", "qos": "high", "constraint": "projects", "cpus-per-task": "8", "mem-per-cpu": "512M",
              "time": "0-00:03:00", "no-requeue": "", "export": "NONE", "chdir": '"/a b/100%"', "output": '"/a b/100%%/builder.log"', "licenses": "x", "mail-type": "NONE"}
    assert wanted.items() <= found.items()
    assert not {"gres", "requeue", "signal"} & found.keys()
    assert list(found)[-2:] == ["mail-type", "licenses"]
    assert "mem" in built(options(build_partition="cpu", memory_flag="mem-per-gpu"))
    assert not [name for name in built(options(build_partition="cpu", memory_flag="none")) if name.startswith("mem")]


def test_a_build_never_asks_for_more_time_than_its_partition_gives() -> None:
    slurm = options({"builds": Partition(max_walltime=1830)}, build_partition="builds")
    assert built(slurm, 7200)["time"] == "0-00:30:00"
    assert built(slurm, 600)["time"] == "0-00:11:00"
    assert built(options({"builds": Partition(max_walltime=HOUR)}, build_partition="builds"), 7200)["time"] == "0-01:00:00"


def test_a_build_without_a_partition_of_its_own_names_none() -> None:
    assert "partition" not in built(options())


# -- the scripts of arrays and of builds --


def check_script(text: str, path: Path) -> None:
    path.write_text(text)
    subprocess.run(["bash", "-n", path], check=True)
    if shutil.which("shellcheck"):
        # Values with a $ in single quotes are what is wanted; `cause` is for job scripts, which share the part on modules.
        done = subprocess.run(["shellcheck", "--shell=bash", "--exclude=SC2016,SC2034", path], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    # sbatch reads directives up to the first command only.
    lines = text.splitlines()
    assert lines[0] == "#!/bin/bash"
    directives = [number for number, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert directives == list(range(1, len(directives) + 1)) and directives


def test_the_script_of_an_array(tmp_path: Path) -> None:
    state = tmp_path / "state dir's 100%"
    site = SimpleNamespace(state_dir=state, kill_grace=GRACE, template_dirs=())
    run_dirs = [tmp_path / "runs" / name for name in ("plain", "it's a $(touch hacked) run", "é %j")]
    for run_dir in run_dirs:
        run_dir.mkdir(parents=True)
        (run_dir / "job.sh").write_text("printf '%s\\n' \"$0\"; echo to stderr >&2; exit 7")
    jobs = [Submission(f"hrabcdaaaaaaaa{index}", run_dir / "job.sh", run_dir, Request(), HOUR) for index, run_dir in enumerate(run_dirs)]
    [batch] = arrays.batches(jobs, 1000, GRACE)
    script = arrays.write(site, options(array_throttle=2), batch)
    text = script.read_text()
    check_script(text, tmp_path / "array.sh")
    assert "#SBATCH --job-name=hrabcdaaaaaaaa0\n" in text and "#SBATCH --array=0-2%2\n" in text
    assert f'#SBATCH --chdir="{state}/arrays"\n' in text
    assert f'#SBATCH --output="{str(state).replace("%", "%%")}/arrays/hrabcdaaaaaaaa0.log"\n' in text
    for index, run_dir in enumerate(run_dirs):
        done = subprocess.run(["bash", script], env={"SLURM_ARRAY_TASK_ID": str(index)}, cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (7, "", "")
        assert (run_dir / "job.log").read_text() == f"{run_dir}/job.sh\nto stderr\n"
    assert not list(tmp_path.rglob("hacked"))
    (state / "arrays" / "hrabcdaaaaaaaa0.list").unlink()
    assert subprocess.run(["bash", script], env={"SLURM_ARRAY_TASK_ID": "0"}, stderr=subprocess.DEVNULL).returncode == 73


@pytest.mark.parametrize("modules", [[], ["apptainer/1.3"]])
def test_the_script_of_a_build(tmp_path: Path, modules: list[str]) -> None:
    folder = tmp_path / "an image's folder"
    folder.mkdir()
    header = build_directives(options(build_partition="cpu"), BuildJob("hbabcd", folder, (), {}, HOUR))
    values = {"header": header, "modules": modules, "env": {"SAID": "a 'quoted' $(touch hacked) `value`\nof two lines"},
              "command": ["/bin/sh", "-c", 'printf "%s|" "$SAID" "$@"', "sh", "it's", "$HOME", "two words", ""]}
    text = environment.shell("build.sh.j2", values)
    check_script(text, tmp_path / "build.sh")
    if modules:
        text = text.replace("#!/bin/bash\n", "#!/bin/bash\nmodule() { echo \"module $*\"; }\n")
    (tmp_path / "build.sh").write_text(text)
    done = subprocess.run(["bash", tmp_path / "build.sh"], cwd=tmp_path, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    loaded = "module load apptainer/1.3\n" if modules else ""
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == loaded + "a 'quoted' $(touch hacked) `value`\nof two lines|it's|$HOME|two words||"
    assert not (tmp_path / "hacked").exists()


def test_a_build_whose_module_is_missing_says_so(tmp_path: Path) -> None:
    values = {"header": ["--job-name=x"], "modules": ["nosuch/1"], "env": {}, "command": ["true"]}
    (tmp_path / "build.sh").write_text(environment.shell("build.sh.j2", values).replace("#!/bin/bash\n", "#!/bin/bash\nmodule() { return 1; }\n"))
    done = subprocess.run(["bash", tmp_path / "build.sh"], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    assert (done.returncode, done.stdout) == (73, "")
    assert "[hpcrunner] module load nosuch/1 failed on" in done.stderr
