"""The real StudioML client and hpcrunner with nothing between them but a queue and a real S3 server that checks
signatures: the completion service, grid search, results that are used again, stopping, a thousand experiments."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import services
from lab import Lab
from researcher import Researcher
from slurmcluster import wait_until
from storeservers import Proxy, Server

pytestmark = [pytest.mark.service("seaweedfs"), pytest.mark.service("studioml")]

TASKS = 50
THOUSAND = 1000

FUNCTION = """
def clientFunction(args, files):
    number, text = args
    return {"square": number ** 2, "text": text[::-1], "more": open(files["more"]).read()}
"""
COMPLETION = """
import json, sys, time
from pip._internal.operations import freeze
# All packages of the client's environment would take half a minute to install.
freeze.freeze = lambda *rest, **more: [sys.argv[5]]
from studio.completion_service.completion_service import CompletionService
config, queue, name, count, script = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[6]
service = CompletionService(name, cs_config={"queue": queue, "resources_needed": {}, "sleep_time": 1},
                            studio_config_file=config)
service.queue_name = "served"  # By hpcrunner: on the queue `local` it would start a worker of its own.
with service:
    keys = {service.submitTaskWithFiles(script, [n, f"task {n}"], {"more": sys.argv[7]}): n for n in range(count)}
    found = {}
    while len(found) < count and (result := service.getResultsWithTimeout(120)):
        found[keys[result[0]]] = result
print("FOUND " + json.dumps(found))
"""


def client_of(server: Server) -> Any:
    from botocore.session import Session

    return Session().create_client(
        "s3", region_name="us-east-1", endpoint_url=server.url, aws_access_key_id=server.told["access_key"],
        aws_secret_access_key=server.told["secret_key"])


class S3Researcher(Researcher):
    """Keeps all files in the S3 server. The keys stand in the client's configuration, and nowhere else."""

    def __init__(self, lab: Lab, client: services.StudioML, server: Server, url: str) -> None:
        keys = {"access_key": server.told["access_key"], "secret_access_key": server.told["secret_key"]}
        super().__init__(lab, client, {"type": "s3", "endpoint": url, "credentials": {"aws": keys}})
        self.host = url.partition("//")[2]
        self.s3 = client_of(server)
        # Releases up to 0.0.34 read no keys from the configuration.
        self.env.update(AWS_ACCESS_KEY_ID=keys["access_key"], AWS_SECRET_ACCESS_KEY=keys["secret_access_key"],
                        AWS_DEFAULT_REGION="us-east-1")

    def use_studioml_in_jobs(self) -> None:
        """Jobs import the client's own library, as in an image that has it."""
        config = json.loads(self.config.read_text())
        config["env"]["PYTHONPATH"] = str(next(self.client.venv.glob("lib/python*/site-packages")))
        self.config.write_text(json.dumps(config))

    def record(self, key: str) -> dict[str, Any]:
        loaded = json.loads(self.s3.get_object(Bucket="meta", Key=f"experiments/{key}")["Body"].read())
        assert isinstance(loaded, dict)
        return loaded

    def stored(self, key: str) -> bytes:
        data = self.s3.get_object(Bucket="artifacts", Key=key)["Body"].read()
        assert isinstance(data, bytes)
        return data

    def members(self, key: str, tag: str) -> list[str]:
        with tarfile.open(fileobj=io.BytesIO(self.stored(f"experiments/{key}/{tag}.tar"))) as tar:
            return tar.getnames()

    def stop(self, key: str) -> None:
        done = subprocess.run([self.client.venv / "bin" / "studio-runs", f"--config={self.config}", "stop", key],
                              env=self.env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert self.record(key)["status"] == "stopped"


@pytest.fixture(autouse=True)
def nobodys_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may use the keys of whoever runs it."""
    for variable in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(variable)


@pytest.fixture(scope="module")
def server() -> Server:
    """With the client's buckets in it."""
    found = services.require("seaweedfs")
    assert isinstance(found, Server)
    for bucket in ("meta", "artifacts"):
        client_of(found).create_bucket(Bucket=bucket)
    return found


def lab(root: Path, **site: Any) -> Lab:
    return Lab(root, studioml="never", **site)


@pytest.fixture
def researcher(tmp_path: Path, studioml: services.StudioML, server: Server) -> S3Researcher:
    return S3Researcher(lab(tmp_path), studioml, server, server.url)


@pytest.mark.slow
def test_the_completion_service_gets_right_results_of_fifty_tasks(researcher: S3Researcher) -> None:
    researcher.use_studioml_in_jobs()
    complete(researcher, "local_test", "studioml==0.0.49", TASKS, "./retval")


@pytest.mark.slow
@pytest.mark.service("studioml-old")
def test_so_does_that_of_an_old_client(tmp_path: Path, studioml_old: services.StudioML, server: Server) -> None:
    """Release 0.0.34 takes the tar of a single file for a folder if it is packed as newer ones want it."""
    researcher = S3Researcher(lab(tmp_path), studioml_old, server, server.url)
    researcher.use_studioml_in_jobs()
    (researcher.home / ".studioml").mkdir()  # It expects that there.
    complete(researcher, "local", "studioml==0.0.34.post8", 4, "retval")


def complete(researcher: S3Researcher, queue: str, release: str, count: int, member: str) -> None:
    """Results come back while hpcrunner runs beside the completion service, which waits for them."""
    lab = researcher.lab
    script, more = lab.root / "function.py", lab.root / "more.txt"
    script.write_text(FUNCTION)
    more.write_text("more")
    with subprocess.Popen([researcher.client.python, "-c", COMPLETION, researcher.config, queue, "tasks", str(count), release,
                           script, more], cwd=lab.root, env=researcher.env, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as service:
        try:
            wait_until(lambda: any(lab.queue.parent.rglob("[0-9a-f]*-*")) or service.poll() is not None, "the first task", 60)
            while service.poll() is None:
                lab.tick("--wait")
                time.sleep(0.2)
            said, complaint = service.communicate()
        finally:
            service.kill()
    assert service.returncode == 0, complaint
    results = json.loads(said.rpartition("FOUND ")[2])
    assert {int(number): result for number, (_, result) in results.items()} == {
        number: {"square": number ** 2, "text": f"task {number}"[::-1], "more": "more"} for number in range(count)}
    lab.tick("--wait")
    runs = lab.status()
    assert len(runs) == count
    for number, (key, _) in results.items():
        record = researcher.record(key)
        assert (record["status"], record["outcome"], record["exit_code"]) == ("finished", "succeeded", 0), (number, runs[key])
        assert record["time_started"] <= record["time_finished"] and record["job_id"] and record["host"]
        assert record["artifacts"].keys() >= {"args", "clientscript", "more", "retval", "workspace"}
        for artifact in record["artifacts"].values():
            assert "credentials" not in artifact and artifact["qualified"].startswith(f"s3://{researcher.host}/artifacts/")
        assert researcher.members(key, "retval") == [member]
    back = researcher.read_back(key)
    assert back["status"] == "finished" and back["finished"] >= back["started"] > 1e9


def test_grid_search_and_results_that_are_used_again(tmp_path: Path, studioml: services.StudioML, server: Server) -> None:
    """By https, which the locations of artifacts don't say."""
    url, ca = server.told["https"].replace("localhost", "127.0.0.1"), server.told["ca"]  # Only then with paths for buckets.
    researcher = S3Researcher(lab(tmp_path, stores=[{"endpoint": url, "ca_file": ca}]), studioml, server, url)
    researcher.env["AWS_CA_BUNDLE"] = ca
    (researcher.project / "train.py").write_text("""
open("../modeldir/weights", "w").write(str(rate * 10))
""")
    researcher.submit("grid", "--hyperparam=rate=1,2,3", "train.py")
    messages = [json.loads(path.read_text()) for path in researcher.lab.queue.iterdir()]
    assert [(message["experiment"]["artifacts"]["workspace"]["mutable"], message["experiment"]["artifacts"]["workspace"]["unpack"])
            for message in messages] == [(True, None)] * 3
    runs = researcher.lab.run_all()
    assert [run["outcome"] for run in runs.values()] == ["succeeded"] * 3
    weights = {researcher.read_back(key, "modeldir")["found"]["modeldir"]["weights"]: key for key in runs}
    assert sorted(weights) == ["10.0", "20.0", "30.0"]

    (researcher.project / "use.py").write_text("""
open("../retval", "w").write(open("../learnt/weights").read() + " again")
""")
    researcher.submit("reuse", f"--reuse={weights['20.0']}/modeldir:learnt", "use.py")
    assert researcher.lab.run_all()["reuse"]["outcome"] == "succeeded"
    assert researcher.read_back("reuse", "retval")["found"] == {"retval": "20.0 again"}


def test_stop_is_honoured_and_never_overwritten(researcher: S3Researcher) -> None:
    (researcher.project / "long.py").write_text("""
import time
open("../modeldir/so_far", "w").write("half")
time.sleep(300)
""")
    lab = researcher.lab
    researcher.submit("long", "long.py")
    researcher.submit("unborn", "long.py")
    researcher.stop("unborn")
    with lab.start("submit-from-queue", "--wait") as work:
        wait_until(lambda: researcher.record("long")["status"] == "running", "the job is running", 60)
        researcher.stop("long")
        assert work.wait(90) == 0
    runs = lab.status()
    for key in ("long", "unborn"):
        assert runs[key]["outcome"] == "cancelled" and "studio runs stop" in runs[key]["reason"], runs[key]
        record = researcher.record(key)
        assert (record["status"], record["outcome"]) == ("stopped", "cancelled")
        assert record["time_finished"] and "studio runs stop" in record["reason"]
        assert researcher.read_back(key)["status"] == "stopped"
    assert researcher.record("unborn")["job_id"] == ""
    assert researcher.read_back("long", "modeldir")["found"]["modeldir"] == {"so_far": "half"}


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    found = Proxy(server.url)
    yield found
    found.close()


@pytest.mark.slow
def test_a_workspace_that_a_thousand_experiments_share_is_downloaded_once(
        tmp_path: Path, studioml: services.StudioML, server: Server, proxy: Proxy) -> None:
    """All of them are staged, and wait behind the first one, which runs as long as the gate is shut."""
    gate = tmp_path / "gate"
    researcher = S3Researcher(lab(tmp_path, max_jobs=1, log_level="warning"), studioml, server, proxy.url)
    (researcher.project / "wait.py").write_text(f"""
import os, time
while os.path.exists({str(gate)!r}): time.sleep(0.1)
""")
    (researcher.project / "noise").write_bytes(os.urandom(100_000))
    researcher.submit("first", "wait.py")
    path = next(researcher.lab.queue.iterdir())
    message = json.loads(path.read_text())
    path.unlink()
    blob = message["experiment"]["artifacts"]["workspace"]["key"]
    assert blob.startswith("blobstore/")
    for number in range(THOUSAND):
        enqueue(researcher, message, f"of-thousand-{number}")
    gate.touch()
    proxy.requests.clear()
    start = time.monotonic()
    with researcher.lab.start("submit-from-queue", "--wait") as work:
        try:
            while staged(researcher.lab) < THOUSAND:
                assert time.monotonic() < start + 240
                time.sleep(1)
            took = time.monotonic() - start
        finally:
            gate.unlink()
            work.kill()
    print(f"{THOUSAND} staged in {took:.1f} s with {len(proxy.requests)} requests")
    # Each asked whether it may read it, and one read it.
    assert proxy.requests.count(("HEAD", f"/artifacts/{blob}")) >= THOUSAND
    assert proxy.requests.count(("GET", f"/artifacts/{blob}")) == 1
    assert took < 120


def enqueue(researcher: S3Researcher, message: dict[str, Any], key: str) -> None:
    """A message as the real one, with another key, and its record."""
    experiment = json.loads(json.dumps(message["experiment"]).replace("experiments/first/", f"experiments/{key}/"))
    experiment["key"] = key
    researcher.s3.put_object(Bucket="meta", Key=f"experiments/{key}", Body=json.dumps(experiment))
    researcher.lab.enqueue(json.dumps({**message, "experiment": experiment}).encode())


def staged(lab: Lab) -> int:
    """How many have all their files."""
    return len(list((lab.state / "runs").glob("*/studioml/experiments/*/workspace/noise")))
