"""How fast files go to an S3 server and back, beside rclone, s5cmd and boto3's defaults on the same server.

Two cases, up and down: one file of 1 GiB that nothing compresses, and a workspace of 2,000 small files, which hpcrunner
moves as the one tar that StudioML's artifacts are, packing and unpacking counted in, and the others file by file,
each its own best way. All take turns in one run; the median of each counts. Every copy is compared with what was sent.
Between up and down the server is asked what it has: rclone's server hashes a file when first asked about it, which
rclone itself does at the end of an upload and the others do with the download.

Last line: `transfer worst=W rss_mb=M`: W is the lowest of our rates over the best of theirs, M the most memory that
one of our transfers took. The server is `rclone serve s3` (scripts/store-server), on this host.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import services
import storeservers

GIB = 2**30
FILES = 2000
BUCKET = "bench"

OURS = """
import re, sys
from pathlib import Path
from hpcrunner.artifacts.pack import pack
from hpcrunner.artifacts.style import TarStyle
from hpcrunner.artifacts.unpack import Limits, unpack
from hpcrunner.config.site import Site
from hpcrunner.engine.install import open_store
from hpcrunner.stores.base import Access

what, location, path, state = sys.argv[1:]
path = Path(path)
access = Access(store={"aws": {"access_key": "testkey", "secret_access_key": "testsecret"}})
store = open_store(Site(state_dir=Path(state)), "s3", access, location)
tar = path.with_name(path.name + ".tar")
if what == "up":
    store.put(path, location)
elif what == "down":
    store.fetch(location, path)
elif what == "pack-up":
    pack(path, tar, TarStyle.NEW)
    store.put(tar, location)
    tar.unlink()
else:
    store.fetch(location, tar)
    unpack(tar, path, TarStyle.NEW, Limits(2 * 2**30))
    tar.unlink()
print(re.search(r"VmHWM:\\s+([0-9]+) kB", Path("/proc/self/status").read_text())[1])
"""

BOTO3 = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import boto3
what, url, key, path = sys.argv[1:]
s3 = boto3.client("s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="testkey",
                  aws_secret_access_key="testsecret")
path = Path(path)
if what == "up":
    s3.upload_file(str(path), "bench", key)
elif what == "down":
    s3.download_file("bench", key, str(path))
elif what == "files-up":
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda file: s3.upload_file(str(file), "bench", f"{key}/{file.relative_to(path)}"),
                      [file for file in path.rglob("*") if file.is_file()]))
else:
    def get(name):
        target = path / name.removeprefix(f"{key}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        s3.download_file("bench", name, str(target))
    names = [entry["Key"] for page in s3.get_paginator("list_objects_v2").paginate(Bucket="bench", Prefix=f"{key}/")
             for entry in page.get("Contents", [])]
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(get, names))
"""

Run = Callable[[Path], None]
Ways = Callable[[str], tuple[Run, Run]]
"""Up and down, under a key."""


class Bench:
    def __init__(self, folder: Path, server: storeservers.Server, rounds: int) -> None:
        self.folder, self.server, self.rounds = folder, server, rounds
        self.bin = services._path("HPCRUNNER_SERVERS", "servers") / "bin"
        self.memory = 0
        (folder / "rclone.conf").write_text(
            f"[s]\ntype = s3\nprovider = Rclone\nendpoint = {server.url}\naccess_key_id = testkey\n"
            "secret_access_key = testsecret\n")

    def ours(self, what: str, key: str) -> Run:
        location = f"s3://{self.server.host}/{BUCKET}/{key}"

        def run(path: Path) -> None:
            done = self._call([sys.executable, "-c", OURS, what, location, path, self.folder / "state"])
            self.memory = max(self.memory, int(done.split()[-1]) // 1000)

        return run

    def boto3(self, what: str, key: str) -> Run:
        return lambda path: void(self._call([sys.executable, "-c", BOTO3, what, self.server.url, key, path]))

    def rclone(self, down: bool, key: str, is_file: bool) -> Run:
        def run(path: Path) -> None:
            place = f"s:{BUCKET}/{key}"
            self._call([*self._rclone, "copyto" if is_file else "copy", *((place, path) if down else (path, place))])

        return run

    @property
    def _rclone(self) -> list[object]:
        return [self.bin / "rclone", "--config", self.folder / "rclone.conf"]

    def s5cmd(self, down: bool, key: str, is_file: bool) -> Run:
        def run(path: Path) -> None:
            place = f"s3://{BUCKET}/{key}" + ("" if is_file else "/*" if down else "/")
            local = f"{path}" if is_file else f"{path}/"
            self._call([self.bin / "s5cmd", "--endpoint-url", self.server.url, "cp",
                        *((place, local) if down else (local, place))])

        return run

    def _call(self, command: list[object]) -> str:
        env = {**os.environ, "AWS_ACCESS_KEY_ID": "testkey", "AWS_SECRET_ACCESS_KEY": "testsecret",
               "AWS_REGION": "us-east-1"}
        done = subprocess.run([str(word) for word in command], env=env, capture_output=True, text=True, timeout=600)
        if done.returncode != 0:
            sys.exit(f"{command[0]} failed: {done.stderr[-2000:]}")
        return done.stdout

    def there_and_back(self, up: Run, down: Run, source: Path, key: str) -> tuple[float, float]:
        """Seconds of each."""
        sent = timed(up, source)
        self._call([*self._rclone, "lsl", f"s:{BUCKET}/{key}"])
        fetched = timed(down, self.folder / "back")
        self._call([*self._rclone, "delete", f"s:{BUCKET}/{key}"])
        return sent, fetched

    def compare(self, title: str, size: int, ways: Mapping[str, Ways], source: Path) -> float:
        """Prints the rates of all; the lowest of ours over the best of theirs, up and down."""
        times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ways}
        expected = digest(source)
        for number in range(self.rounds):
            for name, make in ways.items():
                # Never the same key twice: the server remembers what it saw.
                key = f"{title.replace(' ', '-')}-{name}-{number}"
                for seconds, took in zip(times[name], self.there_and_back(*make(key), source, key), strict=True):
                    seconds.append(took)
                if digest(self.folder / "back") != expected:
                    sys.exit(f"{name}: what came back is not what was sent")
                back = self.folder / "back"
                shutil.rmtree(back) if back.is_dir() else back.unlink()
        worst = float("inf")
        for index, direction in enumerate(("up", "down")):
            rates = {name: size / 1e6 / statistics.median(found[index]) for name, found in times.items()}
            print(f"{title}, {direction}: " + ", ".join(f"{name} {rate:.0f} MB/s" for name, rate in rates.items()),
                  flush=True)
            worst = min(worst, rates.pop("hpcrunner") / max(rates.values()))
        return worst


def void(_: object) -> None:
    pass


def timed(run: Run, path: Path) -> float:
    os.sync()  # What others wrote is not to be paid for here.
    start = time.perf_counter()
    run(path)
    return time.perf_counter() - start


def digest(path: Path) -> str:
    """Of a file, or of the names and contents of all files below a folder."""
    found = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            found.update(str(file.relative_to(path)).encode())
            with file.open("rb") as reader:
                while data := reader.read(2**20):
                    found.update(data)
    return found.hexdigest()


def make_workspace(folder: Path) -> int:
    """2,000 files of the sizes of a project of code, in 40 folders; how many bytes."""
    chance = random.Random(1)
    size = 0
    for number in range(FILES):
        path = folder / f"package{number % 40}" / f"module{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = chance.randbytes(min(int(chance.lognormvariate(9, 1.5)), 2**20))
        path.write_bytes(data)
        size += len(data)
    return size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=GIB, help="bytes of the large file")
    arguments = parser.parse_args()
    server = services.SERVICES["rclone-s3"]()
    assert isinstance(server, storeservers.Server)
    folder = Path(tempfile.mkdtemp(prefix="hpcrunner-bench-"))
    try:
        (folder / "state").mkdir()
        Path(server.told["data"], BUCKET).mkdir()
        bench = Bench(folder, server, arguments.rounds)
        large, workspace = folder / "large", folder / "workspace"
        with large.open("wb") as file:
            for start in range(0, arguments.size, 2**20):
                file.write(os.urandom(min(2**20, arguments.size - start)))
        size = make_workspace(workspace)
        worst = min(
            bench.compare("one large file", arguments.size, {
                "hpcrunner": lambda key: (bench.ours("up", key), bench.ours("down", key)),
                "rclone": lambda key: (bench.rclone(False, key, True), bench.rclone(True, key, True)),
                "s5cmd": lambda key: (bench.s5cmd(False, key, True), bench.s5cmd(True, key, True)),
                "boto3": lambda key: (bench.boto3("up", key), bench.boto3("down", key))}, large),
            bench.compare(f"{FILES} files", size, {
                "hpcrunner": lambda key: (bench.ours("pack-up", key), bench.ours("down-unpack", key)),
                "rclone": lambda key: (bench.rclone(False, key, False), bench.rclone(True, key, False)),
                "s5cmd": lambda key: (bench.s5cmd(False, key, False), bench.s5cmd(True, key, False)),
                "boto3": lambda key: (bench.boto3("files-up", key), bench.boto3("files-down", key))}, workspace))
        print(f"transfer worst={worst:.2f} rss_mb={bench.memory}")
    finally:
        storeservers.stop_all()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
