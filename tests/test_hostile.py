"""Hundreds of hostile messages through the whole of hpcrunner: nothing of them is executed outside their own
program, nothing is written outside their run directory, and each one is reported."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab import Lab
from sbatchscript import options_of, pretend

Message = dict[str, Any]


def shell_payloads(flag: Path) -> list[str]:
    touch = f"touch {flag}"
    return [f"$({touch})", f"`{touch}`", f"; {touch};", f"&& {touch}", f"| {touch}", f"\n{touch}\n", f"'; {touch}; '",
            f'"; {touch}; "', f"'\"$({touch})\"'", f"${{IFS}}$({touch})", f"x\n#SBATCH --wrap='{touch}'\n{touch}",
            f"%post\n{touch}", f"{{{{ ''.__class__ }}}}$({touch})", f"\\\n{touch}", f"a\r{touch}", f"--{touch}",
            f"-c import os;os.system('{touch}')", f"!{touch}", f"~/$({touch})", f"<({touch})"]


def paths(outside: Path) -> list[str]:
    return ["../../../../../../tmp/escape", f"{outside}/absolute", "..", ".", "/", "a/../../../../b", "a/./../..",
            f"file://{outside}/x", "~/x", "con\x00nul", "//etc/passwd", "....//....//x"]


def hostile(lab: Lab, chance: random.Random, flag: Path, outside: Path, number: int) -> Message | bytes:
    """One message with something evil somewhere in it."""
    message = lab.message(f"evil{number}", "print('the program ran')")
    experiment, config = message["experiment"], message["config"]
    shell, path = chance.choice(shell_payloads(flag)), chance.choice(paths(outside))
    workspace = experiment["artifacts"]["workspace"]
    output = experiment["artifacts"]["output"]

    def tar(build: Callable[[tarfile.TarFile], None], compress: bool = False) -> None:
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as archive:
            build(archive)
        key = lab.put_tar({})
        blob = data.getvalue()
        (lab.store / "artifacts" / key).write_bytes(gzip.compress(blob) if compress else blob)
        workspace.update(lab.artifact("workspace", key, mutable=False))

    def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", data: bytes = b"") -> Callable[[tarfile.TarFile], None]:
        def build(archive: tarfile.TarFile) -> None:
            ordinary = tarfile.TarInfo("main.py")
            ordinary.size = len(b"print('the program ran')")
            archive.addfile(ordinary, io.BytesIO(b"print('the program ran')"))
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size, info.mode = kind, link, len(data), 0o777
            archive.addfile(info, io.BytesIO(data))
        return build

    def links(archive: tarfile.TarFile) -> None:
        for name, target in (("way", "."), ("way2", "way/.."), ("out", "way2/../.."), ("deep/d", ".."), ("e", "deep/d/..")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
        info = tarfile.TarInfo("out/escaped")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"x"))

    def bomb(archive: tarfile.TarFile) -> None:
        info = tarfile.TarInfo("zeros")
        info.size = 64 * 2**20
        archive.addfile(info, io.BytesIO(bytes(info.size)))
        experiment["resources_needed"]["hdd"] = "1mb"

    def many(archive: tarfile.TarFile) -> None:
        for entry in range(300):
            archive.addfile(tarfile.TarInfo("/".join(f"d{entry}" for _ in range(60))))

    tricks: list[Callable[[], object]] = [
        lambda: experiment.update(key=shell),
        lambda: experiment.update(key=path),
        lambda: experiment.update(filename=shell),
        lambda: experiment.update(filename=path),
        lambda: experiment.update(args=[shell, path]),
        lambda: experiment.update(pythonenv=[shell]),
        lambda: experiment.update(pythonenv=[f"-e git+https://127.0.0.1:1/{shell}#egg=x", f"x @ file://{path}"]),
        lambda: experiment.update(pythonver=shell),
        lambda: experiment.update(project=shell, owner=path, metric=shell),
        lambda: experiment.update(resources_needed={"cpus": shell, "gpus": path, "ram": shell}),
        lambda: experiment.update(max_duration=shell, time_added=shell),
        lambda: config.update(env={shell: "x", "GOOD": shell, "PATH": path, "LD_PRELOAD": path, "BASH_ENV": path}),
        lambda: config.update(pip=[shell, path]),
        lambda: config.update(experimentLifetime=shell, saveWorkspaceFrequency=path, verbose=shell),
        lambda: config.update(database={"type": shell, "endpoint": path, "bucket": shell}),
        lambda: config.update(database={"type": "local", "endpoint": str(outside), "bucket": path}),
        lambda: experiment["artifacts"].update({path: lab.artifact("x", "x.tar", mutable=True)}),
        lambda: experiment["artifacts"].update({shell: lab.artifact("x", "x.tar", mutable=True)}),
        lambda: workspace.update(qualified=f"file:/{path}", key=path),
        lambda: workspace.update(qualified=shell),
        lambda: output.update(qualified=f"file:/{lab.store}/artifacts/{path}", key=path),
        lambda: output.update(qualified=f"file:/{outside}/result.tar"),
        lambda: output.update(qualified=shell, local=path),
        lambda: tar(member(path or "x", data=b"evil")),
        lambda: tar(member("link", tarfile.SYMTYPE, path)),
        lambda: tar(member("link", tarfile.LNKTYPE, path)),
        lambda: tar(member("device", tarfile.CHRTYPE)),
        lambda: tar(member("fifo", tarfile.FIFOTYPE)),
        lambda: tar(links),
        lambda: tar(bomb, compress=True),
        lambda: tar(many),
    ]
    chance.choice(tricks)()
    if chance.random() < 0.3:
        chance.choice(tricks)()
    data = json.dumps(message).encode("utf-8", "surrogatepass")
    if chance.random() < 0.1:  # And now and then a message that isn't even one.
        cut = chance.randrange(len(data))
        return chance.choice([data[:cut], b"[" * 50_000, b"\xff\xfe" + data, data.replace(b'"experiment"', b'"other"'),
                              b'{"experiment": null, "config": 3}', b""])
    return message


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images for all: what is tested here is not the building."""
    return tmp_path_factory.mktemp("images")


@pytest.mark.parametrize(("scheduler", "count"), [("direct", 200), ("slurm", 100)])
@pytest.mark.parametrize("seed", [7])
def test_nothing_escapes_and_everything_is_reported(seed: int, scheduler: str, count: int, tmp_path: Path, images: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    flag = tmp_path / "executed"
    commands = pretend(tmp_path / "bin")
    options = {"partitions": {"cpu": {"max_cpus": 9}}, "bin_dir": str(commands)}
    lab = Lab(tmp_path / "lab", artifact_limit="50mb", image_dir=str(images), scheduler=scheduler, slurm=options, max_jobs=4)
    chance = random.Random(seed)
    sent: set[bytes] = set()
    while len(sent) < count:
        message = hostile(lab, chance, flag, outside, len(sent))
        data = message if isinstance(message, bytes) else json.dumps(message).encode("utf-8", "surrogatepass")
        if data not in sent:
            sent.add(data)
            lab.enqueue(data)
    for path in lab.queue.iterdir():  # Old enough not to be taken for half-written.
        os.utime(path, (1, 1))
    before = snapshot(tmp_path, lab, images, commands)
    lab.tick("--wait", env={"PIP_NO_INDEX": "1"}, timeout=900)

    assert not flag.exists(), "a value was executed by a shell"
    assert list(outside.iterdir()) == []
    assert not Path("/tmp/escape").exists()
    assert snapshot(tmp_path, lab, images, commands) == before, "files outside the lab's store and state changed"
    runs = json.loads(lab.hpcrunner("status", "--json").stdout)
    assert len(runs) == count
    assert {run["state"] for run in runs} == {"done"}
    assert all(run["reason"] for run in runs)
    outcomes = [run["outcome"] for run in runs]
    # Some are only odd and run; many are refused; none may be called lost, which is for our own faults.
    assert outcomes.count("rejected") > 0.15 * count and outcomes.count("succeeded") > 0.15 * count
    assert "lost" not in outcomes, [run["reason"] for run in runs if run["outcome"] == "lost"]
    letters = list(lab.state.joinpath("dead-letters").iterdir())
    for letter in letters:
        assert (letter / "message").read_bytes() in sent
        assert json.loads((letter / "reason.json").read_text())["reason"]
    assert len(letters) > 0.05 * count
    scripts = [path.read_text() for path in commands.glob("*/job.sh")]
    assert bool(scripts) == (scheduler == "slurm")
    for script in scripts:
        assert options_of(script).keys() <= OPTIONS | {"array"}
        assert options_of(script).keys() >= OPTIONS - {"mem"}


OPTIONS = {"job-name", "partition", "nodes", "ntasks", "cpus-per-task", "mem", "time", "signal", "no-requeue", "export",
           "chdir", "output", "open-mode"}
"""What sbatch may be told."""


def snapshot(root: Path, lab: Lab, *others: Path) -> dict[str, float]:
    """Everything below the test's folder but what hpcrunner may write."""
    mine = (lab.store, lab.state, lab.queue.parent, *others)
    return {str(path): path.lstat().st_mtime for path in root.rglob("*")
            if not any(path.is_relative_to(folder) for folder in mine) and path not in (lab.root, root)}
