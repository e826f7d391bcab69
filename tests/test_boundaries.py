"""Who may import whom. The layers are drawn in docs/contributing.md."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hpcrunner

PACKAGE = Path(hpcrunner.__file__).parent
BACKENDS = {"queues", "stores", "schedulers", "containers"}
FOUNDATION = {"errors", "model", "units", "proc", "gpus", "files", "layout", "locks", "resources", "plugins", "config"}
ALLOWED = {
    **{name: FOUNDATION for name in FOUNDATION - {"config"}},
    "config": FOUNDATION,
    "wire": {"errors", "units"},
    "artifacts": {"errors", "units", "locks", "files"},
    "metadata": set(),
    "render": FOUNDATION | {"wire"},
    "journal": FOUNDATION,
    "queues": FOUNDATION,
    "stores": FOUNDATION,
    "schedulers": FOUNDATION | {"render"},
    "containers": FOUNDATION | {"wire", "render"},
    "images": FOUNDATION | {"containers"},
    "engine": FOUNDATION | {"wire", "artifacts", "metadata", "render", "journal", "images"} | BACKENDS,
    "cli": FOUNDATION | {"wire", "artifacts", "render", "journal", "images", "engine"} | BACKENDS,
}


def imports() -> Iterator[tuple[Path, str, str]]:
    """(file, its part of the package, imported module) for every import inside hpcrunner."""
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        part = relative.parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                if name.startswith("hpcrunner."):
                    yield relative, part, name


def test_parts_import_only_what_lies_below_them() -> None:
    wrong = []
    for path, part, name in imports():
        target = name.split(".")[1]
        if part in ALLOWED and target != part and target not in ALLOWED[part] and target != "__version__":
            wrong.append(f"{path} imports {name}")
    assert wrong == []


def test_backends_import_neither_the_engine_nor_each_other() -> None:
    wrong = []
    for path, part, name in imports():
        if part not in BACKENDS or path.parts[1] in ("base.py", "__init__.py"):
            continue
        pieces = name.split(".")
        # A backend is a file, or a folder of them.
        same_backend = pieces[1:3] == [part, path.parts[1].removesuffix(".py")]
        # SingularityCE is Apptainer's dialect: one backend under two names.
        twin = path.name == "singularity.py" and pieces[2] == "apptainer"
        # Modules with a `_` in front are no backends, but what several have in common.
        shared = pieces[1] == part and pieces[2].startswith("_")
        if pieces[1] in {"engine", "journal"} or (pieces[1] in BACKENDS and pieces[2] != "base"
                                                  and not same_backend and not twin and not shared):
            wrong.append(f"{path} imports {name}")
    assert wrong == []


def modules_of(path: Path) -> set[str]:
    tree = ast.parse((PACKAGE / path).read_text())
    modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return modules | {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}


@pytest.mark.parametrize("name", ["plan", "outcomes", "actions"])
def test_the_planner_imports_nothing_that_looks_at_the_world(name: str) -> None:
    assert modules_of(Path("engine", f"{name}.py")) <= {
        "__future__", "signal", "collections.abc", "dataclasses", "enum", "hpcrunner.engine", "hpcrunner.engine.actions",
        "hpcrunner.engine.outcomes", "hpcrunner.model", "hpcrunner.units"}


PURE = [path.relative_to(PACKAGE) for path in sorted(PACKAGE.rglob("*.py"))
        if re.search(r"\bPure\b", ast.get_docstring(ast.parse(path.read_text())) or "")]


def test_modules_that_say_they_are_pure_are_found() -> None:
    assert {"outcomes.py", "answers.py", "states.py", "directives.py", "partitions.py"} <= {path.name for path in PURE}


@pytest.mark.parametrize("path", PURE, ids=str)
def test_a_module_that_says_it_is_pure_imports_nothing_that_looks_at_the_world(path: Path) -> None:
    forbidden = {"os", "time", "datetime", "subprocess", "socket", "random", "shutil", "pwd", "json", "hpcrunner.proc",
                 "hpcrunner.files"}
    assert modules_of(path) & forbidden == set()


def test_no_module_is_too_long() -> None:
    assert [str(path) for path in PACKAGE.rglob("*.py") if len(path.read_text().splitlines()) > 400] == []


HEAVY = {"boto3", "botocore", "google", "pika", "jinja2", "rich", "spython", "pynvml", "filelock", "shtab", "requests",
         "asyncio", "concurrent", "importlib.metadata", "tarfile", "http", "email"}


def loaded_by(*arguments: str) -> set[str]:
    """The modules that a command imports, by `python -X importtime`."""
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", "hpcrunner", *arguments], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    names = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    # A virtual environment may load some at start, through its .pth files.
    bare = subprocess.run([sys.executable, "-X", "importtime", "-c", "pass"], capture_output=True, text=True)
    return names - {line.rpartition("|")[2].strip() for line in bare.stderr.splitlines()}


def heavy(names: set[str]) -> set[str]:
    return {name for name in names if name in HEAVY or name.split(".")[0] in HEAVY}


def test_help_loads_nothing_heavy() -> None:
    assert heavy(loaded_by("--help")) | ({"yaml"} & loaded_by("--help")) == set()


@pytest.mark.parametrize("options", [{}, {"scheduler": "slurm", "slurm": {"partitions": {"cpu": {"max_cpus": 4}}}}])
def test_status_and_an_idle_tick_load_nothing_heavy(options: dict[str, Any], tmp_path: Path) -> None:
    from lab import Lab

    lab = Lab(tmp_path, **options)
    lab.tick()
    assert heavy(loaded_by("status", "--site", str(lab.site))) == set()
    assert heavy(loaded_by("submit-from-queue", "--site", str(lab.site))) == set()
