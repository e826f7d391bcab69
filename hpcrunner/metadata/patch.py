"""JSON Merge Patch (RFC 7386), JSON Patch (RFC 6902) and JSON Pointer (RFC 6901).

Nothing is changed in place: each function returns a new document that shares with the old one what is equal. So a
patch whose last operation fails has done nothing, as RFC 6902, section 5, wants.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from json.encoder import encode_basestring_ascii
from typing import Any

DEEPEST = 100
"""Levels of a document; more would only serve to exhaust whoever reads it."""

_WANTS = {"add": ("value",), "replace": ("value",), "test": ("value",), "remove": (), "move": ("from",),
          "copy": ("from",)}


Allowed = Callable[[Any, str, Sequence[str]], bool]
"""Asked with the document, an operation, and the path of what it changes."""


class PatchError(ValueError):
    """The patch can't be applied; the text says which operation, and why."""


@dataclass
class Tally:
    """What changes of a document come to. It is kept up to date, as looking at all of a large document takes long."""

    grown: int = 0
    """Characters by which the document, as json.dumps writes it, has become longer."""
    work: int = 10**7
    """Members and characters that may still be looked at; then a PatchError ends it: small lines can make much work."""

    def spend(self, work: int) -> None:
        self.work -= work
        if self.work < 0:
            raise PatchError("takes too much work")

    def size(self, value: Any) -> int:
        size = len(encode_basestring_ascii(value) if isinstance(value, str) else json.dumps(value, allow_nan=False))
        self.spend(size)
        return size

    def put(self, parent: Any, name: str, size: int, sign: int = 1) -> None:
        """Before a value of that size gets a new place in `parent`; with the sign -1, after one has lost it."""
        comma = 2 if parent else 0
        colon = len(encode_basestring_ascii(name)) + 2 if isinstance(parent, dict) else 0
        self.grown += sign * (size + comma + colon)


def merge(target: Any, patch: Any, tally: Tally | None = None) -> Any:
    """RFC 7386, section 2: objects are merged member by member, null removes, anything else replaces.

    Raises PatchError if that is more work than `tally` allows.
    """
    tally = tally or Tally()
    if not isinstance(patch, dict):
        tally.grown += tally.size(patch) - tally.size(target)
        return patch
    if isinstance(target, dict):
        tally.spend(len(target))
        merged = dict(target)
    else:
        tally.grown += 2 - tally.size(target)
        merged = {}
    for name, value in patch.items():
        if value is not None:
            if name not in merged:
                tally.put(merged, name, 2)
                merged[name] = {}
            merged[name] = merge(merged[name], value, tally)
        elif name in merged:
            size = tally.size(merged.pop(name))
            tally.put(merged, name, size, -1)
    return merged


def apply(document: Any, patch: Sequence[Any], allowed: Allowed = lambda document, op, path: True,
          tally: Tally | None = None) -> Any:
    """The document after all operations. Raises PatchError."""
    tally, may_be_deep = tally or Tally(), False
    for number, operation in enumerate(patch, 1):
        try:
            document = _apply(document, operation, allowed, tally)
        except PatchError as error:
            raise PatchError(f"operation {number}: {error}") from None
        may_be_deep = may_be_deep or (operation["op"] == "move" and \
            operation["path"].count("/") > operation["from"].count("/"))
    # Once for all: what is moved may be most of the document.
    if may_be_deep and depth(document) > DEEPEST:
        raise PatchError(f"more than {DEEPEST} levels deep")
    return document


def depth(value: Any) -> int:
    """Levels of objects and arrays in a value; more than DEEPEST is only told as that. Needs no recursion."""
    level = [value]
    for number in range(DEEPEST + 1):
        level = [inner for one in level if isinstance(one, (dict, list))
                 for inner in (one.values() if isinstance(one, dict) else one)]
        if not level:
            return number
    return DEEPEST + 1


def parse_pointer(pointer: Any) -> list[str]:
    """The names of RFC 6901. Raises PatchError."""
    if not isinstance(pointer, str) or (pointer and not pointer.startswith("/")):
        raise PatchError(f"{pointer!r:.100} is no JSON pointer")
    names = pointer.split("/")[1:]
    if any("~" in name.replace("~0", "").replace("~1", "") for name in names):
        raise PatchError(f"{pointer!r:.100} is no JSON pointer: ~ must be written ~0")
    return [name.replace("~1", "/").replace("~0", "~") for name in names]


def _apply(document: Any, operation: Any, allowed: Allowed, tally: Tally) -> Any:
    if not isinstance(operation, Mapping):
        raise PatchError("is no object")
    op = operation.get("op")
    if not isinstance(op, str) or op not in _WANTS:
        raise PatchError(f"op is {op!r:.100}, not one of {', '.join(_WANTS)}")
    for name in ("path", *_WANTS[op]):
        if name not in operation:
            raise PatchError(f"{op} has no {name!r}")
    path = parse_pointer(operation["path"])
    source = parse_pointer(operation["from"]) if op in ("move", "copy") else []
    for changed in ([], [path], [path, source])[(op != "test") + (op == "move")]:
        if not allowed(document, op, changed):
            raise PatchError(f"{op} is not allowed at {'/' + '/'.join(changed)!r:.100}")
    if op == "test":
        if not equal(find(document, path), operation["value"]):
            raise PatchError(f"the value at {operation['path']!r:.100} is another")
        return document
    if op == "remove":
        return _change(document, path, _remover(tally.size(find(document, path)), tally), tally) if path else None
    if op == "move":
        value, size = find(document, source), 0  # which stays the same
        if path == source:
            return document
        if path[:len(source)] == source:
            raise PatchError("a value can't be moved into itself")
        document = _change(document, source, _remover(size, tally), tally)
    else:
        value = find(document, source) if op == "copy" else operation["value"]
        size = tally.size(value)
        if len(path) + depth(value) > DEEPEST:
            raise PatchError(f"more than {DEEPEST} levels deep")
    if op == "replace":
        find(document, path)
    if not path:
        tally.grown += tally.size(value) - tally.size(document)
        return value

    def put(parent: Any, name: str) -> None:
        if op == "replace" or (isinstance(parent, dict) and name in parent):
            key = _key(parent, name)
            tally.grown += size - tally.size(parent[key])
            parent[key] = value
            return
        if isinstance(parent, dict):
            tally.put(parent, name, size)
            parent[name] = value
        else:
            at = len(parent) if name == "-" else _index(parent, name, len(parent) + 1)
            tally.put(parent, name, size)
            parent.insert(at, value)

    return _change(document, path, put, tally)


def equal(one: Any, other: Any) -> bool:
    """RFC 6902, section 4.6: numbers by value, and true is no number."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def find(document: Any, path: Sequence[str]) -> Any:
    """What lies at the end of a path. Raises PatchError."""
    for name in path:
        document = document[_key(document, name)]
    return document


def _change(document: Any, path: Sequence[str], change: Callable[[Any, str], None], tally: Tally) -> Any:
    """A copy in which `change` was done to the container of what `path` names."""
    if not path:
        raise PatchError("the whole document can't be moved or removed")
    root = parent = _copy(document, path[0], tally)
    for name, following in pairwise(path):
        key = _key(parent, name)
        parent[key] = _copy(parent[key], following, tally)
        parent = parent[key]
    change(parent, path[-1])
    return root


def _copy(container: Any, name: str, tally: Tally) -> Any:
    if not isinstance(container, (dict, list)):
        raise PatchError(f"there is nothing that could hold {name!r:.100}")
    tally.spend(len(container))
    return container.copy()


def _remover(size: int, tally: Tally) -> Callable[[Any, str], None]:
    """Removes a value of that size."""
    def remove(parent: Any, name: str) -> None:
        del parent[_key(parent, name)]
        tally.put(parent, name, size, -1)

    return remove


def _key(container: Any, name: str) -> str | int:
    """Of a member that must exist."""
    if isinstance(container, list):
        return _index(container, name)
    if not isinstance(container, dict) or name not in container:
        raise PatchError(f"there is no {name!r:.100}")
    return name


def _index(items: list[Any], name: str, end: int | None = None) -> int:
    """RFC 6901, section 4: digits without leading zeros."""
    if not name.isascii() or not name.isdigit() or (len(name) > 1 and name[0] == "0") or len(name) > 9:
        raise PatchError(f"{name!r:.100} is no index")
    if int(name) >= (len(items) if end is None else end):
        raise PatchError(f"there is no item {name}")
    return int(name)
