"""JSON Merge Patch (RFC 7386), JSON Patch (RFC 6902) and JSON Pointer (RFC 6901).

Nothing is changed in place: each function returns a new document that shares with the old one what is equal. So a
patch whose last operation fails has done nothing, as RFC 6902, section 5, wants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

DEEPEST = 100
"""Levels of a document; more would only serve to exhaust whoever reads it."""

_WANTS = {"add": ("value",), "replace": ("value",), "test": ("value",), "remove": (), "move": ("from",),
          "copy": ("from",)}


class PatchError(ValueError):
    """The patch can't be applied; the text says which operation, and why."""


def merge(target: Any, patch: Any) -> Any:
    """RFC 7386, section 2: objects are merged member by member, null removes, anything else replaces."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value)
    return merged


def apply(document: Any, patch: Sequence[Any], allowed: Callable[[str, str], bool] = lambda op, pointer: True) -> Any:
    """The document after all operations. `allowed` is asked with an operation and each pointer that it changes.

    Raises PatchError.
    """
    for number, operation in enumerate(patch, 1):
        try:
            document = _apply(document, operation, allowed)
        except PatchError as error:
            raise PatchError(f"operation {number}: {error}") from None
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


def _apply(document: Any, operation: Any, allowed: Callable[[str, str], bool]) -> Any:
    if not isinstance(operation, Mapping):
        raise PatchError("is no object")
    op = operation.get("op")
    if not isinstance(op, str) or op not in _WANTS:
        raise PatchError(f"op is {op!r:.100}, not one of {', '.join(_WANTS)}")
    for name in ("path", *_WANTS[op]):
        if name not in operation:
            raise PatchError(f"{op} has no {name!r}")
    path = parse_pointer(operation["path"])
    for pointer in (operation["path"], *([operation["from"]] if op == "move" else [])):
        if op != "test" and not allowed(op, pointer):
            raise PatchError(f"{op} is not allowed at {pointer!r:.100}")
    if op == "test":
        if not equal(_find(document, path), operation["value"]):
            raise PatchError(f"the value at {operation['path']!r:.100} is another")
        return document
    if op in ("move", "copy"):
        source = parse_pointer(operation["from"])
        value = _find(document, source)
        if op == "move":
            if path[:len(source)] == source and path != source:
                raise PatchError("a value can't be moved into itself")
            document = _change(document, source, _remove) if path != source else document
    else:
        value = operation.get("value")
    if op != "remove" and len(path) + depth(value) > DEEPEST:
        raise PatchError(f"more than {DEEPEST} levels deep")
    if op in ("remove", "replace"):
        _find(document, path)
    if not path:
        return None if op == "remove" else value
    if op == "remove":
        return _change(document, path, _remove)

    def put(parent: Any, name: str) -> None:
        if isinstance(parent, dict):
            parent[name] = value
        elif op == "replace":
            parent[_index(parent, name)] = value
        else:
            parent.insert(len(parent) if name == "-" else _index(parent, name, len(parent) + 1), value)

    return _change(document, path, put)


def equal(one: Any, other: Any) -> bool:
    """RFC 6902, section 4.6: numbers by value, and true is no number."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def find(document: Any, pointer: Any) -> Any:
    """The value that a pointer names. Raises PatchError."""
    return _find(document, parse_pointer(pointer))


def _find(document: Any, path: Sequence[str]) -> Any:
    for name in path:
        document = document[_key(document, name)]
    return document


def _change(document: Any, path: Sequence[str], change: Callable[[Any, str], None]) -> Any:
    """A copy in which `change` was done to the container of what `path` names."""
    if not path:
        raise PatchError("the whole document can't be moved or removed")
    root = parent = _copy(document, path[0])
    for name, following in pairwise(path):
        key = _key(parent, name)
        parent[key] = _copy(parent[key], following)
        parent = parent[key]
    change(parent, path[-1])
    return root


def _copy(container: Any, name: str) -> Any:
    if not isinstance(container, (dict, list)):
        raise PatchError(f"there is nothing that could hold {name!r:.100}")
    return container.copy()


def _remove(parent: Any, name: str) -> None:
    del parent[_key(parent, name)]


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
