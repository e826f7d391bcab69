"""The cache of artifacts: fetched once, never wrong, never removed while in use, whoever is killed at whatever moment."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import services
from disks import mounted, remount, small_disk
from hpcrunner import locks
from hpcrunner.artifacts import cache as cache_module
from hpcrunner.artifacts import tree
from hpcrunner.artifacts.cache import Cache, Made
from hpcrunner.artifacts.clone import can_clone, clone_tree, copy_file, count_tree
from hpcrunner.artifacts.digest import digest_of
from hpcrunner.config.load import load
from hpcrunner.engine.fetch import Brought, bring, expected_digest
from hpcrunner.engine.install import Install
from hpcrunner.engine.prepare import stage
from hpcrunner.engine.transfers import Transfer
from hpcrunner.errors import ArchiveError, MessageError, StoreError
from hpcrunner.journal.store import Journal
from hpcrunner.locks import Lock
from hpcrunner.stores.base import Stat, check_size
from hpcrunner.stores.local import LocalStore
from hpcrunner.wire.experiment import Artifact
from hpcrunner.wire.message import parse
from lab import Lab
from storeservers import Proxy, Server

TESTS = Path(__file__).parent


def packed(**files: bytes) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return data.getvalue()


class CountingStore:
    """Objects in a dictionary; counts what is asked of it."""

    def __init__(self, **objects: bytes) -> None:
        self.objects = {f"s3://host/bucket/{name}": content for name, content in objects.items()}
        self.stats = self.fetches = 0
        self.refuses = ""
        self.is_versioned = True
        self.before_fetch: Callable[[], None] = lambda: None

    def put(self, content: bytes, name: str = "") -> str:
        location = f"s3://host/bucket/{name or f'blobstore/{sha256(content).hexdigest()}.tar'}"
        self.objects[location] = content
        return location

    def stat(self, location: str) -> Stat | None:
        self.stats += 1
        if self.refuses:
            raise StoreError(self.refuses)
        if (content := self.objects.get(location)) is None:
            return None
        return Stat(len(content), sha256(content).hexdigest()[:8] if self.is_versioned else "")

    def fetch(self, location: str, target: Path, progress: Any = None, limit: int | None = None) -> Stat | None:
        self.fetches += 1
        self.before_fetch()
        if (content := self.objects.get(location)) is None:
            return None
        check_size(location, len(content), limit)
        part = target.with_name(f".{target.name}.part")
        part.write_bytes(content)
        part.replace(target)
        return self.stat(location)


class Place:
    """An install as far as bringing artifacts needs one."""

    def __init__(self, root: Path, limit: int = 2**20) -> None:
        self.root, self.store = root, CountingStore()
        self.cache: Cache | None = Cache(root / "cache", limit)
        self.install: Any = SimpleNamespace(cache=self.cache, store=lambda experiment, artifact: self.store)
        self._count = iter(range(10**6))

    def bring(self, location: str | None, *, limit: int = 10**6, store: CountingStore | None = None, **changes: Any
              ) -> tuple[Brought | None, Path]:
        fields = {"tag": "data", "mutable": False, "unpack": True, "location": location, "key": None, **changes}
        scratch = self.root / "runs" / str(next(self._count))
        scratch.mkdir(parents=True)
        install = self.install if store is None else SimpleNamespace(cache=self.cache, store=lambda *_: store)
        target = scratch / "target"
        done = bring(install, None, Artifact(**fields), target, scratch, None, limit)  # type: ignore[arg-type]
        assert [path.name for path in scratch.iterdir()] == (["target"] if done and target.exists() else [])
        return done, target

    def keys(self) -> list[str]:
        assert self.cache
        return [entry.key for entry in self.cache.entries(parts=True)]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def with_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies blocks where the file system can't clone: slower, and otherwise the same."""
    monkeypatch.setattr(tree, "can_clone", lambda *_: True)


# -- locks --

def test_locks_exclude_threads_as_well_as_processes(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with Lock(file, "a") as one, Lock(file, "a") as two, Lock(file, "b") as other:
        assert one.share() and two.share() and not one.exclude()
        two.free()
        assert one.exclude() and not two.share() and other.exclude()
        assert one.share() and two.share()
    with Lock(file, "a") as again:
        assert again.exclude()


def test_a_lock_dies_with_its_holder(tmp_path: Path) -> None:
    code = "import sys, time; from hpcrunner.locks import Lock; from pathlib import Path\n" \
           "with Lock(Path(sys.argv[1]), 'a') as lock: assert lock.exclude(); print('held', flush=True); time.sleep(100)"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "lock")], stdout=subprocess.PIPE) as holder:
        assert holder.stdout and holder.stdout.readline() == b"held\n"
        with Lock(tmp_path / "lock", "a") as lock:
            assert not lock.share()
            holder.kill()
            holder.wait()
            assert lock.exclude()


# -- one fetch for all --

@pytest.mark.parametrize("trees", [False, True])
def test_a_workspace_of_1000_experiments_is_fetched_once(place: Place, trees: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked = []
    original = tree.unpack
    monkeypatch.setattr(tree, "can_clone", lambda *_: trees)
    monkeypatch.setattr(tree, "unpack", lambda *args: unpacked.append(1) or original(*args))
    location = place.store.put(packed(main=b"print()", data=bytes(1000)))
    place.store.before_fetch = lambda: time.sleep(0.2)
    with ThreadPoolExecutor(16) as threads:
        targets = [target for _, target in threads.map(lambda _: place.bring(location, tag="workspace"), range(1000))]
    assert all((target / "main").read_bytes() == b"print()" for target in targets)
    assert place.store.fetches == 1 and place.store.stats >= 1000
    assert len(unpacked) == (1 if trees else 1000)
    (targets[0] / "main").write_text("changed")
    assert (targets[1] / "main").read_bytes() == (place.bring(location)[1] / "main").read_bytes() == b"print()"


SLOW = '''
import sys, time
from pathlib import Path
from test_cache import *
root, count, location = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
place = Place(root / sys.argv[4])
place.install.cache = place.cache = Cache(root / "cache", 2**20)
place.store.put(packed(main=b"print()"))
def slowly():
    with count.open("a") as file: file.write("fetch\\n")
    time.sleep(0.5)
place.store.before_fetch = slowly
print("ready", flush=True); sys.stdin.readline()
done, target = place.bring(location)
assert (target / "main").read_bytes() == b"print()"
'''


def test_of_two_processes_one_fetches_and_the_other_waits(tmp_path: Path) -> None:
    location = CountingStore().put(packed(main=b"print()"))
    both = [subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path), str(tmp_path / "count"), location, name],
                             env={**os.environ, "PYTHONPATH": str(TESTS)}, text=True, stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE) for name in ("one", "two")]
    for process in both:
        assert process.stdout and process.stdout.readline() == "ready\n"
    for process in both:
        process.communicate("go\n", timeout=60)
    assert [process.returncode for process in both] == [0, 0]
    assert (tmp_path / "count").read_text() == "fetch\n"


def test_who_waits_for_a_process_that_gets_nowhere_gives_up_for_now(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_STALLED", 0.2)
    assert place.cache
    with Lock(place.cache.folder / "lock", "key") as other:
        assert other.exclude()
        with pytest.raises(StoreError, match=r"s3://x: waited .* gets nowhere") as caught, \
                place.cache.use("key", "object", "s3://x", 1, lambda data: Made(0)):
            pass
    assert caught.value.transient


# -- what is right --

@pytest.mark.parametrize("has_hash", [False, True])
def test_what_is_not_what_its_digest_says_is_refused_and_not_kept(place: Place, has_hash: bool) -> None:
    digest = sha256(packed(a=b"right")).hexdigest()
    location = place.store.put(packed(a=b"wrong"), "x.tar" if has_hash else f"blobstore/{digest}.tar")
    changes = {"sha256": digest} if has_hash else {}
    for cache in (place.cache, None):
        place.install.cache = cache
        with pytest.raises(StoreError, match=f"data: .* SHA-256 .* must be {digest}"):
            place.bring(location, **changes)
    assert place.keys() == []
    place.store.put(packed(a=b"right"), location.partition("bucket/")[2])
    assert (place.bring(location, **changes)[1] / "a").read_bytes() == b"right"


def test_which_digest_an_object_must_have() -> None:
    digest = "0123456789abcdef" * 4

    def of(location: str, mutable: bool = False, given: str = "") -> str:
        return expected_digest(Artifact("x", mutable, True, location, None, sha256=given))

    assert of(f"s3://h/b/blobstore/{digest}.tar") == of(f"file://home/b/blobstore/{digest}.tar.bz2") == digest
    assert of(f"s3://h/b/blobstore/{digest}.tar", mutable=True) == ""
    assert of(f"s3://h/b/{digest}.tar") == of(f"s3://h/b/blobstore/{digest[1:]}.tar") == of("http://h/f?x=1") == ""
    assert of("http://h/f", given=digest) == digest


def test_an_object_that_changes_is_fetched_again(place: Place) -> None:
    for mutable in (False, True):
        location = place.store.put(packed(a=b"1"), f"experiments/k{mutable}/workspace.tar")
        place.store.fetches = 0
        for content in (b"1", b"1", b"2", b"2"):
            place.store.put(packed(a=content), location.partition("bucket/")[2])
            assert (place.bring(location, mutable=mutable)[1] / "a").read_bytes() == content
        assert place.store.fetches == 2


def test_an_object_without_a_version_is_not_cached(place: Place) -> None:
    place.store.is_versioned = False
    location = place.store.put(packed(a=b"1"), "x.tar")
    place.bring(location)
    place.bring(location)
    assert place.store.fetches == 2 and place.keys() == []


def test_an_object_that_is_replaced_while_it_is_read(place: Place) -> None:
    location = place.store.put(packed(a=b"0"), "x.tar")
    numbers = iter(range(1, 100))
    place.store.before_fetch = lambda: (place.store.put(packed(a=b"%d" % next(numbers)), "x.tar"), None)[1]
    with pytest.raises(StoreError, match="was replaced each time") as caught:
        place.bring(location)
    assert caught.value.transient and place.keys() == []
    content = iter((b"before", b"after"))
    place.store.before_fetch = lambda: (place.store.put(packed(a=next(content, b"after")), "x.tar"), None)[1]
    assert (place.bring(location)[1] / "a").read_bytes() == b"after"


def test_what_is_not_there(place: Place) -> None:
    assert place.bring("s3://host/bucket/none.tar", mutable=True) == (None, place.root / "runs/0/target")
    assert place.bring(None, mutable=True)[0] is None
    with pytest.raises(MessageError, match=r"data is not in the store: there is no s3://host/bucket/none\.tar"):
        place.bring("s3://host/bucket/none.tar")
    with pytest.raises(MessageError, match="nowhere"):
        place.bring(None)
    location = place.store.put(packed(), "x.tar")
    place.store.before_fetch = lambda: place.store.objects.clear()
    assert place.bring(location, mutable=True)[0] is None, "it was removed between two looks"


@pytest.mark.parametrize(("given", "digest", "warns"), [
    ("AB" * 32, "ab" * 32, False), (f"sha256:{'ab' * 32}", "ab" * 32, False), ("SHA-256:" + "ab" * 32, "ab" * 32, False),
    (None, "", False), ("", "", False), ("ab" * 16, "", True), ("q" * 64, "", True), (["ab" * 32], "", True), (7, "", True)])
def test_the_hash_that_a_message_has(given: object, digest: str, warns: bool) -> None:
    artifact = {"mutable": False, "unpack": True, "qualified": "s3://host/bucket/x.tar", "key": "x.tar", "hash": given}
    message = {"experiment": {"key": "k", "filename": "main.py", "artifacts": {"data": artifact}}, "config": {}}
    experiment = parse(json.dumps(message).encode())
    assert experiment.artifacts["data"].sha256 == digest
    assert [*experiment.warnings] == [text for text in experiment.warnings if "data.hash" in text and warns]
    assert bool(experiment.warnings) == warns


# -- an install with it --

class Staged:
    """Runs that are staged in, in this process."""

    def __init__(self, root: Path, **options: Any) -> None:
        self.lab = Lab(root, **options)
        self.workspace = self.lab.artifact("workspace", self.lab.put_tar({"main.py": "1"}), mutable=False)
        self.site = load(self.lab.site).site

    def stage(self, key: str) -> Path:
        message = self.lab.message(key, artifacts={"workspace": self.workspace})
        with Journal(self.site.state_dir / "journal.sqlite") as journal:
            install = Install(self.site, journal)
            run = journal.receive("queue", json.dumps(message).encode(), key=key)
            assert run
            stage(install, install.experiment(run), run, install.run_dir(run),
                  Transfer(run, "", lambda _: None, print, print, lambda: None))
            self.cached = 0 if install.cache is None else len(install.cache.entries())
            return install.run_dir(run).workspace


def test_runs_share_what_they_stage_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []
    original = LocalStore.fetch
    monkeypatch.setattr(LocalStore, "fetch", lambda *arguments: fetched.append(1) or original(*arguments))
    staged = Staged(tmp_path)
    for key in "abc":
        assert (staged.stage(key) / "main.py").read_text() == "1"
    assert len(fetched) == 1 and staged.cached == 1
    assert (tmp_path / "state" / "cache").stat().st_mode & 0o077 == 0, "others could read what is private"


@pytest.mark.parametrize("reason", ["no locks", "no folder", "not wanted"])
def test_an_install_works_without_a_cache(tmp_path: Path, reason: str, monkeypatch: pytest.MonkeyPatch,
                                          caplog: pytest.LogCaptureFixture) -> None:
    staged = Staged(tmp_path, **{"no folder": {"cache_dir": "/dev/null/cache"}, "not wanted": {"cache_size": 0}}.get(reason, {}))

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    if reason == "no locks":
        monkeypatch.setattr(locks.fcntl, "fcntl", refuse)
    assert (staged.stage("a") / "main.py").read_text() == "1"
    assert staged.cached == 0
    assert reason == "no locks" or not (tmp_path / "state" / "cache").exists()
    wanted = {"no locks": "file system it is on has no locks (No locks available)", "no folder": "Not a directory"}.get(reason)
    assert [record.levelname for record in caplog.records] == (["WARNING"] if wanted else [])
    assert wanted is None or (wanted in caplog.text and "can't be used" in caplog.text)


# -- who may see what --

def test_whoever_may_not_read_an_object_gets_no_copy_of_it(place: Place) -> None:
    location = place.store.put(packed(a=b"private"))
    place.bring(location)
    stranger = CountingStore()
    stranger.refuses = "403"
    with pytest.raises(StoreError, match="403"):
        place.bring(location, store=stranger)


def test_nobody_gets_anothers_object_by_naming_his_own_after_it(place: Place) -> None:
    private = place.store.put(packed(a=b"private"))
    place.bring(private)
    digest = sha256(packed(a=b"private")).hexdigest()
    thief = CountingStore()
    own = f"s3://host/thiefs/blobstore/{digest}.tar"
    thief.objects[own] = packed(a=b"anything")
    with pytest.raises(StoreError, match="damaged or another"):
        place.bring(own, store=thief)
    with pytest.raises(StoreError, match="damaged or another"):
        place.bring(thief.put(packed(a=b"anything"), "x"), store=thief, sha256=digest)


def test_secrets_of_locations_are_not_shown(place: Place) -> None:
    location = "https://me:word@host/x.tar?X-Amz-Signature=abc"
    place.store.objects[location] = packed()
    place.bring(location)
    text = "".join(path.read_text() for path in place.root.rglob("entry.json"))
    assert "https://host/x.tar?..." in text and "word" not in text and "abc" not in text


# -- room --

def entry(size: int) -> Callable[[Path], Made]:
    def make(data: Path) -> Made:
        data.write_bytes(bytes(size))
        return Made(size)

    return make


def use(cache: Cache, key: str, size: int) -> bool:
    """Whether the entry has its place in the cache."""
    with cache.use(key, "object", key, size, entry(size)) as found:
        assert found is None or found.data.stat().st_size == size
        return found is not None


@pytest.mark.parametrize("order", ["abc", "cba", "bac", "cab"])
def test_what_was_used_longest_ago_goes_first(tmp_path: Path, order: str) -> None:
    cache = Cache(tmp_path, 100)
    for key in "abc":
        assert use(cache, key, 30)
        os.utime(tmp_path / "entries" / key / "entry.json", (1, order.index(key)))
    assert use(cache, order[0], 30)  # once more
    assert use(cache, "d", 40)
    assert {entry.key for entry in cache.entries()} == {order[0], order[2], "d"}
    assert use(cache, "e", 100)
    assert [entry.key for entry in cache.entries(parts=True)] == ["e"] and list((tmp_path / "trash").iterdir()) == []


def test_what_is_in_use_stays_and_what_finds_no_room_is_not_cached(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 100)
    assert not use(cache, "big", 101)
    with cache.use("a", "object", "a", 60, entry(60)) as held:
        assert held and not use(cache, "b", 50) and held.data.exists()
        assert not cache.remove(held) and cache.is_in_use(held)
        assert use(cache, "c", 40)
    assert use(cache, "b", 50)
    assert sorted(entry.key for entry in cache.entries(parts=True)) == ["b", "c"]


def test_room_is_taken_before_the_object_is_there(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 100)

    def make(data: Path) -> Made:
        assert not use(Cache(tmp_path, 100), "other", 50)
        return entry(60)(data)

    with cache.use("a", "object", "a", 60, make) as held:
        assert held


def test_a_tree_that_turns_out_too_large_is_not_kept(place: Place, with_trees: None) -> None:
    import gzip

    location = place.store.put(gzip.compress(packed(zeros=bytes(3 * 2**20))))
    assert (place.bring(location, limit=10**8)[1] / "zeros").stat().st_size == 3 * 2**20
    assert place.cache and [entry.kind for entry in place.cache.entries(parts=True)] == ["object"]


def test_a_tree_that_is_too_large_is_not_unpacked_for_nothing_again(place: Place, with_trees: None,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    import gzip

    unpacked, original = [], tree.unpack
    monkeypatch.setattr(tree, "unpack", lambda *args: unpacked.append(args[1]) or original(*args))
    location = place.store.put(gzip.compress(packed(zeros=bytes(3 * 2**20))))
    for _ in range(3):
        place.bring(location, limit=10**8)
        place.install.cache = place.cache = Cache(place.root / "cache", 2**20)  # as the next process does
    assert len(unpacked) == 4 and place.store.fetches == 1


def test_a_full_disk_is_given_room_and_then_done_without(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        cache = Cache(disk / "cache", 2**30)
        assert use(cache, "a", 300_000) and use(cache, "b", 300_000) and use(cache, "c", 500_000)
        assert {entry.key for entry in cache.entries(parts=True)} == {"b", "c"}
        with cache.use("c", "object", "c", 500_000, entry(500_000)) as held:
            assert held and not use(cache, "d", 800_000)
        assert {entry.key for entry in cache.entries(parts=True)} == {"c"}
        (disk / "others").write_bytes(bytes(400_000))
        assert not use(cache, "e", 900_000)


@pytest.mark.parametrize("error", [OSError(errno.EDQUOT, "Disk quota exceeded"), StoreError("full", transient=True, errno=errno.ENOSPC)])
def test_a_full_disk_that_shows_only_when_it_is_written(tmp_path: Path, error: Exception) -> None:
    cache, full = Cache(tmp_path, 2**20), 1
    assert use(cache, "a", 1000) and use(cache, "b", 1000)

    def make(data: Path) -> Made:
        nonlocal full
        full -= 1
        if full >= 0:
            raise error
        return entry(1000)(data)

    with cache.use("c", "object", "c", 1000, make) as held:
        assert held
    assert {entry.key for entry in cache.entries(parts=True)} == {"b", "c"}
    full = 9
    with cache.use("d", "object", "d", 1000, make) as held:
        assert held is None
    assert list((tmp_path / "parts").iterdir()) == []


def test_a_full_cache_disk_holds_up_nothing(place: Place, tmp_path: Path) -> None:
    location = place.store.put(packed(a=b"1" * 100_000))
    with small_disk(tmp_path / "disk", "100k") as disk:
        place.install.cache = place.cache = Cache(disk / "cache", 2**30)
        assert (place.bring(location)[1] / "a").stat().st_size == 100_000
        assert place.keys() == []


def test_what_a_read_only_cache_has_is_used_and_the_rest_fetched(place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old, new = place.store.put(packed(a=b"old")), place.store.put(packed(a=b"new"))
    with small_disk(tmp_path / "disk", "1m") as disk:
        place.install.cache = place.cache = Cache(disk / "cache", 2**20)
        place.bring(old)
        remount(disk, "ro")
        for cache in (place.cache, Cache(disk / "cache", 2**20)):
            place.install.cache = place.cache = cache
            place.store.fetches = 0
            assert (place.bring(old)[1] / "a").read_bytes() == b"old" and place.store.fetches == 0
            assert (place.bring(new)[1] / "a").read_bytes() == b"new" and place.store.fetches == 1
        assert "can't be used just now" in caplog.text and "Read-only file system" in caplog.text


def test_what_finds_no_room_is_fetched_all_the_same(place: Place) -> None:
    place.install.cache = Cache(place.root / "small", 100)
    location = place.store.put(packed(a=b"1"))
    for _ in range(2):
        assert (place.bring(location)[1] / "a").read_bytes() == b"1"
    assert place.store.fetches == 2


def test_a_part_that_nobody_goes_on_with_is_removed_after_a_day(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 100)
    for name, age in (("old", 90_000), ("new", 80_000)):
        folder = tmp_path / "parts" / name
        folder.mkdir()
        (folder / ".data.part").write_text("half")
        for path in (folder / ".data.part", folder):
            os.utime(path, (time.time() - age,) * 2)
    (tmp_path / "trash" / "left").mkdir()
    use(cache, "a", 10)
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["new"]
    assert list((tmp_path / "trash").iterdir()) == []


@pytest.mark.parametrize("transient", [True, False])
def test_what_was_fetched_so_far_is_gone_on_with_after_a_transient_error(tmp_path: Path, transient: bool) -> None:
    cache = Cache(tmp_path, 100)

    def breaks(data: Path) -> Made:
        data.with_name(".data.part").write_text("half")
        raise StoreError("the line went dead", transient=transient)

    with pytest.raises(StoreError), cache.use("a", "object", "a", 10, breaks):
        pass
    assert (tmp_path / "parts" / "a" / ".data.part").exists() == transient
    assert use(cache, "a", 10)
    assert list((tmp_path / "parts").iterdir()) == []


@pytest.mark.parametrize("damage", [lambda folder: (folder / "data").write_bytes(b"less"), lambda folder: (folder / "data").unlink(),
                                    lambda folder: (folder / "entry.json").write_text("")])
def test_what_a_crash_of_the_host_left_is_made_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    cache = Cache(tmp_path, 100)
    use(cache, "a", 10)
    damage(tmp_path / "entries" / "a")
    assert use(Cache(tmp_path, 100), "a", 10) and list((tmp_path / "parts").iterdir()) == []


# -- trees --

def test_what_may_be_unpacked_holds_for_cached_trees_too(place: Place, with_trees: None) -> None:
    location = place.store.put(packed(a=bytes(5000), b=bytes(5000)))
    with pytest.raises(ArchiveError, match=r"data: unpacks to more than the 9\.8 KiB"):
        place.bring(location, limit=10_000)
    done, _ = place.bring(location, limit=10_000 + 2 * 4096)
    assert done and done.bytes == 10_000 + 2 * 4096
    with pytest.raises(ArchiveError, match=r"data: unpacks to more than the 9\.8 KiB"):
        place.bring(location, limit=10_000)
    assert place.store.fetches == 1


def test_a_tree_with_files_missing_is_made_again(place: Place, with_trees: None) -> None:
    location = place.store.put(packed(a=b"1", b=b"2"))
    place.bring(location)
    for damage in (lambda data: (data / "a").unlink(), lambda data: (data / "a").write_bytes(b"")):
        assert place.cache
        kept = next(entry for entry in place.cache.entries() if entry.kind == "tree")
        damage(kept.data)
        for _ in range(3):
            _, target = place.bring(location)
            assert {path.name: path.read_bytes() for path in target.iterdir()} == {"a": b"1", "b": b"2"}
        assert all(place.cache.is_right(entry) for entry in place.cache.entries())
    assert place.store.fetches == 1


def test_single_files_and_what_is_not_unpacked(place: Place, with_trees: None) -> None:
    single = place.store.put(packed(**{"./retval": b"x"}))
    plain = place.store.put(b"no tar at all", "weights.bin")
    for _ in range(2):
        assert place.bring(single)[1].read_bytes() == b"x"
        assert place.bring(plain, unpack=False)[1].read_bytes() == b"no tar at all"
    assert place.store.fetches == 2


@pytest.mark.parametrize("cached", [True, False])
def test_hdd_bounds_what_is_fetched_too(place: Place, cached: bool) -> None:
    place.install.cache = place.cache if cached else None
    plain = place.store.put(bytes(10_000), "weights.bin")
    with pytest.raises(StoreError, match=r"data: s3://host/bucket/weights.bin has 9\.8 KiB, .*hdd of the experiment"):
        place.bring(plain, unpack=False, limit=10_000)
    done, _ = place.bring(plain, unpack=False, limit=10_000 + 4096)
    assert done and done.bytes == 10_000 + 4096
    large = place.store.put(bytes(2**25), "large.tar")
    with pytest.raises(StoreError, match="has 32 MiB, which is more"):
        place.bring(large, limit=10_000)
    assert place.store.fetches == 1
    # A store that doesn't say how large an object is.
    place.store.stat = lambda location: Stat(-1, "1")  # type: ignore[method-assign]
    for options in ({}, {"unpack": False}):
        with pytest.raises(StoreError, match=r"larger than .* bytes"):
            place.bring(large, limit=10_000, **options)


def test_a_long_tag_is_no_long_file_name(place: Place) -> None:
    place.install.cache = None
    location = place.store.put(packed(a=b"1"))
    assert (place.bring(location, tag="\U0001f600" * 63)[1] / "a").read_bytes() == b"1"


def copied(source: Path, target: Path) -> None:
    (source / "sub" / "empty").mkdir(parents=True)
    (source / "run").write_bytes(os.urandom(300_000))
    (source / "run").chmod(0o750)
    os.utime(source / "run", (10**9, 10**9))
    (source / "sub" / "nothing").touch()
    (source / "sub" / "link").symlink_to("../run")
    (source / "sub" / "hard").hardlink_to(source / "run")
    (source / "sub").chmod(0o750)
    for folder in ("sub/empty", "sub", "."):
        os.utime(source / folder, (10**9, 10**9))
    assert clone_tree(source, target / "tree") == count_tree(source) == (2, 300_000)
    assert (target / "tree" / "run").samefile(target / "tree" / "sub" / "hard")
    assert [(target / "tree" / folder).stat().st_mtime for folder in ("sub/empty", "sub", ".")] == [10**9] * 3
    assert digest_of(source) == digest_of(target / "tree")
    assert (target / "tree" / "run").stat().st_mtime == 10**9
    copy_file(source / "run", target / "one")
    assert digest_of(source / "run") == digest_of(target / "one") == sha256((source / "run").read_bytes()).hexdigest()
    assert (target / "one").stat().st_mode & 0o777 == 0o750


def test_copies_of_trees_are_exact(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    copied(tmp_path / "source", tmp_path / "target")
    other = Path("/dev/shm/hpcrunner-test-copies")
    if other.parent.is_dir():  # another file system
        other.mkdir()
        try:
            copied(tmp_path / "source2", other)
            assert not can_clone(tmp_path, other)
        finally:
            shutil.rmtree(other)


@pytest.fixture(params=services.CLONING)
def cloning(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system that can clone."""
    make = services.require(request.param)
    assert isinstance(make, str)
    with mounted(make, tmp_path) as folder:
        yield folder


def test_trees_share_their_blocks_where_the_file_system_can(cloning: Path) -> None:
    (cloning / "target").mkdir()
    assert can_clone(cloning, cloning / "target")
    copied(cloning / "source", cloning / "target")
    place = Place(cloning, 2**27)
    location = place.store.put(packed(big=os.urandom(2**25)))
    place.bring(location, limit=2**30)
    os.sync()
    before = shutil.disk_usage(cloning).used
    for _ in range(20):  # 640 MiB on a disk of 400
        place.bring(location, limit=2**30)
    os.sync()
    assert shutil.disk_usage(cloning).used - before < 2**24
    assert place.store.fetches == 1


# -- kill -9 --

EVENTS = ("open", "os.", "shutil.", "fcntl.")
"""What Python tells audit hooks of: all that changes the disk, and more."""


def bring_some(root: Path, numbers: str) -> None:
    """A run that needs these artifacts, in a cache that has room for one of them and its tree."""
    shutil.rmtree(root / "run", ignore_errors=True)
    place = Place(root / "run", 0)
    place.install.cache = place.cache = Cache(root / "cache", 480_000)
    for number in map(int, numbers):
        done, target = place.bring(place.store.put(objects()[number]))
        assert done and {path.name: path.read_bytes() for path in target.iterdir()} == files(number)


def in_child(work: Callable[[], None], dies_at: int) -> bool:
    """Runs it in a process that kills itself when it is about to do the so-manieth thing. True if that happened."""
    child = os.fork()
    if not child:
        count = 0

        def hook(event: str, arguments: object) -> None:
            nonlocal count
            if event.startswith(EVENTS):
                count += 1
                if count == dies_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(hook)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status == signal.SIGKILL


def killed_at_each(tmp_path: Path, step: int) -> int:
    """Dies at every `step`th thing that fetching, unpacking and evicting does. Returns how many they were."""
    point = 0
    while True:
        point += step
        root = tmp_path / str(point)
        bring_some(root, "0")
        killed = in_child(lambda root=root: bring_some(root, "1"), point)  # type: ignore[misc]
        cache = Cache(root / "cache", 480_000)
        for entry in cache.entries():
            assert cache.is_right(entry) and entry.data.exists(), entry
        assert len(cache.entries()) == len(list((root / "cache" / "entries").iterdir())), "half an entry"
        bring_some(root, "12")
        assert [path.name for path in (root / "cache").iterdir() if path.name in ("parts", "trash") and any(path.iterdir())] == []
        shutil.rmtree(root)
        if not killed:
            return point // step


def test_killed_at_some_of_all_points(tmp_path: Path, with_trees: None) -> None:
    assert killed_at_each(tmp_path, 13) > 20


@pytest.mark.soak
def test_killed_at_each_point(tmp_path: Path, with_trees: None) -> None:
    print(f"\nkilled_at={killed_at_each(tmp_path, 1)} wrong_entries=0")


WORKER = '''
import random, shutil, sys, time
from pathlib import Path
import test_cache
from test_cache import *
from hpcrunner.config.site import Site
from hpcrunner.engine.install import open_store
from hpcrunner.stores import _ranged
from hpcrunner.stores.base import Access
root, seed = Path(sys.argv[1]), int(sys.argv[2])
tree.can_clone = lambda *_: True
chance = random.Random(seed)
original = _ranged._Download.run
def run(download, *rest):
    if any(at > start for start, at in download._at.items()): (root / "resumed").touch()
    original(download, *rest)
_ranged._Download.run = run
site = Site(state_dir=root / "state", transfer_part=32768, transfer_threads=2)
place = Place(root / f"runs-{seed}")
place.install.cache = place.cache = Cache(root / "cache", 900_000)
place.store = open_store(site, "http", Access(), "a test")
locations = sys.argv[3:]
(root / f"started-{seed}").touch()
while True:
    number = chance.randrange(len(locations))
    done, target = place.bring(locations[number])
    assert {path.name: path.read_bytes() for path in target.iterdir()} == files(number), "a wrong tree"
    shutil.rmtree(target)
    with (root / "brought").open("a") as file: file.write("x")
'''
OBJECTS = 6


def files(number: int) -> dict[str, bytes]:
    chance = random.Random(number)
    return {f"f{count}": chance.randbytes(chance.randrange(20_000)) for count in range(20)}


def objects() -> list[bytes]:
    return [packed(**files(number)) for number in range(OBJECTS)]


def campaign(root: Path, server: Server, kills: int, seed: int) -> int:
    """Kills pairs of processes that share a cache in which only some of what they need has room. Returns how many
    artifacts were brought."""
    chance = random.Random(seed)
    proxy = Proxy(server.url)
    proxy.rate = 300_000
    locations = []
    for content in objects():
        path = Path(server.told["data"], root.name, f"blobstore/{sha256(content).hexdigest()}.tar")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (10**9, 10**9))  # what was written just now may be written again unseen
        locations.append(f"{proxy.url}/{root.name}/blobstore/{path.name}")
    right = {sha256(content).hexdigest() for content in objects()}
    folders = set()
    for number in range(OBJECTS):
        source = root / "right" / str(number)
        source.mkdir(parents=True)
        for name, content in files(number).items():
            (source / name).write_bytes(content)
            (source / name).chmod(0o644)
        folders.add(digest_of(source))

    def start(number: int) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", WORKER, str(root), str(number), *locations], text=True, stderr=subprocess.PIPE,
                                env={**os.environ, "PYTHONPATH": str(TESTS)})

    workers = {number: start(number) for number in range(2)}
    try:
        for number in range(2, 2 + kills):
            victim = chance.choice(sorted(workers))
            killed = workers.pop(victim)
            while not (root / f"started-{victim}").exists() and killed.poll() is None:
                time.sleep(0.01)  # as long as a busy machine takes to start it
            time.sleep(chance.uniform(0.05, 0.5))
            killed.kill()
            said = killed.communicate()[1]
            assert killed.returncode == -signal.SIGKILL, f"ended by itself: {said}"
            cache = Cache(root / "cache", 900_000)
            for found in cache.entries():
                try:
                    digest = digest_of(found.data)
                except FileNotFoundError:
                    assert not found.folder.exists(), f"{found} has no data"  # evicted meanwhile
                    continue
                assert digest in (right if found.kind == "object" else folders) or not found.folder.exists(), found
            assert sum(found.size for found in cache.entries()) <= 900_000
            workers[number] = start(number)
    finally:
        for worker in workers.values():
            worker.kill()
            worker.communicate()
        proxy.close()
    return len((root / "brought").read_text())


@pytest.mark.service("http")
def test_kills(tmp_path: Path) -> None:
    brought = campaign(tmp_path, services.require("http"), 12, seed=1)
    assert brought > 0 and (tmp_path / "resumed").exists()


@pytest.mark.soak
@pytest.mark.service("http")
def test_many_kills(tmp_path: Path) -> None:
    brought = campaign(tmp_path, services.require("http"), 200, seed=2)
    print(f"\nkills=200 brought={brought} wrong_entries=0")
