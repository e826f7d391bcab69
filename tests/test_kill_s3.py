"""kill -9 of hpcrunner while it downloads, unpacks, saves checkpoints and uploads, over a real S3 server: nobody ever
sees half an artifact, and the cache never has a wrong one."""

from __future__ import annotations

import io
import random
import tarfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest
from botocore.exceptions import BotoCoreError, ClientError

import services
from hpcrunner.artifacts.cache import Cache
from hpcrunner.artifacts.digest import digest_of
from lab import TAGS, Lab
from s3lab import InS3
from storeservers import Proxy, Server

pytestmark = pytest.mark.service("seaweedfs")

MIB = 2**20
PATIENCE = 120.0
PHASES = {"download": 1.0, "unpack": 0.05, "checkpoint": 0.7, "upload": 0.7}
"""And within how many seconds after the beginning of each a kill comes."""
BLOCKS = 4096
"""The state that a job saves: as many times its number, in 4 KiB."""
LAST = 2**32

SCRIPT = f"""
import hashlib, os, pathlib, time
with open(os.environ["COUNT"], "a") as file: file.write("ran\\n")
def save(number):
    with open("../state", "wb") as file:
        for _ in range({BLOCKS}): file.write(number.to_bytes(8, "big") * 512)
    os.replace("../state", "../modeldir/state")
number = 0
while not os.path.exists(os.environ["GATE"]):
    save(number := number + 1)
    time.sleep(0.3)
save({LAST})
digest = hashlib.sha256()
for path in sorted(pathlib.Path("data").iterdir()): digest.update(path.read_bytes())
open("../retval", "w").write(digest.hexdigest())
"""


class S3Lab(InS3, Lab):
    """Its experiments have large workspaces, and their connections to the store take a while, so that there is
    something to be killed."""

    def __init__(self, root: Path, server: Server, proxy: Proxy, bucket: str) -> None:
        super().__init__(root, transfer_part="5MiB", checkpoint_min="1s", cache_size="100MiB")
        self.place(server, bucket, proxy.url)
        self.inputs: set[str] = set()
        """SHA-256 of each tar that may be in the cache."""
        self.wrong: set[str] = set()
        """Entries of the cache that were none of these."""
        self.reader: Reader
        self.digests: dict[str, str] = {}
        """What each experiment has to return."""

    @property
    def keys(self) -> list[str]:
        return list(self.digests)

    def put_tar(self, members: dict[str, str | bytes], key: str | None = None) -> str:  # type: ignore[override]
        """With 16 MiB in a large file and 4 MiB in many small ones."""
        chance = random.Random(len(self.digests))
        data = {f"data/{number:04}": chance.randbytes(4096 if number else 16 * MIB) for number in range(1025)}
        self.digests[f"e{len(self.digests)}"] = sha256(b"".join(data.values())).hexdigest()
        key = super().put_tar({**members, **data}, key)
        self.inputs.add(sha256(self._read(key)).hexdigest())
        return key

    def begin(self) -> None:
        """Submits another one."""
        key = f"e{len(self.digests)}"
        env = {"COUNT": str(self.root / f"count-{key}"), "GATE": str(self.gate(key))}
        self.submit(key, SCRIPT, config={"env": env, "saveWorkspaceFrequency": "1s"})

    def gate(self, key: str) -> Path:
        """Its job ends when this is there."""
        return self.root / f"gate-{key}"

    def is_in(self, phase: str, since: float) -> bool:
        """Whether the disk shows that what was started at `since` is, or was when it was killed, at such work."""
        if phase == "download":
            return _newer(self.state / "cache" / "parts", "*/.data.part", since)
        for run in (self.state / "runs").glob("*"):
            if phase == "unpack":
                found = _newer(run, "studioml/experiments/*/.workspace.part", since)
            else:
                is_over = (run / "status" / "exit").exists()
                found = is_over == (phase == "upload") and _newer(run, "transfer/*modeldir.*", since)
            if found:
                return True
        return False

    def wrong_entries(self) -> list[str]:
        return [str(entry) for entry in Cache(self.state / "cache", 0).entries() if digest_of(entry.data) not in self.inputs]


def _newer(folder: Path, pattern: str, since: float) -> bool:
    try:
        return any(path.stat().st_mtime >= since for path in folder.glob(pattern))
    except FileNotFoundError:  # removed meanwhile
        return False


class Reader(threading.Thread):
    """Reads each version of each result that it can get hold of."""

    def __init__(self, lab: S3Lab) -> None:
        super().__init__(daemon=True)
        self.lab = lab
        self.halves: list[str] = []
        self.versions = 0
        self.over = threading.Event()
        self._known: dict[str, str] = {}

    def run(self) -> None:
        while not self.over.wait(0.02):
            for key in self.lab.keys[-3:]:
                for tag in TAGS:
                    self._read(f"experiments/{key}/{tag}.tar")

    def _read(self, key: str) -> None:
        try:
            known = {"IfNoneMatch": self._known[key]} if key in self._known else {}
            answer = self.lab.s3.get_object(Bucket=self.lab.bucket, Key=key, **known)
            data = answer["Body"].read()
        except (ClientError, BotoCoreError):
            return  # Not there, not another one, or cut off, which no client takes for the whole object.
        self._known[key] = answer["ETag"]
        self.versions += 1
        if fault := what_is_wrong(data):
            self.halves.append(f"{key}: {fault}")


def what_is_wrong(data: bytes) -> str:
    """With a result; nothing if it is a whole tar, and all of its state was saved at once."""
    if len(data) % 512 or data[-1024:] != bytes(1024):
        return f"{len(data)} bytes without the end of a tar"
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar:
                file = tar.extractfile(member)
                content = file.read() if file else b""
                if len(content) != member.size:
                    return f"{member.name}: {len(content)} of {member.size} bytes"
                if member.name.endswith("state") and content != content[:8] * 512 * BLOCKS:
                    return f"{member.name}: of several states"
    except tarfile.TarError as error:
        return str(error)
    return ""


def kill(lab: S3Lab, phase: str, chance: random.Random) -> str | None:
    """Kills hpcrunner at a random moment, soon after that phase has begun. Returns the phase that it was in; empty if
    none of these, and None if it ended before."""
    since = time.time()
    process = lab.start("submit-from-queue", "--wait")
    end = time.monotonic() + PATIENCE
    while process.poll() is None and not lab.is_in(phase, since):
        assert time.monotonic() < end, f"no {phase} begins"
        time.sleep(0.002)
    time.sleep(chance.uniform(0, PHASES[phase]))
    process.kill()
    if process.wait() == 0:
        return None
    return next((name for name in PHASES if lab.is_in(name, since)), "")


def campaign(lab: S3Lab, wanted: int, seed: int) -> Counter[str]:
    """Returns how many kills came in which phase; what was seen meanwhile is in the lab."""
    chance = random.Random(seed)
    hits: Counter[str] = Counter()
    reader = Reader(lab)
    reader.start()
    lab.reader = reader
    while hits.total() < wanted:
        for phase in PHASES:
            if phase == "download":
                lab.begin()
            elif phase == "upload":
                lab.gate(lab.keys[-1]).touch()
            hit = kill(lab, phase, chance)
            hits.update([] if hit is None else [hit])
            lab.wrong.update(lab.wrong_entries())
    lab.tick("--wait", timeout=600)
    reader.over.set()
    reader.join()
    assert reader.versions >= len(lab.keys)
    return hits


def check(lab: S3Lab) -> None:
    status = lab.status()
    assert sorted(status) == sorted(lab.keys)
    for key, digest in lab.digests.items():
        assert status[key]["outcome"] == "succeeded", status[key]
        assert (lab.root / f"count-{key}").read_text() == "ran\n", "it must run once"
        assert lab.result(key, "retval") == {"./retval": digest.encode()}
        [state] = lab.result(key, "modeldir").values()
        assert state[:8] == LAST.to_bytes(8, "big")
        assert lab.output(key).count("[hpcrunner] succeeded") == 1
        assert lab.record(key)["status"] == "finished"
    assert not any((lab.state / "runs").iterdir()), "run directories are left"
    assert not any((lab.state / "spool").iterdir())
    assert not any((lab.state / "cache" / "parts").iterdir())
    lab.hpcrunner("cache", "verify")
    assert not lab.s3.list_multipart_uploads(Bucket=lab.bucket).get("Uploads"), "parts are left in the store"


def run(root: Path, kills: int, labs: int) -> Counter[str]:
    """Campaigns side by side; so many kills each."""
    server = services.require("seaweedfs")
    assert isinstance(server, Server)

    def one(number: int) -> tuple[S3Lab, Counter[str]]:
        proxy = Proxy(server.url)
        proxy.rate = 8 * MIB
        lab = S3Lab(root / str(number), server, proxy, f"kills-{labs}-{number}")
        hits = campaign(lab, kills, seed=number)
        proxy.close()
        return lab, hits

    with ThreadPoolExecutor(labs) as threads:
        done = list(threads.map(one, range(labs)))
    hits = sum((hits for _, hits in done), Counter[str]())
    halves = [half for lab, _ in done for half in lab.reader.halves]
    wrong = sorted({entry for lab, _ in done for entry in lab.wrong})
    print(f"\n{', '.join(f'{phase} {hits[phase]}' for phase in PHASES)}, elsewhere {hits['']}")
    print(f"kills={hits.total()} experiments={sum(len(lab.keys) for lab, _ in done)} half_artifacts={len(halves)} "
          f"wrong_entries={len(wrong)}")
    assert not halves and not wrong, (halves, wrong)
    for lab, _ in done:
        check(lab)
    return hits


def test_kills_while_files_move(tmp_path: Path) -> None:
    hits = run(tmp_path, 12, labs=1)
    assert all(hits[phase] for phase in PHASES)


@pytest.mark.soak
def test_many_kills_while_files_move(tmp_path: Path) -> None:
    hits = run(tmp_path, 100, labs=2)
    assert all(hits[phase] >= 20 for phase in PHASES)
