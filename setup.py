"""Packaging of hpcrunner. The settings of the tools are in pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

# Read, not imported: a build environment has none of the dependencies.
VERSION = re.findall(r'__version__ = "(.+)"', Path("hpcrunner/__init__.py").read_text())[0]


class BuildWithData(build_py):
    """Puts the top-level data folders into the built package, where hpcrunner.resources looks first.

    They stand outside the package in a checkout because they are what people read and copy.
    """

    folders = ("templates", "recipes", "site-configs")

    def finalize_options(self) -> None:
        super().finalize_options()
        for name in self.folders:
            target = f"{self.build_lib}/hpcrunner/{name}"
            self.data_files.append(("hpcrunner", name, target, files(Path(name))))


def files(folder: Path) -> list[str]:
    """Paths below `folder`, relative to it, without hidden files and editors' backups."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if not re.search(r"(^|/)\.|~$", str(path)))


setup(
    name="hpcrunner",
    version=VERSION,
    description="Runs StudioML experiments from a work queue on HPC clusters, in Apptainer containers",
    long_description=Path("README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Intended Audience :: System Administrators",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: System :: Clustering",
    ],
    python_requires=">=3.10",
    install_requires=[
        "boto3>=1.36",
        "filelock>=3.12",
        "google-auth>=2.20",
        "google-cloud-pubsub>=2.18",
        "isal>=1.9",
        "jinja2>=3.1",
        # The module `pynvml`. The PyPI project called pynvml only wraps it, and warns when it is imported.
        "nvidia-ml-py>=12.535",
        "pika>=1.3.2",
        "pyyaml>=6.0.1",
        "rich>=13.7",
        "shtab>=1.6",
        "spython>=0.3.13",
        "urllib3>=2.2",
    ],
    extras_require={
        "test": [
            "build>=1.2",
            "mypy>=1.11",
            "pytest>=8.2",
            "ruff>=0.6",
            "setuptools>=70.1",  # as in pyproject.toml: the packaging test builds without isolation
            "types-PyYAML>=6.0.12",
        ],
    },
    packages=find_packages(include=["hpcrunner", "hpcrunner.*"]),
    package_data={"hpcrunner": ["py.typed"]},
    include_package_data=False,
    # Stated so that an editable install is a plain path entry: the import hook that setuptools would
    # otherwise install is loaded at every start of Python.
    package_dir={"": "."},
    entry_points={"console_scripts": ["hpcrunner = hpcrunner.cli.main:main"]},
    cmdclass={"build_py": BuildWithData},
)
