"""`hpcrunner status`: why an experiment does not go on, in words for its user."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpcrunner.cli import status
from hpcrunner.journal.store import Journal
from hpcrunner.model import Run, State

Show = Callable[..., str]


@pytest.fixture
def show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Show:
    """What it prints of a run that came into a state with these fields."""
    site = tmp_path / "site.yaml"
    site.write_text(f"extends: laptop\nstate_dir: {tmp_path}/state\n")

    def of(state: State, text: str, *, key: str | None = "e", **fields: Any) -> str:
        with Journal(tmp_path / "state" / "journal.sqlite") as journal:
            run: Run | None = journal.receive("q", json.dumps({"key": "e", "at": time.time()}).encode(), key="e")
            assert run is not None
            for step in (State.STAGED, State.READY, State.SUBMITTING, State.SUBMITTED):
                if run.state is not state:
                    run = journal.move(run, step)
            journal.note(run, text, **fields)
        assert status.run(argparse.Namespace(site=site, key=key, json=False)) == 0
        return capsys.readouterr().out

    return of


def test_a_submission_without_an_answer(show: Show) -> None:
    fields = {"job_name": "hrabcd123", "submitted_at": time.time() - 60}
    assert "  reason:    its submission had no clear answer; it is looked for (job name hrabcd123)\n" in show(
        State.SUBMITTING, "sbatch did not answer in time", **fields)
    assert "it is looked for (job name hrabcd123)" in show(State.SUBMITTING, "x", key=None, **fields)


def test_a_submission_under_way(show: Show) -> None:
    assert "  reason:    being handed to the scheduler\n" in show(State.SUBMITTING, "handing it", submitted_at=time.time())


def test_what_is_tried_again_says_why(show: Show) -> None:
    text = "the job that builds its image: Slurm refuses what the site config says: Invalid qos; tried again in 30 s"
    assert f"  reason:    {text}\n" in show(State.STAGED, text, tries=3, image="d" * 64)


def test_cancelling_and_the_element_of_an_array(show: Show) -> None:
    out = show(State.SUBMITTED, "x", cancelling="superseded", waiting="Priority", task=0, job_id="4711_0")
    assert "  reason:    pending in the scheduler: Priority\n" in out
    assert "  cancelled: superseded\n" in out
    assert "  job:       4711_0\n" in out and "  array:     element 0\n" in out
