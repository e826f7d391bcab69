"""What the sdist and the wheel hold, and that the wheel works where it is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import hpcrunner

ROOT = Path(__file__).parents[1]
FOLDERS = ("templates", "recipes", "site-configs")
DATA = [str(path.relative_to(ROOT)) for name in FOLDERS for path in (ROOT / name).glob("[!.]*[!~]")]


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy: what an earlier build left in the checkout would get into the wheel."""
    folder = tmp_path_factory.mktemp("source") / "hpcrunner"
    made = shutil.ignore_patterns(".git", ".venv*", ".*_cache", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder, ignore=made)
    return folder


@pytest.fixture(scope="module")
def dist(source: Path) -> Path:
    """The folder with the sdist, and the wheel that was built from it."""
    run(sys.executable, "-m", "build", "--no-isolation", cwd=source)
    return source / "dist"


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    return dist / f"hpcrunner-{hpcrunner.__version__}-py3-none-any.whl"


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel; it borrows the dependencies from the one that runs the tests."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-index", "--no-deps", wheel, cwd=folder)
    packages = next(folder.glob("lib/python3*/site-packages"))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def test_sdist_has_what_builds_and_tests_need(dist: Path) -> None:
    with tarfile.open(dist / f"hpcrunner-{hpcrunner.__version__}.tar.gz") as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    wanted = {"LICENSE", "README.md", "pyproject.toml", "hpcrunner/py.typed", "tests/conftest.py", *DATA}
    assert wanted - names == set()


def test_wheel_has_the_package_and_the_data_folders_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "hpcrunner").rglob("*.py")}
    assert names == modules | {"hpcrunner/py.typed"} | {f"hpcrunner/{name}" for name in DATA}


def test_wheels_from_sdist_and_checkout_are_equal(source: Path, wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path, cwd=source)

    def contents(path: Path) -> dict[str, int]:
        with zipfile.ZipFile(path) as archive:
            return {info.filename: info.CRC for info in archive.infolist()}

    assert contents(tmp_path / wheel.name) == contents(wheel)


def test_installed_command_runs_from_anywhere(installed: Path, tmp_path: Path) -> None:
    said = run(installed / "bin" / "hpcrunner", "--version", cwd=tmp_path)
    assert said.split() == ["hpcrunner", hpcrunner.__version__]


@pytest.mark.parametrize("name", FOLDERS)
def test_installed_package_finds_its_own_data(installed: Path, tmp_path: Path, name: str) -> None:
    code = f"from hpcrunner import resources; print(resources.folder({name!r}))"
    folder = Path(run(installed / "bin" / "python", "-I", "-c", code, cwd=tmp_path).strip())
    assert folder.is_relative_to(installed)
    found = {f"{name}/{path.name}" for path in folder.iterdir()}
    assert found == {file for file in DATA if file.startswith(f"{name}/")}
