"""Builds the document out of the lines that a program prints, without believing any of them.

Every line that is a complete JSON object is merged in, every one that is an array of patch operations is applied, in
order, as the Go runner (0.9.4 to 0.14) did. What hpcrunner says of the run stands under `/studioml`: there a program
may only add.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, BinaryIO

from hpcrunner.metadata.patch import DEEPEST, PatchError, apply, depth, find, merge

LONGEST_LINE = 256 * 1024
"""Bytes; a longer line is no metadata."""
LARGEST = 2**20
"""Bytes of the document as JSON; a line that would make it larger is left out."""
_MOST_OPERATIONS = 1000
"""In one line."""
_OURS = "studioml"


@dataclass
class Document:
    """What was read of a program's output so far. Can be kept as JSON and gone on with."""

    value: dict[str, Any] = field(default_factory=dict)
    offset: int = 0
    """Bytes of the output that have been read."""
    is_in_long_line: bool = False
    size: int = 2
    """Bytes, an upper bound."""
    refused: int = 0
    """Lines that were JSON, but could not be applied."""

    def read(self, output: BinaryIO, *, is_complete: bool, seconds: float) -> None:
        """Goes on where it stopped the last time. At most `seconds` are spent; what is left is for the next time.

        A last line without its end is read when the output `is_complete`.
        """
        if output.seek(0, 2) < self.offset:
            self.offset, self.is_in_long_line = 0, False  # The program has emptied its own log.
        output.seek(self.offset)
        until = monotonic() + seconds
        for line in self._lines(output, is_complete):
            self.take(line)
            if monotonic() > until:
                break

    def take(self, line: bytes) -> bool:
        """Whether the document has changed by this line."""
        line = line.strip()
        if line[:1] + line[-1:] not in (b"{}", b"[]") or len(line) > LONGEST_LINE:
            return False
        try:
            parsed = json.loads(line, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return False
        if isinstance(parsed, list) and not all(isinstance(one, dict) and "op" in one for one in parsed):
            return False  # Just something in brackets.
        try:
            if depth(parsed) > DEEPEST:
                raise PatchError(f"more than {DEEPEST} levels deep")
            value, grown = self._merge(parsed) if isinstance(parsed, dict) else self._patch(parsed)
            # Six: a letter may be written as \u00e4, and 1e15 with all its zeros.
            size = self.size + 6 * len(line) + grown
            if size > LARGEST:
                size = len(json.dumps(value))
            if size > LARGEST:
                raise PatchError(f"the document would be larger than {LARGEST >> 20} MiB")
        except PatchError:
            self.refused += 1
            return False
        self.size = size
        changed = value is not self.value
        self.value = value
        return changed

    def _merge(self, fragment: dict[str, Any]) -> tuple[dict[str, Any], int]:
        theirs = {name: value for name, value in fragment.items() if name != _OURS}
        value = merge(self.value, theirs)
        if isinstance(fragment.get(_OURS), dict):
            value[_OURS] = _added(value.get(_OURS, {}), fragment[_OURS])
        return value, 0

    def _patch(self, operations: list[Any]) -> tuple[dict[str, Any], int]:
        if len(operations) > _MOST_OPERATIONS:
            raise PatchError(f"more than {_MOST_OPERATIONS} operations")
        value, grown = self.value, 0
        for operation in operations:
            after = apply(value, [operation], _is_allowed)
            if operation["op"] == "copy":
                # Few bytes of a line may make many of the document.
                grown += len(json.dumps(find(value, operation["from"])))
                if grown > LARGEST:
                    raise PatchError("copies too much")
            value = after
        return value, grown

    def _lines(self, output: BinaryIO, is_complete: bool) -> Iterator[bytes]:
        while line := output.readline(LONGEST_LINE + 1):
            has_end = line.endswith(b"\n")
            is_long = self.is_in_long_line or len(line) > LONGEST_LINE
            if not (has_end or is_long or is_complete):
                return  # It is still being written.
            self.offset += len(line)
            self.is_in_long_line = is_long and not has_end
            if not is_long:
                yield line


def _is_allowed(op: str, pointer: str) -> bool:
    """The document stays an object, and what is ours is only added to."""
    if pointer == "":
        return False
    return op == "add" or not (pointer == f"/{_OURS}" or pointer.startswith(f"/{_OURS}/"))


def _added(ours: Any, theirs: dict[str, Any]) -> Any:
    """What is there stays."""
    if not isinstance(ours, dict):
        return ours
    result = dict(ours)
    for name, value in theirs.items():
        if name not in result:
            result[name] = value
        elif isinstance(value, dict):
            result[name] = _added(result[name], value)
    return result


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
