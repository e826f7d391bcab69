"""The site configs that ship: each loads, names its sources, and asks its site's Slurm as the site's own pages say."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hpcrunner.config.load import Loaded, load
from hpcrunner.engine.preview import preview
from hpcrunner.errors import MessageError
from hpcrunner.schedulers.slurm.directives import build_directives

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "site-configs").glob("*.yaml"))
EXAMPLES = [path for path in FILES if "-" in path.stem]
PAGE = ROOT / "docs" / "site-examples.md"
HOME = {"HOME": "/home/ada", "PATH": "/usr/bin:/bin"}

EVERYWHERE = {"job-name", "nodes", "ntasks", "signal", "export", "chdir", "output", "open-mode", "no-requeue"}
"""Options that say nothing of the site; these tests leave them out."""


def read(name: str, tmp_path: Path | None = None, environ: Mapping[str, str] = HOME) -> Loaded:
    overrides = {}
    if tmp_path:
        engine = tmp_path / "apptainer"
        engine.write_text("#!/bin/sh\necho apptainer version 1.4.5\n")
        engine.chmod(0o755)
        overrides = {"engine": "apptainer", "engine_path": str(engine)}
    return load(Path(name), overrides=overrides, environ=environ)


def message(max_duration: str | None, needs: Mapping[str, Any]) -> bytes:
    given = json.loads((ROOT / "tests" / "data" / "payloads" / "local.json").read_text())
    given["experiment"].update(resources_needed={"cpus": 1, "gpus": 0, **needs}, max_duration=max_duration)
    return json.dumps(given).encode()


def asked(name: str, tmp_path: Path, max_duration: str | None = None, **needs: Any) -> dict[str, str]:
    """What the job script asks Slurm for, by option."""
    script = preview(read(name, tmp_path).site, message(max_duration, needs)).files["job.sh"]
    lines = re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", script, re.MULTILINE)
    assert len(lines) == script.count("#SBATCH")
    return {option: value for option, value in lines if option not in EVERYWHERE}


# What all of them are


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_loads_without_a_warning_whatever_is_set(path: Path) -> None:
    for environ in (HOME, {**HOME, "SCRATCH": "/scratch/ada", "USER": "ada"}):
        assert read(path.stem, environ=environ).warnings == ()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_names_its_sources_and_when_they_were_read(path: Path) -> None:
    head = path.read_text().partition("\n\n")[0]
    assert re.search(r"^#   https://[a-z0-9.-]+\.[a-z]+/\S*$", head, re.MULTILINE)
    assert re.search(r"[Aa]s read in\n?#? ?20[0-9]{2}-[0-9]{2}:", head)
    assert "An example after public documentation" in head and "check it against what" in head


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_has_its_line_on_the_page(path: Path) -> None:
    """With the first of its sources."""
    source = re.search(r"https://\S+", path.read_text())
    assert source
    [line] = [line for line in PAGE.read_text().splitlines() if f"`{path.stem}`" in line]
    assert source[0] in line
    assert f"../site-configs/{path.name}" in line


def test_the_page_lists_nothing_else() -> None:
    assert set(re.findall(r"^\| \[`([^`]+)`", PAGE.read_text(), re.MULTILINE)) == {path.stem for path in EXAMPLES}
    assert len(EXAMPLES) >= 8


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nothing_in_it_looks_like_a_secret(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"passw|secret|token|credential|private.key|api.?key|AKIA|BEGIN ", text, re.IGNORECASE)
    assert not re.search(r"://[^/\s]*@|\b[0-9a-f]{32}|\b[A-Za-z0-9+/]{40}", text)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_what_must_be_replaced_is_plainly_made_up(path: Path) -> None:
    text = path.read_text()
    site = read(path.stem).site
    accounts = {site.slurm.account, *(partition.account for partition in site.slurm.partitions.values())} - {None}
    assert accounts <= {"my_project", "my_project-delta-cpu", "my_project-delta-gpu"}
    assert ("# To be replaced: my_" in text) == ("my_" in re.sub(r"#.*", "", text))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_run_directories_lie_apart_from_the_journal(path: Path) -> None:
    """Scratch is purged, and the journal must not be; where a site has one file system only, its own name says so."""
    site = read(path.stem, environ={**HOME, "SCRATCH": "/scratch/ada", "USER": "ada"}).site
    assert "scratch" not in str(site.state_dir)
    assert path.stem == "epcc-archer2" or "scratch" in str(site.working_dir) or "my_work" in str(site.working_dir)


# Plain Slurm


def test_plain_slurm_says_no_more_than_it_is_asked(tmp_path: Path) -> None:
    assert asked("slurm", tmp_path) == {"cpus-per-task": "1", "time": "0-23:02:00"}
    assert asked("slurm", tmp_path, "1h", cpus=4, ram="8g", gpus=2) == {
        "cpus-per-task": "4", "mem": "8192M", "gres": "gpu:2", "time": "0-01:02:00"}


def test_plain_slurm_with_its_hints_taken_is_good(tmp_path: Path) -> None:
    """What it shows as comments is right as well."""
    lines = (ROOT / "site-configs" / "slurm.yaml").read_text().splitlines()
    taken: list[str] = []
    for line in lines:
        hint = re.fullmatch(r"( *)# ( *)((?:[a-z_0-9]+):(?: .*)?)", line)
        if hint and re.match(r"(partitions|gpu_types): \{\}", taken[-1].strip() if taken else ""):
            taken[-1] = taken[-1].replace(" {}", "")
        taken.append(f"{hint[1]}{hint[2]}{hint[3]}" if hint else line)
    site = tmp_path / "taken.yaml"
    site.write_text("\n".join(taken))
    options = load(site, environ=HOME).site.slurm
    assert list(options.partitions) == ["cpu", "gpu", "spare"] and options.partitions["spare"].preemptible
    assert (options.account, options.qos, options.gpu_types, options.build_partition) == (
        "my_project", "normal", {"a100": 40 * 2**30}, "cpu")


# Jobs as the sites' own examples have them

GIB = 1024

ASKED: dict[str, tuple[str, str, dict[str, Any], dict[str, str]]] = {
    # --partition=gpumedium, --gres=gpu:gh200:1, --account=<project>; cores and memory come with GPUs.
    "Roihu: one GPU": ("csc-roihu-gpu", "30m", {"cpus": 72, "ram": "100g", "gpus": 1}, {
        "partition": "gpumedium", "account": "my_project", "cpus-per-task": "72", "gres": "gpu:gh200:1", "time": "0-00:32:00"}),
    "Roihu: four GPUs with memory": ("csc-roihu-gpu", "30m", {"cpus": 288, "gpus": 4, "gpuMem": "90g"}, {
        "partition": "gpumedium", "account": "my_project", "cpus-per-task": "288", "gres": "gpu:gh200:4", "time": "0-00:32:00"}),
    "Roihu: longer than there is": ("csc-roihu-gpu", "10d", {"gpus": 1}, {
        "partition": "gpumedium", "account": "my_project", "cpus-per-task": "1", "gres": "gpu:gh200:1", "time": "1-11:02:00"}),
    # --account=..., --cpus-per-task=1, --mem=2G, --partition=small
    "LUMI: cores": ("csc-lumi", "2h", {"ram": "2g"}, {
        "partition": "small", "account": "my_project", "cpus-per-task": "1", "mem": "2048M", "time": "0-02:02:00"}),
    # --partition=...-g, --gpus-per-node=8, 56 cores
    "LUMI: all GPUs of a node": ("csc-lumi", "36h", {"cpus": 56, "gpus": 8}, {
        "partition": "small-g", "account": "my_project", "cpus-per-task": "56", "gpus-per-node": "8", "time": "1-12:02:00"}),
    "LUMI: a large-memory node": ("csc-lumi", "2h", {"cpus": 128, "ram": "900g"}, {
        "partition": "small", "account": "my_project", "cpus-per-task": "128", "mem": f"{900 * GIB}M", "time": "0-02:02:00"}),
    # -A <projid>, -p batch, -N 1 and -t; no GPUs and no memory, nodes are whole.
    "Frontier: short": ("olcf-frontier", "1h", {"cpus": 7, "ram": "64g", "gpus": 1}, {
        "partition": "batch", "account": "my_project", "cpus-per-task": "7", "time": "0-01:02:00"}),
    "Frontier: long": ("olcf-frontier", "20h", {"gpus": 8, "gpuMem": "64g"}, {
        "partition": "extended", "account": "my_project", "cpus-per-task": "1", "time": "0-20:02:00"}),
    "Frontier: exactly the limit is too long for the first": ("olcf-frontier", "2h", {}, {
        "partition": "extended", "account": "my_project", "cpus-per-task": "1", "time": "0-02:02:00"}),
    # -p, -N, -n, -t, -A; --mem and --gres are refused.
    "Lonestar6: small": ("tacc-lonestar6", "90m", {"cpus": 16, "ram": "28g"}, {
        "partition": "vm-small", "account": "my_project", "cpus-per-task": "16", "time": "0-01:32:00"}),
    "Lonestar6: more than fits in a small one": ("tacc-lonestar6", "90m", {"cpus": 16, "ram": "30g"}, {
        "partition": "normal", "account": "my_project", "cpus-per-task": "16", "time": "0-01:32:00"}),
    "Lonestar6: one GPU": ("tacc-lonestar6", "90m", {"gpus": 1}, {
        "partition": "gpu-a100-small", "account": "my_project", "cpus-per-task": "1", "time": "0-01:32:00"}),
    "Lonestar6: three GPUs": ("tacc-lonestar6", "90m", {"gpus": 3, "gpuMem": "40g"}, {
        "partition": "gpu-a100", "account": "my_project", "cpus-per-task": "1", "time": "0-01:32:00"}),
    "Lonestar6: GPUs with more memory": ("tacc-lonestar6", "90m", {"gpus": 2, "gpuMem": "80g"}, {
        "partition": "gpu-h100", "account": "my_project", "cpus-per-task": "1", "time": "0-01:32:00"}),
    "Lonestar6: longer than there is": ("tacc-lonestar6", "5d", {"cpus": 128}, {
        "partition": "normal", "account": "my_project", "cpus-per-task": "128", "time": "1-23:02:00"}),
    # --mem=64g, --partition=cpu, --account=bbka-delta-cpu, --constraint="a&b"
    "Delta: cores": ("ncsa-delta", "15m", {"cpus": 16, "ram": "64g"}, {
        "partition": "cpu", "account": "my_project-delta-cpu", "cpus-per-task": "16", "mem": f"{64 * GIB}M",
        "constraint": "projects&scratch", "time": "0-00:17:00"}),
    # --partition=gpuA40x4, --gpus-per-node=1, an account for GPUs
    "Delta: one GPU": ("ncsa-delta", "30m", {"cpus": 16, "ram": "20g", "gpus": 1}, {
        "partition": "gpuA40x4", "account": "my_project-delta-gpu", "cpus-per-task": "16", "mem": f"{20 * GIB}M",
        "gpus-per-node": "1", "constraint": "projects&scratch", "time": "0-00:32:00"}),
    "Delta: four GPUs with memory": ("ncsa-delta", "30m", {"gpus": 4, "gpuMem": "80g"}, {
        "partition": "gpuH200x8", "account": "my_project-delta-gpu", "cpus-per-task": "1", "gpus-per-node": "h200:4",
        "constraint": "projects&scratch", "time": "0-00:32:00"}),
    "Delta: eight GPUs": ("ncsa-delta", "30m", {"gpus": 8, "gpuMem": "40g"}, {
        "partition": "gpuA100x8", "account": "my_project-delta-gpu", "cpus-per-task": "1", "gpus-per-node": "a100:8",
        "constraint": "projects&scratch", "time": "0-00:32:00"}),
    # --gres=gpu:1 and --constraint with the card's memory; --requeue
    "Mila: one GPU": ("mila-cluster", "1h", {"cpus": 2, "ram": "16g", "gpus": 1}, {
        "partition": "main", "cpus-per-task": "2", "mem": f"{16 * GIB}M", "gres": "gpu:1", "requeue": "", "time": "0-01:02:00"}),
    "Mila: four GPUs with memory": ("mila-cluster", "1h", {"gpus": 4, "gpuMem": "44g"}, {
        "partition": "long", "cpus-per-task": "1", "gres": "gpu:4", "constraint": "48gb", "requeue": "", "time": "0-01:02:00"}),
    "Mila: many cores": ("mila-cluster", "1h", {"cpus": 32}, {
        "partition": "long-cpu", "cpus-per-task": "32", "requeue": "", "time": "0-01:02:00"}),
    "Mila: a long job": ("mila-cluster", "6d", {"gpus": 1}, {
        "partition": "long", "cpus-per-task": "1", "gres": "gpu:1", "requeue": "", "time": "6-00:02:00"}),
    # -p gpu, -c 10, -G 1
    "Sherlock: one GPU": ("stanford-sherlock", "2h", {"cpus": 10, "gpus": 1}, {
        "partition": "gpu", "cpus-per-task": "10", "gpus": "1", "time": "0-02:02:00"}),
    "Sherlock: much memory": ("stanford-sherlock", "2h", {"ram": "300g"}, {
        "partition": "bigmem", "cpus-per-task": "1", "mem": f"{300 * GIB}M", "time": "0-02:02:00"}),
    # --account=[budget code], --partition=standard, --qos=standard
    "ARCHER2: cores": ("epcc-archer2", "20m", {"cpus": 128, "ram": "200g"}, {
        "partition": "standard", "account": "my_project", "qos": "standard", "cpus-per-task": "128", "time": "0-00:22:00"}),
    "ARCHER2: much memory": ("epcc-archer2", "20m", {"ram": "400g"}, {
        "partition": "highmem", "account": "my_project", "qos": "highmem", "cpus-per-task": "1", "time": "0-00:22:00"}),
    # --gpus=type:number
    "Bouchet: any GPU": ("yale-bouchet", "6h", {"cpus": 2, "gpus": 1}, {
        "partition": "gpu", "cpus-per-task": "2", "gpus": "1", "time": "0-06:02:00"}),
    "Bouchet: two GPUs with memory": ("yale-bouchet", "6h", {"gpus": 2, "gpuMem": "80g"}, {
        "partition": "gpu_h100", "cpus-per-task": "1", "gpus": "h100:2", "time": "0-06:02:00"}),
    "Bouchet: eight GPUs with memory": ("yale-bouchet", "6h", {"gpus": 8, "gpuMem": "100g"}, {
        "partition": "gpu_h200", "cpus-per-task": "1", "gpus": "h200:8", "time": "0-06:02:00"}),
    "Bouchet: a day": ("yale-bouchet", "20h", {"ram": "10g"}, {
        "partition": "day", "cpus-per-task": "1", "mem": f"{10 * GIB}M", "time": "0-20:02:00"}),
    "Bouchet: a week": ("yale-bouchet", "3d", {"ram": "10g"}, {
        "partition": "week", "cpus-per-task": "1", "mem": f"{10 * GIB}M", "time": "3-00:02:00"}),
}

REFUSED: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "Roihu: no GPU": ("csc-roihu-gpu", {}, ["gpumedium: asks for 0 GPUs, it wants at least 1 (min_gpus)"]),
    "Roihu: five GPUs": ("csc-roihu-gpu", {"gpus": 5}, ["gpumedium: asks for 5 GPUs, it has 4 (max_gpus)"]),
    "Roihu: GPUs with too much memory": ("csc-roihu-gpu", {"gpus": 1, "gpuMem": "141g"}, ["141 GiB", "95 GiB (gpu_types)"]),
    "LUMI: the cores of a whole GPU node": ("csc-lumi", {"cpus": 64, "gpus": 8}, ["small: asks for 8 GPUs, it has 0", "small-g: asks for 64 cores, it has 56 (max_cpus)"]),
    "Frontier: GPUs with too much memory": ("olcf-frontier", {"gpus": 1, "gpuMem": "80g"}, ["batch", "extended", "64 GiB (gpu_types)"]),
    "Lonestar6: three of the large GPUs": ("tacc-lonestar6", {"gpus": 3, "gpuMem": "80g"}, ["gpu-a100: asks for GPUs with 80 GiB, the largest there have 40 GiB", "gpu-h100: asks for 3 GPUs, it has 2 (max_gpus)"]),
    "Lonestar6: too much memory": ("tacc-lonestar6", {"ram": "300g"}, ["vm-small", "normal: asks for 300 GiB of memory, it has 256 GiB (max_memory)"]),
    "Delta: nine GPUs": ("ncsa-delta", {"gpus": 9}, ["gpuA40x4: asks for 9 GPUs, it has 4", "gpuH200x8: asks for 9 GPUs, it has 8 (max_gpus)"]),
    "Mila: too many cores": ("mila-cluster", {"cpus": 100}, ["main-cpu: asks for 100 cores, it has 8", "long-cpu: asks for 100 cores, it has 96 (max_cpus)"]),
    "Mila: a card with more memory than there is": ("mila-cluster", {"gpus": 1, "gpuMem": "100g"}, ["main", "80 GiB (gpu_types)"]),
    "Sherlock: more GPUs than a node has": ("stanford-sherlock", {"gpus": 16}, ["gpu: asks for 16 GPUs, it has 8 (max_gpus)"]),
    "ARCHER2: a GPU": ("epcc-archer2", {"gpus": 1}, ["standard: asks for 1 GPUs, it has 0 (max_gpus)", "highmem"]),
    "Bouchet: too much memory": ("yale-bouchet", {"ram": "3t"}, ["day: asks for 3 TiB of memory", "week", "(max_memory)"]),
}


@pytest.mark.parametrize("case", ASKED)
def test_a_job_asks_as_its_site_documents_it(case: str, tmp_path: Path) -> None:
    name, max_duration, needs, expected = ASKED[case]
    assert asked(name, tmp_path, max_duration, **needs) == expected


@pytest.mark.parametrize("case", REFUSED)
def test_a_job_too_large_is_refused_with_the_limit_named(case: str, tmp_path: Path) -> None:
    name, needs, said = REFUSED[case]
    with pytest.raises(MessageError) as refusal:
        asked(name, tmp_path, "1h", **needs)
    for part in said:
        assert part in str(refusal.value)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_in_both_tables(path: Path) -> None:
    assert sum(case[0] == path.stem for case in ASKED.values()) >= 2
    assert any(case[0] == path.stem for case in REFUSED.values())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_experiment_that_asks_for_nothing_fits_and_is_not_cut_short(path: Path, tmp_path: Path) -> None:
    """Without a time of its own it may run as long as the site's max_duration says, in some partition."""
    site = read(path.stem, tmp_path).site
    gpus = min(partition.min_gpus for partition in site.slurm.partitions.values())
    given = asked(path.stem, tmp_path, None, gpus=gpus)
    days, hours, minutes, _ = map(int, re.split("[-:]", given["time"]))
    assert (days * 24 + hours) * 3600 + minutes * 60 >= site.max_duration


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_modules_are_loaded_by_the_job(path: Path, tmp_path: Path) -> None:
    site = read(path.stem, tmp_path).site
    gpus = min(partition.min_gpus for partition in site.slurm.partitions.values())
    script = preview(site, message("1h", {"gpus": gpus})).files["job.sh"]
    assert ("module load singularity" in script) == (path.stem == "mila-cluster")


def test_sherlock_builds_its_images_in_jobs() -> None:
    from hpcrunner.schedulers.base import BuildJob

    options = read("stanford-sherlock").site.slurm
    lines = build_directives(options, BuildJob("hr-build", Path("/x"), ("true",), {}, 3600))
    assert "--partition=normal" in lines and "--cpus-per-task=4" in lines and "--mem=8192M" in lines
