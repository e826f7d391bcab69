"""That tests can't be skipped where their services are required, and that the services are real."""

from __future__ import annotations

import subprocess

import pytest

import services


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise services.Missing("not here")

    monkeypatch.setitem(services.SERVICES, "apptainer", absent)


def test_missing_service_skips(missing: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(services.SETTINGS, "HPCRUNNER_REQUIRE", "studioml")
    with pytest.raises(pytest.skip.Exception, match="apptainer: not here"):
        services.require("apptainer")


def test_missing_service_fails_if_required(missing: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(services.SETTINGS, "HPCRUNNER_REQUIRE", "apptainer")
    with pytest.raises(pytest.fail.Exception, match="required by HPCRUNNER_REQUIRE: apptainer: not here"):
        services.require("apptainer")


@pytest.mark.parametrize("text", ["apptainer studioml", "apptainer,studioml", " studioml, apptainer "])
def test_required_names_stand_between_blanks_or_commas(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(services.SETTINGS, "HPCRUNNER_REQUIRE", text)
    assert services.required() == {"apptainer", "studioml"}


def test_unknown_required_name_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(services.SETTINGS, "HPCRUNNER_REQUIRE", "apptainer aptainer")
    with pytest.raises(ValueError, match="names aptainer; there are apptainer, studioml"):
        services.required()


@pytest.mark.service("apptainer")
def test_base_image_has_bash_python_and_pip(apptainer: services.Apptainer) -> None:
    inside = [apptainer.program, "-q", "exec", "--userns", "--no-home", "--pwd", "/", apptainer.base_image]
    done = subprocess.run([*inside, "bash", "-c", "python3 -m pip --version"],
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("pip ")


@pytest.mark.service("studioml")
def test_client_starts(studioml: services.StudioML) -> None:
    done = subprocess.run([studioml.python, "-W", "ignore", "-c", "import studio.runner"],
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
