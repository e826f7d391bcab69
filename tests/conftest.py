"""Markers and fixtures that all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

import services
import slurmcluster
import storeservers


def pytest_configure(config: pytest.Config) -> None:
    try:
        services.required()
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error
    config.add_cleanup(slurmcluster.stop_all)
    config.add_cleanup(storeservers.stop_all)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "soak" in config.option.markexpr:
        return
    soak = [item for item in items if item.get_closest_marker("soak")]
    config.hook.pytest_deselected(items=soak)
    items[:] = [item for item in items if item not in soak]


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("service"):
        for name in mark.args:
            services.require(name)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the keys of who runs the tests, nor what other tests found out of servers, nor pauses."""
    from hpcrunner.stores import _endpoints

    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "STORAGE_EMULATOR_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("hpcrunner.stores._retry._FIRST_PAUSE", 0.001)
    _endpoints._schemes.clear()


@pytest.fixture(scope="session")
def apptainer() -> services.Apptainer:
    return services.require("apptainer")


@pytest.fixture(scope="session")
def studioml() -> services.StudioML:
    return services.require("studioml")


@pytest.fixture(scope="session")
def studioml_old() -> services.StudioML:
    return services.require("studioml-old")


@pytest.fixture(scope="session")
def slurm() -> slurmcluster.Slurm:
    return services.require("slurm")


@pytest.fixture(scope="session")
def slurm_plain() -> slurmcluster.Slurm:
    return services.require("slurm-plain")
