"""What programs print as JSON: patches and merges by the RFCs' own examples, and input that means harm."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from hpcrunner.engine import scrape as scrape_module
from hpcrunner.engine.scrape import base62, scrape
from hpcrunner.errors import BusyError
from hpcrunner.layout import RunDir
from hpcrunner.metadata import document as document_module
from hpcrunner.metadata.document import LARGEST, LONGEST_LINE, Document
from hpcrunner.metadata.patch import DEEPEST, PatchError, apply, depth, merge
from hpcrunner.model import Run, State
from hpcrunner.wire.message import parse
from lab import Lab

# -- RFC 6902, appendix A, by number; None: an error --

RFC_6902: list[tuple[str, Any, list[Any], Any]] = [
    ("A.1", {"foo": "bar"}, [{"op": "add", "path": "/baz", "value": "qux"}], {"baz": "qux", "foo": "bar"}),
    ("A.2", {"foo": ["bar", "baz"]}, [{"op": "add", "path": "/foo/1", "value": "qux"}], {"foo": ["bar", "qux", "baz"]}),
    ("A.3", {"baz": "qux", "foo": "bar"}, [{"op": "remove", "path": "/baz"}], {"foo": "bar"}),
    ("A.4", {"foo": ["bar", "qux", "baz"]}, [{"op": "remove", "path": "/foo/1"}], {"foo": ["bar", "baz"]}),
    ("A.5", {"baz": "qux", "foo": "bar"}, [{"op": "replace", "path": "/baz", "value": "boo"}], {"baz": "boo", "foo": "bar"}),
    ("A.6", {"foo": {"bar": "baz", "waldo": "fred"}, "qux": {"corge": "grault"}},
     [{"op": "move", "from": "/foo/waldo", "path": "/qux/thud"}],
     {"foo": {"bar": "baz"}, "qux": {"corge": "grault", "thud": "fred"}}),
    ("A.7", {"foo": ["all", "grass", "cows", "eat"]}, [{"op": "move", "from": "/foo/1", "path": "/foo/3"}],
     {"foo": ["all", "cows", "eat", "grass"]}),
    ("A.8", {"baz": "qux", "foo": ["a", 2, "c"]},
     [{"op": "test", "path": "/baz", "value": "qux"}, {"op": "test", "path": "/foo/1", "value": 2}],
     {"baz": "qux", "foo": ["a", 2, "c"]}),
    ("A.9", {"baz": "qux"}, [{"op": "test", "path": "/baz", "value": "bar"}], None),
    ("A.10", {"foo": "bar"}, [{"op": "add", "path": "/child", "value": {"grandchild": {}}}],
     {"foo": "bar", "child": {"grandchild": {}}}),
    ("A.11", {"foo": "bar"}, [{"op": "add", "path": "/baz", "value": "qux", "xyz": 123}], {"foo": "bar", "baz": "qux"}),
    ("A.12", {"foo": "bar"}, [{"op": "add", "path": "/baz/bat", "value": "qux"}], None),
    ("A.14", {"/": 9, "~1": 10}, [{"op": "test", "path": "/~01", "value": 10}], {"/": 9, "~1": 10}),
    ("A.15", {"/": 9, "~1": 10}, [{"op": "test", "path": "/~01", "value": "10"}], None),
    ("A.16", {"foo": ["bar"]}, [{"op": "add", "path": "/foo/-", "value": ["abc", "def"]}], {"foo": ["bar", ["abc", "def"]]}),
    ("4.1 whole", {"a": 1}, [{"op": "add", "path": "", "value": [1]}], [1]),
    ("4.1 over", {"a": 1}, [{"op": "add", "path": "/a", "value": 2}], {"a": 2}),
    ("4.1 end", [1], [{"op": "add", "path": "/1", "value": 2}], [1, 2]),
    ("4.1 beyond", [1], [{"op": "add", "path": "/2", "value": 2}], None),
    ("4.2", {"a": 1}, [{"op": "remove", "path": "/b"}], None),
    ("4.3", {"a": 1}, [{"op": "replace", "path": "/b", "value": 1}], None),
    ("4.3 item", [1, 2], [{"op": "replace", "path": "/1", "value": 3}], [1, 3]),
    ("4.4 itself", {"a": {}}, [{"op": "move", "from": "/a", "path": "/a/b"}], None),
    ("4.4 same", {"a": 1}, [{"op": "move", "from": "/a", "path": "/a"}], {"a": 1}),
    ("4.5", {"a": [1]}, [{"op": "copy", "from": "/a", "path": "/b"}, {"op": "add", "path": "/b/-", "value": 2}],
     {"a": [1], "b": [1, 2]}),
    ("4.6 number", {"a": 1}, [{"op": "test", "path": "/a", "value": 1.0}], {"a": 1}),
    ("4.6 true", {"a": 1}, [{"op": "test", "path": "/a", "value": True}], None),
    ("4.6 deep", {"a": [{"b": True}]}, [{"op": "test", "path": "/a", "value": [{"b": 1}]}], None),
    ("5", {"a": 1}, [{"op": "add", "path": "/b", "value": 2}, {"op": "remove", "path": "/c"}], None),
    ("6901 zero", [1, 2], [{"op": "remove", "path": "/01"}], None),
    ("6901 minus", [1, 2], [{"op": "remove", "path": "/-"}], None),
    ("6901 empty", {"": 1}, [{"op": "remove", "path": "/"}], {}),
    ("6901 tilde", {"a": 1}, [{"op": "add", "path": "/~2", "value": 1}], None),
    ("6901 slash", {"a": 1}, [{"op": "remove", "path": "a"}], None),
    ("no op", {}, [{"path": "/a", "value": 1}], None),
    ("unknown op", {}, [{"op": "spam", "path": "/a"}], None),
    ("no value", {}, [{"op": "add", "path": "/a"}], None),
    ("no from", {"a": 1}, [{"op": "move", "path": "/a"}], None),
    ("scalar", {"a": 1}, [{"op": "add", "path": "/a/b", "value": 1}], None),
    ("gone", {"a": 1}, [{"op": "remove", "path": ""}], None),
]


@pytest.mark.parametrize(("name", "before", "patch", "after"), RFC_6902, ids=[case[0] for case in RFC_6902])
def test_a_patch_does_what_rfc_6902_says(name: str, before: Any, patch: list[Any], after: Any) -> None:
    kept = json.dumps(before)
    if after is None and name != "gone":
        with pytest.raises(PatchError, match="operation"):
            apply(before, patch)
    else:
        assert apply(before, patch) == after
    assert json.dumps(before) == kept, "the document itself was changed"


@pytest.mark.parametrize(("target", "patch", "result"), [  # RFC 7386, appendix A
    ({"a": "b"}, {"a": "c"}, {"a": "c"}), ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}), ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}), ({"a": ["b"]}, {"a": "c"}, {"a": "c"}), ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}), ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    (["a", "b"], ["c", "d"], ["c", "d"]), ({"a": "b"}, ["c"], ["c"]), ({"a": "foo"}, None, None), ({"a": "foo"}, "bar", "bar"),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}), ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
])
def test_a_fragment_is_merged_as_rfc_7386_says(target: Any, patch: Any, result: Any) -> None:
    kept = json.dumps(target)
    assert merge(target, patch) == result
    assert json.dumps(target) == kept


def test_depth() -> None:
    assert [depth(1), depth({}), depth([1]), depth({"a": [1, {"b": 1}]})] == [0, 0, 1, 3]


# -- lines --


def read(*lines: Any, document: Document | None = None) -> Document:
    document = document or Document()
    for line in lines:
        document.take(line if isinstance(line, bytes) else json.dumps(line).encode())
    return document


def test_lines_that_are_whole_json_build_the_document_in_order() -> None:
    document = read(b"epoch 1", {"experiment": {"loss": 3, "name": "x"}}, b'{"experiment": {"loss": 2}} and more', b"[hpcrunner] x]",
                    {"experiment": {"loss": 1}}, [{"op": "add", "path": "/experiment/epochs", "value": []}],
                    [{"op": "add", "path": "/experiment/epochs/-", "value": {"n": 1}}], b"[1, 2, 3]", b"", b"{", b"[]", b'"text"',
                    b'  {"b": true}  ')
    assert document.value == {"experiment": {"loss": 1, "name": "x", "epochs": [{"n": 1}]}, "b": True}
    assert document.refused == 0


@pytest.mark.parametrize("line", [
    b'{"a": NaN}', b'{"a": Infinity}', b'{"a": "\xff"}', b"[" * 100_000 + b"]" * 100_000, b'{"a": ' + b"9" * 5000 + b"}",
    b"{" + b" " * LONGEST_LINE + b"}",
])
def test_lines_that_are_no_json_are_left_alone(line: bytes) -> None:
    assert read({"a": 1}, line).value == {"a": 1}


@pytest.mark.parametrize("line", [
    [{"op": "remove", "path": "/studioml"}], [{"op": "remove", "path": "/studioml/host"}],
    [{"op": "replace", "path": "/studioml/host", "value": "evil"}], [{"op": "move", "from": "/studioml/host", "path": "/a"}],
    [{"op": "move", "from": "/b", "path": "/studioml/host"}], [{"op": "copy", "from": "/b", "path": "/studioml/host"}],
    [{"op": "add", "path": "", "value": {}}], [{"op": "replace", "path": "", "value": {}}], [{"op": "copy", "from": "/b", "path": ""}],
    [{"op": "remove", "path": ""}], {"studioml": None}, {"studioml": {"host": "evil"}}, {"studioml": {"host": None}}, {"studioml": 1},
    [{"op": "replace", "path": "/~0studioml", "value": 1}],
    # The last one fails, so the first one does nothing.
    [{"op": "add", "path": "/c", "value": 1}, {"op": "remove", "path": "/studioml/host"}],
])
def test_what_is_ours_is_only_added_to(line: Any) -> None:
    before: dict[str, Any] = {"studioml": {"host": "n1"}, "b": 1}
    assert read(line, document=Document(json.loads(json.dumps(before)))).value == before


def test_under_studioml_a_program_may_add() -> None:
    document = Document({"studioml": {"host": "n1", "log": []}})
    read([{"op": "add", "path": "/studioml/log/-", "value": {"msg": "m"}}], {"studioml": {"more": {"x": 1}}}, document=document)
    assert document.value == {"studioml": {"host": "n1", "log": [{"msg": "m"}], "more": {"x": 1}}}


def test_the_document_is_bounded_in_size() -> None:
    document = read(*({f"k{number}": "x" * 100_000} for number in range(20)))
    assert len(json.dumps(document.value)) <= LARGEST
    assert len(document.value) == 10 and document.refused == 10
    # Values that replace others need no room.
    small = read(*({"loss": "x" * 100_000} for _ in range(50)))
    assert small.refused == 0


@pytest.mark.parametrize("value", ["x" * 1000, "\U0001f600" * 500, [1e15] * 500, "\x7f\u00e4" * 500])
def test_the_bound_counts_what_is_written(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document_module, "LARGEST", 2**16)
    document = read(*(json.dumps({f"k{number}": value}, ensure_ascii=False).replace("1000000000000000.0", "1e15").encode()
                      for number in range(100)))
    assert document.refused and 2**15 < len(json.dumps(document.value)) <= 2**16


def test_copies_of_copies_do_not_explode() -> None:
    doubling = [{"op": "copy", "from": "/a", "path": "/a/b"}, {"op": "copy", "from": "/a", "path": "/a/c"}]
    before = time.monotonic()
    document = read({"a": {"x": "x" * 1000}}, *([doubling] * 40), [*(doubling * 20)])
    assert len(json.dumps(document.value)) <= LARGEST and document.refused
    assert time.monotonic() - before < 20


def test_the_document_is_bounded_in_depth() -> None:
    deep: Any = 1
    for _ in range(DEEPEST):
        deep = {"a": deep}
    assert read({"b": deep}).value == {}
    document = read({"a": {}}, *([{"op": "copy", "from": "/a", "path": "/a" * number}] for number in range(2, 300)))
    assert depth(document.value) <= DEEPEST
    document = read({"a": {}}, *([{"op": "add", "path": "/a" * number, "value": {}}] for number in range(2, 300)))
    assert depth(document.value) <= DEEPEST and document.refused


# -- reading on --


def test_the_output_is_read_on_where_it_was_left() -> None:
    output, document = io.BytesIO(b'{"a": 1}\n{"b": 2'), Document()
    document.read(output, is_complete=False, seconds=9)
    assert (document.value, document.offset) == ({"a": 1}, 9)
    output.seek(0, 2)
    output.write(b'}\n[{"op": "add", "path": "/c", "value": []}]\n[{"op": "add", "path": "/c/-", "value": 1}]\n{"d": 1}')
    for is_complete in (False, False, True, True):
        again = Document(**json.loads(json.dumps(vars(document))))  # as another process does
        again.read(output, is_complete=is_complete, seconds=9)
        document = again
    assert document.value == {"a": 1, "b": 2, "c": [1], "d": 1}
    # A program that empties its log begins at its beginning.
    document.read(io.BytesIO(b'{"e": 1}\n'), is_complete=False, seconds=9)
    assert document.value["e"] == 1


def test_a_long_line_is_passed_over_piece_by_piece() -> None:
    tail = b'{"evil": 1}'
    for before in (LONGEST_LINE, LONGEST_LINE + 1, 3 * LONGEST_LINE + 5):
        document = Document()
        output = io.BytesIO(b'{"a": 1}\n' + b"x" * before)
        document.read(output, is_complete=False, seconds=9)
        output.write(b"x" * before + tail + b'\n{"b": 2}\n')  # the file's position is at its end
        document.read(output, is_complete=False, seconds=9)
        assert document.value == {"a": 1, "b": 2}


def test_no_more_time_is_spent_than_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def monotonic() -> float:
        now[0] += 1
        return now[0]

    monkeypatch.setattr(document_module, "monotonic", monotonic)
    document, output = Document(), io.BytesIO(b"".join(b'{"k%d": 1}\n' % number for number in range(100)))
    document.read(output, is_complete=True, seconds=9)
    assert len(document.value) == 10
    document.read(output, is_complete=True, seconds=9)
    assert len(document.value) == 20


# -- the artifact --


def test_the_name_is_that_of_the_go_runner() -> None:
    assert [base62(number) for number in (0, 9, 10, 35, 36, 61, 62, 62**3)] == ["0", "9", "A", "Z", "a", "z", "10", "1000"]


def placed(tmp_path: Path, *, metadata: bool = True) -> tuple[Any, Run, RunDir]:
    lab = Lab(tmp_path / "lab")
    message = lab.message("e", project="p")
    message["experiment"]["artifacts"]["tb"]["qualified"] = "s3://user:secret@host/b/tb.tar"
    if not metadata:
        del message["experiment"]["artifacts"]["_metadata"]
    run_dir = RunDir(tmp_path / "run", "e")
    for folder in (run_dir.status, run_dir.experiment / "output"):
        folder.mkdir(parents=True)
    run_dir.style_file.write_text("new")
    (run_dir.status / "started").write_text("1000000.5\n")
    return parse(json.dumps(message).encode()), Run(1, "q", "e", State.RUNNING, host="n/1"), run_dir


def test_the_artifact_has_the_programs_document_and_our_facts(tmp_path: Path) -> None:
    experiment, run, run_dir = placed(tmp_path)
    log = run_dir.log(True)
    log.write_text('start\n{"experiment": {"loss": 1}, "studioml": {"host": "evil", "mine": 1}}\n')
    scrape(experiment, run, run_dir, is_over=False)
    [path] = (run_dir.experiment / "_metadata").iterdir()
    assert path.name == "scrape-host-n_1-4C92.json"
    first = json.loads(path.read_text())
    assert first["experiment"] == {"loss": 1}
    ours = first["studioml"]
    assert (ours["host"], ours["mine"], ours["experiment"]) == ("n/1", 1, {"key": "e", "project": "p"})
    assert ours["start_time"] == "1970-01-12T13:46:40.500000+00:00" and "stop_time" not in ours and ours["load_time"]
    assert ours["artifacts"]["tb"] == "s3://host/b/tb.tar" and "workspace" in ours["artifacts"]
    with log.open("a") as file:
        file.write('{"experiment": {"loss": 0}}')
    # It goes on elsewhere, and ends.
    ended = Run(1, "q", "e", State.ENDING, host="n2", started_at=2e6, finished_at=3e6)
    scrape(experiment, ended, run_dir, is_over=True)
    [path] = (run_dir.experiment / "_metadata").iterdir()
    last = json.loads(path.read_text())
    assert last["experiment"] == {"loss": 0}
    assert (last["studioml"]["host"], last["studioml"]["stop_time"]) == ("n2", "1970-02-04T17:20:00+00:00")


def test_without_the_artifact_nothing_is_gathered(tmp_path: Path) -> None:
    experiment, run, run_dir = placed(tmp_path, metadata=False)
    scrape(experiment, run, run_dir, is_over=True)
    assert not (run_dir.experiment / "_metadata").exists()


def test_whatever_a_program_left_there_does_no_harm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    experiment, run, run_dir = placed(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    folder = run_dir.experiment / "_metadata"
    folder.symlink_to(elsewhere)
    scrape(experiment, run, run_dir, is_over=True)
    assert not any(elsewhere.iterdir()) and "can't be gathered" in caplog.text
    folder.unlink()
    folder.mkdir()
    (folder / ".scrape-host-n_1-4C92.json.part").symlink_to(elsewhere / "file")
    scrape(experiment, run, run_dir, is_over=True)
    assert not any(elsewhere.iterdir())
    for kept in ("[" * 9999, "{}", '{"name": "x", "offset": -5}', '{"name": "x", "value": 3}', "null"):
        run_dir.scraped_file.write_text(kept)
        scrape(experiment, run, run_dir, is_over=True)


def test_at_the_end_all_lines_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last ones are those that count."""
    experiment, run, run_dir = placed(tmp_path)
    monkeypatch.setattr(scrape_module, "_SECONDS", 0.0)
    run_dir.log(True).write_text("".join(f'{{"loss": {number}}}\n' for number in range(5)))
    looks: list[int] = []
    assert scrape(experiment, run, run_dir, is_over=False) == ()
    assert document_of(run_dir)["loss"] == 0, "a checkpoint takes no longer than it may"
    assert scrape(experiment, run, run_dir, is_over=True, check=lambda: looks.append(1)) == ()
    assert document_of(run_dir)["loss"] == 4 and len(looks) == 4
    # Not for ever; and somebody who has lost the lease stops.
    monkeypatch.setattr(scrape_module, "_SECONDS_AT_THE_END", -1.0)
    with run_dir.log(True).open("a") as file:
        file.write('{"loss": 5}\n{"loss": 6}\n')
    assert scrape(experiment, run, run_dir, is_over=True) == (
        "_metadata: the last 12 bytes of the output were not looked at, it took too long",)

    def lost() -> None:
        raise BusyError("taken over")

    with pytest.raises(BusyError):
        scrape(experiment, run, run_dir, is_over=True, check=lost)


def test_lines_that_can_not_be_used_are_told(tmp_path: Path) -> None:
    experiment, run, run_dir = placed(tmp_path)
    run_dir.log(True).write_text('{"a": 1}\n[{"op": "remove", "path": "/b"}]\n')
    for _ in range(2):
        [note] = scrape(experiment, run, run_dir, is_over=True)
        assert note.startswith("_metadata: 1 lines of JSON could not be used")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    experiment, run, run_dir = placed(tmp_path)
    folder = run_dir.experiment / "_metadata"
    folder.mkdir()
    for path in (run_dir.log(True), folder / "scrape-host-n_1-4C92.json", folder / ".scrape-host-n_1-4C92.json.part"):
        os.mkfifo(path)
    assert scrape(experiment, run, run_dir, is_over=True) == ()
    assert document_of(run_dir)["studioml"]["host"] == "n/1"


def document_of(run_dir: RunDir) -> Any:
    return json.loads((run_dir.experiment / "_metadata" / "scrape-host-n_1-4C92.json").read_text())


def test_it_comes_back_with_the_results(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.submit("e", 'print(\'{"experiment": {"accuracy": 0.5}}\'); raise SystemExit(1)')
    lab.run_all()
    [(name, data)] = lab.result("e", "_metadata").items()
    assert name.startswith("scrape-host-")
    document = json.loads(data)
    assert document["experiment"] == {"accuracy": 0.5} and document["studioml"]["stop_time"]
