"""How jobs are handed to Slurm, with a client that stands in for its commands."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Lock
from types import SimpleNamespace

import pytest

from hpcrunner.errors import BusyError, HpcrunnerError
from hpcrunner.model import Place, Request
from hpcrunner.schedulers.base import Batch, NodesRefused, Submission, SubmitDeferred
from hpcrunner.schedulers.slurm import answers
from hpcrunner.schedulers.slurm.options import SlurmOptions
from hpcrunner.schedulers.slurm.scheduler import SlurmScheduler


class Client:
    def __init__(self) -> None:
        self.submitted: list[str] = []
        self.answer = ""
        """What sbatch fails with; empty if it doesn't."""
        self._lock = Lock()

    def submit(self, script: Path) -> str:
        time.sleep(0.05)
        with self._lock:
            self.submitted.append(script.name)
            if self.answer:
                raise answers.error(1, "", f"sbatch: error: Batch job submission failed: {self.answer}", False)
            return str(len(self.submitted))


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def slurm(tmp_path: Path, client: Client) -> SlurmScheduler:
    made = SlurmScheduler(SimpleNamespace(state_dir=tmp_path, kill_grace=30.0, slurm=SlurmOptions(submit_parallel=2)))
    made._client = client  # type: ignore[assignment]
    return made


def batches(number: int, **fields: object) -> list[Batch]:
    return [Batch(f"j{index}", (Submission(f"j{index}", Path(f"/x/j{index}"), Path("/x"), Request(), 60.0, Place("cpu"),
                                           **fields),)) for index in range(number)]  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [KeyboardInterrupt, BusyError("another host has it")])
def test_nothing_more_goes_out_when_it_is_interrupted(slurm: SlurmScheduler, client: Client, error: BaseException) -> None:
    with pytest.raises((KeyboardInterrupt, BusyError)):
        try:
            for _ in slurm.submit(batches(40)):
                raise error
        finally:
            time.sleep(0.3)
    assert len(client.submitted) <= 6


def test_after_too_many_jobs_more_and_more_are_tried(slurm: SlurmScheduler, client: Client) -> None:
    client.answer = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits): QOSMaxSubmitJobPerUserLimit"
    [(_, answer)] = slurm.submit(batches(1))
    assert isinstance(answer, SubmitDeferred) and slurm.room("cpu") == 0
    client.answer = ""
    rooms = []
    for _ in range(5):
        slurm.begin()
        room = slurm.room("cpu")
        assert room
        rooms.append(room)
        assert all(not isinstance(answer, HpcrunnerError) for _, answer in slurm.submit(batches(room)))
    assert rooms == sorted(set(rooms)) and rooms[-1] > 50


@pytest.mark.parametrize("text", ["Requested node configuration is not available", "Invalid node name specified"])
def test_nodes_to_avoid_are_no_reason_to_refuse(slurm: SlurmScheduler, client: Client, text: str) -> None:
    client.answer = text
    [(_, answer)] = slurm.submit(batches(1, avoid=("n1",)))
    assert isinstance(answer, NodesRefused)
    [(_, answer)] = slurm.submit(batches(1))
    assert isinstance(answer, HpcrunnerError) and not isinstance(answer, NodesRefused)
