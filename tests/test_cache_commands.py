"""`hpcrunner cache` and `hpcrunner images`: what is listed, what goes, what is wrong; never something in use."""

from __future__ import annotations

import json
import os
import threading
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from disks import remount, small_disk
from hpcrunner.artifacts.cache import Cache, Made
from hpcrunner.cli.main import main
from hpcrunner.config.load import load
from hpcrunner.engine.imageuse import images_in_use, register
from hpcrunner.engine.install import Install
from hpcrunner.images import inventory
from hpcrunner.journal.store import Journal
from hpcrunner.model import State

DAY = 86400.0


class Commands:
    """A site in a folder, and its commands."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str], **options: Any) -> None:
        self.root, self._capsys = root, capsys
        self.file = root / "site.yaml"
        root.mkdir(exist_ok=True)
        self.file.write_text(json.dumps({"state_dir": str(root / "state"), "engine": "none",
                                        "queues": [{"type": "local", "root": str(root)}], **options}))
        self.site = load(self.file).site

    def __call__(self, *words: str, code: int = 0) -> str:
        assert main([*words, "--site", str(self.file)]) == code
        return self._capsys.readouterr().out

    def json(self, *words: str, code: int = 0) -> Any:
        return json.loads(self(*words, "--json", code=code))

    # -- the cache --

    @property
    def cache(self) -> Cache:
        return Cache(self.site.cache_dir, 2**20)

    def keep(self, name: str, size: int, age: float = 0) -> str:
        def make(data: Path) -> Made:
            data.write_bytes(bytes(size))
            return Made(size)

        key = sha256(name.encode()).hexdigest()
        with self.cache.use(key, "object", f"s3://host/bucket/{name}", size, make) as entry:
            assert entry
        os.utime(entry.folder / "entry.json", (time.time() - age,) * 2)
        return key

    # -- images --

    def image(self, name: str, age: float = DAY, content: bytes = b"image", recorded: bytes | None = None) -> str:
        digest = sha256(name.encode()).hexdigest()
        folder = self.site.image_dir / "builds" / digest
        folder.mkdir(parents=True)
        note = {"summary": name, "sha256": sha256(recorded or content).hexdigest()}
        (folder / "built.json").write_text(json.dumps(note))
        path = self.site.image_dir / f"{digest}.sif"
        path.write_bytes(content)
        os.utime(path, (time.time() - age,) * 2)
        return digest

    def run_that_needs(self, digest: str, state: State = State.RECEIVED) -> None:
        with Journal(self.site.state_dir / "journal.sqlite") as journal:
            run = journal.receive("queue", os.urandom(8), key=f"needs-{digest[:4]}")
            assert run
            run = journal.note(run, image=digest)
            register(Install(self.site, journal))
            if state is State.DONE:
                journal.move(journal.move(run, State.ENDING), State.DONE)

    def images(self) -> set[str]:
        return {path.stem for path in self.site.image_dir.glob("*.sif")}


@pytest.fixture
def commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Commands:
    return Commands(tmp_path / "one", capsys, cache_size="1MiB")


# -- the cache --

def test_nothing_is_made_by_looking(commands: Commands) -> None:
    for name in ("cache", "images"):
        assert "is empty" in commands(name, "list")
        assert commands.json(name, "list") == []
        assert commands.json(name, "size")["count"] == 0
        assert commands.json(name, "verify") == {"checked": 0, "wrong": []}
    assert not commands.site.state_dir.exists()


def test_a_read_only_cache_can_be_looked_at(commands: Commands, capsys: pytest.CaptureFixture[str]) -> None:
    with small_disk(commands.site.cache_dir.parent, "1m") as disk:
        key = commands.keep("x", 1000)
        remount(disk, "ro")
        assert [(item["name"], item["in_use"]) for item in commands.json("cache", "list")] == [(key, "")]
        assert commands.json("cache", "size")["count"] == 1
        assert commands.json("cache", "verify") == {"checked": 1, "wrong": []}
        assert main(["cache", "prune", "--max-size", "0", "--site", str(commands.file)]) == 74
        assert "Read-only file system" in capsys.readouterr().err


def test_the_cache_is_listed_and_measured(commands: Commands) -> None:
    old, new = commands.keep("old", 2048, age=2 * DAY), commands.keep("new", 1024)
    lines = commands("cache", "list").splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", old[:12], new[:12]]
    assert "2 KiB" in lines[1] and "2d" in lines[1] and "s3://host/bucket/old" in lines[1] and "yes" not in lines[1]
    assert [item["name"] for item in commands.json("cache", "list")] == [old, new]
    assert commands("cache", "size").startswith("3 KiB of 1 MiB in 2 entries: ")
    assert commands.json("cache", "size")["bytes"] == 3072


def test_the_cache_is_pruned_by_age_and_by_size(commands: Commands) -> None:
    keys = [commands.keep(f"{days} days", 1000, days * DAY) for days in (40, 20, 10, 1)]
    planned = commands.json("cache", "prune", "--older-than", "30d", "--max-size", "2000", "--dry-run")
    assert [item["name"] for item in planned["removed"]] == keys[:2] and planned["left"] == 2000
    assert len(commands.cache.entries()) == 4
    assert "would remove" in commands("cache", "prune", "--older-than", "30d", "--dry-run")
    assert commands("cache", "prune", "--older-than", "30d").endswith("2.9 KiB in 3 entries are left\n")
    assert [item["name"] for item in commands.json("cache", "prune", "--max-size", "1k")["removed"]] == keys[1:3]
    assert [entry.key for entry in commands.cache.entries()] == keys[3:]


def test_what_a_run_is_just_taking_out_of_the_cache_stays(commands: Commands) -> None:
    key = commands.keep("a", 1000, 40 * DAY)
    with commands.cache.use(key, "object", "", 1000, lambda data: Made(0)) as held:
        assert held
        os.utime(held.folder / "entry.json", (1, 1))
        assert commands.json("cache", "list")[0]["in_use"]
        assert "yes" in commands("cache", "list")
        assert "the rest is in use" in commands("cache", "prune", "--older-than", "1d", "--max-size", "0")
        held.data.write_bytes(b"wrong")
        assert "in use, so it stays" in commands("cache", "verify", "--remove", code=1)
        assert held.data.exists()
    assert "--remove removes it" in commands("cache", "verify", code=1)
    assert commands.json("cache", "verify", "--remove")["wrong"][0]["removed"]
    assert commands.cache.entries() == []


def test_wrong_entries_of_the_cache_are_found(commands: Commands) -> None:
    for number in range(3):
        commands.keep(f"{number}", 1000)
    entry = commands.cache.entries()[1]
    entry.data.write_bytes(bytes(999) + b"x")
    found = commands.json("cache", "verify", code=1)
    assert found["checked"] == 3 and [item["name"] for item in found["wrong"]] == [entry.key]
    assert entry.sha256 in found["wrong"][0]["problem"]
    text = commands("cache", "verify", "--remove")
    assert text.endswith("3 checked, 1 wrong\n") and "; removed" in text
    assert len(commands.cache.entries()) == 2


@pytest.mark.parametrize(("words", "says"), [
    (("prune",), "say what is to go"), (("prune", "--older-than", "x"), "'x' is no duration"),
    (("prune", "--max-size", "much"), "'much' is no size"), ((), "list|size|prune|verify")])
@pytest.mark.parametrize("name", ["cache", "images"])
def test_wrong_usage(commands: Commands, name: str, words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main([name, *words, *(["--site", str(commands.file)] if words else [])])
    except SystemExit as exit_:
        code = int(str(exit_.code))
    assert code == 64 and says in capsys.readouterr().err


# -- images --

def test_images_are_listed_and_pruned_but_for_those_in_use(commands: Commands) -> None:
    needed, over, unused, new = (commands.image(name, age) for name, age in (
        ("needed", 90 * DAY), ("over", 80 * DAY), ("unused", 70 * DAY), ("new", 0)))
    commands.run_that_needs(needed)
    commands.run_that_needs(over, State.DONE)
    (commands.site.image_dir / "python.sif").write_bytes(b"the admin's own")
    listed = {item["name"]: item for item in commands.json("images", "list")}
    assert list(listed) == [needed, over, unused, new] and listed[over]["about"] == "over"
    assert listed[needed]["in_use"] == f"needs-{needed[:4]}, which is received"
    assert "just" in listed[new]["in_use"] and not listed[over]["in_use"] and not listed[unused]["in_use"]
    assert len(commands.json("images", "prune", "--older-than", "30d", "--dry-run")["removed"]) == 2
    commands("images", "prune", "--older-than", "75d")
    assert commands.images() == {needed, unused, new, "python"}
    assert "the rest is in use" in commands("images", "prune", "--max-size", "0")
    assert commands.images() == {needed, new, "python"}


def test_images_that_another_install_needs_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = str(tmp_path / "images")
    one, two = (Commands(tmp_path / name, capsys, image_dir=shared) for name in ("one", "two"))
    ours, theirs, nobodys = (one.image(name, 90 * DAY) for name in ("ours", "theirs", "nobodys"))
    one.run_that_needs(ours)
    two.run_that_needs(theirs)
    one("images", "prune", "--max-size", "0")
    assert one.images() == {ours, theirs}
    # A journal that can't be read may need anything; an install that is gone needs nothing.
    journal = two.site.state_dir / "journal.sqlite"
    content = journal.read_bytes()
    two.image("more", 90 * DAY)
    journal.write_bytes(b"no journal" * 1000)
    removed = one.json("images", "prune", "--max-size", "0")["removed"]
    assert removed == [] and "another install may need it" in one("images", "prune", "--max-size", "0")
    assert str(tmp_path / "images" / "users") in images_in_use(one.site).of(nobodys)
    journal.write_bytes(content)
    two.site.state_dir.rename(tmp_path / "elsewhere")
    one("images", "prune", "--max-size", "0")
    assert one.images() == {ours} and len(list((tmp_path / "images" / "users").iterdir())) == 1


def test_an_install_of_another_host_that_cant_be_seen_from_here_keeps_its_images(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = Commands(tmp_path / "one", capsys)
    digest = one.image("a", 90 * DAY)
    mark = one.site.image_dir / "users" / "other"
    mark.parent.mkdir()
    mark.write_text(json.dumps({"state_dir": "/only/there", "host": "login2"}))
    assert f"if the install in /only/there (on login2) is gone, remove {mark}" in one("images", "prune", "--max-size", "0")
    assert one.images() == {digest}


def test_an_image_that_somebody_comes_to_use_while_it_is_being_removed_stays(
        commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = commands.image("a", 90 * DAY)
    kept = inventory.images(commands.site.image_dir)[0]
    os.utime(kept.path)  # as Images.order does
    assert not inventory.remove(kept) and commands.images() == {digest}
    assert inventory.remove(inventory.images(commands.site.image_dir)[0]) and commands.images() == set()
    assert inventory.remove(kept), "another was faster"


def test_using_an_image_changes_its_time(commands: Commands) -> None:
    from hpcrunner.containers.base import Definition

    with Journal(commands.site.state_dir / "journal.sqlite") as journal:
        install = Install(commands.site, journal)
        definition = Definition("a" * 64, {}, "")
        install.images.order(definition)  # one that is not there
        path = install.container.image(definition.digest)
        path.mkdir(parents=True)
        os.utime(path, (1, 1))
        install.images.order(definition)
        assert path.stat().st_mtime > time.time() - 60


def test_what_is_being_built_or_was_left_half_built(commands: Commands) -> None:
    import fcntl

    digest = commands.image("a", 90 * DAY)
    folder = commands.site.image_dir
    for name, age in (("new", 7200), ("old", 2 * DAY)):
        part = folder / f".{sha256(name.encode()).hexdigest()}.host.1.sif"
        part.write_bytes(b"half")
        os.utime(part, (time.time() - age,) * 2)
    (folder / ".gone-x.sif-1").write_bytes(b"a prune was killed")
    with (folder / "builds" / digest / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        commands("images", "prune", "--max-size", "0")
        assert commands.images() == {digest, *(path.stem for path in folder.glob(".*.sif"))}
    assert [path.name for path in folder.glob(".*")] == [f".{sha256(b'new').hexdigest()}.host.1.sif"]


def test_wrong_images_are_found(commands: Commands) -> None:
    right, wrong, unknown = commands.image("right"), commands.image("wrong", recorded=b"other"), commands.image("unknown")
    (commands.site.image_dir / "builds" / unknown / "built.json").unlink()
    venv = commands.site.image_dir / f"{'b' * 64}.venv"
    (venv / "bin").mkdir(parents=True)
    (venv / ".hpcrunner-ready").touch()
    (venv / "bin" / "python").symlink_to("/nowhere/python")
    found = commands.json("images", "verify", code=1)
    assert found["checked"] == 4 and {item["name"] for item in found["wrong"]} == {wrong, "b" * 64}
    os.utime(venv, (1, 1))
    commands("images", "verify", "--remove")
    assert commands.images() == {right, unknown} and not venv.exists()


def test_a_build_records_the_digest_of_its_image(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcrunner.images import build

    class Container:
        def __init__(self, *_: object) -> None: ...

        def image(self, digest: str) -> Path:
            return commands.root / f"{digest}.sif"

        def is_built(self, digest: str) -> bool:
            return self.image(digest).exists()

        def build(self, folder: Path, digest: str, log: object) -> None:
            self.image(digest).write_bytes(b"built")

    monkeypatch.setattr(build.plugins, "load", lambda *_: Container)
    (commands.root / "order.json").write_text(json.dumps({"site": {}, "engine": "x", "digest": "d", "summary": "s"}))
    build.main(commands.root)
    assert json.loads((commands.root / "built.json").read_text())["sha256"] == sha256(b"built").hexdigest()


def test_pruning_while_others_use_the_cache(commands: Commands) -> None:
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            for number in range(10):
                commands.keep(f"{number}", 1000)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for _ in range(30):
            commands("cache", "prune", "--max-size", "3000")
            commands("cache", "verify")
    finally:
        stop.set()
        worker.join()
