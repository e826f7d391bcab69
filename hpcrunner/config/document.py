"""YAML files as text with line numbers, and the files that they extend.

Scalars are taken as they are written: an account `0123` or a Python version `3.10` is no number here. The kind
of each option decides what its text means.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpcrunner import resources
from hpcrunner.config.kinds import resolve
from hpcrunner.config.schema import Given, Origin, Problems, suggest
from hpcrunner.errors import ConfigError

_LARGEST_FILE = 2**20
_MOST_VALUES = 100_000
"""In one file, with aliases counted as what they stand for."""
_DEEPEST = 20
_MOST_EXTENDS = 10
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_NAME = re.compile(r"[a-z][a-z0-9_-]*")


def read(path: Path, environ: Mapping[str, str], problems: Problems) -> list[dict[str, Given]]:
    """The keys of a site config, after those of each file that it extends: later ones win. `path` may also be the
    bare name of a site config that ships with hpcrunner. What is wrong goes into `problems`; the rest is returned.
    """
    with problems:
        if _NAME.fullmatch(str(path)) and not path.exists():
            path = _shipped(str(path))
        return _layers(path, environ, (), problems)
    return []


def parse(text: str, origin: Origin, problems: Problems) -> dict[str, Given]:
    """The keys of one YAML document. What is wrong goes into `problems`."""
    import yaml

    # Events, not nodes: composing nodes recurses, and crashes the interpreter on deeply nested brackets.
    events = yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    with problems:
        try:
            return _Composer(events, origin, problems).keys()
        except yaml.YAMLError as error:
            place = f"{origin.name}:{_position(error, text)}"
            raise ConfigError(f"{place}: this is no YAML: {_explained(error)}") from None
    return {}


def merge(under: Mapping[str, Given], over: Mapping[str, Given]) -> dict[str, Given]:
    """Lists and scalars replace, mappings merge key by key; an entry without a value replaces too."""
    merged = dict(under)
    for key, given in over.items():
        below = merged.get(key)
        if below and isinstance(below.content, dict) and isinstance(given.content, dict):
            given = replace(given, content=merge(below.content, given.content))
        merged[key] = given
    return merged


def _layers(path: Path, environ: Mapping[str, str], above: tuple[Path, ...], problems: Problems, named_by: str = ""
            ) -> list[dict[str, Given]]:
    keys = parse(_text(path, named_by), Origin(str(path), path.parent, environ), problems)
    extends = keys.pop("extends", None)
    if extends is None or extends.content is None:
        return [keys]
    layers = []
    above = (*above, path)
    for given in extends.content if isinstance(extends.content, list) else [extends]:
        with problems:
            target = _target(given)
            if target.exists() and any(target.samefile(file) for file in above):
                circle = " -> ".join(file.name for file in (*above, target))
                raise given.problem("extends", f"goes in a circle: {circle}")
            if len(above) > _MOST_EXTENDS:
                raise given.problem("extends", f"more than {_MOST_EXTENDS} files extend one another")
            layers += _layers(target, environ, above, problems, f"{given.where}: extends: ")
    return [*layers, keys]


def _target(given: Given) -> Path:
    text = given.content
    if not isinstance(text, str):
        raise given.problem("extends", "allowed: the name of a shipped site config, a path, or a list of these")
    try:
        if _NAME.fullmatch(text):
            return _shipped(text)
        path = resolve(text, given.origin)
    except ValueError as error:
        raise given.problem("extends", f"holds {text!r} ({error})") from None
    except ConfigError as error:
        raise given.problem("extends", str(error)) from None
    # As short as it was written, for the messages that name it.
    return given.origin.folder / text if path == given.origin.folder.absolute() / text else path


def _shipped(name: str) -> Path:
    folder = resources.folder("site-configs")
    path = folder / f"{name}.yaml"
    if not path.exists():
        raise ConfigError(f"there is no file {name}, and no site config of this name ships with hpcrunner; "
                          + suggest(name, sorted(file.stem for file in folder.glob("*.yaml"))))
    return path


def _text(path: Path, named_by: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigError(f"{named_by}{path}: can't be read: {error.strerror}") from None
    if len(data) > _LARGEST_FILE:
        raise ConfigError(f"{named_by}{path}: is larger than {_LARGEST_FILE} bytes")
    try:
        return data.removeprefix(b"\xef\xbb\xbf").decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: is not UTF-8 text") from None


def _position(error: Any, text: str) -> str:
    if mark := getattr(error, "problem_mark", None) or getattr(error, "context_mark", None):
        return f"{mark.line + 1}:{mark.column + 1}"
    return str(text.count("\n", 0, getattr(error, "position", 0)) + 1)


def _explained(error: Any) -> str:
    parts = [getattr(error, "context", None), getattr(error, "problem", None) or getattr(error, "reason", None)]
    return ", ".join(part for part in parts if part) or str(error)


class _Composer:
    """Makes the tree from YAML's events, with bounds on its depth and on what aliases multiply."""

    def __init__(self, events: Iterator[Any], origin: Origin, problems: Problems) -> None:
        self._events = events
        self._origin, self._problems = origin, problems
        self._anchors: dict[str, tuple[Given, int]] = {}
        self._count = 0

    def keys(self) -> dict[str, Given]:
        import yaml

        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                break
        else:
            return {}
        start = next(self._events)
        tree = self._value(start, 0)
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                raise self._problem(event, "a second document begins; one file holds one")
        if isinstance(tree.content, dict):
            return tree.content
        if tree.content is not None:
            raise self._problem(start, "the file must be a mapping, with lines such as `max_cores: 8`")
        return {}

    def _value(self, event: Any, depth: int) -> Given:
        import yaml

        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        before = self._count
        self._add(event, 1)
        if depth > _DEEPEST:
            raise self._problem(event, f"nested more than {_DEEPEST} deep")
        content: str | list[Given] | dict[str, Given] | None
        if isinstance(event, yaml.ScalarEvent):
            content = None if _is_plain(event) and event.value in _NULL else event.value
            self._check_tag(event, "str")
        elif isinstance(event, yaml.SequenceStartEvent):
            content = [self._value(item, depth + 1) for item in self._until(yaml.SequenceEndEvent)]
            self._check_tag(event, "seq")
        else:
            content = self._mapping(depth + 1)
            self._check_tag(event, "map")
        given = Given(content, self._origin, event.start_mark.line + 1, event.start_mark.column + 1)
        if event.anchor:
            self._anchors[event.anchor] = given, self._count - before
        return given

    def _mapping(self, depth: int) -> dict[str, Given]:
        import yaml

        own: dict[str, Given] = {}
        inherited: dict[str, Given] = {}
        for event in self._until(yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise self._problem(event, "a key must be plain text")
            self._add(event, 1)
            key, value = event.value, self._value(next(self._events), depth)
            if key == "<<" and _is_plain(event):
                for table in value.content if isinstance(value.content, list) else [value]:
                    if not isinstance(table.content, dict):
                        raise self._problem(event, "<<: allowed: a mapping, or a list of mappings")
                    inherited = {**table.content, **inherited}
            elif key in own:
                self._problems += self._problem(
                    event, f"{key}: is there twice; first in line {own[key].key_at.partition(':')[0]}").problems
            else:
                mark: Any = event.start_mark
                own[key] = replace(value, key_at=f"{mark.line + 1}:{mark.column + 1}")
        return {**inherited, **own}

    def _alias(self, event: Any) -> Given:
        if event.anchor not in self._anchors:
            raise self._problem(event, f"*{event.anchor} stands for nothing that is complete before it")
        given, count = self._anchors[event.anchor]
        self._add(event, count)
        return given

    def _until(self, end: type) -> Iterator[Any]:
        for event in self._events:
            if isinstance(event, end):
                return
            yield event

    def _add(self, event: Any, count: int) -> None:
        self._count += count
        if self._count > _MOST_VALUES:
            raise self._problem(event, f"more than {_MOST_VALUES} values, with aliases counted as what they stand for")

    def _check_tag(self, event: Any, usual: str) -> None:
        if event.tag not in (None, "!", f"tag:yaml.org,2002:{usual}"):
            self._problems += self._problem(event, f"tags have no meaning here: {event.tag}").problems

    def _problem(self, event: Any, text: str) -> ConfigError:
        return ConfigError(f"{self._origin.name}:{event.start_mark.line + 1}:{event.start_mark.column + 1}: {text}")


def _is_plain(event: Any) -> bool:
    """Not in quotes, no block, no tag."""
    return event.tag is None and bool(event.implicit[0])
