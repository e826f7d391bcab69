"""Site configs: every error with its place, precedence, sources, extends, paths, and the shipped files."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hpcrunner import plugins, resources
from hpcrunner.config import kinds
from hpcrunner.config.load import Loaded, add_arguments, load, overrides_from, show
from hpcrunner.config.reference import markdown
from hpcrunner.config.schema import Given, Option, Origin, options_of
from hpcrunner.config.site import OPTIONS
from hpcrunner.errors import ConfigError, NotFoundError
from hpcrunner.model import Place, Request
from hpcrunner.schedulers.base import BuildJob, Submission
from hpcrunner.schedulers.slurm.directives import build_directives, directives
from hpcrunner.schedulers.slurm.options import Partition, SlurmOptions, directive

MIB, GIB = 2**20, 2**30
QUEUES = "queues: [{type: fake}]\n"

Write = Callable[..., Path]


class FakeQueues:
    options = {
        "root": Option(kinds.path(), "/queues", "A folder."),
        "match": Option(kinds.regex(), "^local", "Which."),
        "url": Option(kinds.text(), None, "Where."),
        "password": Option(kinds.text(secret=True), None, "Not to be shown."),
    }


class StrictQueues:
    options = {"url": Option(kinds.text(), None, "Where.", is_required=True)}


@pytest.fixture(autouse=True)
def backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two kinds of queues, found as if other distributions had brought them."""
    points = {"queues": {"fake": SimpleNamespace(load=lambda: FakeQueues),
                         "strict": SimpleNamespace(load=lambda: StrictQueues)}}
    monkeypatch.setattr(plugins, "_entry_points", lambda group: points.get(group, {}))


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a file, by default `site.yaml`, into the working directory."""
    monkeypatch.chdir(tmp_path)

    def file(text: str, name: str = "site.yaml") -> Path:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return file


def read(path: Path | None, environ: dict[str, str] | None = None, **overrides: str) -> Loaded:
    return load(path, overrides=overrides, environ={"HOME": "/home/ada", **(environ or {})})


def problems(path: Path | None, environ: dict[str, str] | None = None, **overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(path, environ, **overrides)
    return caught.value.problems


# Values


VALUES: list[tuple[str, str, Any]] = [
    ("max_cores", "8", 8),
    ("max_cores", "null", None),
    ("max_cores", "", None),
    ("max_cores", "~", None),
    ("max_gpus", "0", 0),
    ("max_mem", "2GiB", 2 * GIB),
    ("artifact_limit", "512MiB", 512 * MIB),
    ("artifact_limit", "null", 100 * GIB),
    ("max_duration", "1h30m", 5400.0),
    ("kill_grace", "90s", 90.0),
    ("cpu_only", "true", True),
    ("cpu_only", "Yes", True),
    ("cpu_only", "off", False),
    ("keep", "failed", "failed"),
    ("keep", '"none"', "none"),
    ("queue_match", "^rmq_.*$", re.compile("^rmq_.*$")),
    ("prologue", "|\n  module load apptainer\n  module list\n", "module load apptainer\nmodule list\n"),
    ("pip_args", "[--index-url=http://mirror.lab/simple, 'a b']", ("--index-url=http://mirror.lab/simple", "a b")),
    ("env", "{ACCOUNT: 0123, SWITCH: yes, NOTHING: null, EMPTY: ''}", {"ACCOUNT": "0123", "SWITCH": "yes", "EMPTY": ""}),
    ("pythons", "{3.10: /opt/python3.10}", {"3.10": Path("/opt/python3.10")}),
    ("base_images", "{any: docker://python:3.12, 3.11: /images/py.sif}",
     {"any": "docker://python:3.12", "3.11": "/images/py.sif"}),
    ("binds", "[/data, '/data:/mnt', '/data:/mnt:ro']", ("/data", "/data:/mnt", "/data:/mnt:ro")),
    ("engine", "auto", "auto"),
    ("engine", "apptainer", "apptainer"),
    ("engine_path", "apptainer-1.4", "apptainer-1.4"),
    ("mksquashfs_args", "-comp gzip", "-comp gzip"),
]


@pytest.mark.parametrize(("name", "text", "value"), VALUES)
def test_values_are_read(write: Write, name: str, text: str, value: Any) -> None:
    assert getattr(read(write(f"{QUEUES}{name}: {text}")).site, name) == value


def test_every_option_has_a_default(write: Write) -> None:
    site = read(write(QUEUES)).site
    assert site.state_dir == Path("/home/ada/.hpcrunner")
    assert site.working_dir == Path("/home/ada/.hpcrunner/runs")
    assert site.image_dir == Path("/home/ada/.hpcrunner/images")
    assert (site.max_cores, site.retries, site.keep, site.engine, site.scheduler) == (None, 2, "none", "auto", "direct")
    assert (site.max_duration, site.poll_interval, site.cpu_only) == (96 * 3600, 1, False)
    assert (site.base_images, site.binds) == ({}, ())


def test_defaults_are_not_shared(write: Write) -> None:
    first, second = read(write(QUEUES)).site, read(write(QUEUES)).site
    assert first.env is not second.env


# Problems


BAD_VALUES = [
    ("max_cores: abc", "2:12: max_cores: holds 'abc'; allowed: a whole number, 1 or more"),
    ("max_cores: 0", "2:12: max_cores: holds '0'; allowed: a whole number, 1 or more"),
    ("max_cores: -1", "2:12: max_cores: holds '-1'; allowed: a whole number, 1 or more"),
    ("max_cores: 1_000", "2:12: max_cores: holds '1_000'; allowed: a whole number, 1 or more"),
    ("max_cores: ''", "2:12: max_cores: holds ''; allowed: a whole number, 1 or more"),
    ("max_cores: [1]", "2:12: max_cores: holds a list; allowed: a whole number, 1 or more"),
    ("max_cores: {a: 1}", "2:12: max_cores: holds a mapping; allowed: a whole number, 1 or more"),
    ("max_mem: much", r"2:10: max_mem: holds 'much'.*; allowed: a size such as 512MiB or 2GiB"),
    ("max_duration: soon", r"2:15: max_duration: holds 'soon'.*; allowed: a duration such as 90s, 1h30m or 2d"),
    ("max_duration: 0s", r"2:15: max_duration: holds '0s' \(less than .*\); allowed: a duration"),
    ("cpu_only: maybe", "2:11: cpu_only: holds 'maybe'; allowed: true or false"),
    ("keep: some", "2:7: keep: holds 'some'; allowed: none, failed or all"),
    ("queue_match: '('", r"2:14: queue_match: holds '\(' \(.*unterminated.*\); allowed: a regular expression"),
    ("state_dir: ''", r"2:12: state_dir: holds '' \(empty\); allowed: a path"),
    ("state_dir: $NOWHERE/x", r"2:12: state_dir: holds '\$NOWHERE/x' \(the variable NOWHERE is not set\); allowed: a path"),
    ("state_dir: a$/x", r"2:12: state_dir: holds 'a\$/x' \(no variable's name after \$; .*\); allowed: a path"),
    ("state_dir: ~nobody.at.all/x", r"2:12: state_dir: .* \(~nobody.at.all has no home directory\)"),
    ("engine: docker", r"2:9: engine: holds 'docker' \(known: auto, apptainer, .*\); allowed: auto, or one of hpcrunner's"),
    ("engine: aptainer", r"2:9: engine: holds 'aptainer' \(did you mean apptainer\?\)"),
    ("engine: base", "2:9: engine: holds 'base'"),
    ("scheduler: ../direct", r"2:12: scheduler: holds '\.\./direct'"),
    ("engine_path: ''", "2:14: engine_path: holds ''"),
    ("recipe: ../mine", "2:9: recipe: holds '../mine'; allowed: the name of a file, not a path"),
    ("binds: /data", r"2:8: binds: holds '/data'; allowed: a list, of: SOURCE"),
    ("binds: [/data, '/a:/b:rx']", r"2:16: binds\[1\]: holds '/a:/b:rx'; allowed: SOURCE"),
    ("binds: ['/a,/b']", r"2:9: binds\[0\]: holds '/a,/b'"),
    ("binds: ['/a:b']", r"2:9: binds\[0\]: holds '/a:b' \(the target must be absolute\)"),
    ("binds: [null]", r"2:9: binds\[0\]: holds nothing; allowed: SOURCE"),
    ("env: [A]", "2:6: env: holds a list; allowed: a mapping, from names of variables to: text"),
    ("env: {1A: x}", "2:7: env: has the key '1A'; allowed: names of variables"),
    ("env: {A: [x]}", "2:10: env.A: holds a list; allowed: text"),
    ("base_images: {3.11: ftp://x}", r"2:21: base_images.3.11: holds 'ftp://x'; allowed: the path of an image"),
    ("base_images: {3: /x}", "2:15: base_images: has the key '3'; allowed: a Python version such as 3.11"),
    ("max_core: 1", r"2:1: max_core: unknown; did you mean max_cores\?"),
    ("max-cores: 1", r"2:1: max-cores: unknown; did you mean max_cores\?"),
    ("account: x", "2:1: account: unknown; it belongs under `slurm:`"),
    ("walrus: 1", "2:1: walrus: unknown; `hpcrunner site options` lists all"),
    ("queues: [{type: fake}]", "2:1: queues: is there twice; first in line 1"),
    ("env: {A: 1, A: 2}", "2:13: A: is there twice; first in line 2"),
    ("retries: !!int 3", "2:10: tags have no meaning here: tag:yaml.org,2002:int"),
    ("retries: !secret 3", "2:10: tags have no meaning here: !secret"),
    ("? [a, b]\n: 1", "2:3: a key must be plain text"),
    ("env: {<<: 3}", "2:7: <<: allowed: a mapping, or a list of mappings"),
    ("env: &e {A: *e}", r"2:13: \*e stands for nothing that is complete before it"),
    ("---\nretries: 1", "2:1: a second document begins; one file holds one"),
    ("binds: " + "[" * 30 + "]" * 30, "2:28: nested more than 20 deep"),
]


@pytest.mark.parametrize(("line", "expected"), BAD_VALUES)
def test_a_bad_value_names_its_place_and_what_is_allowed(write: Write, line: str, expected: str) -> None:
    [problem] = problems(write(f"{QUEUES}{line}\n"))
    assert re.match(f"site.yaml:{expected}", problem)


BAD_QUEUES = [
    ("queues: []", "site.yaml: queues: there are none; .* write `queues: .*type: local"),
    ("queues:", "site.yaml: queues: there are none"),
    ("queues: {type: fake}", "site.yaml:1:9: queues: holds a mapping; allowed: a list, of: a mapping, with the `type`"),
    ("queues: [fake]", r"site.yaml:1:10: queues\[0\]: holds 'fake'; allowed: a mapping, with the `type`"),
    ("queues: [{type: fax}]", r"site.yaml:1:17: queues\[0\].type: holds 'fax' \(.*\); allowed: one of hpcrunner's queues"),
    ("queues: [{type: [x]}]", r"site.yaml:1:17: queues\[0\].type: holds a list"),
    ("queues: [{type: fake, tipe: x}]", r"site.yaml:1:23: queues\[0\].tipe: unknown; did you mean type\?"),
    ("queues: [{type: fake, rot: /x}]", r"site.yaml:1:23: queues\[0\].rot: unknown; did you mean root\?"),
    ("queues: [{type: fake, color: 1}]", r"site.yaml:1:23: queues\[0\].color: unknown; known: type, root, match, url, pass"),
    ("queues: [{type: fake, match: (}]", r"site.yaml:1:30: queues\[0\].match: holds '\(' "),
    ("queues: [{type: strict}]", r"site.yaml:1:10: queues\[0\].url: is missing; allowed: text"),
    ("queues: [{type: strict, url: }]", r"site.yaml:1:10: queues\[0\].url: is missing; allowed: text"),
]


@pytest.mark.parametrize(("text", "expected"), BAD_QUEUES)
def test_a_bad_queue(write: Write, text: str, expected: str) -> None:
    [problem] = problems(write(f"{text}\n"))
    assert re.match(expected, problem)


def test_a_queue_backend_that_cannot_be_imported(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ImportError("No module named 'carrier_pigeon'")

    monkeypatch.setattr(plugins, "_entry_points", lambda group: {"pigeon": SimpleNamespace(load=broken)})
    [problem] = problems(write("queues: [{type: pigeon}]"))
    assert problem.startswith("site.yaml:1:17: queues[0].type: 'pigeon' of queues can't be imported: No module named")


BAD_FILES: list[tuple[bytes, str]] = [
    (b"a: [1,\nb: 2", r"site.yaml:\d:\d: this is no YAML: "),
    (b"a: 'x", r"site.yaml:\d:\d: this is no YAML: .*quoted"),
    (b"a: 1\nb: \x01", "site.yaml:2: this is no YAML: .*control characters"),
    (b"a: 1\nb: \xff", "site.yaml:2: is not UTF-8 text"),
    (b"- a", "site.yaml:1:1: the file must be a mapping"),
    (b"hello", "site.yaml:1:1: the file must be a mapping"),
    (b"a: *x", r"site.yaml:1:4: \*x stands for nothing"),
    (b"#" * (MIB + 1), "site.yaml: is larger than 1048576 bytes"),
]


@pytest.mark.parametrize(("data", "expected"), BAD_FILES)
def test_a_bad_file(write: Write, data: bytes, expected: str) -> None:
    path = write("")
    path.write_bytes(data)
    [problem] = problems(path)
    assert re.match(expected, problem)


def test_a_file_that_is_missing_a_folder_or_unreadable(tmp_path: Path, write: Write) -> None:
    assert problems(Path("gone.yaml")) == ["gone.yaml: can't be read: No such file or directory"]
    assert problems(tmp_path) == [f"{tmp_path}: can't be read: Is a directory"]
    assert re.match("there is no file latpop, and no site config .* did you mean laptop?", problems(Path("latpop"))[0])
    path = write(QUEUES)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("root reads every file: run the tests as another user to see this one")
    assert problems(path) == ["site.yaml: can't be read: Permission denied"]


def test_an_empty_file_lacks_queues_only(write: Write) -> None:
    for text in ("", "# nothing\n", "---\n"):
        assert [problem.partition(":")[2] for problem in problems(write(text))] == [
            " queues: there are none; for the StudioML client's local queues write `queues: [{type: local}]`"]
    assert problems(None)[0].startswith("site config: queues: there are none")


@pytest.mark.parametrize("nested", ["[" * 300_000, "- " * 300_000, "{a: " * 200_000])
def test_deep_nesting_is_an_error_and_no_crash(write: Write, nested: str) -> None:
    assert len(problems(write(f"a: {nested}"))) == 1


def test_an_alias_bomb_is_refused(write: Write) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    [problem] = problems(write("\n".join(lines)))
    assert re.match(r"site.yaml:\d:\d+: more than 100000 values, with aliases counted", problem)


def test_all_problems_of_all_places_are_reported_at_once(write: Write) -> None:
    write("max_gpus: many\nwalrus: 1\n", "base.yaml")
    path = write("extends: base.yaml\nqueues: [{type: fake, rot: 1, match: (}]\nmax_cores: 0\nbinds: ['a,b', 'c,d']\n")
    found = problems(path, {"HPCRUNNER_MAX_MEM": "much", "HPCRUNNER_RETRYS": "1"}, kill_grace="soon")
    assert [problem.partition(": ")[0] for problem in found] == [
        "HPCRUNNER_RETRYS", "base.yaml:2:1", "base.yaml:1:11", "site.yaml:2:23", "site.yaml:2:38", "site.yaml:3:12",
        "site.yaml:4:9", "site.yaml:4:16", "HPCRUNNER_MAX_MEM", "--kill-grace"]


def test_an_overridden_value_is_checked_all_the_same(write: Write) -> None:
    found = problems(write(f"{QUEUES}max_cores: few\n"), {"HPCRUNNER_MAX_CORES": "some"}, max_cores="many")
    assert [problem.partition(": ")[0] for problem in sorted(found)] == [
        "--max-cores", "HPCRUNNER_MAX_CORES", "site.yaml:2:12"]


ENVIRONMENT = [
    ("HPCRUNNER_MAX_CORES", "abc", "HPCRUNNER_MAX_CORES: holds 'abc'; allowed: a whole number, 1 or more"),
    ("HPCRUNNER_MAX_CORES", "", "HPCRUNNER_MAX_CORES: holds ''; allowed: a whole number, 1 or more"),
    ("HPCRUNNER_MAX_CORE", "1", "HPCRUNNER_MAX_CORE: there is no such option; did you mean HPCRUNNER_MAX_CORES?"),
    ("HPCRUNNER_WALRUS", "1", "HPCRUNNER_WALRUS: there is no such option"),
    ("HPCRUNNER_max_cores", "1", "HPCRUNNER_max_cores: there is no such option; did you mean HPCRUNNER_MAX_CORES?"),
    ("HPCRUNNER_BINDS", "/a", "HPCRUNNER_BINDS: binds holds more than one value; it can only be set in a file"),
]


@pytest.mark.parametrize(("name", "value", "expected"), ENVIRONMENT)
def test_a_bad_variable(write: Write, name: str, value: str, expected: str) -> None:
    assert problems(write(QUEUES), {name: value}) == [expected]


def test_variables_that_are_no_options_are_let_through(write: Write) -> None:
    path = write(QUEUES)
    read(path, dict.fromkeys(["HPCRUNNER_REQUIRE", "HPCRUNNER_STUDIOML", "HPCRUNNER_EXPERIMENT", "HPCRUNNER_RUN_DIR",
                              "HPCRUNNER_TAG", "HPCRUNNER_SLURM_DIR", "HPCRUNNER_SLURM_PORT", "HPCRUNNERX"], "anything"))
    assert read(None, {"HPCRUNNER_SITE": str(path)}).sources["queues"] == "site.yaml:1"


def test_a_secret_is_not_repeated_in_an_error() -> None:
    given = Given("hunter2", Origin("site.yaml", Path(), {}), 1, 1)
    with pytest.raises(ConfigError, match="holds something else; allowed: text"):
        kinds.text("[0-9]+", secret=True).read(given, "password")


# Precedence and sources


def test_precedence_and_sources(write: Write) -> None:
    write("max_cores: 1\nmax_gpus: 1\nmax_jobs: 1\nretries: 1\nenv: {A: 1, B: 1}\n", "base.yaml")
    path = write(f"extends: base.yaml\n{QUEUES}max_cores: 2\nmax_gpus: 2\nmax_jobs: 2\nenv:\n  B: 2\n  C: 2\n")
    loaded = read(path, {"HPCRUNNER_MAX_CORES": "3", "HPCRUNNER_MAX_GPUS": "3"}, max_cores="4")
    site, sources = loaded.site, loaded.sources
    assert (site.max_cores, site.max_gpus, site.max_jobs, site.retries) == (4, 3, 2, 1)
    assert site.env == {"A": "1", "B": "2", "C": "2"}
    assert {key: sources[key] for key in ("max_cores", "max_gpus", "max_jobs", "retries", "max_builds")} == {
        "max_cores": "--max-cores", "max_gpus": "HPCRUNNER_MAX_GPUS", "max_jobs": "site.yaml:5",
        "retries": "base.yaml:4", "max_builds": "default"}
    assert (sources["env.A"], sources["env.B"]) == ("base.yaml:5", "site.yaml:7")
    assert sources["queues[0].type"] == "site.yaml:2"
    assert set(OPTIONS) <= set(sources)


def test_null_puts_the_default_back(write: Write) -> None:
    write("retries: 5\nenv: {A: 1, B: 1}\n", "base.yaml")
    path = write(f"extends: base.yaml\n{QUEUES}retries: null\nmax_cores: 3\nenv: {{A: }}\n")
    loaded = read(path, {"HPCRUNNER_MAX_CORES": "null"})
    assert (loaded.site.retries, loaded.site.max_cores, loaded.site.env) == (2, None, {"B": "1"})
    assert (loaded.sources["retries"], loaded.sources["max_cores"]) == ("default", "default")


def test_arguments_reach_the_site(write: Write) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given = parser.parse_args(["--max-cores", "2", "--cpu-only", "--no-debug", "--state-dir=s", "--retries", "5"])
    overrides = overrides_from(given)
    assert overrides == {"max_cores": "2", "cpu_only": "true", "debug": "false", "state_dir": "s", "retries": "5"}
    site = read(write(f"{QUEUES}debug: true\n"), **overrides).site
    assert (site.max_cores, site.cpu_only, site.debug, site.retries) == (2, True, False, 5)
    assert "Default: 96h" in parser.format_help()
    assert not hasattr(given, "option_binds")


SHOWN = r"""
queues:
  - {type: fake, root: sub, url: "it's \"odd\" # really \\ \t\u00e9\u0085", password: hunter2}
  - {type: fake, match: '^a[:#] *$'}
state_dir: $HOME/state $$5
env: {A: "", B: "null", C: " x ", D: "a: b", E: '- x', F: '#', G: "{", H: "multi\nline", I: '0123', "J": "a:"}
base_images: {3.10: images/py.sif, any: docker://python:3.12}
binds: ['/data:/mnt/$$x:ro']
max_mem: 1234567
artifact_limit: 1.5GiB
max_duration: 36h
poll_interval: 0.25s
queue_match: ^rmq_
keep: failed
epilogue: |
  module load x

    indented
prologue: " odd\n"
cpu_only: on
"""


def test_show_loads_to_the_same_site(write: Write) -> None:
    loaded = read(write(SHOWN), {"HPCRUNNER_MAX_CORES": "3"}, retries="4")
    text = show(loaded)
    lines = text.splitlines()
    assert "max_cores: 3  # HPCRUNNER_MAX_CORES" in lines
    assert "retries: 4  # --retries" in lines
    assert "state_dir: /home/ada/state $$5  # site.yaml:5" in lines
    assert "  3.10: " + str(Path.cwd() / "images/py.sif") + "  # site.yaml:7" in lines
    assert "max_gpus: null  # default" in lines
    assert '    password: "***"  # site.yaml:3' in lines
    assert "hunter2" not in text
    assert all("  # " in line for line in lines if re.match(r"\w+:", line))
    again = read(write(text.replace('"***"', "hunter2"), "elsewhere/shown.yaml"))
    assert again.site == loaded.site


def test_show_of_a_site_with_defaults_only(write: Write) -> None:
    loaded = read(write(QUEUES))
    again = read(write(show(loaded), "shown.yaml"), {"HOME": "/home/other"})
    assert again.site == loaded.site
    assert {line.rpartition("  # ")[2] for line in show(loaded).splitlines()} == {"default", "site.yaml:1"}


# Extends


def test_extends_by_path_name_and_list(write: Write) -> None:
    write("retries: 1\nmax_jobs: 1\nbinds: [/a, /b]\n", "lab/base.yaml")
    write("extends: base.yaml\nmax_jobs: 2\n", "lab/group.yaml")
    write("max_jobs: 3\nmax_builds: 3\n", "other.yaml")
    site = read(write(f"extends: [laptop, lab/group.yaml, ./other.yaml]\n{QUEUES}binds: [/c]\n")).site
    assert (site.retries, site.max_jobs, site.max_builds, site.binds) == (1, 3, 3, ("/c",))
    assert site.store_roots == (Path("/home/ada/studio-store"),)
    assert [queue.type for queue in site.queues] == ["fake"]


def test_paths_in_extended_files_are_relative_to_those(write: Write) -> None:
    write("working_dir: runs\ntemplate_dirs: [templates]\n", "lab/base.yaml")
    loaded = read(write(f"extends: lab/base.yaml\n{QUEUES}state_dir: state\n"))
    assert loaded.site.working_dir == Path.cwd() / "lab/runs"
    assert loaded.site.template_dirs == (Path.cwd() / "lab/templates",)
    assert loaded.site.state_dir == Path.cwd() / "state"
    assert loaded.sources["working_dir"] == "lab/base.yaml:1"


def test_bad_extends(write: Write) -> None:
    cases = {
        "gone.yaml": "site.yaml:1:10: extends: gone.yaml: can't be read: No such file or directory",
        "labtop": "site.yaml:1:10: extends: there is no file labtop, and no site config of this name ships with "
                  "hpcrunner; did you mean laptop?",
        "lumi": "site.yaml:1:10: extends: there is no file lumi, and no site config of this name ships with "
                "hpcrunner; did you mean csc-lumi?",
        "$GONE/x.yaml": "site.yaml:1:10: extends: holds '$GONE/x.yaml' (the variable GONE is not set)",
        "[{a: 1}]": "site.yaml:1:11: extends: allowed: the name of a shipped site config, a path, or a list of these",
        "site.yaml": "site.yaml:1:10: extends: goes in a circle: site.yaml -> site.yaml",
    }
    for text, expected in cases.items():
        assert problems(write(f"extends: {text}\n{QUEUES}")) == [expected]


def test_a_circle_and_a_long_chain_of_extends(write: Write) -> None:
    write("extends: site.yaml\n", "b.yaml")
    assert problems(write(f"extends: b.yaml\n{QUEUES}")) == [
        "b.yaml:1:10: extends: goes in a circle: site.yaml -> b.yaml -> site.yaml"]
    for number in range(12):
        write(f"extends: f{number + 1}.yaml\n", f"f{number}.yaml")
    assert problems(Path("f0.yaml")) == ["f10.yaml:1:10: extends: more than 10 files extend one another"]
    write(QUEUES, "f10.yaml")
    assert read(Path("f0.yaml")).site.queues[0].type == "fake"


def test_two_files_may_extend_the_same_one(write: Write) -> None:
    write(QUEUES, "base.yaml")
    for name in ("a", "b"):
        write(f"extends: base.yaml\nmax_jobs: 1\nenv: {{{name}: 1}}\n", f"{name}.yaml")
    assert read(write("extends: [a.yaml, b.yaml]\n")).site.env == {"a": "1", "b": "1"}


# The section `slurm`


def slurm(write: Write, text: str, **settings: Any) -> Any:
    return read(write(f"{QUEUES}scheduler: slurm\nslurm: {text}\n"), **settings).site.slurm


def test_slurm_has_a_default_for_everything(write: Write) -> None:
    assert read(write(QUEUES)).site.slurm is None
    assert slurm(write, "{}") == SlurmOptions()
    held = slurm(write, "{partitions: {cpu: {}}}")
    assert held.partitions == {"cpu": Partition()}
    assert (Partition().max_walltime, Partition().max_gpus, Partition().preemptible) == (None, 0, False)


@pytest.mark.parametrize(("text", "name", "value"), [
    ("{account: p123}", "account", "p123"),
    ("{gpu_types: {a100: 40GiB, h100.80: 80GB}}", "gpu_types", {"a100": 40 * GIB, "h100.80": 80 * GIB}),
    ("{export: none}", "export", "NONE"),
    ("{export: 'A,B_2'}", "export", "A,B_2"),
    ("{modules: [apptainer/1.3.4, gcc]}", "modules", ("apptainer/1.3.4", "gcc")),
    ("{constraint: 'a100|h100&ib'}", "constraint", "a100|h100&ib"),
    ("{directives: [--exclusive]}", "directives", ("--exclusive",)),
    ("{directives: [--reservation=maintenance, '--licenses matlab:1']}", "directives",
     ("--reservation=maintenance", "--licenses matlab:1")),
    ("""{directives: ['--comment="two words, a # and -x"']}""", "directives", ('--comment="two words, a # and -x"',)),
    ("{requeue: always}", "requeue", "always"),
    ("{warn: 0}", "warn", 0.0),
    ("{bin_dir: ~/slurm/bin}", "bin_dir", Path("/home/ada/slurm/bin")),
    ("{partitions: {gpu-long_2.x: {max_walltime: 2d, max_gpus: 4, gpu_types: [a100], directives: [--exclusive]}}, gpu_types: {a100: 40GiB}}", "partitions",
     {"gpu-long_2.x": Partition(max_walltime=2 * 86400, max_gpus=4, gpu_types=("a100",), directives=("--exclusive",))}),
])
def test_values_of_slurm(write: Write, text: str, name: str, value: Any) -> None:
    assert getattr(slurm(write, text), name) == value


BAD_SLURM = [
    ("{acount: x}", r"3:9: slurm.acount: unknown; did you mean account\?"),
    ("{zebra: x}", "3:9: slurm.zebra: unknown; `hpcrunner site options` lists all"),
    ("{partitions: {cpu: {max_cpu: 4}}}", r"3:28: slurm.partitions.cpu.max_cpu: unknown; did you mean max_cpus\?"),
    ("{partitions: {cpu: {memory: 4}}}", r"3:28: slurm.partitions.cpu.memory: unknown; did you mean max_memory\?"),
    ("{partitions: {'a b': {}}}", "3:22: slurm.partitions: has the key 'a b'; allowed: names of partitions"),
    ("{partitions: {'-x': {}}}", "3:22: slurm.partitions: has the key '-x'; allowed: names of partitions"),
    ("{partitions: {'a,b': {}}}", "3:22: slurm.partitions: has the key 'a,b'; allowed: names of partitions"),
    ("{partitions: [cpu, gpu]}", "3:21: slurm.partitions: holds a list; allowed: a mapping, from names of partitions to"),
    ("{partitions: {cpu: 4}}", "3:27: slurm.partitions.cpu: holds '4'; allowed: a mapping of options"),
    ("{partition: gpu}", r"3:9: slurm.partition: unknown; did you mean partitions\?"),
    ("{max_walltime: 2d}", "3:9: slurm.max_walltime: unknown; it belongs in an entry of `partitions:`"),
    ("{partitions: {max_walltime: 2d}}", "3:36: slurm.partitions.max_walltime: `max_walltime` is an option of an entry of slurm.partitions: indent it further"),
    ("{partitions: {cpu: }}", "3:27: slurm.partitions.cpu: holds nothing, and inherits nothing: write `cpu: {}`"),
    ("{partitions: {gpu: {gpus: 4}}}", r"3:28: slurm.partitions.gpu.gpus: unknown; did you mean max_gpus\?"),
    ("{partitions: {cpu: {max_walltime: 30s}}}", r"3:42: slurm.partitions.cpu.max_walltime: holds '30s' \(less than 60s\)"),
    ("{partitions: {cpu: {max_walltime: 1440}}}", r"3:42: slurm.partitions.cpu.max_walltime: holds '1440' \(without a unit; Slurm's 1440 is 1440m\); allowed: .* 2-12:00:00"),
    ("{partitions: {cpu: {max_walltime: UNLIMITED}}}", r"3:42: slurm.partitions.cpu.max_walltime: holds 'UNLIMITED' \(leave it out for no limit\)"),
    ("{partitions: {cpu: {max_walltime: infinite}}}", r"3:42: slurm.partitions.cpu.max_walltime: holds 'infinite' \(leave it out for no limit\)"),
    ("{partitions: {cpu: {max_memory: 8000}}}", r"3:40: slurm.partitions.cpu.max_memory: holds '8000' \(without a unit; sinfo's 8000 is 8000MiB\); allowed: a size"),
    ("{partitions: {cpu: {max_disk: 8000+}}}", r"3:38: slurm.partitions.cpu.max_disk: holds '8000\+' \(without a unit; sinfo's 8000 is 8000MiB\)"),
    ("{default_memory: 4000}", r"3:25: slurm.default_memory: holds '4000' \(without a unit"),
    ("{gpu_types: {a100: 40}}", r"3:27: slurm.gpu_types.a100: holds '40' \(without a unit"),
    ("{partitions: {cpu: {max_walltime: long}}}", "3:42: slurm.partitions.cpu.max_walltime: holds 'long'; allowed: a duration"),
    ("{partitions: {cpu: {max_memory: much}}}", "3:40: slurm.partitions.cpu.max_memory: holds 'much'; allowed: a size"),
    ("{partitions: {cpu: {gpu_types: a100}}}", "3:39: slurm.partitions.cpu.gpu_types: holds 'a100'; allowed: a list"),
    ("{account: 'a b'}", "3:18: slurm.account: holds 'a b'; allowed: an account"),
    ("{qos: $(id)}", r"3:14: slurm.qos: holds '\$\(id\)'; allowed: a QOS"),
    ('{constraint: "a\\nb"}', r"3:21: slurm.constraint: holds 'a\\nb'; allowed: features"),
    ("{memory_flag: mem_per_cpu}", "3:22: slurm.memory_flag: holds 'mem_per_cpu'; allowed: mem, mem-per-cpu, mem-per-gpu or none"),
    ("{gpu_types: {a100: big}}", "3:27: slurm.gpu_types.a100: holds 'big'; allowed: a size"),
    ("{gpu_types: {'a 100': 1}}", "3:21: slurm.gpu_types: has the key 'a 100'; allowed: names of GPU types"),
    ("{export: 'A;B'}", "3:17: slurm.export: holds 'A;B'; allowed: ALL, NONE, NIL, or names of variables"),
    ("{modules: ['a; b']}", r"3:19: slurm.modules\[0\]: holds 'a; b'; allowed: the name of a module"),
    ("{modules: [-f]}", r"3:19: slurm.modules\[0\]: holds '-f'"),
    ("{max_array: 0}", "3:20: slurm.max_array: holds '0'; allowed: a whole number, 1 or more"),
    ("cpu", "3:8: slurm: holds 'cpu'; allowed: a mapping of options"),
    ("[]", "3:8: slurm: holds a list; allowed: a mapping of options"),
]


@pytest.mark.parametrize(("text", "expected"), BAD_SLURM)
def test_a_bad_value_of_slurm(write: Write, text: str, expected: str) -> None:
    [problem] = problems(write(f"{QUEUES}scheduler: slurm\nslurm: {text}\n"))
    assert re.match(f"site.yaml:{expected}", problem)


def test_all_problems_of_slurm_are_reported_at_once_and_whoever_is_the_scheduler(write: Write) -> None:
    text = "{acount: x, partitions: {'a b': {}, cpu: {max_cpus: 0, max_cpu: 1}}, directives: [--time=1, -x]}"
    found = problems(write(f"{QUEUES}scheduler: direct\nslurm: {text}\n"))
    assert [problem.partition(": ")[2].partition(":")[0] for problem in found] == [
        "slurm.acount", "slurm.partitions", "slurm.partitions.cpu.max_cpu", "slurm.partitions.cpu.max_cpus",
        "slurm.directives[0]", "slurm.directives[1]"]


DIRECTIVES = [
    ("--partition=gpu", "--partition is set by hpcrunner itself; the site's options for it: partitions"),
    ("--mem=5G", "--mem is set by hpcrunner itself; the site's options for it: memory_flag, default_memory"),
    ("--part=gpu", "--partition is set by hpcrunner itself"),  # sbatch takes abbreviations
    ("--p=gpu", "--parsable is set by hpcrunner itself"),
    ("--par gpu", "--parsable is set by hpcrunner itself"),
    ("--tim=1", "--time is set by hpcrunner itself"),
    ("--time", "--time is set by hpcrunner itself"),
    ("--no-req", "--no-requeue is set by hpcrunner itself"),
    ("--job=x", "--job-name is set by hpcrunner itself"),
    ("--gr=gpu:1", "--gres is set by hpcrunner itself"),
    ("--wrap=reboot", "--wrap is set by hpcrunner itself"),
    ("--ar=0-9", "--array is set by hpcrunner itself"),
    ("--reservation=x --time=5", "it must be one option; blanks in its value need quotes"),
    ("--licenses x --time=5", "it must be one option"),
    ("--exclusive --hold", "it must be one option"),
    ("--comment=two words", "it must be one option"),
    ('--comment="open', "No closing quotation"),
    ("-p gpu", "allowed: a long option of sbatch"),
    ("reservation=x", "allowed: a long option of sbatch"),
    ("#SBATCH --reservation=x", "allowed: a long option of sbatch"),
    ("--Time=1", "allowed: a long option of sbatch"),
    ("--", "allowed: a long option of sbatch"),
    ("--comment=a\\nb", "allowed: a long option of sbatch"),
    ("--comment=a\\x85b", "it must be one line"),
]


@pytest.mark.parametrize("where", ["directives: [{}]", "partitions: {{cpu: {{directives: [{}]}}}}"])
@pytest.mark.parametrize(("directive", "expected"), DIRECTIVES)
def test_directives_that_are_managed_or_more_than_one(write: Write, directive: str, expected: str, where: str) -> None:
    quoted = '"' + directive.replace('"', '\\"') + '"'
    [problem] = problems(write(f"{QUEUES}slurm: {{{where.format(quoted)}}}\n"))
    assert "directives[0]: holds " in problem
    assert expected in problem


def test_whatever_hpcrunner_itself_tells_sbatch_is_managed() -> None:
    """Otherwise a site's directive could silently win over it."""
    told = set()
    for memory, gpu, kind in product(("mem", "mem-per-cpu", "mem-per-gpu"), ("gres", "gpus", "gpus-per-node"),
                                     ("gres", "constraint")):
        for requeue, build in product(("always", "never"), (False, True)):
            options = replace(SlurmOptions(), account="a", qos="q", memory_flag=memory, gpu_flag=gpu, gpu_type_flag=kind,
                              requeue=requeue, disk_flag="tmp", array_throttle=2, build_partition="cpu")
            job = Submission("t", Path("/s"), Path("/r"), Request(2, GIB, GIB, 1), 60, Place("cpu", gpu_type="a100"), avoid=("n1",))
            lines = build_directives(options, BuildJob("b", Path("/f"), [], {}, 60)) if build else directives(
                options, job, 30, name="n", folder=Path("/f"), log=Path("/l"), array=3)
            told |= {line.removeprefix("--").partition("=")[0] for line in lines}
    assert len(told) > 20
    for name in told:
        with pytest.raises(ConfigError, match="is set by hpcrunner itself"):
            directive().read(Given(f"--{name}=1", Origin("site.yaml", Path(), {}), 1, 1), "directives")


def test_partitions_merge_key_by_key(write: Write) -> None:
    write("slurm:\n  account: base\n  qos: base\n  partitions:\n    cpu: {max_cpus: 4, max_memory: 8GiB}\n"
          "    old: {max_cpus: 1}\n    gpu: {max_gpus: 2}\n  directives: [--exclusive]\n", "base.yaml")
    path = write(f"extends: base.yaml\n{QUEUES}scheduler: slurm\nslurm:\n  account: mine\n  qos: null\n  partitions:\n"
                 "    new: {max_cpus: 9}\n    gpu: {max_gpus: 8, max_cpus: 16}\n    cpu: {max_memory: null}\n    old:\n"
                 "  directives: [--reservation=x]\n")
    loaded = read(path)
    held = loaded.site.slurm
    # An experiment goes to the first that it fits in: the order is that of the file that is extended.
    assert list(held.partitions) == ["cpu", "gpu", "new"]
    assert held.partitions == {"cpu": Partition(max_cpus=4), "gpu": Partition(max_gpus=8, max_cpus=16),
                               "new": Partition(max_cpus=9)}
    assert (held.account, held.qos, held.directives) == ("mine", None, ("--reservation=x",))
    assert {key: loaded.sources[f"slurm.{key}"] for key in ("account", "partitions.cpu.max_cpus", "partitions.gpu.max_gpus")} == {
        "account": "site.yaml:5", "partitions.cpu.max_cpus": "base.yaml:5", "partitions.gpu.max_gpus": "site.yaml:9"}


APART = [
    ("{gpu_types: {a100: 40GiB}, partitions: {gpu: {max_gpus: 1, gpu_types: [A100]}}}",
     r"3:78: slurm.partitions.gpu.gpu_types: holds 'A100', which is not in slurm.gpu_types; did you mean a100\?"),
    ("{partitions: {gpu: {max_gpus: 1, gpu_types: [a100]}}}", "3:52: slurm.partitions.gpu.gpu_types: holds 'a100', which is not in slurm.gpu_types; that is empty"),
    ("{partitions: {gpu: {min_gpus: 1}}}", "3:38: slurm.partitions.gpu.min_gpus: is more than max_gpus, 0: nothing would fit"),
    ("{partitions: {cpu: {max_walltime: 90s}}}", "3:42: slurm.partitions.cpu.max_walltime: leaves a program no time beside kill_grace, 30s, and 1m"),
    ("{poll_min: 5m}", "3:19: slurm.poll_min: is more than poll_max, 3m"),
    ("{poll_max: 5s}", "3:8: slurm.poll_min: is more than poll_max, 5s"),
]


@pytest.mark.parametrize(("text", "expected"), APART)
def test_options_of_slurm_that_do_not_go_together(write: Write, text: str, expected: str) -> None:
    [problem] = problems(write(f"{QUEUES}scheduler: slurm\nslurm: {text}\n"))
    assert re.match(f"site.yaml:{expected}", problem)


def test_what_goes_together_is_told_of_all_files_together(write: Write) -> None:
    """What is wrong by itself may be right with what it extends."""
    write("scheduler: slurm\nslurm: {gpu_types: {a100: 40GiB}, partitions: {gpu: {max_gpus: 2}, old: {}}}\n", "base.yaml")
    path = write(f"extends: base.yaml\n{QUEUES}slurm: {{partitions: {{gpu: {{min_gpus: 1, gpu_types: [a100]}}, old: }}}}\n")
    assert read(path).site.slurm.partitions == {"gpu": Partition(max_gpus=2, min_gpus=1, gpu_types=("a100",))}


def test_slurm_for_another_scheduler(write: Write) -> None:
    text = f"{QUEUES}slurm: {{account: x}}\n"
    assert problems(write(text)) == [
        "site.yaml:2:8: slurm: has no effect with scheduler: direct; say `scheduler: slurm`, or `extends: slurm`"]
    assert read(write(f"extends: slurm\n{text}")).site.scheduler == "slurm"
    assert read(write(text), {"HPCRUNNER_SCHEDULER": "slurm"}).site.scheduler == "slurm"
    # Who says so means it.
    assert read(write(f"extends: slurm\n{text}"), scheduler="direct").site.scheduler == "direct"


@pytest.mark.parametrize(("text", "seconds"), [
    ("2-12:00:00", 60 * 3600), ("1-0", 86400), ("2-12", 60 * 3600), ("12:00:00", 43200), ("30:00", 1800), ("90m", 5400)])
def test_times_as_slurm_prints_them(write: Write, text: str, seconds: float) -> None:
    held = slurm(write, f"{{partitions: {{cpu: {{max_walltime: '{text}'}}}}}}")
    assert held.partitions["cpu"].max_walltime == seconds


def test_what_it_names_must_be_on_the_host_that_checks_it(write: Write, tmp_path: Path) -> None:
    write("", "slurm.conf")
    path = write(f"{QUEUES}scheduler: slurm\nslurm: {{bin_dir: bin, conf: slurm.conf}}\njob_template: mine.sh.j2\nrecipe: gone\n")
    with pytest.raises(ConfigError) as caught:
        load(path, environ={"HOME": "/home/ada"}, here=True)
    folders = resources.folder("templates"), resources.folder("recipes")
    assert caught.value.problems == [
        f"site.yaml:4:15: job_template: there is no mine.sh.j2 in {folders[0]}",
        f"site.yaml:5:9: recipe: there is no gone.def.j2 in {folders[1]}",
        f"site.yaml:3:18: slurm.bin_dir: there is no sbatch in {tmp_path}/bin on this host"]
    read(path)  # Other commands tell when they need it.
    write("", "bin/sbatch")
    path = write(f"{QUEUES}scheduler: slurm\nslurm: {{bin_dir: bin, conf: slurm.conf}}\n")
    assert load(path, environ={"HOME": "/home/ada"}, here=True).warnings == ()


SLURM_SHOWN = """
queues: [{type: fake}]
scheduler: slurm
slurm:
  account: p123
  partitions:
    cpu: {max_walltime: 2d, max_cpus: 64, max_memory: 256GiB, max_disk: 1.5TB}
    gpu.long: {max_walltime: 90m, max_gpus: 4, min_gpus: 1, gpu_types: [a100], preemptible: yes, qos: long,
      constraint: 'a&b|c', directives: ['--comment="it''s # odd"', --exclusive]}
    "null": {}
  gpu_types: {a100: 40GiB, h100: 80GB}
  export: none
  modules: [apptainer/1.3]
  directives: ['--licenses=a:1,b:2']
  settle: 2.5s
  bin_dir: $HOME/slurm $$x
  array_throttle: 7
"""


def test_show_of_slurm_loads_to_the_same_site(write: Write) -> None:
    loaded = read(write(SLURM_SHOWN))
    text = show(loaded)
    lines = text.splitlines()
    assert "  account: p123  # site.yaml:5" in lines
    assert "      max_walltime: 2d  # site.yaml:7" in lines
    assert "      preemptible: true  # site.yaml:8" in lines
    assert "  memory_flag: mem  # default" in lines
    assert "  bin_dir: /home/ada/slurm $$x  # site.yaml:16" in lines
    again = read(write(text, "elsewhere/shown.yaml"), {"HOME": "/home/other"})
    assert again.site == loaded.site
    assert list(again.site.slurm.partitions) == ["cpu", "gpu.long", "null"]
    assert show(again).replace("elsewhere/shown.yaml", "site.yaml").count("# site.yaml") > 30


def test_a_file_with_slurm_holds_no_secrets(write: Write) -> None:
    path = write(SLURM_SHOWN)
    path.chmod(0o644)
    loaded = read(path)
    assert loaded.warnings == ()
    assert "***" not in show(loaded)


def test_slurm_can_only_be_set_in_a_file(write: Write) -> None:
    assert problems(write(QUEUES), {"HPCRUNNER_SLURM": "x"}) == [
        "HPCRUNNER_SLURM: slurm holds more than one value; it can only be set in a file"]
    assert read(write(QUEUES), {"HPCRUNNER_SCHEDULER": "slurm"}).site.scheduler == "slurm"


def test_the_reference_page_has_every_key_of_slurm() -> None:
    page = markdown()
    for cls in (SlurmOptions, Partition):
        for name, option in options_of(cls).items():
            assert f"### `{name}`\n\n{option.doc}\n" in page


# YAML


def test_anchors_and_merge_keys(write: Write) -> None:
    path = write("""\
queues:
  - &first {type: fake, url: a, match: x}
  - {<<: *first, url: b}
  - {<<: [{url: c}, *first]}
env: {A: &value text, B: *value}
""")
    loaded = read(path)
    assert [queue.options["url"] for queue in loaded.site.queues] == ["a", "b", "c"]
    assert {queue.options["match"].pattern for queue in loaded.site.queues} == {"x"}
    assert loaded.site.env == {"A": "text", "B": "text"}
    assert loaded.sources["queues[1].match"] == "site.yaml:2"


def test_byte_order_mark_and_crlf(write: Write) -> None:
    path = write("")
    path.write_bytes("\ufeffqueues: [{type: fake}]\r\nenv: {A: é}\r\n".encode())
    assert read(path).site.env == {"A": "é"}


def test_without_libyaml(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    import yaml

    monkeypatch.delattr(yaml, "CSafeLoader")
    assert read(write(f"{QUEUES}env: {{A: 0123}}\n")).site.env == {"A": "0123"}
    assert problems(write("a: [1,\nb: 2"))[0].startswith("site.yaml:2:")
    assert problems(write("a: 1\nb: \x01"))[0].startswith("site.yaml:2: this is no YAML")


# Paths


PATHS = [
    ("/abs", "/abs"),
    ("rel/x", "{cwd}/site/rel/x"),
    ("./x", "{cwd}/site/x"),
    ("~", "/home/ada"),
    ("~/x", "/home/ada/x"),
    ("$SCRATCH/x", "/scratch/x"),
    ("${SCRATCH}x", "/scratchx"),
    ("${GONE:-/else}/x", "/else/x"),
    ("${EMPTY:-~/else}/x", "/home/ada/else/x"),
    ("a$$b", "{cwd}/site/a$b"),
    ("a~", "{cwd}/site/a~"),
]


@pytest.mark.parametrize(("text", "expected"), PATHS)
def test_paths(write: Write, text: str, expected: str) -> None:
    path = write(f"{QUEUES}state_dir: '{text}'\n", "site/site.yaml")
    environ = {"SCRATCH": "/scratch", "EMPTY": ""}
    assert str(read(path, environ).site.state_dir) == expected.format(cwd=Path.cwd())


def test_paths_outside_of_files_are_relative_to_the_working_directory(write: Write) -> None:
    site = read(write(QUEUES, "site/site.yaml"), {"HPCRUNNER_STATE_DIR": "state"}, build_tmpdir="~/tmp").site
    assert (site.state_dir, site.build_tmpdir) == (Path.cwd() / "state", Path("/home/ada/tmp"))


def test_paths_within_other_kinds(write: Write) -> None:
    site = read(write(f"{QUEUES}binds: ['~/d:/d', data, '$S/d:$S/d:ro']\nbase_images: {{any: $S/py.sif}}\n"
                      "engine_path: ~/bin/apptainer\n"), {"S": "/scratch"}).site
    assert site.binds == ("/home/ada/d:/d", f"{Path.cwd()}/data", "/scratch/d:/scratch/d:ro")
    assert (site.base_images, site.engine_path) == ({"any": "/scratch/py.sif"}, "/home/ada/bin/apptainer")


def test_an_empty_variable_counts_as_not_set(write: Write) -> None:
    [problem] = problems(write(f"{QUEUES}state_dir: $EMPTY/runs\n"), {"EMPTY": ""})
    assert "the variable EMPTY is not set" in problem


# Warnings


def test_an_engine_without_base_images_is_a_warning(write: Write) -> None:
    assert "without base_images" in read(write(f"{QUEUES}engine: apptainer\n")).warnings[0]
    assert read(write(f"{QUEUES}engine: apptainer\nbase_images: {{any: /x}}\n")).warnings == ()
    assert read(write(QUEUES)).warnings == ()


def test_a_readable_file_with_secrets_is_a_warning(write: Write) -> None:
    path = write("queues: [{type: fake, password: hunter2}]\n")
    path.chmod(0o640)
    [warning] = read(path).warnings
    assert warning == "site.yaml: holds secrets, and others may read it; mend it with `chmod 600`"
    path.chmod(0o600)
    assert read(path).warnings == ()
    path = write("queues: [{type: fake, password: null}]\n")
    path.chmod(0o644)
    assert read(path).warnings == ()


# What ships


SITE_CONFIGS = sorted(resources.folder("site-configs").glob("*.yaml"))


@pytest.mark.parametrize("path", SITE_CONFIGS, ids=lambda path: path.name)
def test_shipped_site_configs_are_valid(path: Path) -> None:
    assert read(path).warnings == ()
    assert read(Path(path.stem)).site == read(path).site


def test_laptop_uses_the_clients_queue() -> None:
    assert "laptop.yaml" in [path.name for path in SITE_CONFIGS]
    [queue] = read(Path("laptop")).site.queues
    assert (queue.type, queue.options["root"]) == ("local", Path("/home/ada/.studioml/queue"))
    [queue] = read(Path("laptop"), {"STUDIOML_HOME": "/data/studioml"}).site.queues
    assert queue.options["root"] == Path("/data/studioml/queue")


def test_the_line_that_an_error_recommends_works(write: Write) -> None:
    [queue] = read(write("queues: [{type: local}]")).site.queues
    assert queue.options["root"] == Path("/home/ada/.studioml/queue")
    [queue] = read(write("queues: [{type: local}]"), {"STUDIOML_HOME": "/data/studioml"}).site.queues
    assert queue.options["root"] == Path("/data/studioml/queue")


def test_a_file_wins_over_a_shipped_config_of_its_name(write: Write) -> None:
    assert read(write(f"{QUEUES}retries: 7\n", "laptop")).site.retries == 7


def test_resources_are_found_in_a_checkout_and_in_an_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "hpcrunner"
    monkeypatch.setattr(resources, "__file__", str(package / "resources.py"))
    with pytest.raises(NotFoundError, match="incomplete"):
        resources.folder("recipes")
    (tmp_path / "recipes").mkdir()
    assert resources.folder("recipes") == tmp_path / "recipes"
    (package / "recipes").mkdir(parents=True)
    assert resources.folder("recipes") == package / "recipes"


def test_backends_are_found_by_the_name_of_their_module() -> None:
    assert plugins.load("queues", "local").__module__ == "hpcrunner.queues.local"
    assert plugins.load("queues", "fake") is FakeQueues
    assert plugins.names("queues")[:2] == ["fake", "local"]
    assert plugins.shipped("queues") == ["local"]
    assert plugins.is_known("schedulers", "direct")
    for name in ("base", "_helpers", "Local", "local.x", "nothing"):
        assert not plugins.is_known("queues", name)
    with pytest.raises(ConfigError, match="there is no 'nothing' among hpcrunner's queues; known: fake, local, strict"):
        plugins.load("queues", "nothing")


def test_the_reference_page_is_up_to_date() -> None:
    page = Path(__file__).parent.parent / "docs" / "site-config.md"
    assert page.read_text() == markdown(), "run: python -m hpcrunner.config.reference >docs/site-config.md"
    for name in OPTIONS:
        assert f"### `{name}`" in markdown()


def test_loading_imports_nothing_heavy(write: Write) -> None:
    path = write(f"{QUEUES.replace('fake', 'local')}".replace("type: local", "type: local, root: /q"))
    code = ("import sys; from pathlib import Path; from hpcrunner.config.load import load; "
            f"load(Path({str(path.absolute())!r})); print(*sys.modules)")
    environ = {key: value for key, value in os.environ.items() if not key.startswith("HPCRUNNER_")}
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True,
                           env={**environ, "PYTHONPATH": os.environ.get("PYTHONPATH","")+":"+str(Path(plugins.__file__).parent.parent)}).stdout.split()
    assert "yaml" in found
    assert not {"importlib.metadata", "jinja2", "subprocess", "difflib", "pkgutil", "shutil", "tempfile"} & set(found)
